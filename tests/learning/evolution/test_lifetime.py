"""Whole lives: the compiled engine against the plain net and rule, invariants of a life, and learning in it."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.evolution import (
    AntitheticES,
    Block,
    CognitiveTasks,
    LifetimePlasticity,
    PlasticRNN,
    Signals,
    TrialSchedule,
    live,
)

RULE = LifetimePlasticity(eta=0.3, clip=0.1, burn_in=3, quiet=2)
NAMES = ["and", "nand", "dms", "watchstim1"]
SHORT = TrialSchedule((0, 2), (2, 4), (4, 6), (6, 7), 8)  # no gaps at all


def world(generator, lives=4, trials=12, hidden=9, streams=1, dtype=torch.float64, steps=50):
    net = PlasticRNN(7, hidden, 2, generator=generator).to(dtype)
    block = CognitiveTasks(["and"]).block([NAMES[i % 4] for i in range(lives)], trials, generator)
    noise = RULE.perturbations(streams, trials, steps, net.neurons, generator=generator, dtype=torch.float64)
    return net, block, noise.to(dtype)


@pytest.mark.parametrize(
    ("setting", "options", "rule"),
    [
        ({}, {}, {}),
        ({"streams": 3}, {"record": (0, 5, 11)}, {}),
        ({"hidden": 1, "lives": 1}, {"record": (0,)}, {"quiet": 0, "burn_in": 0}),
        ({"hidden": 23, "trials": 20}, {"learning": False}, {}),
        ({"trials": 1}, {"record": (0,)}, {"quiet": 5}),
        ({}, {"signals": Signals(1.0, 0.5, 2.0)}, {"tau_trace": 60.0, "baseline_decay": 0.5, "clip": 1e-4}),
        ({"steps": 8}, {"schedule": SHORT, "record": (11, 3)}, {"prob": 1.0}),
    ],
)
def test_the_compiled_life_is_the_plain_one(generator, setting, options, rule):
    net, block, noise = world(generator, **setting)
    own = dataclasses.replace(RULE, **rule)
    one, other = (live(net, block, own, noise, engine=engine, **options) for engine in ("numba", "torch"))
    assert_close(one.losses, other.losses, rtol=0, atol=1e-10)
    assert torch.equal(one.correct, other.correct)
    assert_close(one.activity, other.activity, rtol=0, atol=1e-10)


def test_populations_and_single_precision_agree_with_the_plain_life(generator):
    net, block, noise = world(generator, dtype=torch.float32)
    genomes = AntitheticES(dict(net.named_parameters()), 0.1, 4, generator).ask()
    genomes = {name: value.transpose(1, 2).contiguous().transpose(1, 2) for name, value in genomes.items()}  # strides
    one, other = (live(net, block, RULE, noise, genomes=genomes, engine=engine) for engine in ("numba", "torch"))
    assert_close(one.losses, other.losses, rtol=0, atol=1e-4)
    assert one.losses.dtype == torch.float32
    single = PlasticRNN(7, 9, 2, generator=generator)
    single.load_state_dict({name: value[2] for name, value in genomes.items()})
    alone = live(single, Block(block.stimuli[2:3], block.targets[2:3]), RULE, noise)
    assert torch.equal(alone.losses[0], one.losses[2])


def test_threads_change_nothing(generator):
    net, block, noise = world(generator, lives=8, streams=2)
    one, many = (live(net, block, RULE, noise, threads=threads, record=(4,)) for threads in (1, 3))
    for first, second in zip(one, many, strict=True):
        assert torch.equal(first, second)


def test_before_it_may_learn_a_life_is_the_life_without_learning(generator):
    net, block, noise = world(generator)
    learning = live(net, block, RULE, noise)
    frozen = live(net, block, RULE, noise, learning=False)
    assert torch.equal(learning.losses[:, :4], frozen.losses[:, :4])  # trial 3 learns after its answer
    assert not torch.equal(learning.losses[:, 4:], frozen.losses[:, 4:])
    with torch.no_grad():
        net.alpha.zero_()
    assert torch.equal(live(net, block, RULE, noise).losses, frozen.losses)


def test_without_feedback_a_fixed_net_is_right_in_half_of_a_pair(generator):
    net, block, noise = world(generator, trials=60)
    opposite = Block(block.stimuli, 1 - block.targets)
    deaf = Signals(reward=0.0, response=0.0)
    one, other = (live(net, b, RULE, noise, learning=False, signals=deaf) for b in (block, opposite))
    assert torch.equal(one.correct, ~other.correct)


def test_quiet_trials_and_first_steps_feel_no_noise(generator):
    net, block, noise = world(generator)
    silent = noise.clone()
    silent[:, -2:] = 0
    silent[:, :, :2] = 0
    for engine in ("numba", "torch"):
        assert torch.equal(
            live(net, block, RULE, noise, engine=engine).losses, live(net, block, RULE, silent, engine=engine).losses
        )


def test_clamped_neurons_and_gated_answers(generator):
    net, block, noise = world(generator, trials=3)
    life = live(net, block, RULE, noise, record=(1,))
    rates = life.activity[:, 0]
    sign = 3.0 * (2 * block.stimuli[:, 1] - 1)
    assert torch.equal(rates[:, 4, :2], torch.stack([sign[:, 0], -sign[:, 0]], 1).double())
    assert torch.equal(rates[:, 12, :2], torch.stack([sign[:, 1], -sign[:, 1]], 1).double())
    assert not rates[:, 20:, :2].any()
    assert_close(rates[:, 36:46, 2:4], (3 * life.losses[:, 1, None, None]).expand(-1, 10, 2))
    assert not rates[:, :36, 2:4].any()
    assert not rates[:, 46:, 2:4].any()
    assert (rates[:, :, 4] == 1).all()
    answers = rates[:, 25:35, -2:]
    chosen = (answers[..., 1].sum(1) > answers[..., 0].sum(1)).long()
    assert torch.equal(rates[:, 36, 5:7].argmax(1), chosen)
    assert torch.equal(chosen == block.targets[:, 1], life.correct[:, 1])
    assert not rates[:, :25, -2:].any()
    assert not rates[:, 35:, -2:].any()
    goals = torch.where(block.targets[:, 1, None] == torch.arange(2), 0.9, 0.1).double()
    assert_close(life.losses[:, 1], (answers - goals[:, None]).square().sum(2).mean(1), atol=1e-6, rtol=0)


def test_a_random_plastic_net_learns_within_its_life(generator):
    net = PlasticRNN(7, 23, 2, generator=generator)
    names = ["watchstim1", "antiwatchstim1"]
    stimuli = torch.randint(2, (20, 120, 2), generator=generator)
    block = CognitiveTasks(names).block([n for n in names for _ in range(20)], 120, stimuli=stimuli.repeat(2, 1, 1))
    rule = LifetimePlasticity(eta=1.0, clip=0.1, burn_in=11)
    noise = rule.perturbations(20, 120, 50, 32, generator=generator)
    learning, frozen = (
        live(net, block, rule, noise, learning=on).correct[:, -30:].double().mean() for on in (True, False)
    )
    assert learning > 0.57
    assert abs(frozen - 0.5) < 0.06


@pytest.mark.parametrize("factor", [0.0, 1e3])
@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_dead_and_wild_nets_live_on(generator, factor, engine):
    net, block, noise = world(generator)
    with torch.no_grad():
        net.weight *= factor
        net.alpha *= factor
    life = live(net, block, RULE, noise, engine=engine)
    assert life.losses.isfinite().all()
    assert (life.losses >= 0).all()
    assert (life.losses <= 2 * 0.9**2 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "jax"}, "engine must be"),
        ({"threads": 0}, "threads must be"),
        ({"record": (12,)}, "the life has 12"),
        ({"record": (-1,)}, "the life has 12"),
        ({"schedule": SHORT}, "noise is"),
        ({"genomes": {"weight": torch.zeros(4, 18, 18)}}, "genomes has \\['weight'\\], wanted"),
        ({"genomes": {"weight": torch.zeros(3, 18, 18), "alpha": torch.zeros(4, 18, 18)}}, "genomes\\['weight'\\] is"),
    ],
)
def test_wrong_use_is_named(generator, options, words):
    net, block, noise = world(generator)
    with pytest.raises(ValueError, match=words):
        live(net, block, RULE, noise, **options)


def test_nets_and_numbers_that_cannot_live_are_named(generator):
    net, block, noise = world(generator)
    with pytest.raises(ValueError, match="needs 7 inputs and 2 outputs, got 3 and 2"):
        live(PlasticRNN(3, 13, 2, generator=generator).double(), block, RULE, noise)
    with torch.no_grad():
        net.weight[8, 4] = float("nan")
    for engine in ("numba", "torch"):
        with pytest.raises(FloatingPointError, match="life 0 is not finite in trial 0"):
            live(net, block, RULE, noise, engine=engine)
