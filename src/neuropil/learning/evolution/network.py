"""A recurrent net whose connections have an innate and a plastic part (Miconi, Stanley & Clune 2018).

    x <- x + (dt/tau) ( -x + (W + A * P) y ) + perturbation,        y = tanh(x)

with W innate (row = target neuron), A >= 0 how plastic each connection is, P plastic weights, one matrix a life. Order
of the neurons: inputs, whose y is clamped to what the world gives; hidden; outputs, y = gate sigmoid(x), where the gate
is 0 while no answer is asked for. The net itself changes no P: a plasticity rule does (see `plasticity`).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PlasticRNN", "PlasticState"]

START = 0.1  # x and y of hidden and output neurons at the start of a life


class PlasticState(NamedTuple):
    """What a net carries from step to step.

    Attributes:
        x: membrane potentials, (batch, neurons).
        y: rates of the last step, (batch, neurons).
        p: plastic weights, (batch, neurons, neurons), row = target.
    """

    x: Float[Tensor, "batch neurons"]
    y: Float[Tensor, "batch neurons"]
    p: Float[Tensor, "batch neurons neurons"]


class PlasticRNN(nn.Module):
    """Fully connected rate neurons with innate and plastic weights; parameters `weight` (W) and `alpha` (A).

    Every sample of a batch is a life of its own. A population of genomes is a leading axis on the parameters, of the
    batch's size: `functional_call(net, {"weight": (batch, n, n), "alpha": (batch, n, n)}, (input, state))`.

    Args:
        n_inputs: clamped neurons.
        n_hidden: free neurons.
        n_outputs: sigmoid neurons, behind a gate.
        tau: membrane time constant, ms.
        dt: step, ms, at most tau.
        gain: standard deviation of W times sqrt(neurons); rows of the inputs are 0.
        plasticity: initial value of A.
        generator: source of the initial weights; None is torch's default generator.

    Raises:
        ValueError: if a number is out of range.

    Source: Miconi, ICML 2023 (arXiv 2112.08588), eq. 1.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: int,
        n_outputs: int,
        tau: float = 100.0,
        dt: float = 20.0,
        gain: float = 1.5,
        plasticity: float = 0.5,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(n_inputs, n_hidden, n_outputs) < 1:
            raise ValueError(
                f"A net needs inputs, hidden neurons and outputs, got {n_inputs}, {n_hidden}, {n_outputs}."
            )
        if not 0 < dt <= tau < math.inf:
            raise ValueError(f"dt must lie in (0, tau], got dt={dt} and tau={tau}.")
        if not (gain >= 0 and plasticity >= 0):
            raise ValueError(f"gain and plasticity must be at least 0, got {gain} and {plasticity}.")
        n = n_inputs + n_hidden + n_outputs
        self.n_inputs, self.n_hidden, self.n_outputs = n_inputs, n_hidden, n_outputs
        self.tau, self.dt = float(tau), float(dt)
        weight = torch.randn(n, n, generator=generator) * (gain / math.sqrt(n))
        weight[:n_inputs] = 0
        self.weight = nn.Parameter(weight)
        self.alpha = nn.Parameter(torch.full((n, n), float(plasticity)))

    @property
    def neurons(self) -> int:
        """Number of all neurons."""
        return self.n_inputs + self.n_hidden + self.n_outputs

    def initial_state(self, batch: int) -> PlasticState:
        """The state at the start of a life: no plastic weights, inputs silent, all else slightly active.

        Raises:
            ValueError: if there are no lives.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}.")
        x = self.weight.new_full((batch, self.neurons), START)
        x[:, : self.n_inputs] = 0
        return PlasticState(x, x.clone(), x.new_zeros(batch, self.neurons, self.neurons))

    def forward(
        self,
        input: Float[Tensor, "time batch inputs"],
        state: PlasticState | None = None,
        perturbation: Float[Tensor, "_ #batch neurons"] | None = None,
        gate: Float[Tensor, " _"] | None = None,
    ) -> tuple[Float[Tensor, "time batch neurons"], PlasticState]:
        """Run the net over a stretch of time in which P does not change.

        Args:
            input: rates of the clamped neurons.
            state: where to start; None for the start of a life.
            perturbation: added to x after each step of the dynamics, (time, batch or 1, neurons); None for none.
            gate: factor on the outputs' rates in each step, (time,); None for 1.

        Returns:
            The rates of all neurons, inputs first and outputs last, and the state after the last step. Both have graphs
            where the parameters or the input have.

        Raises:
            ValueError: if the shapes do not fit the net.
        """
        steps, batch, inputs = input.shape
        if inputs != self.n_inputs:
            raise ValueError(f"input has {inputs} channels, the net {self.n_inputs} input neurons.")
        x, y, p = self.initial_state(batch) if state is None else state
        if x.shape != (batch, self.neurons) or p.shape != (batch, self.neurons, self.neurons):
            raise ValueError(
                f"state is of {tuple(x.shape)} potentials and {tuple(p.shape)} weights, "
                f"wanted ({batch}, {self.neurons}) and ({batch}, {self.neurons}, {self.neurons})."
            )
        for name, given in (("perturbation", perturbation), ("gate", gate)):
            if given is not None and len(given) != steps:
                raise ValueError(f"{name} has {len(given)} steps, the input {steps}.")
        coupling = self.weight + self.alpha * p
        leak = self.dt / self.tau
        rates = []
        for step in range(steps):
            x = x + leak * (torch.matmul(coupling, y[..., None])[..., 0] - x)
            if perturbation is not None:
                x = x + perturbation[step]
            hidden = torch.tanh(x[:, self.n_inputs : -self.n_outputs])
            outputs = torch.sigmoid(x[:, -self.n_outputs :])
            if gate is not None:
                outputs = outputs * gate[step]
            y = torch.cat([input[step], hidden, outputs], dim=1)
            rates.append(y)
        every = torch.stack(rates) if rates else x.new_zeros(0, batch, self.neurons)
        return every, PlasticState(x, y, p)

    def constrain(self) -> None:
        """Clip A at 0 from below, after each step of an optimizer: no connection is less than not plastic."""
        with torch.no_grad():
            self.alpha.clamp_(min=0)
