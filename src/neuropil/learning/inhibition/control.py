"""Learning by dis-inhibitory control.

One step on a batch of size B, from the open loop at rest to the gradient:

    1. open loop: c = 0
    2. Q_l = J_l diag(phiI'(uI_l)), divided by its norm in each sample (J: `DisinhibitoryNetwork.output_jacobian`)
    3. the controller's error e(o) = -B dL/do, which a nudge can soften
    4. closed loop at rest: every partner loses d_l = c Q_l
    5. plasticity, local to each neuron:
           dW_l   =  eta (rE_l - u_hat_l) phiE'(uE_l) x rE_{l-1}        u_hat = phiI^-1(rI) = uI           exact rule
                                                                        u_hat = theta + delta rI          linear rule
           dW_out =  eta (o - W_out rE_L) x rE_L

so the sign of plasticity is the sign of (excitatory rate - the rate that its inhibition balances). At rest rE - uI = d,
hence the exact rule is d phiE'(uE), zero without control. The linear rule replaces the inverse by its tangent at the
mean inhibitory rate of the open loop: a BCM-like threshold theta + delta rI that inhibition moves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.learning.inhibition.controllers import Controller, LeakyPI
from neuropil.learning.inhibition.loop import ClosedLoop, close_loop, integrate, trajectory
from neuropil.learning.inhibition.network import CircuitState, DisinhibitoryNetwork, require_finite
from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.settle import NotSettledError
from neuropil.losses import half_squared_error, soften

__all__ = ["ControlRecord", "DisinhibitoryControl", "control_energy"]

Feedback = str | Sequence[Tensor] | Callable[[list[Tensor]], list[Tensor]]
# -B dL/do of two losses that need no autograd
CLOSED_FORMS: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    cross_entropy: lambda readout, target: target - readout.softmax(1) * target.sum(1, keepdim=True),
    half_squared_error: lambda readout, target: target - readout,
}
SILENT = 1e-12  # norm below which feedback carries nothing


class ControlRecord(NamedTuple):
    """What the last batch did, for plots and checks.

    Attributes:
        open: the circuit without control.
        closed: the circuit under control.
        feedback: Q_l, one a stage.
        settled: which samples came to rest; the others taught nothing.
        sweeps: through the stages, or time steps of the ODE.
        silent: samples and stages whose feedback was exactly zero.
    """

    open: CircuitState
    closed: CircuitState
    feedback: list[Tensor]
    settled: Bool[Tensor, " batch"]
    sweeps: int
    silent: int


def control_energy(state: CircuitState) -> Float[Tensor, ""]:
    """H = sum over stages and units of d^2, mean over the batch: what learning makes unnecessary.

    Source: Meulemans et al. 2022 (least-control principle); Rossbroich & Zenke 2023.
    """
    return torch.stack([d.square().flatten(1).sum(1).mean() for d in state.dis_inhibition]).sum()


class DisinhibitoryControl(LearningRule):
    """Train a dis-inhibitory circuit by Hebbian plasticity under feedback control.

    Adam hides the factor that the normalised feedback puts before each layer's update; with plain SGD tune the rate for
    each depth.

    Args:
        net: the circuit.
        loss_fn: mean over the batch of a loss of (output, target); the controller's error is minus its output gradient,
            times the batch size (cross entropy: y - softmax(o); half squared error: y - o).
        soft_target: probability that class indices are softened to; None passes them on as they are.
        rule: "exact" inverse of the inhibitory transfer function, or its "linear" threshold.
        feedback: "jacobian" of each sample; "averaged" over the batch; a function of the Jacobian feedback (before its
            norm is set) that returns the feedback to use; or tensors, (outputs, *units) one a stage, taken as they are.
        controller: None for LeakyPI().
        nudge: strength of a weak teacher, in (0, 1]: the loop is driven towards o + nudge * e(o), o from the open loop.
            None drives it to the target itself.
        solver: "algebraic" solves for rest directly; "ode" integrates the circuit.
        duration: of the ODE, seconds.
        dt: step of the ODE, seconds.
        damping: of the control's step, algebraic solver.
        tol: scaled residual at which a sample is at rest.
        feedback_norm: Frobenius norm that every sample's Q_l is brought to; None leaves it.
        feedback_clip: largest entry of Q_l by absolute value, after its norm is set; None does not clip.
        averaging: weight of the newest batch in the running mean of the inhibitory rate where the linear rule's tangent
            touches, in (0, 1].

    Attributes:
        last: record of the last batch.

    Raises:
        ValueError: if the net is no dis-inhibitory circuit, an option is unknown or out of range; on a batch whose
            shapes or types do not fit, or whose loop does not come to rest (NotSettledError: the stage and residual).

    Source: Rossbroich & Zenke 2023 (arXiv 2310.19614), eqs. 4-9.
    """

    net: DisinhibitoryNetwork  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and checked
    last: ControlRecord | None

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss,
        soft_target: float | None = 0.99,
        rule: str = "exact",
        feedback: Feedback = "jacobian",
        controller: Controller | None = None,
        nudge: float | None = None,
        solver: str = "algebraic",
        duration: float = 2.0,
        dt: float = 1e-3,
        damping: float = 0.9,
        tol: float = 1e-5,
        feedback_norm: float | None = 1.0,
        feedback_clip: float | None = None,
        averaging: float = 1.0,
    ):
        super().__init__(net, loss_fn)
        if not isinstance(net, DisinhibitoryNetwork):
            raise ValueError(f"net must be a DisinhibitoryNetwork, got {type(net).__name__}.")
        _one_of("rule", rule, ("exact", "linear"))
        _one_of("solver", solver, ("algebraic", "ode"))
        if isinstance(feedback, str):
            _one_of("feedback", feedback, ("jacobian", "averaged"))
        _in_unit("soft_target", soft_target)
        _in_unit("nudge", nudge)
        _in_unit("averaging", averaging)
        for name, value in {
            "duration": duration,
            "dt": dt,
            "tol": tol,
            "feedback_norm": feedback_norm,
            "feedback_clip": feedback_clip,
        }.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        self.soft_target, self.rule, self.feedback, self.nudge, self.solver = (
            soft_target,
            rule,
            feedback,
            nudge,
            solver,
        )
        self.controller = LeakyPI() if controller is None else controller
        self.duration, self.dt, self.damping, self.tol = duration, dt, damping, tol
        self.feedback_norm, self.feedback_clip, self.averaging = feedback_norm, feedback_clip, averaging
        self.mean_inhibition: list[Tensor] = []
        self.last = None

    def get_extra_state(self) -> dict[str, Any]:
        """Running means of the inhibitory rates."""
        return {"mean_inhibition": self.mean_inhibition}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from saved running means."""
        self.mean_inhibition = list(state["mean_inhibition"])

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: every stage's drive with its plasticity, and the readout with its control."""
        first = self.net.drives[0](x)  # its input does not change in the loop: one pass serves loop and gradient
        open_loop = require_finite(self.net.settle_from(first.detach()))
        target = self._target(self.required_target(y), open_loop.readout)
        with torch.no_grad():
            loss = self.required_loss()(open_loop.readout, target)
        feedback, silent = self._feedback(open_loop)
        closed = self._close(x, open_loop, feedback, self._error(open_loop.readout, target))
        state = closed.state
        self.last = ControlRecord(open_loop, state, feedback, closed.settled, closed.sweeps, silent)

        share = closed.settled.to(state.readout) / len(x)
        outputs, teaching = [], []
        rates = first
        for index, u_e in enumerate(state.u_e):
            outputs.append(first if index == 0 else self.net.drives[index](rates))
            rates = self.net.activation_e(u_e)
            slope = self.net.activation_e.derivative(u_e)
            teaching.append(self._surplus_inhibition(index, open_loop, state) * slope * _like(share, u_e))
        outputs.append(self.net.readout(rates))
        teaching.append((outputs[-1].detach() - state.readout) * _like(share, state.readout))
        yield Packet(outputs, teaching, loss)

    @torch.no_grad()
    def trajectory(self, x: Tensor, y: Tensor, times: Sequence[float]) -> list[CircuitState]:
        """The circuit in time, from the open loop at rest to the closed loop: what `solver="ode"` integrates.

        Args:
            x: inputs, (batch, ...).
            y: targets, as in `backward`.
            times: when to look, seconds after the loop is closed.

        Returns:
            One state a time.

        Raises:
            ValueError: as `backward`, or if the times do not rise.
        """
        open_loop = self.net.settle(x)
        error = self._error(open_loop.readout, self._target(y, open_loop.readout))
        feedback, _ = self._feedback(open_loop)
        return trajectory(
            self.net,
            x,
            times,
            start=open_loop,
            feedback=feedback,
            error=error,
            controller=self.controller,
            dt=self.dt,
        )

    def _target(self, y: Tensor, readout: Tensor) -> Tensor:
        outputs = readout.shape[-1]
        if len(y) != len(readout):
            raise ValueError(f"{len(y)} targets for {len(readout)} inputs.")
        if y.dtype == torch.bool or y.is_complex():
            raise TypeError(f"Targets are class indices or real numbers, got {y.dtype}.")
        if not y.is_floating_point():
            if y.dim() != 1:
                raise ValueError(f"Class indices have shape (batch,), got {tuple(y.shape)}.")
            return y if self.soft_target is None else soften(y, outputs, self.soft_target, dtype=readout.dtype)
        if y.shape != readout.shape:
            raise ValueError(f"Targets have shape {tuple(y.shape)}, the readout {tuple(readout.shape)}.")
        return y.to(readout.dtype)

    def _error(self, open_readout: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
        """e(o) = -B dL/do; with a nudge, less the error at the nudged readout, where the weak teacher is content."""
        loss_fn = self.required_loss()
        closed_form = CLOSED_FORMS.get(loss_fn) if target.is_floating_point() else None

        def error(readout: Tensor) -> Tensor:
            if closed_form is not None:  # a sweep asks for it every time, and autograd costs as much as a small stage
                return closed_form(readout, target)
            with torch.enable_grad():
                readout = readout.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss_fn(readout, target), readout)
            return -len(readout) * gradient

        if self.nudge is None:
            return error
        content = error(open_readout + self.nudge * error(open_readout))
        return lambda readout: error(readout) - content

    @torch.no_grad()
    def _feedback(self, open_loop: CircuitState) -> tuple[list[Tensor], int]:
        if isinstance(self.feedback, Sequence) and not isinstance(self.feedback, str):
            return self._given_feedback(self.feedback, open_loop), 0
        raw = [
            jacobian * self.net.activation_i.derivative(u_i)[:, None]
            for jacobian, u_i in zip(self.net.output_jacobian(open_loop), open_loop.u_i, strict=True)
        ]
        if self.feedback == "averaged":
            raw = [weights.mean(0, keepdim=True) for weights in raw]
        elif callable(self.feedback):
            raw = self.feedback(raw)
        feedback, silent = [], 0
        for weights in raw:
            norms = weights.flatten(1).norm(dim=1)
            silent += int((norms < SILENT).sum())
            if self.feedback_norm is not None:
                weights = weights * _like(self.feedback_norm / norms.clamp(min=SILENT), weights)  # noqa: PLW2901
            if self.feedback_clip is not None:
                weights = weights.clamp(-self.feedback_clip, self.feedback_clip)  # noqa: PLW2901
            feedback.append(weights)
        return feedback, silent

    def _given_feedback(self, given: Sequence[Tensor], state: CircuitState) -> list[Tensor]:
        if len(given) != len(state.u_e):
            raise ValueError(f"{len(given)} feedback tensors for {len(state.u_e)} stages.")
        for index, (weights, u_e) in enumerate(zip(given, state.u_e, strict=True)):
            wanted = (state.readout.shape[-1], *u_e.shape[1:])
            if tuple(weights.shape) != wanted:
                raise ValueError(f"Feedback of stage {index + 1} must be {wanted}, got {tuple(weights.shape)}.")
        return [weights.to(state.readout)[None] for weights in given]

    def _close(
        self, x: Tensor, start: CircuitState, feedback: list[Tensor], error: Callable[[Tensor], Tensor]
    ) -> ClosedLoop:
        if self.solver == "algebraic":
            return close_loop(
                self.net, start, feedback, error, self.controller.gain, damping=self.damping, tol=self.tol
            )
        return self._integrate(x, start, feedback, error)

    @torch.no_grad()
    def _integrate(
        self, x: Tensor, start: CircuitState, feedback: list[Tensor], error: Callable[[Tensor], Tensor]
    ) -> ClosedLoop:
        state, integral, steps = start, torch.zeros_like(start.readout), round(self.duration / self.dt)
        before = state
        for _ in range(steps):
            before = state
            state, integral = integrate(self.net, x, state, integral, feedback, error, self.controller, self.dt)
        # A residual per time constant of the excitatory neurons, as the algebraic solver's per sweep.
        moved = [
            _moved(now, was)
            for now, was in zip((*state.u_e, state.readout), (*before.u_e, before.readout), strict=True)
        ]
        residual = torch.stack(moved).amax(0) * (self.net.tau_e / self.dt)
        settled = residual < self.tol
        if 2 * int(settled.sum()) < len(settled):
            stage = int(torch.stack([m.nan_to_num(nan=torch.inf).max() for m in moved]).argmax())
            name = f"hidden stage {stage + 1}" if stage < len(state.u_e) else "the readout"
            raise NotSettledError(
                f"{int((~settled).sum())} of {len(settled)} samples have not come to rest after {self.duration:g} s: "
                f"{name} still moves by {float(residual.max()):.3g} per tau_e (tol {self.tol:.3g})."
            )
        return ClosedLoop(state, settled, residual, steps)

    @torch.no_grad()
    def _surplus_inhibition(self, index: int, open_loop: CircuitState, closed: CircuitState) -> Tensor:
        """u_hat - rE: how much more inhibition a neuron reads off than balances its rate."""
        u_i = closed.u_i[index]
        if self.rule == "exact":
            # u_hat = uI, and uI - rE is -d at rest: taken so, no digits are lost at high rates.
            return -closed.dis_inhibition[index]
        theta, delta = self.net.activation_i.tangent(self._mean_rate(index, open_loop.u_i[index]))
        return theta + delta * self.net.activation_i(u_i) - self.net.activation_e(closed.u_e[index])

    def _mean_rate(self, index: int, u_i: Tensor) -> Tensor:
        """Running mean of each partner's open-loop rate, this batch included."""
        rate = self.net.activation_i(u_i).mean(0)
        if index == len(self.mean_inhibition):
            self.mean_inhibition.append(rate)
        else:
            known = self.mean_inhibition[index].to(rate)
            if known.shape != rate.shape:
                raise ValueError(
                    f"Stage {index + 1} has neurons of shape {tuple(rate.shape)}, "
                    f"but was seen with {tuple(known.shape)} before."
                )
            self.mean_inhibition[index] = torch.lerp(known, rate, self.averaging)
        # A silenced partner has no slope to take a tangent from.
        return self.mean_inhibition[index].clamp(min=torch.finfo(rate.dtype).eps)


def _like(values: Tensor, other: Tensor) -> Tensor:
    return values.view(-1, *[1] * (other.dim() - 1))


def _moved(now: Tensor, before: Tensor) -> Tensor:
    return ((now - before).abs() / (1 + before.abs())).flatten(1).amax(1)


def _one_of(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}.")


def _in_unit(name: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {value}.")
