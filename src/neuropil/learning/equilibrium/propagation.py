"""Equilibrium propagation: the error vector is how the network answers a nudge.

    delta = d rho* / d beta at beta = 0,          grad theta = (dF/d theta at (u*, 0))^T delta / batch

where beta > 0 pushes the loss up. From N nudges of radius beta, each relaxed from the free point:

    N = 0         the tangent of the network at rest, no nudge at all
    N = 1         (rho(beta) - rho(0)) / beta                  two phases, which a schedule may draw at random
    N even        1/N sum_t rho(beta_t) / beta_t,   beta_t = beta e^(2 pi i t / N)           Cauchy's integral formula

The error of N points is O(beta^N), and a free point that has not quite settled drops out of the even sums (for them
sum_t 1 / beta_t = 0). The activity under the conjugate nudge is the conjugate activity, so the points below the real
line cost nothing. Online, the teaching signal goes round the circle without ever being off, one point a block of steps;
averages over a period of u and of rho / beta_t stand in for the free point and the error vector.

delta is an error vector for potentials: no further sigma' belongs to it. It is the true one only if the network's
Jacobian is symmetric; the homeostatic loss (see `homeostasis`) makes it so.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.learning.contrastive.phases import Alternating, Bernoulli, Geometric, PhaseSchedule
from neuropil.learning.equilibrium.activations import is_holomorphic
from neuropil.learning.equilibrium.forces import CONTINUED, check_targets, output_force
from neuropil.learning.equilibrium.homeostasis import asymmetry_at
from neuropil.learning.equilibrium.learner import FixedPointRule
from neuropil.learning.equilibrium.relaxation import ANSWERED, AT_REST, Groups, Rest, like, relax
from neuropil.learning.rule import Loss, Packet

__all__ = ["EquilibriumPropagation"]


class EquilibriumPropagation(FixedPointRule):
    """Train a FixedPointNetwork by comparing its free with its nudged equilibria.

    Args:
        net: the network.
        loss_fn: mean-reduced loss of (logits, target). More than two points need cross_entropy or half_squared_error,
            whose gradients are known for complex logits.
        beta: radius of the nudges, positive.
        points: number of nudges: 1, or even; 0 takes the limit of small nudges exactly.
        free_steps: the most steps to the free point; online: steps in all.
        nudge_steps: the most steps of every nudged relaxation, or of the tangent system for points=0.
        step: fraction of the field that a step takes, in (0, 1]; 1 is the paper's.
        homeostasis: weight of the Jacobian's asymmetry in the loss.
        noise_samples: draws of noise that measure the asymmetry of a network with pooling.
        online: nudge always, round and round the circle. The first period lets the network come along; each of the
            others is a packet, so that `learn` moves the weights once a period.
        schedule: with points=1, which of the two phases a call goes through. None is Alternating(): both. Bernoulli(b)
            takes one at random, the nudged one with rho(beta) / (beta b) as its error vector, the free one with
            -rho(0) / (beta (1 - b)): right on average, with a variance of order 1 / beta^2.
        tol: residual at which a relaxation may end early.
        generator: source of the noise; None is one of the rule's own, seeded with 0.

    Attributes:
        last: record of the last batch: free point, error vector, which samples settled, asymmetry.

    Raises:
        TypeError: if `net` is no FixedPointNetwork, or the schedule one of random lengths.
        ValueError: if a number is out of range, or a schedule comes with other points than 1; if points is odd and more
            than 1; if nudges are complex and the activation is not holomorphic, or the loss has no known continuation;
            on a batch of which more than half does not settle (NotSettledError). Where fewer do not, those samples
            teach nothing.

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), sections 3 to 5; Laborieux & Zenke 2022 (holomorphic EP).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss,
        beta: float = 0.05,
        points: int = 2,
        free_steps: int = 150,
        nudge_steps: int = 20,
        step: float = 0.5,
        homeostasis: float = 0.0,
        noise_samples: int = 5,
        *,
        online: bool = False,
        schedule: PhaseSchedule | None = None,
        tol: float = 1e-6,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, free_steps, nudge_steps, step, tol)
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        if points < 0 or (points > 1 and points % 2):
            raise ValueError(f"points must be 0, 1 or even, got {points}.")
        if not homeostasis >= 0:
            raise ValueError(f"homeostasis must not be negative, got {homeostasis}.")
        if noise_samples < 1:
            raise ValueError(f"noise_samples must be at least 1, got {noise_samples}.")
        if online and points < 2:
            raise ValueError(f"Online nudges go round a circle of 2 points or more, got points={points}.")
        if online and free_steps < 2 * points * nudge_steps:
            raise ValueError(
                f"{points} points of {nudge_steps} steps need free_steps of at least {2 * points * nudge_steps}, two "
                f"periods; got {free_steps}."
            )
        if schedule is not None:
            _check_schedule(schedule, points)
        if points > 2:
            self._check_continuation()
        self.beta, self.points, self.online = beta, points, online
        self.homeostasis, self.noise_samples = homeostasis, noise_samples
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.schedule = Alternating() if schedule is None else schedule

    def _check_continuation(self) -> None:
        """Complex nudges need a network and a loss that go on in the complex plane."""
        activation, loss_fn = self.net.activation, self.required_loss()
        if not is_holomorphic(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
            raise ValueError(
                f"{name} is not holomorphic, so complex nudges mean nothing to it: use HoloSigmoid or DSiLU, or "
                "points=0, 1 or 2."
            )
        if loss_fn not in CONTINUED:
            name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
            raise ValueError(
                f"{name} has no known complex continuation, which more than 2 points need: use cross_entropy or "
                "half_squared_error, or points=0, 1 or 2."
            )

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet, or online one a period: drives with their error vectors, the readout, the asymmetry."""
        source = self._periods(x, y) if self.online else super().packets(x, y)
        for packet in source:
            yield packet if self.homeostasis == 0 else self._with_homeostasis(packet)

    def _with_homeostasis(self, packet: Packet) -> Packet:
        record = self.record
        samples = None if self.net.linear else self.noise_samples
        activity = {group: rho[record.settled] for group, rho in record.rest.activity.items()}
        asymmetry = asymmetry_at(self.net, activity, samples, self.generator)
        self.last = record._replace(asymmetry=asymmetry.detach())
        outputs, teaching = (
            [*packet.outputs, asymmetry],
            [*packet.teaching, torch.full_like(asymmetry, self.homeostasis)],
        )
        return packet._replace(outputs=outputs, teaching=teaching)

    @torch.no_grad()
    def answer(self, rest: Rest, external: Groups, y: Tensor) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """The tangent, or the sum over nudges."""
        if self.points == 0:
            force = output_force(self.net.readout, self.required_loss(), rest.activity["out"], y)
            return self.net.tangent(rest, force, steps=self.nudge_steps, tol=self.tol, step=self.step)
        if self.points == 1:
            return self._phases(rest, external, y)
        error = {group: torch.zeros_like(rho) for group, rho in rest.activity.items()}
        answered = torch.ones_like(rest.settled)
        for nudges, share in self._circle(rest.residual):
            activity, here = self._nudged(rest, external, y, nudges, self.nudge_steps)
            answered &= here.all(0)
            for group, rho in activity.items():
                error[group] += share * (rho / nudges.view(-1, *[1] * (rho.dim() - 1))).sum(0).real
        return error, answered

    def _circle(self, values: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The two nudges on the real line, then those above it; with the weight of each in the sum."""
        yield values.new_tensor([self.beta, -self.beta]), 1 / self.points
        if self.points > 2:
            turns = torch.arange(1, self.points // 2, dtype=values.dtype, device=values.device) / self.points
            yield torch.polar(torch.full_like(turns, self.beta), 2 * torch.pi * turns), 2 / self.points

    def _phases(self, rest: Rest, external: Groups, y: Tensor) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """One nudge: rho(beta) / beta and rho(0) / beta, with the signs and weights of the schedule's phases."""
        error = {group: torch.zeros_like(rho) for group, rho in rest.activity.items()}
        answered = torch.ones_like(rest.settled)
        for phase in self.schedule.next():
            activity = rest.activity
            if phase.positive:
                nudge = rest.residual.new_tensor([self.beta])
                nudged, here = self._nudged(rest, external, y, nudge, phase.steps or self.nudge_steps)
                activity, answered = {group: rho[0] for group, rho in nudged.items()}, answered & here[0]
            for group, rho in activity.items():
                error[group] += phase.weight / self.beta * rho
        return error, answered

    def _nudged(
        self, rest: Rest, external: Groups, y: Tensor, nudges: Tensor, steps: int
    ) -> tuple[Groups, Bool[Tensor, "points batch"]]:
        """Activities under every nudge, (points, batch, *units), all relaxed together; and which have answered."""
        count, batch = len(nudges), len(rest.residual)
        start = {group: _stacked(u, count).to(nudges.dtype) for group, u in rest.potentials.items()}
        still = {group: _stacked(sent, count) for group, sent in external.items()}
        u, residual = self._under(start, still, _stacked(y, count), nudges.repeat_interleave(batch), steps)
        answered = residual <= (ANSWERED * _distance(u, start)).clamp(min=self.tol)
        activity = {group: rho.unflatten(0, (count, batch)) for group, rho in self.net.activities(u).items()}
        return activity, answered.unflatten(0, (count, batch))

    def _under(
        self, start: Groups, external: Groups, y: Tensor, strength: Tensor, steps: int
    ) -> tuple[Groups, Float[Tensor, " batch"]]:
        """Relax under a nudge, one strength a sample; the potentials and their residuals."""
        loss_fn = self.required_loss()

        def update(u: Groups) -> Groups:
            activity = self.net.activities(u)
            drives = self.net.drives(activity, external)
            force = output_force(self.net.readout, loss_fn, activity["out"], y)
            return drives | {"out": drives["out"] + like(strength, force) * force}

        u, result = relax(update, start, steps=steps, tol=self.tol, step=self.step)
        return u, result.residual

    def _periods(self, x: Tensor, y: Tensor | None) -> Iterator[Packet]:
        """Online: one period after the other, each a packet but the first."""
        y = check_targets(self.required_target(y), len(x), self.net.readout.out_features)
        periods = self.free_steps // (self.points * self.nudge_steps)
        u: Groups = {}
        for period in range(periods):
            external = self.net.external(x)  # anew: the weights may have moved
            still = {group: sent.detach() for group, sent in external.items()}
            u, rest, error, answered = self._period(u or self._start(still), still, y)
            if period > 0:
                yield self.packet(rest, external, y, error, answered, 1 / (periods - 1))

    def _start(self, external: Groups) -> Groups:
        first = next(iter(external.values()))
        dtype = first.dtype.to_complex() if self.points > 2 else first.dtype
        return {
            group: torch.zeros(len(first), *self.net.shapes[group], dtype=dtype, device=first.device)
            for group in self.net.groups
        }

    @torch.no_grad()
    def _period(self, u: Groups, external: Groups, y: Tensor) -> tuple[Groups, Rest, Groups, Bool[Tensor, " batch"]]:
        """Once round the circle: the last potentials, the mean ones, the error vector, which samples have answered."""
        visited: list[Groups] = []
        residuals: list[Tensor] = []
        first = next(iter(u.values()))
        angles = 2 * torch.pi * torch.arange(self.points, dtype=torch.float64) / self.points
        error = {group: torch.zeros_like(part.real) for group, part in u.items()}
        for nudge in torch.polar(torch.full_like(angles, self.beta), angles).tolist():
            strength = torch.full((len(first),), nudge if first.is_complex() else nudge.real).to(first)
            u, residual = self._under(u, external, y, strength, self.nudge_steps)
            visited.append(u)
            residuals.append(residual)
            for group, rho in self.net.activities(u).items():
                error[group] += (rho / like(strength, rho)).real / self.points
        mean = {group: torch.stack([v[group].real for v in visited]).mean(0) for group in u}
        residual = torch.stack(residuals).amax(0)
        moved = torch.stack([_distance(v, mean) for v in visited]).amax(0)
        rest = Rest(mean, self.net.activities(mean), residual, residual <= AT_REST, self.points * self.nudge_steps)
        return u, rest, error, residual <= (ANSWERED * moved).clamp(min=self.tol)


def _check_schedule(schedule: PhaseSchedule, points: int) -> None:
    if not isinstance(schedule, (Alternating, Bernoulli)) or isinstance(schedule, Geometric):
        raise TypeError(
            f"schedule must be Alternating or Bernoulli, got {type(schedule).__name__}: phases of random length end "
            "before the network is at rest."
        )
    if points != 1:
        raise ValueError(f"A schedule has one free and one nudged phase: pass points=1, got {points}.")


def _stacked(values: Tensor, count: int) -> Tensor:
    """The batch so many times, one after the other."""
    return values.repeat(count, *[1] * (values.dim() - 1))


def _distance(first: Groups, second: Groups) -> Tensor:
    """Largest distance of any potential, one number a sample."""
    return torch.stack([(first[group] - second[group]).abs().flatten(1).amax(1) for group in first]).amax(0)
