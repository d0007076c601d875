"""How well teaching signals agree with those of backpropagation, at the outputs of stages and sample by sample.

    cos_s = <t_s, g_s> / (|t_s| |g_s|)      t_s: what the rule sends to h_i of sample s,   g_s = dL/dh_i of the same

taken where the signal arrives: after the activation, norm and pool that end a stage. Both passes see the same weights,
mode and dropout masks. `alignment` compares the gradients of the weights instead.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.data import Dataset
from neuropil.learning.alignment import borrowed
from neuropil.learning.backpropagation import Backpropagation
from neuropil.learning.rule import LearningRule
from neuropil.learning.stages import Inputs, Stages, undisturbed
from neuropil.learning.training import evaluate, train_epoch

__all__ = ["alignment_history", "signal_alignment", "signal_cosines"]

INPUT = "input of "  # how Stages names a cut in front of a module


def signal_alignment(
    rule: LearningRule,
    x: Inputs,
    y: Tensor | None = None,
    *,
    reference: LearningRule | None = None,
    points: Sequence[str] | str | None = None,
) -> pd.DataFrame:
    """Compare what two rules send to the outputs of hidden stages.

    Nothing is left behind: `.grad`, running statistics and the random state are as before.

    Args:
        rule: the rule to judge; its first packet counts.
        x: inputs, (batch, ...), or several arguments of the net as a tuple or mapping.
        y: targets, (batch, ...).
        reference: rule on the same network; None for backpropagation of the rule's loss.
        points: where to look, as in `Stages`; None for the rule's own stages where it has some.

    Returns:
        One row a point, in the order of the forward pass: point, cosine_mean and cosine_std over samples (the first
        axis of the point), norm_ratio (mean of |rule| / |reference|). Samples without a signal of either rule are left
        out; NaN where none is left.

    Raises:
        ValueError: if the reference trains another network, or the net cannot be cut there.
    """
    reference = Backpropagation(rule.net, rule.loss_fn) if reference is None else reference
    if reference.net is not rule.net:
        raise ValueError("The reference trains another network: make both rules on the same one.")
    own = getattr(rule, "stages", None)
    stages = own if points is None and isinstance(own, Stages) else Stages(rule.net, points)
    with undisturbed(rule.net), torch.no_grad():
        stages(x)  # from now on the names are those of the points that are passed, in order
    ours, theirs = (_signals(teacher, x, y, stages.names) for teacher in (rule, reference))
    rows = [_compared(name, *pair) for name, *pair in zip(stages.names, ours, theirs, strict=True)]
    return pd.DataFrame(rows, columns=["point", "cosine_mean", "cosine_std", "norm_ratio"])


def signal_cosines(rule: LearningRule, data: Dataset, *, samples: int = 256) -> dict[str, float]:
    """Mean cosine at every hidden stage, for the first training samples, in training mode: a measure for `compare`.

    Returns:
        "cosine", the mean over stages, and "cosine 1", "cosine 2", ... from the input up.

    Raises:
        ValueError: if `samples` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    rule.net.train()
    means = signal_alignment(rule, data.x_train[:samples], data.y_train[:samples])["cosine_mean"].to_numpy(dtype=float)
    known = means[np.isfinite(means)]
    return {
        "cosine": float(known.mean()) if known.size else float("nan"),
        **{f"cosine {index}": float(mean) for index, mean in enumerate(means, 1)},
    }


