"""A graph as a policy: steps, clamped inputs, state, populations."""

import pytest
import torch
from torch.testing import assert_close

from neuropil.structure.develop.networks import Networks, direct_networks, direct_size
from neuropil.structure.develop.policy import GraphPolicy
from neuropil.structure.develop.program import DevelopmentalProgram


def population() -> Networks:
    own = DevelopmentalProgram(3, 4, prune=0.3)  # pruned graphs differ in diameter
    genomes = 3 * (2 * torch.rand(40, own.genome_size, generator=torch.Generator().manual_seed(2)).double() - 1)
    networks = own.develop(genomes, 4)
    return networks.select(networks.sizes >= 5)


def test_one_step_is_a_tanh_of_what_flows_in():
    network = direct_networks(torch.arange(9).double()[None] / 10, 3, directed=True)[0]
    policy = network.policy(1, 1)
    assert int(policy.steps) == network.diameter == 1
    values, state = policy(torch.tensor([[0.5]], dtype=torch.float64))
    expected = torch.tanh(0.5 * torch.tensor([0.1, 0.2], dtype=torch.float64))  # rows are where edges come from
    assert_close(state[0], torch.cat([torch.tensor([0.5], dtype=torch.float64), expected]))
    assert_close(values[0], expected[1:])
    again, state = policy(torch.tensor([[-1.0]], dtype=torch.float64), state)
    flow = -0.1 + 0.4 * expected[0] + 0.7 * expected[1], -0.2 + 0.5 * expected[0] + 0.8 * expected[1]
    assert_close(state[0, 1:], torch.tanh(torch.stack(flow)))
    assert_close(again[0, 0], state[0, 2])


def test_a_population_acts_as_its_members_do():
    networks = population()
    assert len(set(networks.sizes.tolist())) > 1
    generator = torch.Generator().manual_seed(0)
    shown = torch.randn(2, len(networks), 6, 3, generator=generator).double()
    policy = networks.policy(3, 2, extra=2)
    together, state = policy(shown[0])
    later, state = policy(shown[1], state)
    assert len(set(policy.steps.tolist())) > 1
    for index, network in enumerate(networks):
        one = network.policy(3, 2, extra=2)
        values, own = one(shown[0, index])
        assert_close(values, together[index], rtol=0, atol=1e-12)
        values, own = one(shown[1, index], own)
        assert_close(values, later[index], rtol=0, atol=1e-12)
        assert_close(own, state[index, :, : network.nodes], rtol=0, atol=1e-12)


def test_the_answer_is_odd_and_silence_answers_silence():
    policy = population().policy(2, 2)
    shown = torch.randn(len(policy.weights), 4, 2, generator=torch.Generator().manual_seed(0)).double()
    assert_close(policy(shown)[0], -policy(-shown)[0])
    assert not bool(policy(torch.zeros_like(shown))[0].any())


def test_copies_of_a_node_answer_alike():
    """The reason for a margin: equal edges, equal outputs, whatever the input."""
    network = direct_networks(torch.full((1, direct_size(4)), 0.9994).double(), 4)[0]
    values, _ = network.policy(2, 2)(torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert float((values[:, 0] - values[:, 1]).abs().max()) < 1e-15


def test_no_steps_leave_the_state_and_no_input_is_changed():
    weights = torch.ones(4, 4).double()
    policy = GraphPolicy(weights, torch.tensor(4), torch.tensor(0), 2, 1)
    shown = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    state = torch.arange(4).double()[None]
    values, after = policy(shown, state)
    assert after.tolist() == [[1, 2, 2, 3]]
    assert values.tolist() == [[3]]
    assert state.tolist() == [[0, 1, 2, 3]]


def test_what_does_not_fit_is_named():
    network = direct_networks(torch.zeros(1, direct_size(4)).double(), 4)[0]
    with pytest.raises(ValueError, match="3 observations and 2 actions needs as many nodes, 5; the network has 4"):
        network.policy(3, 2)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        network.policy(0, 2)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        network.policy(2, 2, extra=-2)
    policy = network.policy(2, 2)
    with pytest.raises(ValueError, match=r"observation is \(1, 3\), wanted \('batch', 2\)"):
        policy(torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match=r"state is \(1, 5\), wanted \(1, 4\)"):
        policy(torch.zeros(1, 2).double(), torch.zeros(1, 5).double())
