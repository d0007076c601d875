"""Receptors: the synaptic variables of a population, one set for all synapses of a class.

Each receptor says twice what it does in a step, once in torch (`contribute`) and once as a structure for the compiled
engine (`structure`), operation by operation the same.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.exponential import exp
from neuropil.spiking.kernels import cells

from .synapses import COBA, CUBA, Delta, LinearSynapse, MagnesiumBlock, Output, Propagator

__all__ = ["Inputs", "Receptor", "State"]

State = dict[str, Tensor]
"""State variables by name; in torch every one has a batch dimension first."""


@dataclass
class Inputs:
    """What reaches a population in a step: arguments of `NeuronModel.step`."""

    current: Tensor
    conductance: Tensor | None = None
    jump: Tensor | None = None


@dataclass
class Receptor:
    """One class of synapses onto one population.

    Args:
        name: prefix of its state variables.
        n: neurons of the population.
        synapse: its dynamics.
        output: what it does to the neuron.
        slots: steps of the longest heterogeneous delay, 0 without any.
        scale: name of the state variable by which its effect on each neuron is multiplied, or None.
        gated: whether gates of presynaptic neurons fill it anew in every step.
    """

    name: str
    n: int
    synapse: LinearSynapse
    output: Output
    slots: int = 0
    scale: str | None = None
    gated: bool = False

    @property
    def arrival(self) -> str:
        """Name of the variable to which arrivals are added."""
        return f"{self.name}.x" if self.synapse.variables == 2 else f"{self.name}.g"

    def initial(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state variables; all begin at 0."""
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}.g": (self.n,)}
        if self.synapse.variables == 2:
            shapes[f"{self.name}.x"] = (self.n,)
        if self.slots:
            shapes[f"{self.name}.slots"] = (self.slots, self.n)
        return shapes

    def mode(self, tau: float | None) -> Literal["jump", "current", "conductance"]:
        """How it acts: exactly on the potential where the membrane is linear with one time constant tau."""
        if isinstance(self.output, COBA):
            return "conductance"
        exact = isinstance(self.synapse, Delta) or tau is not None
        return "jump" if exact and not self.gated else "current"

    def contribute(self, state: State, inputs: Inputs, v: Tensor, k: int, dt: float, tau: float | None) -> None:
        """Take what is due from the slots, act on the inputs, decay."""
        self._take_slots(state, k)
        p = self.synapse.propagator(dt, tau)
        g, x = state[f"{self.name}.g"], state.get(f"{self.name}.x")
        mode = self.mode(tau)
        if mode == "jump":
            y = self._scaled(state, p.gain * g if x is None else p.gain * g + p.gain_x * x)
            inputs.jump = y if inputs.jump is None else inputs.jump + y
        else:
            y = self._scaled(state, g)
            if mode == "current":
                inputs.current = inputs.current + y
            else:
                self._conduct(inputs, y, v)
        self._decay(state, p, g, x)

    def _take_slots(self, state: State, k: int) -> None:
        if self.slots:
            slots, row = state[f"{self.name}.slots"], k % self.slots
            state[self.arrival] = state[self.arrival] + slots[:, row]
            state[f"{self.name}.slots"] = slots.index_fill(1, torch.tensor([row], device=slots.device), 0.0)

    def _scaled(self, state: State, y: Tensor) -> Tensor:
        return y if self.scale is None else y * state[self.scale]

    def _conduct(self, inputs: Inputs, y: Tensor, v: Tensor) -> None:
        output = self.output
        assert isinstance(output, COBA)
        if isinstance(output, MagnesiumBlock):
            y = y / (1.0 + (output.magnesium / 3.57) * exp(-0.062 * v))
        inputs.conductance = y if inputs.conductance is None else inputs.conductance + y
        inputs.current = inputs.current + y * output.reversal

    def _decay(self, state: State, p: Propagator, g: Tensor, x: Tensor | None) -> None:
        if x is None:
            state[f"{self.name}.g"] = _flushed(p.decay * g)
        else:
            state[f"{self.name}.g"] = _flushed(p.decay * g + p.inflow * x)
            state[f"{self.name}.x"] = _flushed(p.decay_x * x)

    def structure(self, arrays: dict[str, np.ndarray], dt: float, tau: float | None) -> Any:
        """The structure for the compiled engine, on the arrays of the state."""
        p, number = self.synapse.propagator(dt, tau), arrays[f"{self.name}.g"].dtype.type
        linear = cells.Linear(
            arrays[f"{self.name}.g"],
            arrays.get(f"{self.name}.x"),
            arrays.get(f"{self.name}.slots"),
            None if self.scale is None else arrays[self.scale],
            *(number(value) for value in (p.decay, p.inflow, p.decay_x)),
        )
        mode = self.mode(tau)
        if mode == "jump":
            return cells.ToJump(linear, number(p.gain), number(p.gain_x))
        if mode == "current":
            return cells.ToCurrent(linear)
        output = self.output
        assert isinstance(output, COBA)
        if isinstance(output, MagnesiumBlock):
            return cells.ToMagnesium(linear, number(output.reversal), number(output.magnesium / 3.57))
        return cells.ToConductance(linear, number(output.reversal))

    def check(self) -> None:
        """Refuse combinations without a meaning.

        Raises:
            ValueError: for delta synapses with another output than CUBA.
        """
        if isinstance(self.synapse, Delta) and not self.gated and not isinstance(self.output, CUBA):
            raise ValueError("A Delta synapse makes the potential jump: its output must be CUBA().")


def _flushed(g: Tensor) -> Tensor:
    """Without what has decayed towards denormal numbers."""
    return torch.where(g.detach().abs() >= cells.TINY, g, 0.0)
