"""The tasks: truth tables against their definitions, trials, blocks and episodes."""

import numpy as np
import pytest
import torch

from neuropil.learning.evolution import TASKS, CognitiveTasks, TrialSchedule, complement, truth_table

DEFINITIONS = {
    "and": lambda a, b: a and b,
    "nand": lambda a, b: not (a and b),
    "or": lambda a, b: a or b,
    "nor": lambda a, b: not (a or b),
    "01": lambda a, b: not a and b,
    "anti01": lambda a, b: a or not b,
    "10": lambda a, b: a and not b,
    "anti10": lambda a, b: not a or b,
    "watchstim1": lambda a, b: a,
    "antiwatchstim1": lambda a, b: not a,
    "watchstim2": lambda a, b: b,
    "antiwatchstim2": lambda a, b: not b,
    "dms": lambda a, b: a == b,
    "dnms": lambda a, b: a != b,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_truth_tables_are_their_definitions(name):
    assert truth_table(name).tolist() == [int(DEFINITIONS[name](a, b)) for a in (0, 1) for b in (0, 1)]
    assert (truth_table(name) + truth_table(complement(name))).tolist() == [1, 1, 1, 1]
    assert complement(complement(name)) == name


def test_there_are_no_other_tasks():
    assert set(TASKS) == set(DEFINITIONS)
    assert len(set(TASKS.values())) == 14


def test_trials_show_the_stimuli_in_turn_and_ask_for_the_right_answer(generator):
    inputs, targets, kind = CognitiveTasks(["dms"]).sample(64, generator)
    assert inputs.shape == (50, 64, 2)
    first, second = inputs[4, :, 0] > 0, inputs[12, :, 0] > 0
    assert torch.equal(kind, 2 * first.long() + second.long())
    assert torch.equal(targets, (first == second).long())
    assert torch.equal(inputs[..., 1], -inputs[..., 0])
    assert torch.equal(inputs[:8], inputs[:1].expand(8, -1, -1))
    assert not inputs[8:10].any()
    assert not inputs[18:].any()
    assert set(inputs.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_trials_come_from_the_whole_set_or_from_one_task(generator):
    tasks = CognitiveTasks(["and", "nand"])
    _, targets, kind = tasks.sample(400, generator)
    assert 0.3 < targets[kind == 3].float().mean() < 0.7
    _, targets, kind = tasks.sample(100, generator, task="dms")
    assert torch.equal(targets, truth_table("dms")[kind])


def test_a_block_gives_every_life_its_task(generator):
    tasks = CognitiveTasks(["and", "or"])
    block = tasks.block(["and", "dms", "nor"], 30, generator)
    for name, kinds, targets in zip(["and", "dms", "nor"], block.kind, block.targets, strict=True):
        assert torch.equal(targets, truth_table(name)[kinds])
    again = tasks.block(["nand", "dnms", "or"], 30, stimuli=block.stimuli)
    assert torch.equal(again.targets, 1 - block.targets)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CognitiveTasks([]), "at least one task"),
        (lambda: CognitiveTasks("and"), "names must be a sequence"),
        (lambda: CognitiveTasks(["xor"]), "No task named 'xor'; there are and, nand, or"),
        (lambda: CognitiveTasks(["and"], ["what"]), "No task named 'what'"),
        (lambda: CognitiveTasks(["and", "dms"], ["dms"]), "Withheld tasks are in the training set: dms"),
        (lambda: CognitiveTasks(["and", "and"]), "named twice"),
        (lambda: CognitiveTasks(["and"]).sample(0), "n must be at least 1"),
        (lambda: CognitiveTasks(["and"]).block([], 5), "0 tasks"),
        (lambda: CognitiveTasks(["and"]).block(["and"], 0), "0 trials"),
        (lambda: CognitiveTasks(["and"]).block(["and"], 5, stimuli=torch.zeros(1, 4, 2).long()), "stimuli have shape"),
        (lambda: TrialSchedule(response=(17, 35)), "in order"),
        (lambda: TrialSchedule(reward=(36, 36)), "none empty"),
        (lambda: TrialSchedule(steps=40), "in order"),
        (lambda: CognitiveTasks(["and"]).as_env(trials=0), "trials must be at least 1"),
        (lambda: CognitiveTasks(["and"]).as_env("xor"), "No task named"),
        (lambda: CognitiveTasks(["and"]).as_env().step(0), "call reset first"),
    ],
)
def test_wrong_use_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def episode(env, policy):
    """Rewards, infos and observations of an episode."""
    observation, info = env.reset()
    task, seen, rewards, infos, over = info["task"], [observation], [], [], False
    while not over:
        observation, reward, over, cut, info = env.step(policy(seen, task))
        seen.append(observation)
        rewards.append(reward)
        infos.append(info)
        assert not cut
    return np.array(seen), np.array(rewards), [info for info in infos if info]


def oracle(seen, task):
    """Remembers the stimuli of the present trial."""
    now = seen[(len(seen) - 1) // 50 * 50 :]
    bits = [int(now[at][0] > 0) if at < len(now) else 0 for at in (4, 12)]
    return int(DEFINITIONS[task](*bits))


@pytest.mark.parametrize("task", ["dms", None])
def test_an_agent_that_remembers_is_always_right(task):
    env = CognitiveTasks(["and", "nor"]).as_env(task, trials=6, seed=3)
    seen, rewards, infos = episode(env, oracle)
    assert len(rewards) == 300
    assert seen.dtype == np.float32
    assert seen.shape == (301, 3)
    assert np.flatnonzero(rewards).tolist() == [50 * trial + 35 for trial in range(6)]
    assert rewards.sum() == 6
    assert [info["trial"] for info in infos] == list(range(6))
    assert np.flatnonzero(seen[:50, 2]).tolist() == list(range(25, 35))
    with pytest.raises(ValueError, match="call reset first"):
        env.step(0)


def test_an_agent_that_is_always_wrong_and_the_majority():
    env = CognitiveTasks(["watchstim2"]).as_env(trials=4)
    _, rewards, infos = episode(env, lambda seen, task: 1 - oracle(seen, task))
    assert rewards.sum() == -4
    assert not any(info["correct"] for info in infos)
    env = CognitiveTasks(["nand"]).as_env(trials=30)
    _, _, infos = episode(env, lambda seen, task: int((len(seen) - 1) % 50 in range(25, 30)))  # five of ten: a tie is 0
    assert 0 < sum(info["correct"] for info in infos) < 20


def test_seeds_repeat_episodes_and_actions_are_checked():
    env = CognitiveTasks(["and", "or"]).as_env(trials=2)
    one, _ = env.reset(seed=5)
    other, _ = env.reset(seed=5)
    assert np.array_equal(one, other)
    with pytest.raises(ValueError, match="action must be 0 or 1, got 2"):
        env.step(2)
