"""Coming to rest, sample by sample: potentials, and the answers to small forces.

    u <- u + step (update(u) - u),      residual |update(u) - u| / (1 + |u|), its largest entry

Both go through `settle`, all groups as one tensor, which is quicker than many small ones, and complex potentials as
pairs of real numbers. The step is part of the map: `settle` would shrink it for good whenever a transient grows, as
these networks' transients do on their way to rest. A relaxation may end above its tolerance; what is then good enough
is for the caller to say, and samples that are not teach nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.learning.settle import NotSettledError, Settled, settle

__all__ = [
    "ANSWERED",
    "AT_REST",
    "Groups",
    "ImplicitRest",
    "Rest",
    "like",
    "masked",
    "relax",
    "require_majority",
    "solve",
]

Groups = dict[str, Tensor]
AT_REST = 1e-2  # residual of the potentials above which a sample counts as restless
ANSWERED = 0.1  # residual of the answer to a force, relative to the force, above which it counts as none


class Rest(NamedTuple):
    """A network after its relaxation.

    Attributes:
        potentials: u by group, each (batch, *units).
        activity: sigma(u) by group.
        residual: largest |G(u) - u| / (1 + |u|) of each sample.
        settled: which samples are at rest.
        steps: number of steps taken.
    """

    potentials: Groups
    activity: Groups
    residual: Float[Tensor, " batch"]
    settled: Bool[Tensor, " batch"]
    steps: int


def like(values: complex | Tensor, other: Tensor) -> complex | Tensor:
    """One value a sample, in the shape of a batch of something else; a plain number stays."""
    if not isinstance(values, Tensor) or values.dim() == 0:
        return values
    return values.view(-1, *[1] * (other.dim() - 1))


def masked(groups: Mapping[str, Tensor], keep: Bool[Tensor, " batch"]) -> Groups:
    """The groups with the samples that are not kept at zero, whatever they held."""
    return {name: torch.where(keep.view(-1, *[1] * (v.dim() - 1)), v, 0) for name, v in groups.items()}


def relax(
    update: Callable[[Groups], Groups], start: Groups, *, steps: int, tol: float, step: float
) -> tuple[Groups, Settled]:
    """Iterate u <- u + step (update(u) - u) for real or complex potentials.

    Args:
        update: the map whose fixed point is wanted.
        start: where to start.
        steps: the most steps to take.
        tol: residual at which all samples must be to end early.
        step: fraction of each step that is taken, in (0, 1].

    Returns:
        The groups, and what `settle` says of them, the residuals those of whole steps; nothing is raised for samples
        that have not settled.
    """
    shapes = [value.shape[1:] for value in start.values()]
    sizes = [shape.numel() for shape in shapes]
    is_complex = any(value.is_complex() for value in start.values())

    def outer(groups: Groups) -> Tensor:
        flat = torch.cat([groups[name].flatten(1) for name in start], 1)
        return torch.view_as_real(flat) if is_complex else flat

    def inner(flat: Tensor) -> Groups:
        parts = (torch.view_as_complex(flat) if is_complex else flat).split(sizes, 1)
        return {name: part.unflatten(1, shape) for name, part, shape in zip(start, parts, shapes, strict=True)}

    def move(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wanted = outer(update(inner(state[0])))
        return (wanted if step == 1 else torch.lerp(state[0], wanted, step),)

    try:
        result = settle(move, (outer(start),), steps=steps, tol=step * tol)
    except NotSettledError as error:  # below its tolerance, not necessarily below ours
        if error.result is None:
            raise
        result = error.result
    return inner(result.state[0]), result._replace(residual=result.residual / step)


def solve(
    apply: Callable[[Groups], Groups], source: Groups, *, steps: int, tol: float, step: float
) -> tuple[Groups, Bool[Tensor, " batch"]]:
    """Solve v = A v + source in each sample, A given by its product with a vector.

    Args:
        apply: v -> A v.
        source: by group; its scale plays no part in what counts as solved.
        steps: the most steps to take.
        tol: residual, relative to the largest entry of a sample's source, at which all must be to end early.
        step: fraction of each step that is taken, in (0, 1].

    Returns:
        v, and which samples are solved to 10%.

    Raises:
        NotSettledError: if more than half are not.
    """
    largest = torch.stack([value.abs().flatten(1).amax(1) for value in source.values()]).amax(0)
    size = torch.where(largest > 0, largest, 1)
    unit = {name: value / like(size, value) for name, value in source.items()}

    def update(v: Groups) -> Groups:
        return {name: moved + unit[name] for name, moved in apply(v).items()}

    answer, result = relax(update, unit, steps=steps, tol=tol, step=step)
    answered = result.residual <= ANSWERED
    require_majority(answered, result, "answered a force", ANSWERED)
    return {name: like(size, value) * value for name, value in answer.items()}, answered


def require_majority(good: Bool[Tensor, " batch"], result: Settled, what: str, bound: float) -> None:
    """Refuse a batch of which more than half is unfinished.

    Raises:
        NotSettledError: saying how many samples, and by how much.
    """
    if 2 * int(good.sum()) < len(good):
        # The worst may be infinite; the middle one says what the batch is like.
        middle = float(result.residual.nan_to_num(nan=torch.inf).median())
        raise NotSettledError(
            f"{int((~good).sum())} of {len(good)} samples have not {what} after {result.steps} steps: "
            f"residual {middle:.3g} in the median, wanted {bound:.3g}. Take more steps, a smaller step, "
            "or smaller kernels between the groups.",
            result,
        )


class ImplicitRest(torch.autograd.Function):
    """The potentials at rest, as a function of what drives them."""

    @staticmethod
    def forward(ctx: Any, back: Callable[..., tuple[Tensor, ...]], potentials: list[Tensor], *drives: Tensor) -> Any:
        """The potentials found; the drives only carry the graph."""
        ctx.back = back
        return tuple(u.clone() for u in potentials)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Through the adjoint system of the network at rest."""
        return None, None, *ctx.back(gradients)
