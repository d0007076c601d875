"""Neurons over whole sequences of current: one compiled loop over time, or a plain loop over `neuron.step`.

The plain loop is the reference, for every neuron, device and type, and its gradients can be differentiated again. The
compiled loops (`lif`, `alif`, `leaky`) give the same bits for spikes, states and potentials, and the same gradients to
rounding, many times faster; they take float32 and float64 on the CPU.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as forget

from neuropil.spiking.kernels.alif import alif_sequence
from neuropil.spiking.kernels.leaky import leaky_sequence
from neuropil.spiking.kernels.lif import lif_sequence
from neuropil.spiking.neurons import (
    ALIFNeuron,
    ALIFState,
    CubaLIFNeuron,
    CubaLIFState,
    LIFNeuron,
    LIFState,
    NeuronModel,
    Number,
)
from neuropil.spiking.surrogate import Surrogate

__all__ = ["Backend", "check_finite", "keeps_sides", "loop", "run", "run_leaky", "unsupported"]

Backend = Literal["auto", "torch", "numba"]


def run(
    neuron: NeuronModel,
    current: Tensor,
    state: Any,
    *,
    backend: Backend = "auto",
    checkpoint: bool = False,
    return_potential: bool = False,
) -> tuple[Tensor, Any, Tensor | None]:
    """Run a neuron over a sequence of currents.

    Args:
        neuron: the model, with parameters that broadcast to the neurons.
        current: (T, B, *), floating.
        state: before the first step, as `neuron.init_state` makes it; None is the state at rest.
        backend: "numba" the compiled loop, "torch" the plain one, "auto" the compiled one wherever it can.
        checkpoint: for the gradient keep the currents and about sqrt(T) states, and compute the potentials again,
            rather than keep the potentials of all steps. Saves (T, B, *) numbers where the currents are kept in any
            case, as an input is, or what an activation kept; nothing where they would be freed. With "torch" it saves
            nearly all of what the plain loop keeps.
        return_potential: whether to return the potentials before the reset.

    Returns:
        Spikes (T, B, *), the state after the last step, and the potentials (T, B, *) or None.

    Raises:
        TypeError: if current is not floating.
        ValueError: if a shape does not fit, current or state hold NaN or infinite values, the backend is unknown, or
            backend="numba" cannot run this.
        FloatingPointError: if a potential overflowed though all input was finite; it names the step.
    """
    if not current.is_floating_point():
        raise TypeError(f"current must be floating, got {current.dtype}.")
    if current.ndim < 1:
        raise ValueError("current must have time as its first axis, (T, B, *), got a single number.")
    if backend not in ("auto", "torch", "numba"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'numba', got {backend!r}.")
    shape = tuple(current.shape[1:])
    _check_parameters(neuron, shape)
    state = neuron.init_state(shape, current) if state is None else state
    _check_state(state, shape)
    reason = "" if backend == "torch" else unsupported(neuron, current, state)
    if backend == "numba" and reason:
        raise ValueError(f"backend='numba' cannot run this: {reason}.")
    if len(current) == 0:
        return current.clone(), state, current.clone() if return_potential else None
    if backend == "torch" or reason:
        spikes, after, potential = loop(neuron.step, current, state, checkpoint, return_potential)
    else:
        spikes, after, potential = _compiled(neuron, current, state, checkpoint, return_potential)
    check_finite(neuron.step, current, state, after)
    return spikes, after, potential


def run_leaky(current: Tensor, state: Tensor, decay: Number, gain: Number) -> tuple[Tensor, Tensor]:
    """Leaky sums y[t] = decay y[t-1] + gain x[t] of a sequence, compiled where the type and device allow.

    Args:
        current: x, (T, B, *), floating.
        state: y before the first step, (B, *).
        decay: a number or a tensor that broadcasts to (B, *).
        gain: likewise.

    Returns:
        y (T, B, *), and its last step.

    Raises:
        TypeError: if current is not floating.
        ValueError: if a shape does not fit, or current or state hold NaN or infinite values.
        FloatingPointError: if a sum overflowed.
    """
    if not current.is_floating_point():
        raise TypeError(f"current must be floating, got {current.dtype}.")
    shape = tuple(current.shape[1:])
    for name, value in (("decay", decay), ("gain", gain)):
        _check_broadcast(name, value, shape)
    if state.shape != shape:
        raise ValueError(f"state must be of shape {shape} like the neurons of current, got {tuple(state.shape)}.")
    if len(current) == 0:
        return current.clone(), state
    if _misfit(current, (state,), (decay, gain)):
        y, sums = state, []
        for x in current:
            y = decay * y + gain * x
            sums.append(y)
        out = torch.stack(sums)
    else:
        flat = _flat(current)
        out = leaky_sequence(flat, state.reshape(-1), decay, gain, shape).view(current.shape)
    if not bool(out[-1].detach().isfinite().all()):
        _refuse("current", current)
        _refuse("state", state)
        raise FloatingPointError("The leaky sum overflowed though all input was finite.")
    return out, out[-1]


def unsupported(neuron: NeuronModel, current: Tensor, state: Any) -> str:
    """Why the compiled loops cannot run this, in words; empty if they can."""
    if type(neuron) not in (LIFNeuron, CubaLIFNeuron, ALIFNeuron):
        return f"there is no kernel for {type(neuron).__name__}"
    assert isinstance(neuron, LIFNeuron)
    if neuron.held_steps:
        return "there is no kernel with a refractory time"
    if neuron.normalizer is not None:
        return "the normalizer has to be called at every step"
    if type(neuron.spike).__call__ is not Surrogate.__call__:
        return f"{type(neuron.spike).__name__} replaces the step itself"
    if neuron.rectifier is not None and (reason := _against_rectifier(neuron, current)):
        return reason
    return _misfit(current, [each for each in state if each is not None], _numbers(neuron))


def _against_rectifier(neuron: LIFNeuron, current: Tensor) -> str:
    """Why the kernels cannot run a neuron with its rectifier; empty if they can."""
    rectifier = neuron.rectifier
    if isinstance(neuron.v_threshold, Tensor) and neuron.v_threshold.requires_grad:
        return "a rectifier together with a threshold that needs a gradient has no kernel"
    if isinstance(rectifier, nn.Module) and any(p.requires_grad for p in rectifier.parameters()):
        return "the rectifier has parameters that need a gradient"
    if isinstance(neuron, ALIFNeuron):
        return "a rectifier leaves a threshold in place, not one that adapts"
    return (
        ""
        if keeps_sides(rectifier, neuron.v_threshold, current)
        else "the rectifier moves potentials across the threshold"
    )


def keeps_sides(rectifier: Any, threshold: Number, like: Tensor) -> bool:
    """Whether an elementwise map leaves the threshold in place to 1e-6, and what is beside it on its side."""
    th = torch.as_tensor(threshold, dtype=like.dtype, device=like.device).detach()
    offsets = torch.tensor([-4.0, -1.0, -0.5, -0.1, -0.01, -1e-3, 0.0, 1e-3, 0.01, 0.1, 0.5, 1.0, 4.0]).to(th)
    offsets = offsets.view(-1, *[1] * th.ndim)
    with torch.no_grad():
        moved = rectifier(th + offsets) - th
    stays = moved[6].abs() <= 1e-6 * torch.clamp(th.abs(), min=1.0)
    return bool(stays.all()) and bool((moved[:6] < 0).all()) and bool((moved[7:] > 0).all())


def _check_parameters(neuron: NeuronModel, shape: tuple[int, ...]) -> None:
    """Refuse parameters that do not broadcast to neurons of a shape."""
    if isinstance(neuron, LIFNeuron):
        for each in fields(neuron):
            _check_broadcast(each.name, getattr(neuron, each.name), shape)


def _check_broadcast(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return
    sizes = value.shape[::-1]
    if value.ndim > len(shape) or any(n not in (1, m) for n, m in zip(sizes, shape[::-1], strict=False)):
        raise ValueError(f"{name} of shape {tuple(value.shape)} does not broadcast to neurons of shape {shape}.")


def _check_state(state: Any, shape: tuple[int, ...]) -> None:
    """Refuse the states of this module's neurons where a part has another shape than the neurons."""
    if isinstance(state, LIFState | CubaLIFState | ALIFState):
        for name, value in state._asdict().items():
            if value is not None and value.shape != shape:
                raise ValueError(f"state.{name} must be of shape {shape} like the neurons, got {tuple(value.shape)}.")


