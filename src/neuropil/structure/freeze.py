"""Train a few weights, freeze the others at random values that a seed gives back (FreezeNet).

    theta_0    drawn from a seed, biases 0
    g = |dL/dtheta(theta_0)|   on one batch that holds every class
    m          1 at the round((1 - q) D) largest g of all D weights; q is the freezing rate
    training   theta <- theta + m * (what the optimizer adds): frozen entries stay exactly theta_0

Weights that are frozen still carry the signal and its gradient, so that at the start every trained weight has the very
gradient that it has in the dense net; in a pruned net it fades with the kept share of each layer. To store the trained
net takes the seed, the trained weights and where they are, and whatever else has parameters (biases, norms), which is
always trained and counted in the bytes, not in q.

With `decay` frozen weights shrink by a factor of 1 - lr * decay a step, and `prune_` sets them to 0 in the end: what is
left is a pruned net (FreezeNet-WD).

Source: Wimmer, Mehnert & Condurache, ACCV 2020 (arXiv 2011.14087).
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.allocation import Scope, allocate
from neuropil.structure.criteria import Criterion, Gradient
from neuropil.structure.mask_coding import decode_mask, encode_mask
from neuropil.structure.masks import Masks, attach, prunable_parameters

__all__ = ["FreezeHandle", "FrozenNet", "Storage", "freeze_at_init"]

Init = Literal["xavier_normal", "xavier_uniform", "he_normal", "he_uniform"]
Loss = Callable[[Tensor, Tensor], Tensor]

FORMAT = "neuropil frozen net 1"


def freeze_at_init(
    net: nn.Module,
    batch: tuple[Any, Tensor],
    loss_fn: Loss,
    rate: float,
    *,
    seed: int,
    init: Init = "xavier_normal",
    criterion: Criterion | None = None,
    scope: Scope = "global",
    memory: Literal["kept", "seed"] = "kept",
) -> "FrozenNet":
    """Draw the weights of a net from a seed, and choose which of them are to be trained.

    Args:
        net: any module. The weights of `prunable_parameters` are drawn anew, in place, and the biases beside them set
            to 0; other parameters (norms) and buffers stay as they are.
        batch: (x, y) to score with; it should hold every class.
        loss_fn: mean-reduced loss of (net(x), y).
        rate: fraction of the weights that are frozen, in [0, 1).
        seed: of the draws.
        init: "xavier_normal" (the paper's), "xavier_uniform", "he_normal" or "he_uniform".
        criterion: gives the scores; None is `Gradient()`, the size of the gradient.
        scope: of the allocation, as in `allocate`.
        memory: "kept" holds theta_0 while training, "seed" draws it again after every step: slower, no memory.

    Returns:
        The net with its masks; call `attach` with the optimizer before training.

    Raises:
        ValueError: if the rate lies outside [0, 1), init or memory is unknown, or there is nothing to freeze.
    """
    require("rate", rate, 0.0, 1.0, ends=(True, False))
    if memory not in ("kept", "seed"):
        raise ValueError(f'memory must be "kept" or "seed", got {memory!r}.')
    names = prunable_parameters(net)
    if not names:
        raise ValueError(f"{type(net).__name__} has no weight of two axes or more to freeze.")
    theta = _drawn(net, names, seed, init)
    with torch.no_grad():
        for name in names:
            net.get_parameter(name).copy_(theta[name])
            bias = getattr(net.get_submodule(name.rpartition(".")[0]), "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.zero_()
    scores = (Gradient() if criterion is None else criterion)(net, [batch], loss_fn, names)
    masks = allocate(scores, 1 - rate, scope)
    return FrozenNet(net, masks.filled(theta) if memory == "kept" else masks, seed=seed, init=init, rate=rate)


@dataclass(frozen=True)
class Storage:
    """What a net takes on disk.

    Attributes:
        bytes_dense: all parameters and buffers.
        bytes_compact: of `FrozenNet.compact`, everything included.
        weights: number of weights that could be trained.
        trained: number of those that are.
    """

    bytes_dense: int
    bytes_compact: int
    weights: int
    trained: int

    @property
    def ratio(self) -> float:
        """Dense bytes over compact bytes."""
        return self.bytes_dense / self.bytes_compact

    @property
    def value_ratio(self) -> float:
        """Weights over trained weights, 1 / (1 - q): what is usually quoted; it leaves out where they are."""
        return self.weights / self.trained


class FrozenNet:
    """A net of which some weights are trained and the others are frozen; made by `freeze_at_init`.

    Attributes:
        net: the module itself; train and call it as any.
        masks: True where a weight is trained; they hold theta_0 as their fill, unless it is drawn again when needed.
        seed: of theta_0.
        init: how theta_0 is drawn.
        rate: the freezing rate.
        scale: factor on theta_0 that frozen weights have come to, by name; 1 without decay, 0 once pruned.
    """

    def __init__(self, net: nn.Module, masks: Masks, *, seed: int, init: Init, rate: float):
        self.net, self.masks, self.seed, self.init, self.rate = net, masks, seed, init, rate
        self.scale = dict.fromkeys(masks, 1.0)

    def frozen_values(self) -> dict[str, Tensor]:
        """What frozen weights hold now, by name: theta_0 times `scale`, on the devices and in the dtypes of the net."""
        fill = self.masks.fill
        theta = fill if isinstance(fill, dict) else _drawn(self.net, list(self.masks), self.seed, self.init)
        return {name: _scaled(theta[name].to(self.net.get_parameter(name)), self.scale[name]) for name in self.masks}

    def attach(self, optimizer: Optimizer, *, decay: float = 0.0) -> "FreezeHandle":
        """Let an optimizer train only what is to be trained, whatever its momentum and weight decay do.

        Before a step gradients of frozen entries become 0; after it these entries are written again, and what the
        optimizer remembers of them is 0. Optimizers that take a closure compute gradients inside the step: theirs are
        undone after it.

        Args:
            optimizer: holds all weights that have a mask.
            decay: rate at which frozen weights shrink, times the learning rate of their group, at least 0.

        Returns:
            A handle: `handle.remove()` ends it.

        Raises:
            ValueError: if decay is negative, or the optimizer lacks a weight.
        """
        require("decay", decay, 0.0, math.inf, ends=(True, False))
        return FreezeHandle(self, optimizer, decay)

    def prune_(self) -> None:
        """Set all frozen weights to 0, now and for what follows: the end of training with decay."""
        self.scale = dict.fromkeys(self.masks, 0.0)
        self.masks.filled(self.frozen_values()).apply_(self.net)

    @torch.no_grad()
    def compact(self) -> bytes:
        """The net in few bytes: seed, trained weights and where they are, all other parameters and buffers.

        The bytes are a safetensors file. They give the net back wherever torch draws the same numbers from the seed.

        Raises:
            ValueError: if a frozen weight is not what it should be (was the optimizer attached?), or weights differ in
                their dtype.
        """
        frozen, values, flags = self.frozen_values(), [], []
        for name, mask in self.masks.items():
            weight = self.net.get_parameter(name).detach()
            trained = mask.to(weight.device)
            if wrong := int((weight != frozen[name])[~trained].count_nonzero()):
                raise ValueError(f"{wrong} frozen entries of {name!r} have moved: was every optimizer attached?")
            values.append(weight[trained].cpu())
            flags.append(trained.flatten().cpu())
        if len({value.dtype for value in values}) > 1:
            raise ValueError(f"The weights have several dtypes: {sorted({str(value.dtype) for value in values})}.")
        names = list(self.masks)
        state, aliases = self.net.state_dict(), _aliases(self.net, names)
        rest = {name: value.cpu().contiguous().clone() for name, value in state.items() if name not in aliases}
        tensors = {"frozen:values": torch.cat(values), "frozen:mask": encode_mask(torch.cat(flags))}
        about = {"torch": torch.__version__, "names": names, "seed": self.seed, "init": self.init, "rate": self.rate}
        about["checksum"] = _checksum(_drawn(self.net, names, self.seed, self.init))
        if any(scale != 1 for scale in self.scale.values()):
            about["scale"] = [self.scale[name] for name in names]
        # One entry: safetensors writes several in any order, and the same net should give the same bytes.
        metadata = {FORMAT: json.dumps(about, separators=(",", ":"))}
        return save(tensors | {f"rest:{name}": value for name, value in rest.items()}, metadata)

    @staticmethod
    def expand(make_net: Callable[[], nn.Module], compact: bytes) -> "FrozenNet":
        """Give back the net that `compact` wrote, bit for bit.

        Args:
            make_net: makes a module of the same shapes; its own values do not matter.
            compact: the bytes.

        Raises:
            ValueError: if the bytes are no compact net or that of other shapes, or theta_0 is not what it was: another
                version of torch draws other numbers.
        """
        tensors, about = _read(compact)
        names, seed, init = about["names"], about["seed"], about["init"]
        with torch.random.fork_rng(devices=[]):  # makers of nets draw from the global state
            net = make_net()
        parameters = dict(net.named_parameters())
        if lacking := [name for name in names if name not in parameters]:
            raise ValueError(f"make_net makes no parameter {lacking[0]!r}, which the compact net has.")
        theta = _drawn(net, names, seed, init)
        if _checksum(theta) != about["checksum"]:
            raise ValueError(
                f"torch {torch.__version__} draws other weights from seed {seed} than torch {about['torch']} did, "
                f"or the net has other shapes: the frozen weights are lost."
            )
        flags = decode_mask(tensors["frozen:mask"], sum(parameters[name].numel() for name in names))
        pieces = zip(names, flags.split([parameters[name].numel() for name in names]), strict=True)
        masks = Masks({name: flag.view(parameters[name].shape).to(parameters[name].device) for name, flag in pieces})
        frozen = FrozenNet(net, masks.filled(theta), seed=seed, init=init, rate=about["rate"])
        frozen.scale = dict(zip(names, about.get("scale", [1.0] * len(names)), strict=True))
        rest = {key.removeprefix("rest:"): value for key, value in tensors.items() if key.startswith("rest:")}
        missing, unknown = net.load_state_dict(rest, strict=False)
        if unknown or set(missing) - _aliases(net, names):
            raise ValueError(
                f"make_net makes another net: {sorted({*unknown, *missing} - _aliases(net, names))} differ."
            )
        frozen._write(tensors["frozen:values"])
        return frozen

    def storage(self) -> Storage:
        """What the net takes, dense and compact."""
        dense = sum(value.numel() * value.element_size() for value in self.net.state_dict().values())
        return Storage(dense, len(self.compact()), self.masks.total(), self.masks.kept())

    @torch.no_grad()
    def _write(self, values: Tensor) -> None:
        """Put frozen values and trained ones in their places."""
        counts = [int(mask.count_nonzero()) for mask in self.masks.values()]
        if sum(counts) != len(values):
            raise ValueError(f"The compact net has {len(values)} trained weights, its mask {sum(counts)}.")
        frozen = self.frozen_values()
        for (name, mask), piece in zip(self.masks.items(), values.split(counts), strict=True):
            weight = self.net.get_parameter(name)
            weight.copy_(frozen[name])
            weight[mask.to(weight.device)] = piece.to(weight)


class FreezeHandle:
    """Frozen weights in force on an optimizer; made by `FrozenNet.attach`."""

    def __init__(self, frozen: FrozenNet, optimizer: Optimizer, decay: float):
        self.frozen, self.decay = frozen, decay
        # Masks enforce themselves where what they hold stays the same; else it is put in anew after each step.
        self._masks = attach(frozen.masks.filled(frozen.frozen_values()), frozen.net, optimizer)
        self._steady = decay == 0 and isinstance(frozen.masks.fill, dict)
        self._hooks = [optimizer.register_step_pre_hook(self._before_step)]
        if not self._steady:
            self._masks.remove()
            self._masks = None
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        """Enforce nothing from now on."""
        for hook in self._hooks:
            hook.remove()
        if self._masks is not None:
            self._masks.remove()

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for name, mask in self.frozen.masks.items():
            gradient = self.frozen.net.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0)

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        frozen = self.frozen
        rates = {id(held): group["lr"] for group in optimizer.param_groups for held in group["params"]}
        for name in frozen.masks:
            frozen.scale[name] *= 1 - float(rates[id(frozen.net.get_parameter(name))]) * self.decay
        frozen.masks.filled(frozen.frozen_values()).apply_(frozen.net)
        frozen.masks.apply_optimizer_(frozen.net, optimizer)


def _drawn(net: nn.Module, names: list[str], seed: int, init: str) -> dict[str, Tensor]:
    """theta_0 by name: drawn in float32 on the CPU and in this order, whatever the net's dtype and device."""
    kind, _, shape = init.partition("_")
    if kind not in ("xavier", "he") or shape not in ("normal", "uniform"):
        raise ValueError(f"init must be xavier_normal, xavier_uniform, he_normal or he_uniform, got {init!r}.")
    generator, theta = torch.Generator().manual_seed(seed), {}
    for name in names:
        weight = net.get_parameter(name)
        kernel = weight[0, 0].numel()
        fan_in, fan_out = weight.shape[1] * kernel, weight.shape[0] * kernel
        std = math.sqrt(2 / (fan_in + fan_out)) if kind == "xavier" else math.sqrt(2 / fan_in)
        value = torch.empty(weight.shape, dtype=torch.float32)
        if shape == "normal":
            value.normal_(0, std, generator=generator)
        else:
            value.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
        theta[name] = value.to(weight)
    return theta


def _scaled(theta: Tensor, scale: float) -> Tensor:
    return theta if scale == 1 else torch.zeros_like(theta) if scale == 0 else theta * scale


def _checksum(theta: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for value in theta.values():
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _aliases(net: nn.Module, names: list[str]) -> set[str]:
    """All names in the state dict of the parameters with these names: a shared one has several."""
    weights = {id(net.get_parameter(name)) for name in names}
    return {name for name, held in net.named_parameters(remove_duplicate=False) if id(held) in weights}


def _read(compact: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        size = int.from_bytes(compact[:8], "little")
        metadata = json.loads(compact[8 : 8 + size]).get("__metadata__", {})
        tensors = load(compact)
    except (SafetensorError, ValueError, AttributeError) as error:
        raise ValueError("These bytes are no compact net: no safetensors file.") from error
    if FORMAT not in metadata or not {"frozen:values", "frozen:mask"} <= set(tensors):
        raise ValueError(f"These bytes are no compact net of the format {FORMAT!r}.")
    return tensors, json.loads(metadata[FORMAT])