def alignment_history(
    rule: LearningRule,
    optimizer: Optimizer,
    data: Dataset,
    *,
    epochs: int,
    every: int = 5,
    samples: int = 256,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Train, and look at the signals before learning, every few epochs, and after the last.

    Args:
        rule: the rule to train with.
        optimizer: of its parameters.
        data: training samples, of which the first are looked at, and test samples.
        epochs: passes over the training set.
        every: epochs between two looks.
        samples: how many samples a look takes.
        batch_size: samples an update.
        generator: of the order of the batches.

    Returns:
        One row a look and point: epoch, accuracy (fraction of the test set), and the columns of `signal_alignment`.

    Raises:
        ValueError: if a number is less than 1.
        FloatingPointError: if the loss is no longer finite.
    """
    for name, value in (("epochs", epochs), ("every", every), ("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    looks = []
    for epoch in range(epochs + 1):
        if epoch > 0:
            train_epoch(rule, optimizer, data, batch_size=batch_size, generator=generator)
        if epoch % every == 0 or epoch == epochs:
            accuracy = evaluate(rule, data)
            rule.net.train()
            look = signal_alignment(rule, data.x_train[:samples], data.y_train[:samples])
            looks.append(look.assign(epoch=epoch, accuracy=accuracy))
    columns = ["epoch", "accuracy", "point", "cosine_mean", "cosine_std", "norm_ratio"]
    return pd.concat(looks, ignore_index=True).reindex(columns=columns)


def _signals(rule: LearningRule, x: Inputs, y: Tensor | None, names: list[str]) -> list[Tensor | None]:
    """The rule's teaching signal at every point: the derivative of its first packet there.

    A point that ends a stage is itself an output of the packet, so that its derivative is the teaching signal; where
    the packet is one loss with the graph of the whole net, it is what that graph sends back.
    """
    net = rule.net
    with undisturbed(net), undisturbed(rule), borrowed(net), borrowed(rule), torch.enable_grad():
        with _recording(net, names) as recorded:
            packet = next(iter(rule.packets(x, y)))
        pairs = [(o, packet.weight * t) for o, t in zip(packet.outputs, packet.teaching, strict=True)]
        pairs = [(output, signal) for output, signal in pairs if output.requires_grad]
        values = [recorded[name] for name in names]
        wanted = [value for value in values if value.requires_grad]
        if not pairs or not wanted:
            return [None] * len(names)
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [t for _, t in pairs], allow_unused=True))
        return [next(found) if value.requires_grad else None for value in values]


@contextmanager
def _recording(net: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record the tensors at the points as they pass, before any hook of a rule sees them."""
    recorded: dict[str, Tensor] = {}
    overwritten = any(getattr(module, "inplace", False) for module in net.modules())

    def keep(name: str) -> tuple[Callable, Callable]:
        def passed(value: Tensor) -> Tensor:
            recorded[name] = value
            return value.clone() if overwritten else value  # an in-place activation above would move the record

        def before(module: nn.Module, args: tuple) -> tuple:
            return passed(args[0]), *args[1:]

        def after(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return passed(output)

        return before, after

    handles = []
    for name in names:
        module, (before, after) = net.get_submodule(name.removeprefix(INPUT)), keep(name)
        place = module.register_forward_pre_hook if name.startswith(INPUT) else module.register_forward_hook
        handles.append(place(before if name.startswith(INPUT) else after))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _compared(name: str, ours: Tensor | None, theirs: Tensor | None) -> dict[str, object]:
    if ours is None or theirs is None or not len(ours):
        return {"point": name, "cosine_mean": np.nan, "cosine_std": np.nan, "norm_ratio": np.nan}
    t, g = _rows(ours), _rows(theirs)
    length, expected = t.norm(dim=1), g.norm(dim=1)
    heard = (length > 0) & (expected > 0)
    t, g, length, expected = t[heard], g[heard], length[heard], expected[heard]
    cosines = ((t / length[:, None]) * (g / expected[:, None])).sum(1)
    none = not len(cosines)
    return {
        "point": name,
        "cosine_mean": np.nan if none else float(cosines.mean()),
        "cosine_std": np.nan if none else float(cosines.std(correction=0)),
        "norm_ratio": np.nan if none else float((length / expected).mean()),
    }


def _rows(signal: Tensor) -> Float[Tensor, "samples width"]:
    return signal.detach().reshape(len(signal), -1).double()