def _numbers(neuron: LIFNeuron) -> list[Any]:
    own = (neuron.b,) if isinstance(neuron, CubaLIFNeuron) else ()
    own = (neuron.rho, neuron.strength) if isinstance(neuron, ALIFNeuron) else own
    return [neuron.a, neuron.k, neuron.v_threshold, neuron.polarity, *own]


def _misfit(current: Tensor, state: Any, numbers: Any) -> str:
    """Why type or device of the tensors do not suit a kernel; empty if they do."""
    if current.device.type != "cpu":
        return f"current is on {current.device}"
    if current.dtype not in (torch.float32, torch.float64):
        return f"current is {current.dtype}, not float32 or float64"
    if current.layout != torch.strided:
        return "current is sparse"
    for each in state:
        if each.dtype != current.dtype or each.device != current.device:
            return f"the state is {each.dtype} on {each.device}, current {current.dtype} on {current.device}"
    for each in numbers:
        if isinstance(each, Tensor) and each.ndim and (each.dtype != current.dtype or each.device != current.device):
            return f"a parameter is {each.dtype} on {each.device}, current {current.dtype} on {current.device}"
    return ""


def _flat(current: Tensor) -> Tensor:
    return current.contiguous().view(len(current), math.prod(current.shape[1:]))


def _compiled(neuron: Any, current: Tensor, state: Any, checkpoint: bool, potential: bool) -> tuple[Any, Any, Any]:
    shape = tuple(current.shape[1:])
    x, v = _flat(current), state.v.reshape(-1)
    options = {"checkpoint": checkpoint, "potential": potential}
    if isinstance(neuron, ALIFNeuron):
        spikes, v, b, h = alif_sequence(neuron, x, v, state.adaptation.reshape(-1), shape, **options)
        after = ALIFState(v.view(shape), None, b.view(shape))
    elif isinstance(neuron, CubaLIFNeuron):
        x = leaky_sequence(x, state.current.reshape(-1), neuron.b, 1.0, shape)
        spikes, v, h = lif_sequence(neuron, x, v, shape, **options)
        after = CubaLIFState(v.view(shape), None, x[-1].view(shape))
    else:
        spikes, v, h = lif_sequence(neuron, x, v, shape, **options)
        after = LIFState(v.view(shape))
    return spikes.view(current.shape), after, h if h is None else h.view(current.shape)


