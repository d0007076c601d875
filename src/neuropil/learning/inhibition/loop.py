"""Closing the loop: the circuit under feedback control, at rest or in time.

At rest the controller's c = gain * e(o) and the circuit's o(c) must agree. For a given c the stages follow from below,
every neuron the root of its own equation, so c is the only unknown: sweep the circuit at c, then move c by a damped
step to gain * e(o), until it stays. In time, the equations of `network` and `controllers` are integrated by exponential
Euler steps: each potential relaxes exactly towards what its input is at the start of the step.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.learning.inhibition.controllers import Controller
from neuropil.learning.inhibition.network import CircuitState, DisinhibitoryNetwork, require_finite, send_back
from neuropil.learning.inhibition.root import plain_odds
from neuropil.learning.settle import NotSettledError, Settled, settle

__all__ = ["ClosedLoop", "close_loop", "integrate", "trajectory"]

Error = Callable[[Tensor], Tensor]
HALVINGS = 2


class ClosedLoop(NamedTuple):
    """The circuit under control, at rest.

    Attributes:
        state: of every neuron, the readout and the control.
        settled: which samples came to rest.
        residual: largest scaled change of the last sweep, a sample.
        sweeps: through the stages, or time steps.
    """

    state: CircuitState
    settled: Bool[Tensor, " batch"]
    residual: Float[Tensor, " batch"]
    sweeps: int


@torch.no_grad()
def close_loop(
    network: DisinhibitoryNetwork,
    start: CircuitState,
    feedback: Sequence[Tensor],
    error: Error,
    gain: float,
    *,
    damping: float = 0.9,
    tol: float = 1e-5,
    sweeps: int = 100,
) -> ClosedLoop:
    """Solve the closed loop at rest without integrating it.

    Args:
        network: the circuit.
        start: a state near the solution; the open loop will do.
        feedback: Q_l, one a stage.
        error: e as a function of the readout, (batch, outputs) both.
        gain: control per unit of error, at rest.
        damping: fraction of the control's step that is taken; halved for samples that overshoot, and for all if too
            few settle.
        tol: scaled residual at which a sample is at rest.
        sweeps: the most sweeps at one damping.

    Raises:
        ValueError: if the gain is not finite (a controller without leak has no state at rest).
        NotSettledError: if more than half of the samples do not come to rest; names the stage and the residual.
    """
    if not math.isfinite(gain):
        raise ValueError('The controller has no finite gain at rest (leak = 0): use solver="ode".')
    first, feedback = start.drive[0], list(feedback)
    latest = start
    power = first.exp() if network.plain else None
    # The readout at the start is known: the first step of the control costs no sweep.
    begin = start.control + damping * (gain * error(start.readout) - start.control)

    def sweep(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal latest, power
        (control,) = state
        if power is not None:
            readout = _plain_readout(network, power, control, feedback)
            if math.isfinite(float(readout.sum())):
                return (gain * error(readout),)
            power = None  # too large for exponentials: from here on by Newton's iteration
        latest = network.settle_from(first, control, feedback, latest)
        return (gain * error(latest.readout),)

    def attempt(halvings: int) -> Settled:
        options = {"steps": sweeps, "tol": tol, "names": ["the control"]}
        try:
            return settle(sweep, (begin,), damping=damping / 2**halvings, **options)
        except NotSettledError as fault:
            if halvings == HALVINGS:
                raise _restless(network, first, feedback, error, gain, fault) from fault
            return attempt(halvings + 1)

    settled = attempt(0)
    state = require_finite(network.settle_from(first, settled.state[0], feedback, latest))
    return ClosedLoop(state, settled.settled, settled.residual, settled.steps)


def _plain_readout(
    network: DisinhibitoryNetwork, power: Tensor, control: Tensor, feedback: list[Tensor]
) -> Float[Tensor, "batch outputs"]:
    """The readout at a control, of a circuit of plain neurons: what a sweep needs, and nothing else."""
    rates = power
    for index, weights in enumerate(feedback):
        if index:
            power = network.drives[index](rates).exp_()
        rates = plain_odds(power, send_back(control, weights)).log1p_()
    return network.readout(rates) + control


def _restless(
    network: DisinhibitoryNetwork,
    first: Tensor,
    feedback: list[Tensor],
    error: Error,
    gain: float,
    fault: NotSettledError,
) -> NotSettledError:
    """The same complaint, with the stage that moves most between the last control and the next."""
    if fault.result is None:
        return fault
    control = fault.result.state[0]
    now = network.settle_from(first, control, feedback)
    then = network.settle_from(first, gain * error(now.readout), feedback, now)
    moves = [float((a - b).abs().max()) for a, b in zip(then.u_e, now.u_e, strict=True)]
    stage = max(range(len(moves)), key=moves.__getitem__)
    return NotSettledError(f"{fault} Hidden stage {stage + 1} moves most with it, by {moves[stage]:.3g}.", fault.result)


@torch.no_grad()
def trajectory(
    network: DisinhibitoryNetwork,
    x: Tensor | Callable[[float], Tensor],
    times: Sequence[float],
    *,
    start: CircuitState | None = None,
    feedback: Sequence[Tensor] | None = None,
    error: Error | None = None,
    controller: Controller | None = None,
    dt: float = 1e-3,
) -> list[CircuitState]:
    """The circuit in time.

    Args:
        network: the circuit.
        x: input, (batch, ...), or a function of time in seconds that returns it.
        times: when to look, seconds, rising from 0 or later.
        start: state at time 0; None for all potentials at 0.
        feedback: Q_l, one a stage; with an error and a controller the loop is closed, without it is open.
        error: e as a function of the readout.
        controller: turns e into c.
        dt: step, seconds.

    Returns:
        One state a time.

    Raises:
        ValueError: if the times fall, dt is not positive, or only part of the loop is given.
        FloatingPointError: if a potential is no longer finite, with the time.
    """
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}.")
    if any(later < earlier for earlier, later in zip([0.0, *times], times, strict=False)):
        raise ValueError("times must rise, and not begin before 0.")
    given = [part is not None for part in (feedback, error, controller)]
    if any(given) and not all(given):
        raise ValueError("A closed loop needs feedback, error and controller together.")
    signal = x if callable(x) else lambda _: x
    state = _at_rest_at_zero(network, signal(0.0)) if start is None else start
    integral = torch.zeros_like(state.readout)
    states, step = [], 0
    for time in times:
        last = round(time / dt)
        while step < last:
            state, integral = integrate(network, signal(step * dt), state, integral, feedback, error, controller, dt)
            step += 1
        if not bool(torch.isfinite(state.readout).all()):
            raise FloatingPointError(f"The circuit diverged before t = {time:.4g} s: take a smaller dt than {dt:g} s.")
        states.append(state)
    return states


def integrate(
    network: DisinhibitoryNetwork,
    x: Tensor,
    state: CircuitState,
    integral: Tensor,
    feedback: Sequence[Tensor] | None,
    error: Error | None,
    controller: Controller | None,
    dt: float,
) -> tuple[CircuitState, Tensor]:
    """One exponential Euler step of the whole circuit; returns the state and the controller's integral."""
    fast, slow = -math.expm1(-dt / network.tau_i), -math.expm1(-dt / network.tau_e)
    control = torch.zeros_like(state.readout)
    if feedback is not None and error is not None and controller is not None:
        control, change = controller(error(state.readout), integral)
        integral = integral + dt * change
    drives, potentials, partners, lifted, rates = [], [], [], [], x
    for index, module in enumerate(network.drives):
        u_e, u_i = state.u_e[index], state.u_i[index]
        drive = module(rates)
        rates = network.activation_e(u_e)
        d = send_back(control, feedback[index]) if feedback is not None else torch.zeros_like(u_e)
        potentials.append(u_e + slow * (drive - network.activation_i(u_i) - u_e))
        partners.append(u_i + fast * (rates - d - u_i))
        drives.append(drive)
        lifted.append(d)
    readout = state.readout + slow * (network.readout(rates) + control - state.readout)
    new = CircuitState(tuple(drives), tuple(potentials), tuple(partners), tuple(lifted), readout, control)
    return new, integral


def _at_rest_at_zero(network: DisinhibitoryNetwork, x: Tensor) -> CircuitState:
    open_loop = network.settle(x)
    zeros = tuple(torch.zeros_like(u) for u in open_loop.u_e)
    readout = torch.zeros_like(open_loop.readout)
    return CircuitState(zeros, zeros, zeros, zeros, readout, readout)
