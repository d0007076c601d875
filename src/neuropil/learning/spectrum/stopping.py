"""Stop learning through the amplitude and through the phase of features at different epochs, then refine.

With T_A and T_P the epochs at which amplitude and phase stop, and T = max(T_A, T_P), epoch e has the stage

    e < min(T_A, T_P)           "all"        everything teaches
    min <= e < T                "phase"      only the phase teaches the layers below a gate (T_A < T_P: PADDLES),
                                "amplitude"  or only the amplitude (T_P < T_A: the reverse order)
    e = T                       "refine"     in place of an epoch: for each entry of `refine` in turn, its modules are
                                             re-initialised and trained alone by Adam, on all noisy samples
    e > T                       "confident"  gates open; train on the samples that the network agrees with

Without `refine` the gates stay closed from T on: "stopped". With T_A = T_P this is progressive early stopping (PES, Bai
et al. 2021); stopping one spectrum before the other is what PADDLES adds to it.

Running statistics of batch norms still move in training mode where no gradient arrives, and while a module is refined.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from neuropil.learning.feedback.maps import WeightLayer
from neuropil.learning.spectrum.gate import SpectralGate

__all__ = ["PhaseAmplitudeStopping", "Stage"]

Stage = Literal["all", "phase", "amplitude", "stopped", "refine", "confident"]
Names = str | Sequence[str]


class PhaseAmplitudeStopping:
    """Gates behind named modules of any network, opened and closed by the epoch.

    The gates change no value, and a network behaves, saves and loads as before. They act inside any `rule.backward`, on
    whatever gradient passes a module's output: under a rule that teaches every stage at its own end (direct feedback
    alignment), that is the gradient of the layers of the same stage. `step` comes at the beginning of an epoch:

        stopping = PhaseAmplitudeStopping(net, optimizer, ["layer3"], refine=[(("layer4", "fc"), 7), ("fc", 5)])
        for epoch in range(200):
            if stopping.step(epoch) == "refine":
                stopping.refine(lambda adam: train_epoch(rule, adam, data))
                continue
            if stopping.stage == "confident":
                chosen, weights = confident_subset(net, x, labels)
                ...
            train_epoch(rule, optimizer, data)

    Args:
        net: any module.
        optimizer: of its training; the state (momentum) of modules that were re-initialised is dropped.
        layers: names of modules, as `named_modules` has them, whose output is gated; it must be one tensor.
        stop_amplitude: epoch T_A; None never stops it.
        stop_phase: epoch T_P; None never stops it.
        refine: names of modules, deepest first, and the epochs that each entry is trained for.
        rate: of Adam in the refinement.
        dims: axes of the gates' Fourier transform.
        keep_norm: see `SpectralGate`.
        generator: source of the new initial weights; None draws from torch's default generator.

    Attributes:
        stage: of the last `step`; "all" before.
        gates: by the name of the module.

    Raises:
        ValueError: if a name is no module's, there are no layers, an epoch is negative, a number of epochs or the rate
            is not positive, there is something to refine and one of the two never stops, or an entry of `refine` has
            nothing to train.
        TypeError: if a module to be refined holds weights and has no `reset_parameters`.

    Source: Huang et al. 2023 (PADDLES); the refinement is that of Bai et al. 2021 (PES). In both papers' code the
        re-initialised modules are new objects that the optimizer does not know, so that they stay as refined while the
        layers below go on learning; here they go on with the rest.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        layers: Sequence[str],
        *,
        stop_amplitude: int | None = 19,
        stop_phase: int | None = 30,
        refine: Sequence[tuple[Names, int]] = (),
        rate: float = 1e-4,
        dims: Sequence[int] | None = (-2, -1),
        keep_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        for name, epoch in (("stop_amplitude", stop_amplitude), ("stop_phase", stop_phase)):
            if epoch is not None and epoch < 0:
                raise ValueError(f"{name} must be an epoch, 0 or later, or None for never; got {epoch}.")
        if isinstance(layers, str) or not layers:
            raise ValueError(f"layers must be a list of at least one name of a module, got {layers!r}.")
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}.")
        if refine and (stop_amplitude is None or stop_phase is None):
            raise ValueError("The refinement comes when both spectra are stopped: give both epochs, or no `refine`.")
        self.net, self.optimizer, self.rate, self.generator = net, optimizer, rate, generator
        self.stop_amplitude, self.stop_phase = stop_amplitude, stop_phase
        self.stage: Stage = "all"
        self._plan = [_entry(net, names, epochs) for names, epochs in refine]
        modules = {name: _named(net, name) for name in layers}
        self.gates = {name: SpectralGate(dims, keep_norm=keep_norm) for name in modules}
        self._hooks = [hook for name, module in modules.items() for hook in _attach(name, module, self.gates[name])]

    def step(self, epoch: int) -> Stage:
        """Open and close the gates for an epoch that begins.

        Args:
            epoch: 0, 1, ...; a resumed training may begin anywhere.

        Returns:
            The stage of the epoch.
        """
        amplitude = self.stop_amplitude is not None and epoch >= self.stop_amplitude
        phase = self.stop_phase is not None and epoch >= self.stop_phase
        if not (amplitude and phase):
            self.stage = "phase" if amplitude else "amplitude" if phase else "all"
        elif not self._plan:
            self.stage = "stopped"
        else:
            self.stage = "refine" if epoch == max(self.stop_amplitude or 0, self.stop_phase or 0) else "confident"
        for gate in self.gates.values():
            gate.stop_amplitude = self.stage in ("phase", "stopped")
            gate.stop_phase = self.stage in ("amplitude", "stopped")
        return self.stage

    def refine(self, train: Callable[[Optimizer], Any]) -> None:
        """Re-initialise the modules of every entry, one entry after the other, and train them with all else frozen.

        Afterwards what was trainable before is so again, and the optimizer's state of the refined parameters is gone.

        Args:
            train: trains the network for one epoch, on all samples, with the optimizer that it is given.
        """
        trainable = {parameter: parameter.requires_grad for parameter in self.net.parameters()}
        try:
            for modules, epochs in self._plan:
                for module in modules:
                    _reset(module, self.generator)
                chosen = {parameter for module in modules for parameter in module.parameters()}
                for parameter, flag in trainable.items():
                    parameter.requires_grad_(flag and parameter in chosen)
                    parameter.grad = None
                adam = torch.optim.Adam([p for p in trainable if p in chosen], lr=self.rate)
                for _ in range(epochs):
                    train(adam)
                for parameter in chosen:
                    self.optimizer.state.pop(parameter, None)
        finally:
            for parameter, flag in trainable.items():
                parameter.requires_grad_(flag)
                parameter.grad = None

    def close(self) -> None:
        """Take the gates off the network."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "PhaseAmplitudeStopping":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Last:
    """A forward hook that is always the last of its module: it moves behind the others at every call.

    Rules that send errors back by other weights hook their routes to a layer for the time of a forward pass, and stages
    their cuts. A gate in front of a route would stop the gradient of the layer's weights and not the error of its
    input; a gate behind a cut would see nothing. So a layer with weights has its gate at both ends: a projection
    applied twice is the projection.
    """

    def __init__(self, module: nn.Module, hook: Callable):
        self.hook = hook
        self.handle: RemovableHandle | None = None
        self.before = module.register_forward_pre_hook(self._move)

    def _move(self, module: nn.Module, _: Any) -> None:
        self._drop()
        self.handle = module.register_forward_hook(self.hook)

    def _drop(self) -> None:
        if self.handle is not None:
            self.handle.remove()

    def remove(self) -> None:
        self.before.remove()
        self._drop()


def _attach(name: str, module: nn.Module, gate: SpectralGate) -> list[Any]:
    """Hook a gate to a module's output."""

    def hook(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"The output of {name!r} must be a tensor to have a spectrum, got {type(output).__name__}.")
        return gate(output)

    first = module.register_forward_hook(hook, prepend=True)
    return [first, _Last(module, hook)] if isinstance(module, WeightLayer) else [first]


