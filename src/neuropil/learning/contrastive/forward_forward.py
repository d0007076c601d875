"""Forward-forward: every stage learns by itself to be loud for right labels and quiet for wrong ones.

    x_hat = x / ||x||                      what each stage sees of the one below, detached: its direction only
    y     = stage(x_hat)                   goodness G(y): "l2" ||y||_2, "max" ||y||_inf, "mean_square" mean(y^2)
    L+    = softplus(theta - G(y+))        y+ under the right label
    L-    = softplus(G(y-) - theta)        y- under a wrong one
    L     = |weight+| mean L+ + |weight-| mean L-

With a random schedule a call sees one phase, its loss times 1/b or 1/(1 - b). End to end, the same loss is put on the
sum of the stages' goodness, and backpropagation goes through all of them. (The code of Tosato et al. takes one mean
over both halves, which is half of L: adaptive optimizers do not see the factor.)
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from neuropil.learning.contrastive.labels import LabelOverlay
from neuropil.learning.contrastive.phases import Phase, PhaseSchedule
from neuropil.learning.contrastive.rule import ContrastiveRule, Signals
from neuropil.learning.rule import Loss, Packet
from neuropil.learning.stages import Inputs, Stages

__all__ = ["ForwardForward", "Goodness"]

Goodness = Callable[[Tensor], Tensor]
"""(batch, units) -> (batch,)"""

EPS = 1e-12  # of torch.nn.functional.normalize; a silent layer has goodness and gradient 0, not NaN


class ForwardForward(ContrastiveRule):
    """Train every stage of a network by its own goodness, without a backward pass between stages.

    Args:
        net: any module that `Stages` can cut and whose input is one floating-point tensor; its output is a stage like
            any other, so there need be no readout.
        loss_fn: not used, the rule brings its own; here so that `compare` can make the rule.
        label: how labels enter the input, or the number of classes. The rule keeps a copy, `rule.label`. With
            append=True the net must take as many more features as there are classes.
        goodness: "l2", "max", "mean_square", or a function of activities (batch, units) that returns (batch,). "max"
            also divides by the largest entry between stages, all others by the 2-norm.
        threshold: theta, between right and wrong.
        schedule: which phases come; None is Alternating: right and wrong labels in one forward pass. Unbiased gradients
            of one phase at a time are for plain SGD: adaptive optimizers divide the weights 1/b out again.
        end_to_end: one loss on the summed goodness, with backpropagation through all stages.
        active: stages that learn, all by default; set `rule.active = [l]` to train one after the other (greedy).
        points: where to cut, as in `Stages`.
        readout: how `predict` joins the stages: "softmax" adds up probabilities of the labels by goodness, "sum" the
            goodness itself.
        generator: source of the wrong labels (on the CPU); None is one of the rule's own, seeded with 0.

    Raises:
        TypeError: if goodness is neither known nor callable, and on the first batch if x is no floating-point tensor.
        ValueError: if readout is unknown, if end_to_end has active stages, and as Stages and LabelOverlay say.

    Source: Hinton, The forward-forward algorithm (2022); Tosato et al., Emergent representations in networks trained
    with the forward-forward algorithm, TMLR 2025 (2-norm, theta 3, end to end); Williams, Bredenberg & Lajoie, ICML
    2023 (random phases).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        label: LabelOverlay | int,
        goodness: str | Goodness = "l2",
        threshold: float = 3.0,
        schedule: PhaseSchedule | None = None,
        end_to_end: bool = False,
        active: Sequence[int] | None = None,
        points: Sequence[str] | str | None = None,
        readout: str = "softmax",
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, schedule=schedule)
        if not callable(goodness) and goodness not in GOODNESS:
            raise TypeError(f"goodness must be one of {list(GOODNESS)} or a function, got {goodness!r}.")
        if readout not in ("softmax", "sum"):
            raise ValueError(f'readout must be "softmax" or "sum", got {readout!r}.')
        if end_to_end and active is not None:
            raise ValueError("End to end all stages learn together: active stages are for learning stage by stage.")
        self.label = LabelOverlay(label) if isinstance(label, int) else label.fresh()
        self.goodness: Goodness = goodness if callable(goodness) else GOODNESS[goodness]
        self.threshold = threshold
        self.end_to_end = end_to_end
        self.active = active
        self.readout = readout
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.stages = Stages(net, points)
        self._order = float("inf") if goodness == "max" else 2.0

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the losses of the stages that learn, each reaching its own stage's parameters only.

        Args:
            x: samples without labels, one floating-point tensor, (batch, ...).
            y: class indices, (batch,).
        """
        phases = self.schedule.next()
        outputs = self._losses(x, self.required_target(y), phases)
        weights = outputs[0].new_tensor([abs(phase.weight) for phase in phases])
        total = torch.stack([weights @ losses.detach() for losses in outputs]).sum()
        yield Packet(outputs, [weights] * len(outputs), total)

    def signals(self, x: Inputs, y: Tensor | None, phase: Phase) -> Signals:
        """One phase by itself: its loss is the positive phase's, or minus the negative phase's.

        Args:
            x: samples without labels, one floating-point tensor, (batch, ...).
            y: class indices, (batch,).
            phase: right or wrong labels.
        """
        outputs = self._losses(x, self.required_target(y), (phase,))
        signed = outputs[0].new_tensor([float(phase.sign)])
        return Signals(outputs, [signed] * len(outputs), phase.sign * sum(outputs[1:], outputs[0]).detach()[0])

    @torch.no_grad()
    def activities(self, x: Inputs, y: Tensor | None = None) -> list[Tensor]:
        """What every stage says, under given labels or none.

        Args:
            x: samples without labels, one floating-point tensor, (batch, ...).
            y: class indices, (batch,); None for no label.

        Returns:
            One tensor a stage, (batch, ...), without graphs.
        """
        return self._run(self.label(self._checked(x), y))

    @torch.no_grad()
    def predict(self, x: Inputs) -> Float[Tensor, "batch classes"]:
        """Scores of the labels: every label is tried, all in one batch.

        Args:
            x: samples without labels, one floating-point tensor, (batch, ...).

        Returns:
            (batch, classes), the highest for the label under which the stages are loudest.
        """
        x = self._checked(x)
        scores = [
            self.goodness(output.flatten(1)).view(self.label.n_classes, len(x))
            for output in self._run(self.label.every(x))
        ]
        if self.readout == "softmax":
            scores = [score.softmax(0) for score in scores]
        return sum(scores[1:], scores[0]).T

    def _losses(self, x: Inputs, y: Tensor, phases: tuple[Phase, ...]) -> list[Tensor]:
        """Mean loss of every phase, (phases,), for each stage that learns (end to end: for all at once)."""
        x = self._checked(x)
        labelled = [self.label(x, y if phase.positive else self._wrong(y)) for phase in phases]
        outputs = self._run(labelled[0] if len(labelled) == 1 else torch.cat(labelled))
        goodness = [self.goodness(output.flatten(1)).view(len(phases), len(x)) for output in self._learning(outputs)]
        if self.end_to_end:
            goodness = [sum(goodness[1:], goodness[0])]
        signs = goodness[0].new_tensor([[float(phase.sign)] for phase in phases])
        return [softplus(signs * (self.threshold - good)).mean(1) for good in goodness]

    def _run(self, labelled: Tensor) -> list[Tensor]:
        outputs = self.stages(self._direction(0, labelled), between=self._direction, detach=not self.end_to_end)
        for index, output in enumerate(outputs):
            if output.dim() < 2 or len(output) != len(labelled):
                raise ValueError(
                    f"Stage {index} gives shape {tuple(output.shape)} for {len(labelled)} samples: "
                    "goodness needs (batch, units)."
                )
        return outputs

    def _direction(self, index: int, value: Tensor) -> Tensor:
        """What a stage sees: the direction of what the stage below says."""
        flat = value.flatten(1)
        return normalize(flat, self._order, dim=1, eps=_eps(flat)).view(value.shape)

    def _learning(self, outputs: list[Tensor]) -> list[Tensor]:
        if self.active is None:
            return outputs
        wrong = [index for index in self.active if not 0 <= index < len(outputs)]
        if wrong or not self.active:
            raise ValueError(f"active must name some of the stages 0 to {len(outputs) - 1}, got {list(self.active)}.")
        return [outputs[index] for index in self.active]

    def _wrong(self, y: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Another class for each sample, all others alike."""
        classes = self.label.n_classes
        shift = torch.randint(1, classes, (len(y),), generator=self.generator).to(y.device)
        return (y + shift) % classes

    def _checked(self, x: Inputs) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point():
            return x
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        embeddings = [name for name, part in self.net.named_modules() if isinstance(part, nn.Embedding)]
        behind = f" Train the part behind {embeddings[0]!r}, on its output." if embeddings else ""
        raise TypeError(
            "ForwardForward needs x to be one floating-point tensor: labels are written into it and its length is "
            f"divided out; {type(self.net).__name__} was given {what}.{behind}"
        )


def _eps(y: Tensor) -> float:
    return max(EPS, torch.finfo(y.dtype).tiny)


def _two_norm(y: Tensor) -> Tensor:
    return (y.square().sum(1) + _eps(y)).sqrt()


def _largest(y: Tensor) -> Tensor:
    return y.abs().amax(1)


def _mean_square(y: Tensor) -> Tensor:
    return y.square().mean(1)


GOODNESS: dict[str, Goodness] = {"l2": _two_norm, "max": _largest, "mean_square": _mean_square}
