"""Astrocytes of a network: cells that read spikes in their domain and act back on synapses or neurons.

Every `every` ms each cell takes the number of spikes in its domain since the last time, weighted by who sent them,
moves by one step of its own equations, and sets

    value = baseline + strength output

as the gain of its projection's effect on the neurons of the domain, as a current into them, or as the depression
amplitude A2- of the projection's plasticity (one cell only).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from neuropil.neurons.ranges import require_finite, require_positive

from .projections import Projection

__all__ = ["AstrocyteCell", "AstrocyteCoupling", "AstrocyteDomain"]


@runtime_checkable
class AstrocyteCell(Protocol):
    """A model of astrocytes, as those of `neuropil.spiking.astrocytes`."""

    def init_state(self, n: int, like: Tensor) -> Any:
        """State of n cells at rest, a named tuple."""
        ...

    def step(self, drive: Tensor, state: Any, dt: float) -> tuple[Tensor, Any]:
        """Output (n,) and state after dt ms in which `drive` (n,) weighted spikes came."""
        ...


@dataclass(frozen=True, eq=False)
class AstrocyteCoupling:
    """How astrocytes read and act on a projection.

    Args:
        cell: their equations.
        acts: "gain" of the projection's effect, "current" into its targets, or "depression" of its plasticity.
        strength: of the output.
        baseline: of the value where the output is 0.
        domains: cell of each target neuron, (n_post,) from 0; by default one cell has all.
        domains_pre: cell of each source neuron, (n_pre,); by default one cell reads all, and none where there are more.
        weight_pre: of a spike of a source in the drive.
        weight_post: of a spike of a target.
        every: ms between updates, a multiple of dt.

    Raises:
        ValueError: if a number is not finite or a domain negative.
    """

    cell: AstrocyteCell
    acts: Literal["gain", "current", "depression"] = "gain"
    strength: float = 1.0
    baseline: float = 0.0
    domains: Tensor | None = None
    domains_pre: Tensor | None = None
    weight_pre: float = 0.0
    weight_post: float = 1.0
    every: float = 1.0

    def __post_init__(self) -> None:
        names = ("strength", "baseline", "weight_pre", "weight_post")
        require_finite(**{name: getattr(self, name) for name in names})
        require_positive(every=self.every)
        if self.acts not in ("gain", "current", "depression"):
            raise ValueError(f"acts must be 'gain', 'current' or 'depression', got {self.acts!r}.")
        for name in ("domains", "domains_pre"):
            values = getattr(self, name)
            if values is not None and (values.is_floating_point() or bool((values < 0).any())):
                raise ValueError(f"{name} must hold integers from 0.")

    @property
    def cells(self) -> int:
        """Number of cells."""
        return 1 if self.domains is None else int(self.domains.max()) + 1


@dataclass
class AstrocyteDomain:
    """The astrocytes of one projection within a network.

    Raises:
        ValueError: if domains or the interval do not fit, or they act on plasticity that is not there.
    """

    name: str
    coupling: AstrocyteCoupling
    projection: Projection
    dt: float
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        c, p = self.coupling, self.projection
        self.steps = round(c.every / self.dt)
        if self.steps < 1 or abs(c.every / self.dt - self.steps) > 1e-6 * self.steps:
            raise ValueError(f"every must be a multiple of dt = {self.dt} ms, got {c.every}.")
        for name, values, n in (("domains", c.domains, len(p.post)), ("domains_pre", c.domains_pre, len(p.pre))):
            if values is not None and tuple(values.shape) != (n,):
                raise ValueError(f"{name} must have shape ({n},), got {tuple(values.shape)}.")
        if c.domains_pre is not None and int(c.domains_pre.max()) >= c.cells:
            raise ValueError(f"domains_pre names cell {int(c.domains_pre.max())}, there are {c.cells}.")
        if c.acts == "depression" and (p.plasticity is None or c.cells > 1):
            raise ValueError("acts='depression' needs one cell and a plastic projection.")
        if c.weight_pre != 0 and c.domains_pre is None and c.cells > 1:
            raise ValueError("Several cells read sources by domains_pre.")

    def initial(self, like: Tensor) -> dict[str, Tensor]:
        """State variables at rest."""
        cells = self.coupling.cells
        rest = self.coupling.cell.init_state(cells, like.new_zeros(cells))
        state = {f"{self.name}.glia.{key}": value.clone() for key, value in rest._asdict().items() if value is not None}
        state[f"{self.name}.glia_drive"] = like.new_zeros(cells)
        if self.coupling.acts == "current":
            state[f"{self.name}.glia_current"] = like.new_full((len(self.projection.post),), self.coupling.baseline)
        if self.coupling.acts == "depression":
            state[f"{self.name}.glia_depression"] = like.new_full((1,), self.coupling.baseline)
        return state

    def observe(self, state: dict[str, Tensor], spikes: dict[str, np.ndarray]) -> None:
        """Add spikes, by population, to what the cells have read."""
        c, drive = self.coupling, state[f"{self.name}.glia_drive"]
        sides = (
            (self.projection.pre, c.domains_pre, c.weight_pre),
            (self.projection.post, c.domains, c.weight_post),
        )
        for group, domains, weight in sides:
            if weight == 0:
                continue
            index = torch.from_numpy(spikes[group.population]).to(drive.device).long() - group.start
            index = index[(index >= 0) & (index < len(group))]
            cell = torch.zeros_like(index) if domains is None else domains.to(drive.device)[index].long()
            drive.add_(weight * torch.bincount(cell, minlength=c.cells).to(drive))

    def act(self, state: dict[str, Tensor]) -> None:
        """Move the cells by a step, and set what they act on."""
        c, drive = self.coupling, state[f"{self.name}.glia_drive"]
        prefix = f"{self.name}.glia."
        rest = c.cell.init_state(c.cells, drive)
        now = type(rest)(**{key: state.get(prefix + key) for key in rest._fields})
        output, after = c.cell.step(drive, now, c.every)
        for key, value in after._asdict().items():
            if value is not None:
                state[prefix + key].copy_(value)
        drive.zero_()
        value = c.baseline + c.strength * output
        p = self.projection
        spread = value.expand(len(p.post)) if c.domains is None else value[c.domains.to(value.device).long()]
        if c.acts == "gain":
            state[f"{self.name}.scale"][p.post.start : p.post.stop] = spread
        elif c.acts == "current":
            state[f"{self.name}.glia_current"].copy_(spread)
        else:
            state[f"{self.name}.glia_depression"].copy_(value)
