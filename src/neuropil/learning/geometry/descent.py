"""Mirror descent: gradient descent in the geometry of a potential, as an optimizer that any rule can use.

    m <- momentum m + (g + weight_decay w)
    grad phi(w) <- grad phi(w) - lr m                      nesterov: g + weight_decay w + momentum m in place of m

The dual variables are recomputed from the weights at every step, which is exact up to rounding, so that the weights
are the only state beside m. With weight decay the change of the dual variables leaves the span of the gradients.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from neuropil.learning.geometry.potentials import EUCLIDEAN, NegativeEntropy, Potential

__all__ = ["MirrorDescent", "parameter_groups"]


class MirrorDescent(Optimizer):
    """Mirror descent with momentum; every group of parameters may have a potential of its own.

    Weights that start at 0 stay there under negative entropy, so biases and gains want a group with the 2-norm:

        MirrorDescent([{"params": weights}, {"params": biases, "potential": EUCLIDEAN}], lr=0.1)

    which is what `parameter_groups(net, potential)` makes.

    A stored state names the potentials and holds numbers and tensors only; loaded, training goes on to the last bit.

    Args:
        params: parameters or groups of them.
        lr: learning rate; good ones differ by orders of magnitude between potentials.
        potential: of groups that bring none.
        momentum: decay of the averaged gradient, 0 to below 1.
        weight_decay: factor of the weights in the gradient.
        nesterov: look ahead; needs momentum.

    Attributes:
        cut: how many changes of single weights were cut to the potential's reach so far.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if a potential is none, or a parameter is not real-valued.

    Source: Pogodin et al. 2024; Beck & Teboulle 2003.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        potential: Potential | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        self.cut = 0
        self._told: set[str] = set()
        defaults = {
            "lr": lr,
            "potential": NegativeEntropy() if potential is None else potential,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; options that it does not bring are the optimizer's.

        Raises:
            ValueError: if a number is out of range.
            TypeError: if the potential is none, or a parameter is not real-valued.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                del self.param_groups[-1]
                raise TypeError(f"MirrorDescent trains real-valued parameters, got one of dtype {parameter.dtype}.")

    @property
    def frozen(self) -> int:
        """How many weights are exactly 0 now under a potential that does not let them leave it."""
        stuck = [group for group in self.param_groups if not group["potential"].crosses_zero]
        return sum(int((parameter == 0).sum()) for group in stuck for parameter in group["params"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights along their gradients.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What the closure returns, None without one.

        Raises:
            TypeError: if a gradient is sparse.
            FloatingPointError: if a gradient is not finite under a potential of limited reach.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, w: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.layout != torch.strided:
            raise TypeError(f"MirrorDescent needs dense gradients, got one of layout {gradient.layout}.")
        potential, lr, momentum = group["potential"], float(group["lr"]), group["momentum"]
        if not potential.crosses_zero and not self.state[w]:
            self._tell_frozen(w, potential)
        direction = gradient.add(w, alpha=group["weight_decay"]) if group["weight_decay"] else gradient
        state = self.state[w]
        state["step"] = state.get("step", 0) + 1
        if momentum:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = direction.clone(memory_format=torch.preserve_format)
            else:
                state["momentum_buffer"].mul_(momentum).add_(direction)
            buffer = state["momentum_buffer"]
            direction = direction.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        if math.isfinite(potential.reach):
            direction = self._within_reach(direction, lr, potential, state["step"])
        potential.step_(w, direction, lr)

    def _within_reach(self, direction: Tensor, lr: float, potential: Potential, step: int) -> Tensor:
        """Cut changes of dual variables that would overflow, count them and tell once."""
        largest = float(direction.abs().max()) if direction.numel() else 0.0
        if not math.isfinite(largest):
            raise FloatingPointError(f"A gradient is {largest} at step {step}; {potential.name} cannot follow it.")
        if lr * largest <= potential.reach:
            return direction
        limit = potential.reach / lr
        self.cut += int((direction.abs() > limit).sum())
        self._tell(
            "cut",
            f"At step {step} a dual variable was to change by {lr * largest:.3g}, cut to {potential.reach:g} "
            f"({potential.name}): the learning rate {lr:g} is too large. Further cuts are counted in `cut`.",
        )
        return direction.clamp(-limit, limit)

    def _tell_frozen(self, w: Tensor, potential: Potential) -> None:
        zeros = int((w == 0).sum())
        if zeros:
            self._tell(
                "frozen",
                f"{zeros} of {w.numel()} weights of a parameter of shape {tuple(w.shape)} are exactly 0 and stay there "
                f"under {potential.name}: give biases and gains a group with PNorm(2). `frozen` counts all of them.",
            )

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers, tensors and the potentials' names: `torch.load(weights_only=True)` reads it."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["potential"] = group["potential"].name
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stored state; potentials are the optimizer's own, and must have the stored names.

        Raises:
            ValueError: if groups or potentials do not match.
        """
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"The state has {len(groups)} groups of parameters, the optimizer {len(self.param_groups)}."
            )
        potentials = [group["potential"] for group in self.param_groups]
        for index, (group, own) in enumerate(zip(groups, potentials, strict=True)):
            if group["potential"] != own.name:
                raise ValueError(f"Group {index} was stored under {group['potential']}, the optimizer has {own.name}.")
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, potentials, strict=True):
            group["potential"] = own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what pickling and copying kept: counts start anew."""
        super().__setstate__(state)
        self.__dict__.setdefault("cut", 0)
        self.__dict__.setdefault("_told", set())


def parameter_groups(net: nn.Module, potential: Potential) -> list[dict[str, Any]]:
    """Groups for `MirrorDescent`: weights of two or more axes in a potential, biases and gains in the 2-norm.

    Args:
        net: whose trainable parameters are sorted.
        potential: of the weights.

    Raises:
        ValueError: if the network has no trainable weights of two or more axes.
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trainable if parameter.dim() > 1]
    vectors = [parameter for parameter in trainable if parameter.dim() <= 1]
    if not weights:
        raise ValueError(f"{type(net).__name__} has no trainable weights of two or more axes.")
    groups = [{"params": weights, "potential": potential}]
    return groups + ([{"params": vectors, "potential": EUCLIDEAN}] if vectors else [])


def _check(group: dict[str, Any]) -> None:
    if not isinstance(group["potential"], Potential):
        raise TypeError(f"potential must be a Potential, such as PNorm(2), got {group['potential']!r}.")
    for name in ("lr", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {group[name]}.")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}.")
    if group["nesterov"] and not group["momentum"]:
        raise ValueError("nesterov looks ahead along the momentum: it needs momentum above 0.")
