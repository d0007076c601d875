import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.contrastive import Alternating, Bernoulli, ContrastiveRule, Geometric, Phase, Signals


class Counting(ContrastiveRule):
    """A net of one weight whose positive phase teaches 3, the negative 1; it keeps the phases and weights it saw."""

    def __init__(self, **options):
        net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(net.weight)
        super().__init__(net, **options)
        self.seen = []

    def signals(self, x, y, phase):
        self.seen.append((phase, float(self.net.weight.detach())))
        output = self.net(torch.ones(1, 1))
        value = 3.0 if phase.positive else 1.0
        return Signals([output], [torch.full_like(output, value)], torch.tensor(value))


X = torch.ones(1, 1)


def test_the_standard_is_one_packet_whose_phases_see_the_same_weights():
    rule = Counting(steps=5)
    optimizer = torch.optim.SGD(rule.net.parameters(), lr=1.0)
    assert float(rule.learn(X, None, optimizer)) == 2.0
    assert rule.seen == [(Phase(1, 1.0, 5), 0.0), (Phase(-1, -1.0, 5), 0.0)]
    assert float(rule.net.weight.detach()) == -2.0


@pytest.mark.parametrize("b", [0.2, 0.5, 0.9])
def test_a_random_phase_moves_on_average_as_far_as_a_pair(b):
    rule = Counting(schedule=Bernoulli(b))
    calls = 4000
    for _ in range(calls):
        rule.backward(X)
    mean = float(rule.net.weight.grad) / calls
    spread = (9 / b + 1 / (1 - b) - 4) ** 0.5
    assert abs(mean - 2) < 4 * spread / calls**0.5


@pytest.mark.parametrize("schedule", [Alternating(), Bernoulli(0.4), Geometric(0.3)])
def test_learning_at_every_step_goes_through_the_phase_step_by_step(schedule):
    rule = Counting(schedule=schedule, steps=4, update="every_step")
    packets = list(rule.packets(X))
    phases = [phase for phase, _ in rule.seen]
    assert all(phase.steps == 1 for phase in phases)
    total = sum(packet.weight for packet in packets)
    if isinstance(schedule, Geometric):
        assert total == pytest.approx(0.3 * len(packets) * phases[0].weight)
    else:
        assert len(packets) == 4 * schedule.contrast
        assert total == pytest.approx(sum({phase.sign: phase.weight for phase in phases}.values()))


def test_every_step_sees_the_weights_of_the_moment():
    rule = Counting(schedule=Bernoulli(0.5), steps=3, update="every_step")
    rule.learn(X, None, torch.optim.SGD(rule.net.parameters(), lr=1.0))
    weights = [weight for _, weight in rule.seen]
    assert weights[0] == 0.0
    assert len(set(weights)) == 3


def test_scale_goes_through():
    once, half = Counting(), Counting()
    once.backward(X)
    half.backward(X, scale=0.5)
    assert_close(half.net.weight.grad, 0.5 * once.net.weight.grad)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"schedule": "alternating"}, TypeError, "schedule"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"update": "often"}, ValueError, 'update must be "end" or "every_step"'),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Counting(**options)
