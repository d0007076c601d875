"""One call for every learning rule: `rule.backward(x, y)` fills `.grad`, any optimizer does the rest.

Every rule of the chapter says which tensor multiplies the presynaptic activity. It says so in packets of pairs

    (o_l, t_l)      o_l  output of a stage, with a graph that starts at a detached input and so reaches that stage's
                         parameters only
                    t_l  teaching signal, same shape, no graph

and the base class turns them into gradients by the derivative inside each stage alone:

    grad theta_l  +=  weight * (d o_l / d theta_l)^T t_l

Sign: `.grad` is minus the wanted weight change, so that an optimizer descends. Reduction: rules put the 1/batch of a
mean-reduced loss into t_l.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.learning.stages import Inputs, feed

__all__ = ["LearningRule", "Loss", "Packet", "refuse"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Packet(NamedTuple):
    """Pairs of stage outputs and teaching signals that belong to one instant of learning.

    Attributes:
        outputs: o_l, one tensor a stage, with or without a graph (a stage without a graph has nothing to learn).
        teaching: t_l, as many tensors of the same shapes.
        loss: a scalar without a graph, for the user to watch.
        weight: factor on every teaching signal of the packet, e.g. -1 for the negative phase of a contrastive rule.
    """

    outputs: Sequence[Tensor]
    teaching: Sequence[Tensor]
    loss: Tensor
    weight: float = 1.0

    def apply(self, scale: float = 1.0) -> None:
        """Add the packet's gradients, times `scale`, to `.grad`.

        Raises:
            ValueError: if outputs and teaching signals do not match in number or shape.
        """
        if len(self.outputs) != len(self.teaching):
            raise ValueError(f"A packet of {len(self.outputs)} outputs and {len(self.teaching)} teaching signals.")
        factor = self.weight * scale
        outputs, signals = [], []
        for index, (output, signal) in enumerate(zip(self.outputs, self.teaching, strict=True)):
            if output.shape != signal.shape:
                raise ValueError(
                    f"Stage {index} has output {tuple(output.shape)} but teaching signal {tuple(signal.shape)}."
                )
            if output.requires_grad:
                outputs.append(output)
                signals.append(signal if factor == 1.0 else factor * signal)
        if outputs:
            torch.autograd.backward(outputs, signals)


class LearningRule(nn.Module, ABC):
    """Trains the parameters of a network that it leaves as it is.

    A rule is a module of its own: its parameters, buffers and `state_dict` are the rule's (plastic feedback weights,
    running averages, the state of its attribute `generator` where it draws as it learns), never the network's.

    Args:
        net: the network to train.
        loss_fn: mean-reduced loss of (output, target); None for rules that bring their own.

    Raises:
        TypeError: if `net` is no module, or `loss_fn` no callable.
    """

    def __init__(self, net: nn.Module, loss_fn: Loss | None = None):
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}.")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable or None, got {type(loss_fn).__name__}.")
        # Past nn.Module's registration: the net's parameters are not the rule's.
        object.__setattr__(self, "net", net)
        object.__setattr__(self, "loss_fn", loss_fn)

    net: nn.Module
    loss_fn: Loss | None

    @abstractmethod
    def packets(self, x: Any, y: Tensor | None = None) -> Iterator[Packet]:
        """Yield the packets of one batch, lazily: `learn` moves the weights between them.

        Args:
            x: inputs, (batch, ...); rules that say so also take several arguments of the net, as a tuple or mapping.
            y: targets, (batch, ...); None for rules that need no target.
        """

    def backward(self, x: Inputs, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        """Add the rule's gradients for one batch to `.grad`, as `loss.backward()` does.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).
            scale: factor on every gradient: 1/n to average n micro-batches, or a loss scaler's factor.

        Returns:
            The sum of the packets' losses, each times its weight; no graph.
        """
        total: Tensor | None = None
        for packet in self.packets(x, y):
            packet.apply(scale)
            loss = packet.loss if packet.weight == 1.0 else packet.weight * packet.loss
            total = loss if total is None else total + loss
        return _yielded(total, self).detach()

    def learn(self, x: Inputs, y: Tensor | None, optimizer: Optimizer) -> Tensor:
        """Step the optimizer after every packet: for rules whose weights move while the network settles.

        Gradients are cleared before each packet. For a rule with one packet a call this is `zero_grad`, `backward`,
        `step`.

        Returns:
            As `backward`.
        """
        total: Tensor | None = None
        for packet in self.packets(x, y):
            optimizer.zero_grad()
            packet.apply()
            optimizer.step()
            loss = packet.weight * packet.loss
            total = loss if total is None else total + loss
        return _yielded(total, self).detach()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        generator = getattr(self, "generator", None)
        if isinstance(generator, torch.Generator):
            destination[prefix + "generator"] = generator.get_state()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        generator = getattr(self, "generator", None)
        if isinstance(generator, torch.Generator) and prefix + "generator" in state_dict:
            generator.set_state(state_dict.pop(prefix + "generator").cpu())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def predict(self, x: Any) -> Tensor:
        """Output of the trained network: `net(x)` unless the rule says otherwise."""
        return feed(self.net, x)

    def forward(self, x: Any) -> Tensor:
        """Same as `predict`."""
        return self.predict(x)

    def required_loss(self) -> Loss:
        """The loss, for rules that cannot do without.

        Raises:
            ValueError: if the rule was made without one.
        """
        if self.loss_fn is None:
            raise ValueError(f"{type(self).__name__} needs a loss_fn of (output, target).")
        return self.loss_fn

    def required_target(self, y: Tensor | None) -> Tensor:
        """The target, for rules that cannot do without.

        Raises:
            ValueError: if it is None.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} learns from targets: pass y.")
        return y

    def output_error(self, output: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss at an output, and its gradient there: the teaching signal of the last stage.

        Args:
            output: of the net, with or without a graph, which is left alone.
            y: target.

        Returns:
            (loss, dL/d output), without graphs.

        Raises:
            ValueError: if there is no loss or no target.
        """
        loss_fn, target = self.required_loss(), self.required_target(y)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            loss = loss_fn(leaf, target)
            (error,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), error.contiguous()  # a sum's gradient is one number, expanded


def refuse(rule: LearningRule, kinds: tuple[type[nn.Module], ...], why: str) -> None:
    """Refuse a net by name, before training, for what it is made of.

    Args:
        rule: the rule that cannot train it.
        kinds: classes of modules that it cannot train.
        why: the reason, and what to do instead; a sentence.

    Raises:
        TypeError: if the net has a module of one of these classes; the message names it.
    """
    for name, module in rule.net.named_modules():
        if isinstance(module, kinds):
            where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
            raise TypeError(f"{type(rule).__name__} cannot train {where}. {why}")


def _yielded(total: Tensor | None, rule: LearningRule) -> Tensor:
    if total is None:
        raise ValueError(f"{type(rule).__name__}.packets yielded nothing.")
    return total