def _named(net: nn.Module, name: str) -> nn.Module:
    with suppress(AttributeError):
        return net.get_submodule(name)
    there = [known for known, _ in net.named_modules() if known]
    raise ValueError(f"No module is named {name!r}; there are {there}.")


def _entry(net: nn.Module, names: Names, epochs: int) -> tuple[list[nn.Module], int]:
    """The modules of one part of the refinement, checked."""
    names = [names] if isinstance(names, str) else list(names)
    if epochs < 1:
        raise ValueError(f"{names} must be refined for at least one epoch, got {epochs}.")
    modules = [_named(net, name) for name in names]
    if not any(True for module in modules for _ in module.parameters()):
        raise ValueError(f"There are no weights to refine in {names}.")
    for top, module in zip(names, modules, strict=True):
        for name, part in module.named_modules(prefix=top):
            if next(part.parameters(recurse=False), None) is not None and not hasattr(part, "reset_parameters"):
                raise TypeError(f"{name!r} ({type(part).__name__}) has no reset_parameters to draw new weights with.")
    return modules, epochs


@torch.no_grad()
def _reset(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw new initial weights; `reset_parameters` knows the global state only, which is left as it was."""
    if generator is None:
        _reset_parts(module)
        return
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    devices = sorted({p.device.index for p in module.parameters() if p.is_cuda and p.device.index is not None})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        _reset_parts(module)


def _reset_parts(module: nn.Module) -> None:
    for part in module.modules():
        reset: Any = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
