"""A life: one task, trial after trial, in which a `PlasticRNN` learns by `LifetimePlasticity` from reward alone.

Input neurons and what clamps them (amplitudes in `Signals`):

    0, 1   stimulus, +-3 and mirrored                        2, 3   3 m in the reward period (the loss, not the reward)
    4      bias, 1                                           5, 6   3 at the answer given, in the reward period

An answer is the larger of the two summed outputs of the response period; m is the mean over that period of the squared
distance of both outputs from .9 (right) and .1 (wrong). Potentials, plastic weights and eligibility carry over between
trials. The same perturbations hit every genome of a population, so that differences between genomes do not drown.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from neuropil.learning.evolution.kernels import live_one
from neuropil.learning.evolution.network import START, PlasticRNN, PlasticState
from neuropil.learning.evolution.plasticity import LifetimePlasticity
from neuropil.learning.evolution.tasks import KINDS, Block, CognitiveTasks, TrialSchedule

__all__ = ["INPUTS", "OUTPUTS", "Life", "Signals", "live"]

INPUTS, OUTPUTS = 7, 2
FIRST_STEP = 2  # of a trial, from which neurons are perturbed
RIGHT, WRONG = 0.9, 0.1
BIAS = 1.0


@dataclass(frozen=True)
class Signals:
    """Rates of clamped neurons: `stimulus`, `reward` times the loss, `response`."""

    stimulus: float = 3.0
    reward: float = 3.0
    response: float = 3.0


class Life(NamedTuple):
    """What came of a population.

    Attributes:
        losses: m of every trial, (lives, trials).
        correct: whether the answer was right, (lives, trials).
        activity: rates of all neurons in the recorded trials, (lives, recorded, time, neurons).
    """

    losses: Float[Tensor, "lives trials"]
    correct: Bool[Tensor, "lives trials"]
    activity: Float[Tensor, "lives recorded time neurons"]


def live(
    net: PlasticRNN,
    block: Block,
    rule: LifetimePlasticity,
    noise: Float[Tensor, "streams trials time neurons"],
    *,
    genomes: Mapping[str, Tensor] | None = None,
    learning: bool = True,
    record: Sequence[int] = (),
    schedule: TrialSchedule | None = None,
    signals: Signals | None = None,
    engine: str = "numba",
    threads: int = 1,
) -> Life:
    """Live one life a genome.

    Args:
        net: with 7 inputs and 2 outputs; its own weights are everybody's where there are no genomes.
        block: task and stimuli of every life.
        rule: of plasticity.
        noise: perturbations, as `rule.perturbations` draws them; life i is hit by stream i modulo their number. Steps 0
            and 1 of a trial and the rule's quiet trials are never perturbed.
        genomes: "weight" and "alpha", each (lives, neurons, neurons), as `AntitheticES.ask` returns them.
        learning: whether P moves; False leaves it at 0.
        record: numbers of the trials whose rates are kept.
        schedule: of a trial.
        signals: amplitudes of the clamped neurons.
        engine: "numba", compiled, on the CPU; "torch", on the net's device: the plain form, for a GPU.
        threads: of the compiled engine; the number of them changes no result.

    Returns:
        Losses and answers, on the net's device; no graph.

    Raises:
        ValueError: if shapes do not fit, a recorded trial is no trial of the life, or the engine is unknown.
        FloatingPointError: if a life's loss is not finite, naming life and trial.
    """
    schedule = TrialSchedule() if schedule is None else schedule
    lives, trials = block.targets.shape
    record = sorted(set(record))
    if engine not in ("numba", "torch"):
        raise ValueError(f'engine must be "numba" or "torch", got {engine!r}.')
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    if (net.n_inputs, net.n_outputs) != (INPUTS, OUTPUTS):
        raise ValueError(f"A life needs {INPUTS} inputs and {OUTPUTS} outputs, got {net.n_inputs} and {net.n_outputs}.")
    if record and not (record[0] >= 0 and record[-1] < trials):
        raise ValueError(f"record names trials {record}, the life has {trials} (0 to {trials - 1}).")
    if noise.shape[1:] != (trials, schedule.steps, net.neurons) or not len(noise):
        raise ValueError(f"noise is {tuple(noise.shape)}, wanted (streams, {trials}, {schedule.steps}, {net.neurons}).")
    weights = _genomes(net, genomes, lives)
    run = _live_compiled if engine == "numba" else _live_plain
    with torch.no_grad():
        life = run(net, weights, block, rule, noise, learning, record, schedule, signals or Signals(), threads)
    bad = (~torch.isfinite(life.losses)).nonzero()
    if len(bad):
        raise FloatingPointError(f"The loss of life {int(bad[0, 0])} is not finite in trial {int(bad[0, 1])}.")
    return life


def _genomes(net: PlasticRNN, genomes: Mapping[str, Tensor] | None, lives: int) -> dict[str, Tensor]:
    own = dict(net.named_parameters())
    if genomes is None:
        return {name: value.detach().expand(lives, *value.shape) for name, value in own.items()}
    if set(genomes) != set(own):
        raise ValueError(f"genomes has {sorted(genomes)}, wanted {sorted(own)}.")
    for name, value in own.items():
        if genomes[name].shape != (lives, *value.shape):
            raise ValueError(f"genomes[{name!r}] is {tuple(genomes[name].shape)}, wanted {(lives, *value.shape)}.")
    return {name: value.detach() for name, value in genomes.items()}


def _live_plain(
    net: PlasticRNN,
    weights: dict[str, Tensor],
    block: Block,
    rule: LifetimePlasticity,
    noise: Tensor,
    learning: bool,
    record: list[int],
    schedule: TrialSchedule,
    signals: Signals,
    threads: int,
) -> Life:
    """The reference: three stretches a trial, up to the answer, to the reward, to the end."""
    like, (lives, trials), steps = net.weight, block.targets.shape, schedule.steps
    stimuli, targets = block.stimuli.to(like.device), block.targets.to(like.device)
    kinds, rows = Block(stimuli, targets).kind, torch.arange(lives)
    streams = rows % len(noise) if len(noise) > 1 else slice(1)
    perturbed = (torch.arange(steps, device=like.device) >= FIRST_STEP).to(like)[:, None, None]
    world = CognitiveTasks(["and"], schedule=schedule)
    (answer, answered), (reward, ended) = schedule.response, schedule.reward
    gate = like.new_zeros(steps)
    gate[answer:answered] = 1
    state = net.initial_state(lives)
    memory = rule.initial_state(lives, net.neurons, KINDS, like=like)
    losses, correct, kept = [], [], []
    for trial in range(trials):
        inputs = like.new_zeros(steps, lives, INPUTS)
        inputs[:, :, :2] = signals.stimulus * world.show(stimuli[:, trial])
        inputs[:, :, 4] = BIAS
        jolts = noise[streams, trial].to(like).transpose(0, 1) * perturbed * (trial < trials - rule.quiet)

        stretch = partial(_stretch, net, weights, inputs, jolts, gate)
        before = state.y[None]
        until, state = stretch(0, answered, state)
        outputs = until[answer:answered, :, -OUTPUTS:]
        right = (targets[:, trial, None] == torch.arange(OUTPUTS, device=like.device)).to(like)
        goals = WRONG + (RIGHT - WRONG) * right
        loss = (outputs - goals).square().sum(2).mean(0)
        totals = outputs.sum(0)
        response = (totals[:, 1] > totals[:, 0]).long()
        inputs[reward:ended, :, 2:4] = signals.reward * loss[:, None]
        inputs[reward:ended, :, 5:7] = signals.response * torch.nn.functional.one_hot(response, 2).to(like)
        first, state = stretch(answered, reward + 1, state)  # the weights move in the first step of the reward period
        past = torch.cat([before, until, first[:-1]])
        memory = rule.accumulate(memory, jolts[: reward + 1], past, net.dt)
        p, memory = rule.update(state.p, memory, loss, kinds[:, trial], learn=learning and trial >= rule.burn_in)
        rest, state = stretch(reward + 1, steps, state._replace(p=p))
        past = torch.cat([first[-1:], rest[:-1]])
        memory = rule.accumulate(memory, jolts[reward + 1 :], past, net.dt)
        losses.append(loss)
        correct.append(response == targets[:, trial])
        if trial in record:
            kept.append(torch.cat([until, first, rest]).transpose(0, 1))
    activity = torch.stack(kept, 1) if kept else like.new_zeros(lives, 0, steps, net.neurons)
    return Life(torch.stack(losses, 1), torch.stack(correct, 1), activity)


def _stretch(
    net: PlasticRNN,
    weights: dict[str, Tensor],
    inputs: Tensor,
    jolts: Tensor,
    gate: Tensor,
    start: int,
    end: int,
    state: PlasticState,
) -> tuple[Tensor, PlasticState]:
    """Run the population from one step of the trial to another."""
    span = slice(start, end)
    return functional_call(net, weights, (inputs[span], state, jolts[span], gate[span]))


def _live_compiled(
    net: PlasticRNN,
    weights: dict[str, Tensor],
    block: Block,
    rule: LifetimePlasticity,
    noise: Tensor,
    learning: bool,
    record: list[int],
    schedule: TrialSchedule,
    signals: Signals,
    threads: int,
) -> Life:
    """Every life apart, on as many threads as wanted: the kernel lets go of the interpreter."""
    like, (lives, trials), steps = net.weight, block.targets.shape, schedule.steps
    dtype = np.float64 if like.dtype == torch.float64 else np.float32
    weight, alpha = (_array(weights[name], dtype) for name in ("weight", "alpha"))
    jolts = _array(noise, dtype)
    stimuli, targets = _array(block.stimuli, np.int64), _array(block.targets, np.int64)
    at = np.arange(steps)
    shown = np.full(steps, -1)
    for index, (start, end) in enumerate((schedule.stimulus_1, schedule.stimulus_2)):
        shown[start:end] = index
    constants = (net.dt / net.tau, rule.keep(net.dt), rule.eta, rule.clip, rule.baseline_decay)
    constants += (signals.stimulus, signals.reward, signals.response, START, BIAS, RIGHT, WRONG)
    losses, correct = np.empty((lives, trials), dtype), np.empty((lives, trials), np.bool_)
    activity = np.empty((lives, len(record), steps, net.neurons), dtype)

    def one(index: int) -> None:
        live_one(
            weight[index],
            alpha[index],
            stimuli[index],
            targets[index],
            jolts[index % len(jolts)],
            FIRST_STEP,
            shown,
            (at >= schedule.response[0]) & (at < schedule.response[1]),
            (at >= schedule.reward[0]) & (at < schedule.reward[1]),
            tuple(dtype(value) for value in constants),
            rule.burn_in,
            trials - rule.quiet,
            learning,
            np.asarray(record, dtype=np.int64),
            losses[index],
            correct[index],
            activity[index],
        )

    _for_each(one, lives, threads)
    return Life(*(torch.from_numpy(value).to(like.device) for value in (losses, correct, activity)))


def _for_each(work: Callable[[int], None], count: int, threads: int) -> None:
    if threads == 1:
        for index in range(count):
            work(index)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(count)))


def _array(values: Tensor, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy().astype(dtype, copy=False))