def loop(
    step: Callable[[Tensor, Any], Any], current: Tensor, state: Any, checkpoint: bool, potential: bool
) -> tuple[Tensor, Any, Tensor | None]:
    """A plain loop over steps; with `checkpoint` in about sqrt(T) stretches that are computed again for the gradient.

    Args:
        step: from a current (B, *) and a state to spikes, the next state and the potential.
        current: (T, B, *), T at least 1.
        state: before the first step.
        checkpoint: whether to keep only the states between stretches.
        potential: whether to return the potentials.

    Returns:
        Spikes (T, B, *), the last state, and the potentials or None.
    """

    def stretch(currents: Tensor, state: Any) -> tuple[Tensor, Any, Tensor | None]:
        spikes, potentials = [], []
        for x in currents:
            s, state, h = step(x, state)
            spikes.append(s)
            if potential:
                potentials.append(h)
        return torch.stack(spikes), state, torch.stack(potentials) if potential else None

    if not checkpoint or not torch.is_grad_enabled():
        return stretch(current, state)
    spikes, potentials = [], []
    for part in current.split(math.ceil(math.sqrt(len(current)))):
        s, state, h = cast(Any, forget(stretch, part, state, use_reentrant=False))
        spikes.append(s)
        potentials.append(h)
    return torch.cat(spikes), state, torch.cat(potentials) if potential else None


def _refuse(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite values.")


def check_finite(step: Callable[[Tensor, Any], Any], current: Tensor, before: Any, after: Any) -> None:
    """Refuse input or potentials that are not finite.

    A potential that is not finite stays so through leak, input and reset, so the last one tells of all.

    Args:
        step: as for `loop`, to find the step.
        current: (T, B, *).
        before: the state before the sequence.
        after: that after it.

    Raises:
        ValueError: if current or the state before hold NaN or infinite values.
        FloatingPointError: if the potential overflowed though all input was finite.
    """
    # While a neuron is held, a current that is not finite leaves no trace.
    if getattr(before, "refractory", None) is not None:
        _refuse("current", current)
    if all(bool(each.isfinite().all()) for _, each in _tensors("state", after)):
        return
    _refuse("current", current)
    for name, value in _tensors("state", before):
        _refuse(name, value)
    with torch.no_grad():
        for t, x in enumerate(current):
            _, before, h = step(x, before)
            if not bool(h.isfinite().all()):
                raise FloatingPointError(f"The potential overflowed at step {t} though all input was finite.")
    raise FloatingPointError("The state overflowed though all input was finite.")


def _tensors(name: str, state: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating tensors of a state with their names, detached: a check keeps nothing for a gradient."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state.detach()
    elif isinstance(state, tuple):
        for i, each in enumerate(state):
            yield from _tensors(f"{name}.{getattr(state, '_fields', range(len(state)))[i]}", each)
