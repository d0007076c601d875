"""Early stopping in two steps: the amplitude of the features first, their phase later, then refinement.

With T_A and T_P the epochs at which amplitude and phase stop, and T = max(T_A, T_P), epoch e is

    e < min(T_A, T_P)     "free"        the gates are open
    min <= e < T          "stopped"     one of the two is stopped at the gated layers
    e = T                 "refine"      in place of the epoch: see below
    e > T                 "confident"   the gates are open again; train on samples whose label the net believes

Refinement (progressive early stopping, Bai et al. 2021) takes the upper parts of the net in turn. For entry k of the
list, everything is frozen but the modules of the entries k, k+1, ...; these are re-initialised and trained on all
labels, for the epochs of entry k, by an Adam of their own. Hence the method is progressive early stopping with the
amplitude stopped between T_A and T_P, and with T_A = T_P it is progressive early stopping itself. Without refinement
both parts stay stopped from T on, and everything below the gates is frozen.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from neuropil.learning.spectrum.gate import SpectralGate

__all__ = ["PhaseAmplitudeStopping", "Refinement"]

Phase = Literal["free", "stopped", "refine", "confident"]


class Refinement(NamedTuple):
    """One part of the refinement.

    Attributes:
        modules: names of what was re-initialised and is trained; all else is frozen.
        epochs: how long to train it, on all samples with the labels as given.
        optimizer: with which.
    """

    modules: tuple[str, ...]
    epochs: int
    optimizer: Optimizer


class PhaseAmplitudeStopping:
    """Gates on the layers of any net, opened and closed by the epoch.

    The loop stays the user's, with whatever rule and optimizer::

        stopping = PhaseAmplitudeStopping(net, optimizer, ["layer3"], refine=[("layer4", 7), ("fc", 5)])
        for epoch in range(epochs):
            phase = stopping.step(epoch)
            if phase == "refine":
                for part in stopping.refinement():
                    for _ in range(part.epochs):
                        train_epoch(rule, part.optimizer, data)
            else:
                train_epoch(rule, optimizer, confident_part(data) if phase == "confident" else data)

    Args:
        net: any module; gates are hooked on it and change neither its values nor its parameters' names.
        optimizer: that trains it outside the refinement; what it remembers of re-initialised parameters is cleared.
        layers: names of modules (as in `named_modules`) on whose outputs gates are put.
        stop_amplitude: T_A, the epoch from which the amplitude is stopped; None never stops it.
        stop_phase: T_P, the same for the phase. T_A = T_P is progressive early stopping, T_A > T_P the reverse order.
        refine: (names of modules, epochs) from the lowest part to the classifier; empty leaves refinement out.
        refine_rate: of the refinement's Adam.
        dims: axes that the gates transform, see `SpectralGate`.
        rescale: whether gates keep the norm of the gradient, see `SpectralGate`.
        generator: from which re-initialisation draws; None is a generator with seed 0, never the global state.

    Attributes:
        gates: by name of the layer.

    Raises:
        ValueError: if a name is no module of the net, an epoch is negative, there are no layers, a part to refine
            cannot be re-initialised, or there is something to refine but no epoch at which both are stopped.
        TypeError: in the forward pass, if a gated layer returns no tensor.

    Source: Huang et al., ICCV 2023; the refinement is that of Bai et al., NeurIPS 2021.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        layers: Sequence[str] = ("layer3",),
        stop_amplitude: int | None = 19,
        stop_phase: int | None = 30,
        refine: Sequence[tuple[str, int]] = (("layer4", 7), ("fc", 5)),
        *,
        refine_rate: float = 1e-4,
        dims: Sequence[int] | None = (-2, -1),
        rescale: bool = False,
        generator: torch.Generator | None = None,
    ):
        _check(layers, stop_amplitude, stop_phase, refine, refine_rate)
        self.net, self.optimizer = net, optimizer
        self.stop_amplitude, self.stop_phase = stop_amplitude, stop_phase
        self.refine, self.refine_rate = tuple(refine), refine_rate
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        gated = {name: _find(net, name, "layers") for name in layers}
        for name, _ in self.refine:
            _resettable(name, _find(net, name, "refine"))
        self.gates = {name: SpectralGate(dims, rescale=rescale) for name in gated}
        self._removers: list[Callable[[], object]] = []
        for name, module in gated.items():
            self._removers.append(_attach(name, module, self.gates[name]))

    def step(self, epoch: int) -> Phase:
        """Set the gates for an epoch that is about to begin.

        It depends on the epoch alone, so that a resumed training needs nothing else.

        Args:
            epoch: from 0.

        Returns:
            What the epoch is: "free", "stopped", "refine" or "confident".

        Raises:
            ValueError: if the epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch counts from 0, got {epoch}.")
        amplitude = self.stop_amplitude is not None and epoch >= self.stop_amplitude
        phase = self.stop_phase is not None and epoch >= self.stop_phase
        refined = amplitude and phase and bool(self.refine)
        last = max(self.stop_amplitude or 0, self.stop_phase or 0)
        for gate in self.gates.values():
            # During refinement all that lies below is frozen anyway; a gate would only hold back what it must not.
            gate.stop_amplitude, gate.stop_phase = amplitude and not refined, phase and not refined
        if refined:
            return "refine" if epoch == last else "confident"
        return "stopped" if amplitude or phase else "free"

    def refinement(self) -> Iterator[Refinement]:
        """Re-initialise, freeze and hand over one part after the other; what was trainable is so again afterwards.

        Yields:
            What to train, for how long and with which optimizer.
        """
        before = [(parameter, parameter.requires_grad) for parameter in self.net.parameters()]
        try:
            for place, (_, epochs) in enumerate(self.refine):
                names = tuple(name for name, _ in self.refine[place:])
                chosen = [parameter for name in names for parameter in self.net.get_submodule(name).parameters()]
                self._reset(names)
                keys = {id(parameter) for parameter in chosen}
                for parameter, trained in before:
                    parameter.requires_grad_(trained and id(parameter) in keys)
                trained_ones = list({id(p): p for p in chosen if p.requires_grad}.values())
                yield Refinement(names, epochs, Adam(trained_ones, lr=self.refine_rate))
        finally:
            for parameter, trained in before:
                parameter.requires_grad_(trained)
                # The last batch's gradients of either optimizer must not leak into the other's next step.
                parameter.grad = None

    def _reset(self, names: Sequence[str]) -> None:
        """Re-initialise modules, each as its class does, from our generator instead of the global state."""
        seed = int(torch.randint(2**62, (1,), generator=self.generator, device=self.generator.device))
        devices = sorted({p.device.index for p in self.net.parameters() if p.is_cuda and p.device.index is not None})
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            for name in names:
                module = self.net.get_submodule(name)
                for reset in _resettable(name, module):
                    reset()
                for parameter in module.parameters():
                    self.optimizer.state.pop(parameter, None)

    def close(self) -> None:
        """Take the gates off the net; a second call does nothing."""
        while self._removers:
            self._removers.pop()()

    def __enter__(self) -> "PhaseAmplitudeStopping":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attach(name: str, module: nn.Module, gate: SpectralGate) -> Callable[[], None]:
    """Put a gate on a module's output, under and above the hooks that a rule puts there for one forward pass.

    A rule that cuts the net here (`Stages`) takes the output from under its hook, and one that reroutes errors sends
    them down from its hook: a gate must lie under the first and above the second. A gate passed twice is a gate passed
    once, for a projection is idempotent.
    """

    def through(_: nn.Module, args: tuple, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"The layer {name!r} returns a {type(output).__name__}, not a tensor: gate another one.")
        return gate(output)

    handles: dict[str, RemovableHandle] = {"under": module.register_forward_hook(through, prepend=True)}
    if any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False)):  # errors are rerouted at weights

        def renew(*_: Any) -> None:
            if "above" in handles:
                handles.pop("above").remove()
            handles["above"] = module.register_forward_hook(through)  # last of those that wait for this output

        handles["renew"] = module.register_forward_pre_hook(renew)

    def remove() -> None:
        for handle in handles.values():
            handle.remove()

    return remove


def _find(net: nn.Module, name: str, argument: str) -> nn.Module:
    """A submodule by name."""
    modules = dict(net.named_modules())
    if not name or name not in modules:
        known = ", ".join(repr(other) for other in modules if other)
        raise ValueError(f"{argument} names {name!r}, which {type(net).__name__} does not have; it has {known}.")
    return modules[name]


def _resettable(name: str, module: nn.Module) -> list[Callable[[], object]]:
    """What re-initialises a module: every `reset_parameters` in it, which must reach all its parameters."""
    resets: list[Callable[[], object]] = []
    for inner, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            resets.append(reset)
        elif next(part.parameters(recurse=False), None) is not None:
            where = f"{name}.{inner}" if inner else name
            raise ValueError(
                f"refine names {name!r}, but {where} ({type(part).__name__}) has parameters and no reset_parameters()."
            )
    if not any(True for _ in module.parameters()):
        raise ValueError(f"refine names {name!r}, which has no parameters to train.")
    return resets


def _check(
    layers: Sequence[str],
    stop_amplitude: int | None,
    stop_phase: int | None,
    refine: Sequence[tuple[str, int]],
    refine_rate: float,
) -> None:
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a list of at least one name, got {layers!r}.")
    for name, stop in (("stop_amplitude", stop_amplitude), ("stop_phase", stop_phase)):
        if stop is not None and stop < 0:
            raise ValueError(f"{name} is an epoch from 0 on or None, got {stop}.")
    if refine and (stop_amplitude is None or stop_phase is None):
        raise ValueError("refine needs both stop_amplitude and stop_phase; pass refine=() to leave refinement out.")
    for name, epochs in refine:
        if epochs < 0:
            raise ValueError(f"refine gives {name!r} {epochs} epochs, wanted 0 or more.")
    if not refine_rate > 0:
        raise ValueError(f"refine_rate must be positive, got {refine_rate}.")
