"""How well the gradients of two rules agree, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neuropil.data import Dataset
from neuropil.learning.backpropagation import Backpropagation
from neuropil.learning.rule import LearningRule
from neuropil.learning.stages import Inputs, undisturbed

__all__ = ["alignment", "borrowed", "gradient_angles"]

Gradients = dict[str, Tensor]


def alignment(
    rule: LearningRule,
    x: Inputs,
    y: Tensor | None = None,
    *,
    reference: LearningRule | None = None,
    size: int | None = None,
) -> pd.DataFrame:
    """Compare the gradients that two rules give to one network.

    Nothing is left behind: `.grad`, running statistics and the random state are as before.

    Args:
        rule: the rule to judge.
        x: inputs, (batch, ...), or several arguments of the net as a tuple or mapping (then compared as one batch).
        y: targets, (batch, ...).
        reference: rule on the same network; None for backpropagation of the rule's loss.
        size: samples a comparison: 1 compares sample by sample; None takes the batch as one.

    Returns:
        One row a module that owns parameters, in the order of the net: layer, cosine_mean and cosine_std over the
        comparisons (standard deviation 0 for a single one; NaN cosines where a gradient is exactly zero), norm_ratio
        (mean of |rule| / |reference|).

    Raises:
        ValueError: if the reference trains another network, or `size` is less than 1, or given with several arguments.
    """
    reference = Backpropagation(rule.net, rule.loss_fn) if reference is None else reference
    if reference.net is not rule.net:
        raise ValueError("The reference trains another network: make both rules on the same one.")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    if size is None:
        parts = [(x, y)]
    elif isinstance(x, Tensor):
        parts = list(zip(x.split(size), [None] * len(x) if y is None else y.split(size), strict=False))
    else:
        raise ValueError("size needs x to be one tensor: several arguments are compared as one batch.")
    rows = []
    for samples, targets in parts:
        ours, theirs = _gradients(rule, samples, targets), _gradients(reference, samples, targets)
        rows += [
            {"layer": layer, "cosine": _cosine(ours[layer], theirs[layer]), "ratio": _ratio(ours[layer], theirs[layer])}
            for layer in ours
        ]
    grouped = pd.DataFrame(rows).groupby("layer", sort=False)
    table = pd.DataFrame(
        {
            "cosine_mean": grouped["cosine"].mean(),
            "cosine_std": grouped["cosine"].std(ddof=0),
            "norm_ratio": grouped["ratio"].mean(),
        }
    )
    return table.reset_index()


def gradient_angles(rule: LearningRule, data: Dataset, *, samples: int = 256) -> dict[str, float]:
    """Degrees between a rule's gradient and that of its loss, at the first training samples: a measure for `compare`.

    Returns:
        "angle", the mean over layers, and "angle <layer>"; NaN where a gradient is zero or the rule has no loss.

    Raises:
        ValueError: if `samples` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    if rule.loss_fn is None:
        return {"angle": float("nan")}
    rule.net.train()
    table = alignment(rule, data.x_train[:samples], data.y_train[:samples])
    cosines = table["cosine_mean"].clip(-1, 1).to_numpy(dtype=float)
    angles = dict(zip(table["layer"], np.degrees(np.arccos(cosines)).tolist(), strict=True))
    known = [angle for angle in angles.values() if np.isfinite(angle)]
    mean = float(np.mean(known)) if known else float("nan")
    return {"angle": mean, **{f"angle {layer}": angle for layer, angle in angles.items()}}


def _gradients(rule: LearningRule, x: Inputs, y: Tensor | None) -> Gradients:
    """The rule's gradients, one flat vector a module of the net."""
    with borrowed(rule.net), borrowed(rule), undisturbed(rule.net), undisturbed(rule):
        rule.backward(x, y)
        layers: dict[str, list[Tensor]] = {}
        for name, parameter in rule.net.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            layers.setdefault(name.rpartition(".")[0] or name, []).append(gradient.flatten())
        return {layer: torch.cat(parts).double() for layer, parts in layers.items()}


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Clear `.grad`, and put back afterwards what was there."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _cosine(first: Tensor, second: Tensor) -> float:
    norms = float(first.norm() * second.norm())
    return float(first @ second) / norms if norms > 0 else float("nan")


def _ratio(first: Tensor, second: Tensor) -> float:
    norm = float(second.norm())
    return float(first.norm()) / norm if norm > 0 else float("nan")
