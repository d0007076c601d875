"""The protocol does nothing, and a chain does what its parts do, in order."""

import pytest
import torch

from neuropil.structure.maintenance import Chain, Maintenance


class Part(Maintenance):
    def __init__(self, log, name, penalty=0.0):
        self.log, self.name, self.value = log, name, torch.tensor(penalty)

    def penalty(self):
        return self.value

    def before_step(self):
        self.log.append(f"{self.name} before")

    def step(self):
        self.log.append(f"{self.name} step")
        return self.name

    def end_task(self, data=None):
        self.log.append((self.name, list(data)))

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_the_protocol_does_nothing():
    nothing = Maintenance()
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (weight.sum() + nothing.penalty()).backward()
    assert weight.grad.tolist() == [1, 1]
    assert nothing.before_step() is None
    assert nothing.step() is None
    assert nothing.end_task() is None
    nothing.load_state_dict(nothing.state_dict())
    with pytest.raises(ValueError, match="Maintenance keeps no state, got value"):
        nothing.load_state_dict({"value": 1})


def test_penalties_add_and_calls_go_in_order():
    log = []
    chain = Chain(Part(log, "a", 1.0), Part(log, "b", 2.5), Maintenance())
    assert chain.penalty() == 3.5
    chain.before_step()
    assert chain.step() == ["a", "b", None]
    chain.end_task(iter([1, 2]))  # what can be read once is enough for all
    assert log == ["a before", "b before", "a step", "b step", ("a", [1, 2]), ("b", [1, 2])]


def test_a_chain_in_a_chain_is_saved_and_taken_up():
    chain = Chain(Part([], "a", 1.0), Chain(Part([], "b", 2.0), Maintenance()))
    other = Chain(Part([], "a"), Chain(Part([], "b"), Maintenance()))
    other.load_state_dict(chain.state_dict())
    assert other.penalty() == 3
    with pytest.raises(ValueError, match="of 2 parts, this chain has 1"):
        Chain(Maintenance()).load_state_dict(chain.state_dict())
