"""Masks over a network's parameters, and their enforcement under any optimizer.

    masks = Masks({"0.weight": keep})           True where an entry is kept
    handle = attach(masks, net, optimizer)      from now on, after every optimizer.step():

        w <- m w + (1 - m) fill                 fill is 0, or theta_0 for networks that freeze instead of prune
        s <- m s                                every tensor s of w's shape that the optimizer keeps

The network itself is not touched: no re-parametrisation, no hooks on modules, so `state_dict`, `deepcopy`, export and
mixed precision see plain parameters. Gradients of masked entries stay what backpropagation says: growth needs them.

Enforcement is two bitwise operations at most. Masks are kept as integers whose bits are all 1 where an entry is kept,
so that `w & bits` is exactly +0.0 elsewhere (a product would leave -0.0, and NaN where w is infinite), at the speed of
a product: up to twenty times that of `masked_fill_` on a CPU, whose branches a random mask defeats.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Bool
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.structure.optimizers import Fill, held_by, reset_state_, state_like

__all__ = ["MaskHandle", "Masks", "attach", "prunable_parameters"]

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an entry
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
# Parts of names of parameters that are no weights between units, whatever their number of axes. The last two are the
# lengths of weight norm.
NO_WEIGHTS = ("bias", "embed", "token", "weight_g", "original0")


class Masks(Mapping[str, Tensor]):
    """Which entries of which parameters are kept: boolean tensors by qualified parameter name. Never changed in place.

    Args:
        masks: True where an entry is kept, each of its parameter's shape.
        fill: what masked entries hold: 0.0, or a tensor of the parameter's shape for every name (theta_0).

    Raises:
        TypeError: if a mask is not boolean.
        ValueError: if `fill` is a number other than 0, lacks a name, or has another shape.
    """

    def __init__(self, masks: Mapping[str, Tensor], fill: float | Mapping[str, Tensor] = 0.0):
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"The mask of {name!r} must be boolean, got {mask.dtype}.")
        self._masks = {name: mask.detach() for name, mask in masks.items()}
        self.fill: float | dict[str, Tensor] = _checked_fill(self._masks, fill)

    @classmethod
    def full(cls, net: nn.Module, names: Iterable[str] | None = None) -> "Masks":
        """Masks that keep everything.

        Args:
            net: its parameters give shapes and devices.
            names: qualified parameter names; None takes `prunable_parameters(net)`.
        """
        names = prunable_parameters(net) if names is None else list(names)
        return cls({name: torch.ones_like(_parameter(net, name), dtype=torch.bool) for name in names})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        held = "zero" if isinstance(self.fill, float) else "given values"
        return f"Masks({len(self)} parameters, {self.kept()} of {self.total()} entries kept, the others hold {held})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks) or list(self) != list(other):
            return NotImplemented if not isinstance(other, Masks) else False
        return all(_same(self[name], other[name]) for name in self) and _same_fill(self.fill, other.fill)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __invert__(self) -> "Masks":
        return Masks({name: ~mask for name, mask in self.items()}, self.fill)

    def __and__(self, other: "Masks") -> "Masks":
        return self._combined(other, torch.logical_and)

    def __or__(self, other: "Masks") -> "Masks":
        return self._combined(other, torch.logical_or)

    def _combined(self, other: "Masks", combine: Callable[[Tensor, Tensor], Tensor]) -> "Masks":
        if set(self) != set(other):
            raise ValueError(f"Masks of other parameters cannot be combined: {sorted(set(self) ^ set(other))}.")
        for name, mask in self.items():
            if mask.shape != other[name].shape:
                raise ValueError(f"The masks of {name!r} have shapes {(*mask.shape,)} and {(*other[name].shape,)}.")
        if not _same_fill(self.fill, other.fill):
            raise ValueError("Masks with different fills cannot be combined.")
        return Masks({name: combine(mask, other[name].to(mask.device)) for name, mask in self.items()}, self.fill)

    def filled(self, fill: float | Mapping[str, Tensor]) -> "Masks":
        """The same masks with another fill."""
        return Masks(self._masks, fill)

    def kept(self) -> int:
        """Number of entries kept."""
        return sum(int(mask.count_nonzero()) for mask in self.values())

    def total(self) -> int:
        """Number of entries of all these parameters."""
        return sum(mask.numel() for mask in self.values())

    def density(self) -> float:
        """Fraction of entries kept, over these parameters only; 1 if there are none."""
        return self.kept() / self.total() if self.total() else 1.0

    def densities(self) -> dict[str, float]:
        """Fraction of entries kept, by parameter."""
        return {name: int(mask.count_nonzero()) / max(mask.numel(), 1) for name, mask in self.items()}

    @torch.no_grad()
    def apply_(self, net: nn.Module) -> None:
        """Put the fill into the masked entries of a network, once and in place.

        Raises:
            ValueError: if the network has no such parameter, or one of another shape.
        """
        for name, mask in self.items():
            parameter = _parameter(net, name, mask)
            _Keeper(mask, _fill_of(self.fill, name), parameter).fill_(parameter)

    @torch.no_grad()
    def apply_optimizer_(self, net: nn.Module, optimizer: Optimizer, fill: Fill = "zero") -> None:
        """Forget what an optimizer remembers of the masked entries, once and in place.

        Args:
            net: has the parameters by name.
            optimizer: holds them.
            fill: "zero", or "mean": second moments become the mean of those of the kept entries.

        Raises:
            ValueError: if the network has no such parameter, or one of another shape.
        """
        for name, mask in self.items():
            parameter = _parameter(net, name, mask)
            reset_state_(optimizer, parameter, ~mask.to(parameter.device), fill)

    def save(self, path: str | Path) -> None:
        """Write masks and fill to a safetensors file."""
        tensors = {f"mask:{name}": mask for name, mask in self.items()}
        if isinstance(self.fill, dict):
            tensors |= {f"fill:{name}": tensor for name, tensor in self.fill.items()}
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        copies = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        # A file of safetensors knows no order of its tensors; masks do.
        save_file(copies, partial, metadata={"names": json.dumps(list(self))})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Masks":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds no masks.
        """
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {}).get("names", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if not isinstance(names, list) or any(f"mask:{name}" not in tensors for name in names):
            raise ValueError(f"{path} holds no masks.")
        fill = {key.removeprefix("fill:"): tensor for key, tensor in tensors.items() if key.startswith("fill:")}
        return cls({name: tensors[f"mask:{name}"] for name in names}, fill or 0.0)


def prunable_parameters(
    net: nn.Module, include: Callable[[str, nn.Parameter], bool] | Iterable[str] | None = None
) -> list[str]:
    """Names of the parameters over which sparsity is counted.

    Args:
        net: any module.
        include: names, or a function of name and parameter; None takes every weight between units: floating-point
            parameters of two axes or more that are no bias, no embedding, no token and not of a norm.

    Returns:
        Qualified names, in the network's order; a shared parameter comes once, under its first name.

    Raises:
        ValueError: if a name is none of the network's parameters.
    """
    parameters = dict(net.named_parameters())
    if include is None:
        spared = _spared(net)
        return [
            name
            for name, parameter in parameters.items()
            if parameter.ndim >= 2
            and parameter.is_floating_point()
            and id(parameter) not in spared
            and not any(part in name.lower() for part in NO_WEIGHTS)
        ]
    if callable(include):
        return [name for name, parameter in parameters.items() if include(name, parameter)]
    wanted = set(include)
    if unknown := sorted(wanted - set(parameters)):
        raise ValueError(f"include names {unknown[0]!r}; the network has the parameters {', '.join(parameters)}.")
    return [name for name in parameters if name in wanted]


def attach(masks: Masks, net: nn.Module, optimizer: Optimizer, *, fill: Fill = "zero") -> "MaskHandle":
    """Keep masks enforced after every step of an optimizer, from now on; they are enforced at once as well.

    Args:
        masks: to enforce.
        net: has the parameters by name.
        optimizer: any torch optimizer that holds all of them, in any of its groups.
        fill: what the optimizer remembers of entries that open when masks are replaced: "zero", or "mean": second
            moments become the mean of the entries that were open before.

    Returns:
        A handle: `handle.masks = new` replaces, `handle.remove()` ends it.

    Raises:
        ValueError: if the network has no such parameter, one of another shape, one of them twice, or one that the
            optimizer does not hold.
    """
    return MaskHandle(masks, net, optimizer, fill)


class MaskHandle:
    """Masks in force on a network and its optimizer; made by `attach`.

    `copy.deepcopy((net, optimizer, handle))` copies all three so that the copies belong together. After loading a
    state dict into net or optimizer, `enforce()` holds the masks at once instead of after the next step.
    """

    def __init__(self, masks: Masks, net: nn.Module, optimizer: Optimizer, fill: Fill = "zero"):
        if fill not in ("zero", "mean"):
            raise ValueError(f'fill must be "zero" or "mean", got {fill!r}.')
        self.net, self.optimizer = net, optimizer
        self.fill: Fill = fill
        self._masks, self._keepers = self._prepared(masks)
        self._hook = optimizer.register_step_post_hook(self._after_step)
        self.enforce()

    @property
    def masks(self) -> Masks:
        """The masks in force. Set them to replace: opened entries start at the fill, with the state `attach` says."""
        return self._masks

    @masks.setter
    def masks(self, masks: Masks) -> None:
        prepared, keepers = self._prepared(masks)
        old, self._masks, self._keepers = self._masks, prepared, keepers
        self._open(old)
        self.enforce()

    def restore(self, masks: Masks) -> None:
        """Put masks in force as they were saved: entries that they open keep the values they have."""
        self._masks, self._keepers = self._prepared(masks)
        self.enforce()

    def enforce(self) -> None:
        """Put the fill into the masked entries, and zero into what the optimizer remembers of them."""
        with torch.no_grad():
            for name, keeper in self._keepers.items():
                parameter = self.net.get_parameter(name)
                if parameter.shape != keeper.bits.shape:
                    raise ValueError(
                        f"{name!r} has shape {(*parameter.shape,)} now, its mask {(*keeper.bits.shape,)}: set "
                        f"handle.masks to masks of the new shape."
                    )
                keeper.fill_(parameter)
                for value in state_like(self.optimizer, parameter).values():
                    keeper.zero_(value)

    def remove(self) -> None:
        """Enforce nothing from now on."""
        self._hook.remove()

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self.enforce()

    def _open(self, old: Masks) -> None:
        """Entries that open start at the fill, and without a past."""
        with torch.no_grad():
            for name in self._masks:
                if name not in old or old[name].shape != self._masks[name].shape:
                    continue
                parameter = self.net.get_parameter(name)
                was, now = old[name].to(parameter.device), self._masks[name].to(parameter.device)
                opened = now & ~was
                if not opened.any():
                    continue
                fill = _fill_of(self._masks.fill, name)
                parameter[opened] = 0.0 if fill is None else fill.to(parameter)[opened]
                reset_state_(self.optimizer, parameter, opened, self.fill, live=was & now)

    def _prepared(self, masks: Masks) -> tuple[Masks, "dict[str, _Keeper]"]:
        keepers, names = {}, {}
        for name, mask in masks.items():
            parameter = _parameter(self.net, name, mask)
            if not held_by(self.optimizer, parameter):
                raise ValueError(
                    f"The optimizer does not hold {name!r}, so nothing is to be enforced there: leave it out of the "
                    f"masks, or give it to the optimizer."
                )
            if id(parameter) in names:
                raise ValueError(f"{names[id(parameter)]!r} and {name!r} are one parameter: it can have one mask.")
            names[id(parameter)] = name
            keepers[name] = _Keeper(mask, _fill_of(masks.fill, name), parameter)
        return masks, keepers

    def __deepcopy__(self, memo: dict) -> "MaskHandle":
        net, optimizer = memo.get(id(self.net)), memo.get(id(self.optimizer))
        if net is None or optimizer is None:
            raise TypeError("A handle is copied with what it holds: copy.deepcopy((net, optimizer, handle)).")
        return MaskHandle(self._masks, net, optimizer, self.fill)


class _Keeper:
    """One mask, ready to be put on tensors of its shape: bits that are all 1 where an entry is kept, else all 0."""

    def __init__(self, mask: Bool[Tensor, "*shape"], fill: Tensor | None, parameter: Tensor):
        self.hidden = ~mask.to(parameter.device)
        self.bits = self._bits(INTEGERS.get(parameter.element_size(), torch.int32))
        self.fill = None if fill is None else torch.where(self.hidden, fill.to(parameter), torch.zeros_like(parameter))

    def _bits(self, integer: torch.dtype) -> Tensor:
        return self.hidden.to(integer) - 1

    def zero_(self, tensor: Tensor) -> None:
        """Exactly +0.0 where masked."""
        integer = INTEGERS.get(tensor.element_size())
        if integer is None or tensor.is_sparse:
            tensor.masked_fill_(self.hidden, 0)
            return
        bits = self.bits if self.bits.dtype == integer else self._bits(integer)
        tensor.detach().view(integer).bitwise_and_(bits)

    def fill_(self, parameter: Tensor) -> None:
        """Exactly the fill where masked."""
        self.zero_(parameter)
        if self.fill is not None:
            integer = INTEGERS.get(parameter.element_size())
            if integer is None:
                parameter.masked_scatter_(self.hidden, self.fill[self.hidden])
            else:
                parameter.detach().view(integer).bitwise_or_(self.fill.view(integer))


def _spared(net: nn.Module) -> set[int]:
    """Parameters of norms and embeddings, by identity: a readout may share an embedding's."""
    return {
        id(parameter)
        for module in net.modules()
        if isinstance(module, LOOKUPS) or "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }


def _parameter(net: nn.Module, name: str, mask: Tensor | None = None) -> nn.Parameter:
    try:
        parameter = net.get_parameter(name)
    except AttributeError as error:
        raise ValueError(f"The network has no parameter {name!r}.") from error
    if mask is not None and mask.shape != parameter.shape:
        raise ValueError(f"{name!r} has shape {(*parameter.shape,)}, its mask {(*mask.shape,)}.")
    return parameter


def _fill_of(fill: float | dict[str, Tensor], name: str) -> Tensor | None:
    return fill[name] if isinstance(fill, dict) else None


def _checked_fill(masks: dict[str, Tensor], fill: float | Mapping[str, Tensor]) -> float | dict[str, Tensor]:
    if not isinstance(fill, Mapping):
        if fill != 0:
            raise ValueError(f"fill must be 0 or a tensor for every name, got {fill}.")
        return 0.0
    for name, mask in masks.items():
        if name not in fill:
            raise ValueError(f"fill lacks {name!r}.")
        if fill[name].shape != mask.shape:
            raise ValueError(f"fill has shape {(*fill[name].shape,)} for {name!r}, the mask {(*mask.shape,)}.")
    return {name: fill[name].detach() for name in masks}


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and torch.equal(first, second.to(first.device)))


def _same_fill(first: float | dict[str, Tensor], second: float | dict[str, Tensor]) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    return not isinstance(first, dict) and not isinstance(second, dict)
