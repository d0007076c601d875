"""Learning in a restricted Boltzmann machine: the rule for any batch and optimizer, and a compiled loop for long runs.

    g(v, h) = -dE/dtheta:   W: h v^T,  b: h,  c: v
    positive phase   v = data, h ~ P(h | v)
    negative phase   K Gibbs steps from the state in which the chain is, then h ~ P(h | v) once more
    W += eta weight h v^T

The chain is never reset: right after a positive phase it stands at that data vector, so Alternating is contrastive
divergence, and a negative phase after a negative one goes on where the last ended. One last h is drawn before the
update because it correlates v with a fresh h: the smaller bias.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.contrastive.boltzmann import RestrictedBoltzmann, with_labels
from neuropil.learning.contrastive.kernels import run_phases
from neuropil.learning.contrastive.phases import Phase, PhaseSchedule, PhaseTable
from neuropil.learning.contrastive.rule import ContrastiveRule, Signals

__all__ = ["BoltzmannMachine", "Chain", "train_boltzmann"]

BUFFER = 1 << 20  # uniform numbers drawn at a time


class BoltzmannMachine(ContrastiveRule):
    """Contrastive learning of a restricted Boltzmann machine.

    Args:
        net: the machine.
        labels: number of label units, the last visible ones; targets are class indices then. 0 where there are none.
        schedule: which phases come; None is Alternating: contrastive divergence.
        steps: Gibbs steps of a negative phase to which the schedule gives no length.
        update: "end" teaches by the state at the end of a phase, "every_step" after every Gibbs step: with `learn` the
            weights then move during the chain, which goes on with the weights of the moment.
        generator: source of the draws, on the machine's device; None is one of the rule's own, seeded with 0.

    Attributes:
        chain: visible units in which the chain stands, (batch, visible); None before the first phase. A chain that
            begins with a negative phase starts from fair coins.

    Raises:
        TypeError: if the net is no RestrictedBoltzmann.
        ValueError: if labels do not leave an input, or as ContrastiveRule says.

    Source: Hinton 2002 (contrastive divergence); Williams, Bredenberg & Lajoie, ICML 2023 (random phases).
    """

    net: RestrictedBoltzmann  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and checked

    def __init__(
        self,
        net: nn.Module,
        *,
        labels: int = 0,
        schedule: PhaseSchedule | None = None,
        steps: int = 10,
        update: str = "end",
        generator: torch.Generator | None = None,
    ):
        if not isinstance(net, RestrictedBoltzmann):
            raise TypeError(f"BoltzmannMachine trains a RestrictedBoltzmann, got {type(net).__name__}.")
        super().__init__(net, schedule=schedule, steps=steps, update=update)
        if not 0 <= labels < net.n_visible:
            raise ValueError(f"labels must be 0 to {net.n_visible - 1} of the visible units, got {labels}.")
        self.labels = labels
        self.generator = torch.Generator(net.weight.device).manual_seed(0) if generator is None else generator
        self.chain: Tensor | None = None

    def signals(self, x: Float[Tensor, "batch inputs"], y: Tensor | None, phase: Phase) -> Signals:
        """One phase of the chain.

        Args:
            x: inputs between 0 and 1, one a visible unit that is no label.
            y: class indices, (batch,), where there are label units.
            phase: which one.

        Raises:
            ValueError: if inputs and labels do not fit the visible units, or a target is missing or superfluous.
        """
        net = self.net
        with torch.no_grad():
            if phase.positive:
                v = self._data(x, y)
            else:
                v = self.chain if self.chain is not None else self._coins(x)
                v = net.sample(v, self.length(phase), generator=self.generator)
            h = net.sample_hidden(v, self.generator)
            self.chain = v
        outputs, teaching = [net.hidden_drive(v)], [-h / len(h)]
        if net.visible_bias is not None:
            outputs.append(net.visible_bias.expand_as(v))
            teaching.append(-v / len(v))
        return Signals(outputs, teaching, net.energy(v, h).mean().detach())

    def predict(self, x: Float[Tensor, "batch inputs"]) -> Tensor:
        """Mean activity of the label units (batch, labels) where there are any, else probabilities of hidden units."""
        return self.net.classify(x, self.labels, generator=self.generator) if self.labels else self.net(x)

    def _data(self, x: Tensor, y: Tensor | None) -> Tensor:
        if x.shape[1] + self.labels != self.net.n_visible:
            raise ValueError(
                f"x has {x.shape[1]} inputs, and there are {self.labels} labels: "
                f"together they must be the {self.net.n_visible} visible units."
            )
        return with_labels(x, self.required_target(y), self.labels) if self.labels else x

    def _coins(self, x: Tensor) -> Tensor:
        size = (len(x), self.net.n_visible)
        return (torch.rand(size, generator=self.generator, dtype=torch.float64, device=x.device) < 0.5).to(x.dtype)


class Chain(NamedTuple):
    """Where a training stands, to go on from.

    Attributes:
        v: visible units, (visible,); None before the first phase.
        cursor: row of the data that the next positive phase takes.
    """

    v: np.ndarray | None = None
    cursor: int = 0


def train_boltzmann(
    net: RestrictedBoltzmann,
    data: Float[Tensor, "rows visible"],
    schedule: PhaseSchedule,
    *,
    phases: int,
    rate: float,
    generator: torch.Generator,
    steps: int = 10,
    update: str = "end",
    chain: Chain | None = None,
) -> Chain:
    """Train one sample at a time by plain gradient steps, compiled: 100,000 phases of a small machine take a second.

    The same numbers as `BoltzmannMachine(...).learn` with SGD on single rows in order, up to rounding.

    Args:
        net: the machine, on the CPU; its parameters are changed in place.
        data: visible units of the positive phases, taken in order, again and again.
        schedule: which phases come.
        phases: how many; even for Alternating.
        rate: of learning, eta.
        generator: source of the chain's draws.
        steps: Gibbs steps of a negative phase to which the schedule gives no length.
        update: "end" or "every_step", as in `BoltzmannMachine`.
        chain: from an earlier call, to go on; None starts anew.

    Returns:
        Where the training stands.

    Raises:
        ValueError: if a number is out of range, or the data do not fit the machine.
        FloatingPointError: if weights are no longer finite.
    """
    if phases < 1 or steps < 1:
        raise ValueError(f"phases and steps must be at least 1, got {phases} and {steps}.")
    if update not in ("end", "every_step"):
        raise ValueError(f'update must be "end" or "every_step", got {update!r}.')
    if data.shape[1] != net.n_visible or not len(data):
        raise ValueError(f"data have shape {tuple(data.shape)}, the machine {net.n_visible} visible units.")
    rows = data.detach().double().numpy()
    weight, hidden_bias, visible_bias = _copies(net)
    arrays = (weight, hidden_bias, visible_bias)
    state = chain or Chain()
    per_step = update == "every_step"
    stored = schedule.contrast == 2 and not per_step
    chunk = _chunk(net, steps, phases)
    for done in range(0, phases, chunk):
        table = schedule.draw(min(chunk, phases - done))
        lengths = np.where(table.steps > 0, table.steps, steps)
        v = _start(state.v, table, net.n_visible, generator)
        amounts = rate * table.weights * (schedule.share(lengths) if per_step else 1.0)
        uniform = torch.rand(_draws(table.signs, lengths, net, per_step), generator=generator, dtype=torch.float64)
        plan = (table.signs, amounts, lengths, per_step, stored, uniform.numpy())
        cursor = run_phases(*arrays, net.visible_bias is not None, rows, state.cursor, v, *plan)
        state = Chain(v, int(cursor))
        if not all(np.isfinite(array).all() for array in arrays):
            raise FloatingPointError(f"The machine diverges within {done + chunk} phases at rate {rate:g}: lower it.")
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(weight))
        net.hidden_bias.copy_(torch.from_numpy(hidden_bias))
        if net.visible_bias is not None:
            net.visible_bias.copy_(torch.from_numpy(visible_bias))
    return state


def _copies(net: RestrictedBoltzmann) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and biases in double precision; a bias that is not there is 0."""
    weight, hidden_bias = (np.array(part.detach().double().numpy()) for part in (net.weight, net.hidden_bias))
    bias = np.zeros(net.n_visible) if net.visible_bias is None else np.array(net.visible_bias.detach().double().numpy())
    return weight, hidden_bias, bias


def _chunk(net: RestrictedBoltzmann, steps: int, phases: int) -> int:
    """Phases whose draws fit the buffer, about; even, so that pairs stay whole."""
    per_phase = steps * (2 * net.n_hidden + net.n_visible)
    return min(phases, max(2, 2 * (BUFFER // (2 * per_phase))))


def _draws(signs: np.ndarray, lengths: np.ndarray, net: RestrictedBoltzmann, per_step: bool) -> int:
    """Uniform numbers that these phases take."""
    hidden, visible = net.n_hidden, net.n_visible
    if per_step:
        return int(np.where(signs > 0, lengths * hidden, lengths * (2 * hidden + visible)).sum())
    return int(np.where(signs > 0, hidden, lengths * (hidden + visible) + hidden).sum())


def _start(v: np.ndarray | None, table: PhaseTable, visible: int, generator: torch.Generator) -> np.ndarray:
    if v is not None:
        return v.copy()
    if table.signs[0] > 0:
        return np.zeros(visible)
    return (torch.rand(visible, generator=generator, dtype=torch.float64).numpy() < 0.5).astype(np.float64)
