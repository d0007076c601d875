"""A task as a direction in weight space: what fine-tuning added to a net.

    tau_t = theta_t - theta_pre              theta_pre pre-trained, theta_t fine-tuned on task t
    theta = theta_pre + lambda tau           tau = -tau_t  forgets the task, tau = sum_t tau_t  adds several,
                                             tau = tau_c + (tau_b - tau_a)  "a is to b as c is to d"

Whole numbers (counts of batches) are left out, and of names that stand for one tensor (tied weights) the first counts:
a weight is one coordinate, whatever it is called. (Ilharco et al. 2022, section 2.)
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neuropil.neurons.ranges import require_finite
from neuropil.structure.weightspace.states import (
    Bench,
    Weights,
    aliases,
    check_alike,
    check_finite,
    copied_mode,
    named_tensors,
    wide,
)

__all__ = ["TaskVector", "analogy", "sum_of"]

FORMAT = "neuropil.TaskVector"
Include = Collection[str] | Callable[[str], bool]


class TaskVector(Mapping[str, Tensor]):
    """A difference of weights, by name: a vector that can be added, scaled, compared and kept.

    Args:
        tensors: floating-point tensors by name; halves are held as float32.

    Raises:
        ValueError: if there are none, or one is not floating-point or not finite.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        if not tensors:
            raise ValueError("A task vector needs at least one tensor.")
        for name, value in tensors.items():
            if not value.is_floating_point():
                raise ValueError(f"{name} is {value.dtype}: only floating-point weights have a direction.")
        check_finite(tensors, "The vector")
        self._tensors = {name: wide(value.detach()) for name, value in tensors.items()}

    @classmethod
    def between(
        cls, pre: Weights, tuned: Weights, include: Include | None = None, *, buffers: bool = True
    ) -> "TaskVector":
        """Give the vector from a pre-trained net to a fine-tuned one.

        Args:
            pre: where fine-tuning began, a net or its state dict.
            tuned: where it ended.
            include: the names that count, a collection or a function of a name: heads that are not shared stay out
                this way. None: all.
            buffers: whether floating-point buffers (running statistics) count too; leaving them out needs nets, since a
                state dict does not tell them from weights.

        Raises:
            ValueError: if a name is in one of the two only, shapes differ, a name of `include` is in neither, nothing
                is left, or a weight is not finite.
            TypeError: if buffers are to be left out of state dicts.
        """
        start, end = named_tensors(pre), named_tensors(tuned)
        names = _included({**start, **end}, include)
        if not buffers:
            if not (isinstance(pre, nn.Module) and isinstance(tuned, nn.Module)):
                raise TypeError("buffers=False needs two modules: a state dict does not say which entries are buffers.")
            names -= {name for net in (pre, tuned) for name, _ in net.named_buffers()}
        start = {name: value for name, value in start.items() if name in names}
        end = {name: value for name, value in end.items() if name in names}
        check_alike(start, end, ("pre", "tuned"))
        check_finite(start, "pre")
        check_finite(end, "tuned")
        one, other = aliases(start), aliases(end)
        kept = [name for name in start if one[name] == name or other[name] != one[name]]
        return cls({k: wide(end[k]).to(start[k].device) - wide(start[k]) for k in kept if start[k].is_floating_point()})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # A mapping's own equality would ask tensors for one truth value.
    __eq__ = object.__eq__

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - mappings have none
        return id(self)

    def __repr__(self) -> str:
        numbers = sum(value.numel() for value in self.values())
        return f"TaskVector({len(self)} tensors, {numbers} numbers, norm {self.norm():.4g})"

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __add__(self, other: "TaskVector") -> "TaskVector":
        if not isinstance(other, TaskVector):
            return NotImplemented
        check_alike(self, other, ("The first vector", "the second"))
        return TaskVector({name: value + other[name].to(value.device) for name, value in self.items()})

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self + -other if isinstance(other, TaskVector) else NotImplemented

    def __mul__(self, factor: float) -> "TaskVector":
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            return NotImplemented
        require_finite(factor=factor)
        return TaskVector({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "TaskVector":
        if isinstance(divisor, bool) or not isinstance(divisor, (int, float)):
            return NotImplemented
        if divisor == 0:
            raise ValueError("A task vector cannot be divided by 0.")
        return self * (1 / divisor)

    def norm(self) -> float:
        """Give the Euclidean length over all numbers, summed in float64."""
        return math.sqrt(self.dot(self))

    def dot(self, other: "TaskVector") -> float:
        """Give the inner product with a vector of the same names and shapes, summed in float64.

        Raises:
            ValueError: if names or shapes differ.
        """
        check_alike(self, other, ("The first vector", "the second"))
        pairs = ((value.double(), other[name].to(value.device).double()) for name, value in self.items())
        return math.fsum(float((one * two).sum()) for one, two in pairs)

    def cosine(self, other: "TaskVector") -> float:
        """Give the cosine of the angle to another vector, all numbers flattened into one list.

        Raises:
            ValueError: if names or shapes differ, or one of the vectors is 0.
        """
        dot, lengths = self.dot(other), self.norm() * other.norm()
        if lengths == 0:
            raise ValueError("A vector of length 0 has no direction, so no cosine.")
        return min(1.0, max(-1.0, dot / lengths))

    @overload
    def apply_to(self, target: nn.Module, scale: float = 1.0) -> nn.Module: ...
    @overload
    def apply_to(self, target: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]: ...
    def apply_to(self, target: Weights, scale: float = 1.0) -> nn.Module | dict[str, Tensor]:
        """Give a copy of a net, or of a state dict, with the vector added; the target is not changed.

        Args:
            target: what has every name of the vector, in its shapes; further entries stay as they are.
            scale: lambda, the factor on the vector.

        Returns:
            A new net in the mode of the target, without gradients, or a new dict; dtypes and devices are the target's.

        Raises:
            ValueError: if the target lacks a name or has another shape, if names that are tied in it have different
                directions, or if scale is not finite.
            FloatingPointError: if a weight overflows the target's dtype.
        """
        bench = Bench(target)
        edited = bench.set(self.edits(target, scale))
        check = {name: named_tensors(edited)[name] for name in self}
        bad = [name for name, value in check.items() if not bool(value.isfinite().all())]
        if bad:
            raise FloatingPointError(f"The edited weights overflow {check[bad[0]].dtype} at {', '.join(bad)}.")
        return copied_mode(edited, target)

    def edits(self, target: Weights, scale: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        """Give the entries of a target that the vector changes, with their new values.

        Args:
            target: as in `apply_to`.
            scale: the factor on the vector.

        Raises:
            ValueError: as `apply_to` does.
        """
        require_finite(scale=scale)
        tensors = named_tensors(target)
        missing = [name for name in self if name not in tensors]
        if missing:
            raise ValueError(f"The target lacks {len(missing)} entries of the vector: {', '.join(missing)}.")
        check_alike(self, {name: tensors[name] for name in self}, ("The vector", "the target"))
        first = aliases(tensors)
        _check_tied(self, first)
        directions = {first[name]: value for name, value in self.items()}
        return (
            (name, wide(value) + scale * directions[first[name]].to(value.device))
            for name, value in tensors.items()
            if first[name] in directions
        )

    def random_like(self, generator: torch.Generator) -> "TaskVector":
        """Give a vector of normal draws, each tensor rescaled to the length of this one's: the control of an edit."""
        drawn = {}
        for name, value in self.items():
            noise = torch.randn(value.shape, generator=generator, device=generator.device, dtype=value.dtype)
            noise = noise.to(value.device)
            drawn[name] = noise * (value.double().norm() / noise.double().norm().clamp_min(1e-300)).to(value.dtype)
        return TaskVector(drawn)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vector to a safetensors file; one of that name is replaced once the new one is whole."""
        file = Path(path)
        whole = {name: value.cpu().contiguous().clone() for name, value in self.items()}
        temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            save_file(whole, temporary, metadata={"format": FORMAT})
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TaskVector":
        """Read a vector from a file that `save` wrote, onto the CPU.

        Raises:
            ValueError: if the file is another kind of safetensors file, or its numbers are not finite.
        """
        with safe_open(Path(path), framework="pt") as file:
            found = (file.metadata() or {}).get("format")
            if found != FORMAT:
                raise ValueError(f"{Path(path).name} holds no task vector: its format is {found!r}, wanted {FORMAT!r}.")
            return cls({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping


def sum_of(vectors: Sequence[TaskVector]) -> TaskVector:
    """Add task vectors: a net with all the tasks, to be scaled by one factor.

    Raises:
        ValueError: if there are none, or names or shapes differ.
    """
    if not vectors:
        raise ValueError("vectors is empty: there is nothing to add.")
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def analogy(a: TaskVector, b: TaskVector, c: TaskVector) -> TaskVector:
    """Give the vector of d where a is to b as c is to d: c + (b - a), for a task d without data.

    Raises:
        ValueError: if names or shapes differ.

    Source: Ilharco et al. 2022 (arXiv 2212.04089), section 5.
    """
    return c + (b - a)


def _included(names: Mapping[str, Tensor], include: Include | None) -> set[str]:
    if include is None:
        return set(names)
    if callable(include):
        return {name for name in names if include(name)}
    if isinstance(include, str):
        raise TypeError(f"include must be a collection of names or a function of one, got the text {include!r}.")
    unknown = [name for name in include if name not in names]
    if unknown:
        raise ValueError(f"include has names that neither pre nor tuned has: {', '.join(unknown)}.")
    return set(include)


def _check_tied(vector: Mapping[str, Tensor], first: Mapping[str, str]) -> None:
    for name, value in vector.items():
        other = first[name]
        if other != name and other in vector and not torch.equal(value, vector[other].to(value.device)):
            raise ValueError(f"{name} and {other} are one tensor in the target, but differ in the vector.")
