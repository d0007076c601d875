"""The dis-inhibitory circuit: every excitatory neuron (E) has an inhibitory partner (I) of its own.

For stage l = 1..L with rates rE = phiE(uE), rI = phiI(uI), rE_0 = x,

    tauE duE_l/dt = -uE_l + a_l - phiI(uI_l),       a_l = W_l rE_{l-1} + b_l    (drive: any linear module)
    tauI duI_l/dt = -uI_l + phiE(uE_l) - d_l,       d_l = c Q_l                 (top-down dis-inhibition)
    tauE do/dt    = -o + W_out rE_L + c                                         (readout, no bias)

where the control c (batch, outputs) reaches the inhibitory partners through the feedback weights Q_l. At rest uI =
phiE(uE) - d, and each neuron is the root of one scalar equation (see `root`). Nothing here asks what the linear maps
are: with convolutions every unit at every position has its partner, and Q_l has the shape of the stage.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.inhibition.activation import Softplus
from neuropil.learning.inhibition.root import balanced_root, loop_slope
from neuropil.learning.networks import linear

__all__ = ["CircuitState", "DisinhibitoryNetwork"]


class CircuitState(NamedTuple):
    """The circuit at rest, or at one instant; one tensor a stage, each (batch, *units).

    Attributes:
        drive: a_l, feed-forward input of the excitatory neurons.
        u_e: potentials of the excitatory neurons.
        u_i: potentials of the inhibitory partners.
        dis_inhibition: d_l = c Q_l, what feedback takes from the partners' input.
        readout: o, (batch, outputs).
        control: c, (batch, outputs).
    """

    drive: tuple[Tensor, ...]
    u_e: tuple[Tensor, ...]
    u_i: tuple[Tensor, ...]
    dis_inhibition: tuple[Tensor, ...]
    readout: Float[Tensor, "batch outputs"]
    control: Float[Tensor, "batch outputs"]


class DisinhibitoryNetwork(nn.Module):
    """Layers of excitatory neurons with private inhibitory partners, and a linear readout.

    Args:
        sizes: number of inputs, of neurons of each hidden stage (one at least), of outputs.
        activation_e: transfer function of the excitatory neurons; None for Softplus().
        activation_i: transfer function of the inhibitory neurons; None for Softplus().
        tau_e: membrane time constant of excitatory neurons and readout, seconds.
        tau_i: membrane time constant of inhibitory neurons, seconds.
        generator: source of the initial weights (LeCun normal; biases start at 0); None is torch's default generator.

    Raises:
        ValueError: if there are fewer than three sizes, or a time constant is not positive.

    Source: Rossbroich & Zenke 2023 (arXiv 2310.19614), eqs. 1-3.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation_e: Softplus | None = None,
        activation_i: Softplus | None = None,
        tau_e: float = 0.02,
        tau_i: float = 0.005,
        generator: torch.Generator | None = None,
    ):
        sizes = list(sizes)
        if len(sizes) < 3:
            raise ValueError(f"sizes needs inputs, one hidden stage at least, and outputs; got {sizes}.")
        drives = [linear(before, after, generator=generator) for before, after in pairwise(sizes[:-1])]
        readout = linear(sizes[-2], sizes[-1], bias=False, generator=generator)
        self._assemble(drives, readout, activation_e, activation_i, tau_e, tau_i)

    @classmethod
    def from_modules(
        cls,
        drives: Sequence[nn.Module],
        readout: nn.Module,
        activation_e: Softplus | None = None,
        activation_i: Softplus | None = None,
        tau_e: float = 0.02,
        tau_i: float = 0.005,
    ) -> "DisinhibitoryNetwork":
        """A circuit on the user's own linear maps: convolutions, average pools, flattening, or Sequentials of them.

        Args:
            drives: one module a stage, from the rates below to a_l; linear or affine in its input, so without
                activations, norms or dropout.
            readout: linear map without a bias from the last stage's rates to (batch, outputs).
            activation_e: as in the constructor.
            activation_i: as in the constructor.
            tau_e: as in the constructor.
            tau_i: as in the constructor.

        Raises:
            ValueError: if there are no drives, or a time constant is not positive.
        """
        network = cls.__new__(cls)
        network._assemble(list(drives), readout, activation_e, activation_i, tau_e, tau_i)
        return network

    def _assemble(
        self,
        drives: Sequence[nn.Module],
        readout: nn.Module,
        activation_e: Softplus | None,
        activation_i: Softplus | None,
        tau_e: float,
        tau_i: float,
    ) -> None:
        if not drives:
            raise ValueError("drives is empty: the circuit needs at least one stage.")
        if not (tau_e > 0 and tau_i > 0):
            raise ValueError(f"Time constants must be positive, got tau_e={tau_e} and tau_i={tau_i}.")
        nn.Module.__init__(self)
        self.drives = nn.ModuleList(drives)
        self.readout = readout
        self.activation_e = Softplus() if activation_e is None else activation_e
        self.activation_i = Softplus() if activation_i is None else activation_i
        self.tau_e, self.tau_i = tau_e, tau_i

    @property
    def plain(self) -> bool:
        """Whether all neurons are plain softplus, so that closed forms apply."""
        return self.activation_e.plain and self.activation_i.plain

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch outputs"]:
        """Readout of the open loop at rest (no control), differentiable by the implicit function theorem.

        d uE / d a = 1 / (1 + phiI'(uI) phiE'(uE)); first derivatives only.
        """
        rates = x
        for module in self.drives:
            drive = module(rates)
            rates = self.activation_e(self._implicit_root(drive))
        return self.readout(rates)

    def _implicit_root(self, drive: Tensor) -> Tensor:
        fixed = drive.detach()
        u_e, r_e = balanced_root(fixed, None, self.activation_e, self.activation_i)
        if not (torch.is_grad_enabled() and drive.requires_grad):
            return u_e
        return u_e + (drive - fixed) / loop_slope(u_e, r_e, self.activation_e, self.activation_i)

    @torch.no_grad()
    def settle(
        self,
        x: Float[Tensor, "batch *features"],
        control: Float[Tensor, "batch outputs"] | None = None,
        feedback: Sequence[Tensor] | None = None,
    ) -> CircuitState:
        """The circuit at rest under a constant control.

        Args:
            x: input.
            control: c; None for the open loop.
            feedback: Q_l, one a stage, (batch or 1, outputs, *units); needed with a control.

        Raises:
            ValueError: if a control comes without feedback weights, or if those do not fit the stages.
            FloatingPointError: if the circuit is not finite, with the first stage that is not.
        """
        return require_finite(self.settle_from(self.drives[0](x), control, feedback))

    @torch.no_grad()
    def settle_from(
        self,
        first: Float[Tensor, "batch *units"],
        control: Float[Tensor, "batch outputs"] | None = None,
        feedback: Sequence[Tensor] | None = None,
        near: CircuitState | None = None,
    ) -> CircuitState:
        """As `settle`, unchecked: from the first stage's drive, and a state near the solution where one is known."""
        if control is not None and feedback is None:
            raise ValueError("A control acts through feedback weights: pass feedback.")
        if feedback is not None and len(feedback) != len(self.drives):
            raise ValueError(f"{len(feedback)} feedback weights for {len(self.drives)} stages.")
        rates, drives, potentials, partners, lifted = first, [], [], [], []
        for index, module in enumerate(self.drives):
            drive = first if index == 0 else module(rates)
            d = None
            if control is not None and feedback is not None:
                d = send_back(control, feedback[index])
                if d.shape != drive.shape:
                    raise ValueError(
                        f"Feedback of stage {index + 1} has shape {tuple(feedback[index].shape)}, "
                        f"its neurons {tuple(drive.shape)}."
                    )
            start = near.u_e[index] if near is not None else None
            u_e, rates = balanced_root(drive, d, self.activation_e, self.activation_i, start)
            drives.append(drive)
            potentials.append(u_e)
            partners.append(rates if d is None else rates - d)
            lifted.append(torch.zeros_like(drive) if d is None else d)
        output = self.readout(rates)
        control = torch.zeros_like(output) if control is None else control
        return CircuitState(tuple(drives), tuple(potentials), tuple(partners), tuple(lifted), output + control, control)

    @torch.no_grad()
    def output_jacobian(self, state: CircuitState) -> list[Tensor]:
        """Derivative of the readout by each excitatory potential, the E/I loop gain left out.

            J_L = W_out diag(phiE'(uE_L)),     J_l = J_{l+1} W_{l+1} diag(phiE'(uE_l))

        Returns:
            One tensor a stage, (batch, outputs, *units).
        """
        jacobians: list[Tensor] = []
        above: Tensor | None = None
        maps = [*self.drives[1:], self.readout]
        for module, u_e in zip(reversed(maps), reversed(state.u_e), strict=True):
            if above is None:
                outputs = state.readout.shape[-1]
                above = torch.eye(outputs, dtype=u_e.dtype, device=u_e.device).expand(len(u_e), outputs, outputs)
            above = pull_back(module, self.activation_e(u_e), above)
            above = above * self.activation_e.derivative(u_e)[:, None]
            jacobians.append(above)
        return jacobians[::-1]


