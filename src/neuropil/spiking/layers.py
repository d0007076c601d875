"""Layers of spiking neurons: modules over whole sequences, with explicit state.

    spikes, state = layer(current, state)                 current and spikes (T, B, *), time first
    spikes, state, potential = layer(current, state)      where return_potential is set

A sequence cut in two gives what it gives whole: the state of the first part goes into the second. None is the state at
rest. The neurons' equations stand in `neuropil.spiking.neurons`; time is one compiled loop where it can be (see
`kernels.dispatch`). Layers take tau by forward Euler unless told otherwise, as the field's layers do: a = 1 - 1/tau,
k = 1/tau.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.integrators import LeakyState, decay_factor
from neuropil.spiking.kernels.dispatch import Backend, keeps_sides, run, run_leaky
from neuropil.spiking.neurons import ALIFNeuron, CubaLIFNeuron, LIFNeuron, NeuronModel, Number, Reset
from neuropil.spiking.surrogate import Surrogate

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "PLIF",
    "CubaLIF",
    "LeakyReadout",
    "Spiking",
]

Sequence_ = Float[Tensor, "time batch *neurons"]
PotentialHook = Callable[[nn.Module, Tensor, Tensor], None]
Integration = Literal["exact", "euler"]


class Spiking(nn.Module):
    """A layer of neurons of any model.

    Parameters of the neuron that are `nn.Parameter` become parameters of the layer, other tensors buffers, and a
    normalizer or rectifier that is a module a submodule. The rectifier is for training: `eval()` leaves it out, which
    changes no spike, since it must leave the threshold in place.

    Args:
        neuron: the model.
        backend: "auto", "torch" or "numba", see `kernels.dispatch.run`.
        checkpoint: keep currents and few states for the gradient rather than all potentials; likewise.
        return_potential: whether to return the potentials before the reset as well.

    Attributes:
        potential_hooks: functions of (layer, potential, spikes) that are called after every sequence; without one, and
            without return_potential, potentials cost nothing.

    Raises:
        ValueError: if the rectifier moves the threshold by more than 1e-6, or something else across it.
    """

    def __init__(
        self,
        neuron: NeuronModel,
        *,
        backend: Backend = "auto",
        checkpoint: bool = False,
        return_potential: bool = False,
    ) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.checkpoint, self.return_potential = checkpoint, return_potential
        self.potential_hooks: list[PotentialHook] = []
        self._model = type(neuron)
        self._settings = {each.name: getattr(neuron, each.name) for each in fields(neuron) if each.init}  # pyright: ignore[reportArgumentType]
        self._tensors = [name for name, value in self._settings.items() if isinstance(value, Tensor)]
        for name in self._tensors:
            value = self._settings.pop(name)
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach().clone())
        for name in ("rectifier", "normalizer"):
            if isinstance(self._settings.get(name), nn.Module):
                self.add_module(name, self._settings[name])
        rectifier = self._settings.get("rectifier")
        if rectifier is not None:
            threshold = torch.as_tensor(getattr(neuron, "v_threshold"), dtype=torch.float64)  # noqa: B009 - not of all
            if not keeps_sides(rectifier, threshold, threshold):
                raise ValueError(
                    f"The rectifier must leave v_threshold = {threshold.tolist()} in place to 1e-6 and all else on its "
                    "side of it; a map made for another threshold can be scaled, x -> c f(x / c)."
                )
        # Without tensors the neuron is the same every time, and need not be checked every time.
        self._same = None if self._tensors or rectifier is not None else neuron

    def numbers(self) -> dict[str, Any]:
        """The neuron's parameters that are tensors of this layer; what is derived from trained ones is made here."""
        return {name: getattr(self, name) for name in self._tensors}

    @property
    def neuron(self) -> NeuronModel:
        """The model with the layer's parameters as they are now."""
        if self._same is not None:
            return self._same
        settings = {**self._settings, **self.numbers()}
        if not self.training and "rectifier" in settings:
            settings["rectifier"] = None
        return self._model(**settings)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> Any:
        """The state at rest, for potentials of a shape (B, *) and the type and device of a tensor."""
        return self.neuron.init_state(shape, like)

    def forward(self, current: Sequence_, state: Any = None) -> tuple[Any, ...]:
        """Run over a sequence.

        Args:
            current: (T, B, *).
            state: what the last call returned; None is at rest.

        Returns:
            Spikes (T, B, *), the state after the last step, and with return_potential the potentials (T, B, *).

        Raises:
            ValueError: if a shape does not fit, or current or state are not finite.
            FloatingPointError: if a potential overflowed.
        """
        wanted = self.return_potential or bool(self.potential_hooks)
        spikes, state, potential = self._sequence(current, state, wanted)
        for hook in self.potential_hooks:
            hook(self, potential, spikes)
        return (spikes, state, potential) if self.return_potential else (spikes, state)

    def _sequence(self, current: Tensor, state: Any, potential: bool) -> tuple[Tensor, Any, Any]:
        return run(
            self.neuron, current, state,
            backend=self.backend, checkpoint=self.checkpoint, return_potential=potential,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """What print shows: the model, and what is not as by default."""
        usual = {each.name: each.default for each in fields(self._model)}  # pyright: ignore[reportArgumentType]
        shown = [self._model.__name__]
        shown += [f"{name}={value!r}" for name, value in self._settings.items() if value is not usual[name]]
        shown += [f"{name}: {tuple(value.shape)}" for name, value in self.named_parameters(recurse=False)]
        shown += [f"{name}: {tuple(value.shape)} fixed" for name, value in self.named_buffers(recurse=False)]
        return ", ".join(shown)


class LIF(Spiking):
    """Leaky integrate-and-fire neurons.

    Args:
        tau: membrane time constant in steps; a number or a tensor that broadcasts to the neurons.
        decay: a itself, in [0, 1], instead of tau.
        gain: k; by default 1 - a where tau is given, 1 where decay is.
        v_threshold: where they fire; a number or a tensor that broadcasts to the neurons.
        v_rest: what potentials decay to.
        v_reset: what a hard reset sets; by default v_rest.
        reset: "hard", "soft" or "none".
        reset_amount: what a soft reset subtracts; by default the threshold.
        surrogate: derivative of the spike, by name or as an object.
        detach_reset: whether gradients leave out the path through the reset.
        rectifier: elementwise map of the potential before firing, in training only.
        normalizer: map of the potential before firing, as a batch normalisation.
        polarity: +1 where neurons fire above the threshold, -1 where below.
        integration: how tau gives a: "euler" 1 - 1/tau, "exact" exp(-1/tau).
        learn_decay: whether a is trained: 1 - a = sigmoid(`leak`), which keeps it in (0, 1).
        learn_threshold: whether v_threshold is trained.
        size: shape of the trained parameters, that of the neurons for one each; by default that of what is given.
        backend, checkpoint, return_potential: see `Spiking`.

    Raises:
        ValueError: as `LIFNeuron` and `Spiking`, or if a decay to be trained is 0 or 1.

    Source: the parametrisation of the trained decay is that of Fang et al., ICCV 2021, eq. 8.
    """

    _neuron: type[LIFNeuron] = LIFNeuron

    def __init__(
        self,
        tau: Number | None = None,
        *,
        decay: Number | None = None,
        gain: Number | None = None,
        v_threshold: Number = 1.0,
        v_rest: float = 0.0,
        v_reset: float | None = None,
        reset: Reset = "hard",
        reset_amount: float | None = None,
        surrogate: str | Surrogate = "atan",
        detach_reset: bool = False,
        rectifier: Callable[[Tensor], Tensor] | None = None,
        normalizer: Callable[[Tensor], Tensor] | None = None,
        polarity: Tensor | None = None,
        integration: Integration = "euler",
        learn_decay: bool = False,
        learn_threshold: bool = False,
        size: Sequence[int] | None = None,
        backend: Backend = "auto",
        checkpoint: bool = False,
        return_potential: bool = False,
        **more: Any,
    ) -> None:
        if learn_threshold:
            v_threshold = nn.Parameter(_spread_out(v_threshold, size))
        neuron = self._neuron(
            tau, decay, gain, v_threshold, v_rest, v_reset, reset, reset_amount,
            surrogate=surrogate, detach_reset=detach_reset, rectifier=rectifier, normalizer=normalizer,
            polarity=polarity, integration=integration, **more,
        )  # fmt: skip
        start = _spread_out(neuron.a, size)
        if learn_decay:
            if not bool(((start > 0) & (start < 1)).all()):
                raise ValueError("A decay that is trained must begin between 0 and 1, both excluded.")
            # The trained leak takes the place of tau; a number holds the place of the decay that it gives.
            neuron = replace(neuron, tau=None, decay=0.5)
        super().__init__(neuron, backend=backend, checkpoint=checkpoint, return_potential=return_potential)
        self.leak = nn.Parameter(torch.logit(1.0 - start)) if learn_decay else None
        self._weighs = tau is not None and gain is None
        if learn_decay:
            self._same = None

    def numbers(self) -> dict[str, Any]:
        """See `Spiking`; the decay, and the gain that goes with it, from a trained leak."""
        numbers = super().numbers()
        if self.leak is not None:
            rate = torch.sigmoid(self.leak)
            numbers["decay"] = 1.0 - rate
            if self._weighs:
                numbers["gain"] = rate
        return numbers


class IF(LIF):
    """Integrate-and-fire neurons without a leak.

    Args:
        options: of `LIF`, but for tau, decay and gain.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(decay=1.0, gain=1.0, **options)


class PLIF(LIF):
    """Leaky integrate-and-fire neurons whose time constant is trained, 1/tau = sigmoid(`leak`).

    Args:
        tau: where it begins, in steps, above 1.
        decay_input: whether the current is multiplied by 1/tau, so that a constant one is approached.
        size: the neurons' shape for a time constant each; None is one for the layer.
        options: of `LIF`, but for decay, gain and learn_decay.

    Source: Fang et al., ICCV 2021 (parametric LIF), eq. 8.
    """

    def __init__(
        self, tau: Number = 2.0, *, decay_input: bool = True, size: Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(tau, gain=None if decay_input else 1.0, learn_decay=True, size=size, **options)


class CubaLIF(LIF):
    """Leaky integrate-and-fire neurons whose input passes a first-order synaptic filter.

    Args:
        tau: membrane time constant in steps.
        tau_synapse: time constant of the filter in steps.
        decay_synapse: the filter's decay itself, instead of tau_synapse.
        options: of `LIF`.
    """

    _neuron = CubaLIFNeuron

    def __init__(
        self,
        tau: Number | None = None,
        tau_synapse: Number | None = None,
        *,
        decay_synapse: Number | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tau, tau_synapse=tau_synapse, decay_synapse=decay_synapse, **options)


class ALIF(LIF):
    """Leaky integrate-and-fire neurons whose threshold rises with their spikes.

    Args:
        tau: membrane time constant in steps.
        tau_adaptation: time constant of the adaptation in steps.
        decay_adaptation: the adaptation's decay itself, instead of tau_adaptation.
        strength: how much an adaptation of 1 raises the threshold; a parameter is trained.
        options: of `LIF`.

    Source: Bellec et al., NeurIPS 2018, eq. 2.
    """

    _neuron = ALIFNeuron

    def __init__(
        self,
        tau: Number | None = None,
        tau_adaptation: Number | None = None,
        *,
        decay_adaptation: Number | None = None,
        strength: Number = 1.8,
        **options: Any,
    ) -> None:
        options |= {"tau_adaptation": tau_adaptation, "decay_adaptation": decay_adaptation, "strength": strength}
        super().__init__(tau, **options)


class LeakyReadout(nn.Module):
    """Neurons that integrate with a leak and do not fire, y[t] = a y[t-1] + k x[t]: the compiled `LeakyIntegrator`.

    Args:
        tau: time constant in steps, positive; a number or a tensor that broadcasts to the neurons.
        decay: a itself, in [0, 1], instead of tau.
        gain: k; by default 1 - a where tau is given, 1 where decay is.
        integration: how tau gives a: "euler" 1 - 1/tau, "exact" exp(-1/tau).

    Raises:
        ValueError: if not exactly one of tau and decay is given, or a number is out of its range.
    """

    decay: Number
    gain: Number | None

    def __init__(
        self,
        tau: Number | None = None,
        *,
        decay: Number | None = None,
        gain: Number | None = None,
        integration: Integration = "euler",
    ) -> None:
        super().__init__()
        # The neuron refuses what is out of range, in the same words.
        LIFNeuron(tau, decay, gain, integration=integration)
        self._weighs = gain is None and tau is not None
        if tau is not None:
            decay = decay_factor(tau, 1.0, integration)
        for name, value in (("decay", decay), ("gain", gain)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value.detach().clone())
            else:
                setattr(self, name, value)

    @property
    def k(self) -> Number:
        """What the current is multiplied by."""
        return 1.0 - self.decay if self._weighs else 1.0 if self.gain is None else self.gain

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> LeakyState:
        """Sums of 0."""
        return LeakyState(like.new_zeros(shape))

    def forward(self, current: Sequence_, state: LeakyState | None = None) -> tuple[Sequence_, LeakyState]:
        """Run over a sequence.

        Args:
            current: x, (T, B, *).
            state: what the last call returned; None is zero.

        Returns:
            y (T, B, *), and the state after the last step.

        Raises:
            ValueError: if a shape does not fit, or current or state are not finite.
            FloatingPointError: if a sum overflowed.
        """
        state = self.init_state(tuple(current.shape[1:]), current) if state is None else state
        y, last = run_leaky(current, state.v, self.decay, self.k)
        return y, LeakyState(last)

    def extra_repr(self) -> str:
        """What print shows."""
        shown = [f"{n}={v if not isinstance(v, Tensor) else tuple(v.shape)}" for n, v in self._shown()]
        return ", ".join(shown)

    def _shown(self) -> list[tuple[str, Any]]:
        return [
            ("decay", self.decay),
            ("gain", "1 - decay" if self._weighs else 1.0 if self.gain is None else self.gain),
        ]


def _spread_out(value: Number, size: Sequence[int] | None) -> Tensor:
    """A number or tensor as a tensor of its own, of the default type where it was a number, spread to a shape."""
    given = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    return (given if size is None else given.expand(*size)).clone()
