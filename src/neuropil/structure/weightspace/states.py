"""What this package reads weights from: a net or its state dict, whose entries are told apart by name.

Floating-point entries (weights, biases, running statistics) are points of the space; whole numbers (counts of batches)
are not. Two names may stand for one tensor (tied weights): `aliases` finds them by their memory.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

__all__ = ["Bench", "Weights", "aliases", "check_alike", "check_finite", "copied_mode", "named_tensors", "wide"]

Weights = nn.Module | Mapping[str, Tensor]
"""A net, or its weights by name."""

LISTED = 6  # names that a message shows


def named_tensors(weights: Weights) -> dict[str, Tensor]:
    """Give the tensors of a net or of a state dict by name, detached; what else a state dict holds is left out."""
    entries = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return {name: value.detach() for name, value in entries.items() if isinstance(value, Tensor)}


def wide(value: Tensor) -> Tensor:
    """Give a tensor in a precision that bears sums and differences: halves as float32, everything else as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor], labels: tuple[str, str] = ("a", "b")) -> None:
    """Refuse two sets of weights that are not of one architecture.

    Args:
        a: tensors by name.
        b: others.
        labels: what a message calls them.

    Raises:
        ValueError: if a name is in one of them only, a shape differs, or one is floating and the other is not; the
            message lists them.
    """
    for one, other, label in ((a, b, labels[0]), (b, a, labels[1])):
        only = [name for name in one if name not in other]
        if only:
            raise ValueError(f"{len(only)} entries are in {label} only: {_some(only)}.")
    uneven = [
        f"{name} {tuple(a[name].shape)} and {tuple(b[name].shape)}" for name in a if a[name].shape != b[name].shape
    ]
    if uneven:
        raise ValueError(f"{labels[0]} and {labels[1]} have other shapes at {len(uneven)} entries: {_some(uneven)}.")
    kinds = [name for name in a if a[name].is_floating_point() != b[name].is_floating_point()]
    if kinds:
        raise ValueError(f"Only one of {labels[0]} and {labels[1]} is floating-point at: {_some(kinds)}.")


def check_finite(tensors: Mapping[str, Tensor], label: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ValueError: if one is NaN or infinite; the message names the entries.
    """
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{label} is not finite at {len(bad)} entries: {_some(bad)}.")


def aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Give for every name the first name of the same tensor: itself, or the one that it is tied to."""
    first: dict[tuple, str] = {}
    found = {}
    for name, value in tensors.items():
        where = value.data_ptr() if value.numel() and value.device.type != "meta" else 0
        key = (where, value.shape, value.stride(), value.dtype, value.device) if where else (name,)
        found[name] = first.setdefault(key, name)
    return found


class Bench:
    """One copy of a net or of a state dict, whose weights are set again and again.

    Args:
        like: what is copied, without its gradients; it is never changed.

    Attributes:
        weights: the copy: a net in evaluation mode, or a dict.
    """

    def __init__(self, like: Weights):
        self.weights: Weights
        if isinstance(like, nn.Module):
            self.weights = deepcopy(like)
            self.weights.zero_grad(set_to_none=True)
            self.weights.eval()
            self._tensors = named_tensors(self.weights)
        else:
            self.weights = self._tensors = {name: value.clone() for name, value in named_tensors(like).items()}

    @torch.no_grad()
    def set(self, values: Iterable[tuple[str, Tensor]]) -> Weights:
        """Write values over the entries of these names, in the dtype and on the device of the copy."""
        for name, value in values:
            self._tensors[name].copy_(value)
        return self.weights


def copied_mode(copy: Weights, original: Weights) -> nn.Module | dict[str, Tensor]:
    """Give a bench's copy away: a net in the modes of its original, module by module, or a dict."""
    if isinstance(copy, nn.Module) and isinstance(original, nn.Module):
        for ours, theirs in zip(copy.modules(), original.modules(), strict=True):
            ours.training = theirs.training
        return copy
    return dict(named_tensors(copy))


def _some(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