def require_finite(state: CircuitState) -> CircuitState:
    """The state, if it is finite.

    Raises:
        FloatingPointError: if not, with the first stage that is not.
    """
    if math.isfinite(float(state.readout.sum())):
        return state
    broken = [index for index, u_e in enumerate(state.u_e) if not bool(torch.isfinite(u_e).all())]
    where = f"Hidden stage {broken[0] + 1}" if broken else "The readout"
    raise FloatingPointError(f"{where} is not finite: look at the input and the weights.")


def send_back(control: Float[Tensor, "batch outputs"], feedback: Tensor) -> Tensor:
    """D = c Q: control on its way to the inhibitory partners of one stage, (batch, *units)."""
    shape = feedback.shape[2:]
    flat = feedback.flatten(2) if len(shape) > 1 else feedback
    lifted = control @ flat[0] if len(flat) == 1 else torch.bmm(control[:, None], flat)[:, 0]
    return lifted.view(-1, *shape) if len(shape) > 1 else lifted


def pull_back(module: nn.Module, x: Tensor, cotangents: Tensor) -> Tensor:
    """Vector-Jacobian products of a module, several a sample.

    Args:
        module: maps (batch, *features) to (batch, *units).
        x: where.
        cotangents: (batch, outputs, *units).

    Returns:
        (batch, outputs, *features).
    """
    if type(module) is nn.Linear and x.dim() == 2:
        return cotangents @ module.weight
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (products,) = torch.autograd.grad(module(x), x, cotangents.transpose(0, 1), is_grads_batched=True)
    return products.transpose(0, 1)
