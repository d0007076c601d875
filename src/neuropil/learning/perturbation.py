"""Node perturbation: jiggle the units, see whether the loss rises, move against the jiggle.

One pass with noise on every stage's output at once, one without (Williams 1992; Werfel, Xie & Seung 2005, eq. 3):

    h_l' = f_l(h_{l-1}') + xi_l,         xi_l ~ N(0, sigma^2), drawn anew for every sample and unit
    dL_b = L_b(perturbed) - L_b(clean)                                     change of each sample's own loss
    t_l  = dL_b xi_l / (sigma^2 batch)                                     teaching signal of stage l

so no unit needs to know another one's weights: the loss change is broadcast, the noise is local. In expectation, and to
first order in sigma, t_l is the gradient dL/dh_l; what is left is variance, which grows with the number of units.
Two-sided, dL_b is half the difference between +xi and -xi: even orders of the loss cancel.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.stages import Inputs, Stages, undisturbed

__all__ = ["NodePerturbation"]


class NodePerturbation(LearningRule):
    """Estimate the gradient at every stage's output from how noise there changes the loss.

    Args:
        net: any module that `Stages` can cut.
        loss_fn: loss of (output, target); the mean over samples for credit "sample".
        points: where to cut, as `Stages` has it; None for a Sequential.
        cut: for a Sequential: noise on the "preactivation" of every layer (its textbook place) or on its "activation".
        sigma: standard deviation of the noise, in the unit of the stage outputs.
        samples: draws of noise a batch, whose estimates are averaged.
        two_sided: whether to subtract the pass with the opposite noise instead of the clean pass: one pass more a
            draw, less variance where the loss is curved.
        credit: "sample": each sample is judged by its own loss; "batch": all by the batch's loss, for nets or losses in
            which samples depend on one another, at `batch` times the variance.
        generator: source of the noise; None starts one from seed 0. The global state is never used.

    Raises:
        ValueError: if a number is out of range or a word unknown; on a batch, if there is no target, if a stage's first
            axis is not the batch, or if the samples depend on one another and credit is "sample".
        FloatingPointError: on a batch, if a perturbed loss is not finite.

    Source: Williams, Machine Learning 8 (1992); Werfel, Xie & Seung, Neural Computation 17 (2005).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        points: Sequence[str] | str | None = None,
        cut: str = "preactivation",
        sigma: float = 1e-2,
        samples: int = 1,
        two_sided: bool = False,
        credit: str = "sample",
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn)
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {sigma}.")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        if credit not in ("sample", "batch"):
            raise ValueError(f'credit must be "sample" or "batch", got {credit!r}.')
        self.stages = Stages(net, points, cut)
        self.sigma, self.samples, self.two_sided, self.credit = float(sigma), samples, two_sided, credit
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: every stage's clean output with its estimated gradient."""
        loss_fn, target = self.required_loss(), self.required_target(y)
        self._refuse_coupled_samples()
        # The clean pass comes last: it alone counts for running statistics, and every pass draws the same dropout.
        draws = [self._perturbed(x, target) for _ in range(self.samples)]
        outputs = self.stages(x)
        clean = outputs[-1].detach()
        loss = loss_fn(clean, target)
        before = self._losses(clean, target)
        if self.credit == "sample":
            self._check_mean(before, loss)
        teaching = [torch.zeros_like(output) for output in outputs]
        for up, down, noises in draws:
            change = up - before if down is None else (up - down) / 2
            if not bool(torch.isfinite(change).all()):
                raise FloatingPointError(f"NodePerturbation: the loss changes by {change.tolist()} under noise.")
            factor = change / (self.sigma**2 * change.numel() * self.samples)
            for total, noise in zip(teaching, noises, strict=True):
                total.add_(noise * factor.to(noise).view(-1, *[1] * (noise.dim() - 1)))
        yield Packet(outputs, teaching, loss)

    @torch.no_grad()
    def _perturbed(self, x: Inputs, target: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Losses under fresh noise, under its opposite (or None), and the noise of every stage."""
        noises: list[Tensor] = []

        up = self._pass(x, target, partial(self._jiggle, noises))
        down = self._pass(x, target, lambda index, value: value - noises[index]) if self.two_sided else None
        return up, down, noises

    def _jiggle(self, noises: list[Tensor], index: int, value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=self.generator, device=self.generator.device)
        noises.append(self.sigma * noise.to(value))
        return value + noises[index]

    def _pass(self, x: Inputs, target: Tensor, between: Callable[[int, Tensor], Tensor]) -> Tensor:
        with undisturbed(self.net):
            output = self.stages(x, between=between)[-1]
        return self._losses(between(len(self.stages) - 1, output), target)

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each sample, (batch,), or of the batch, (1,)."""
        loss_fn = self.required_loss()
        if self.credit == "batch":
            return loss_fn(output, target).reshape(1)
        if output.dim() == 0 or len(output) != len(target):
            raise ValueError(
                f"The net's output {tuple(output.shape)} and the target {tuple(target.shape)} differ in their first "
                'axis, which must be the batch: use credit="batch".'
            )
        return torch.func.vmap(lambda sample, goal: loss_fn(sample[None], goal[None]))(output, target)

    def _check_mean(self, losses: Tensor, loss: Tensor) -> None:
        mean, size = losses.mean(), losses.abs().mean()
        if bool((mean - loss).abs() > 1e-3 * size + 1e-6):
            raise ValueError(
                f"loss_fn gives {float(loss):.6g} for the batch, but {float(mean):.6g} as the mean over samples: use "
                'reduction="mean" without weights, or credit="batch".'
            )

    def _refuse_coupled_samples(self) -> None:
        if self.credit == "batch":
            return
        for name, module in self.net.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f"Batch norm {name!r} makes every sample's loss depend on the others' noise: put it into eval mode "
                    'or use credit="batch".'
                )
