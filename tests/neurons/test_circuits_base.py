from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from neuropil.neurons.circuits.base import Circuit, detach, map_state, stack_states


class Inner(NamedTuple):
    number: Tensor
    missing: Tensor | None


class Outer(NamedTuple):
    x: Tensor
    inner: Inner
    missing: None


class Counter(Circuit):
    """Sums two neurons into one output and numbers steps."""

    def init_state(self, batch, *, generator=None):
        x = torch.zeros(batch, 1) if generator is None else torch.rand(batch, 1, generator=generator)
        return Outer(x, Inner(torch.zeros(batch, dtype=torch.int64), None), None)

    def step(self, x, state):
        total = state.x + x.sum(-1, keepdim=True)
        return total, Outer(total, Inner(state.inner.number + 1, None), None)


def test_a_sequence_is_its_steps_and_can_be_cut_anywhere(generator):
    x = torch.randn(7, 3, 2, generator=generator)
    outputs, state = Counter()(x)
    assert_close(outputs, x.sum(-1, keepdim=True).cumsum(0))
    assert state.inner.number.tolist() == [7, 7, 7]
    first, half = Counter()(x[:3])
    second, whole = Counter()(x[3:], half)
    assert torch.equal(torch.cat([first, second]), outputs)
    assert torch.equal(whole.x, state.x)


def test_no_steps_change_nothing_and_have_an_output_of_the_right_shape():
    circuit = Counter()
    outputs, state = circuit(torch.zeros(0, 3, 2, dtype=torch.float64))
    assert outputs.shape == (0, 3, 1)
    assert outputs.dtype == torch.float64
    assert state.inner.number.tolist() == [0, 0, 0]
    given = circuit.init_state(3, generator=torch.Generator().manual_seed(1))
    assert circuit(torch.zeros(0, 3, 2), given)[1] is given


def test_a_fresh_state_takes_the_type_of_the_input_but_numberers_stay_whole():
    outputs, state = Counter()(torch.ones(2, 3, 2, dtype=torch.float64))
    assert outputs.dtype == state.x.dtype == torch.float64
    assert state.inner.number.dtype == torch.int64


def test_a_circuit_keeps_no_state():
    circuit = Counter()
    x = torch.ones(4, 1, 2)
    assert torch.equal(circuit(x)[0], circuit(x)[0])
    assert not list(circuit.buffers())


def test_maps_go_through_nested_states_and_leave_none():
    state = Outer(torch.ones(2, requires_grad=True), Inner(torch.ones(1), None), None)
    doubled = map_state(lambda t: t * 2, state)
    assert isinstance(doubled.inner, Inner)
    assert doubled.x.tolist() == [2, 2]
    assert doubled.inner.number.tolist() == [2]
    assert doubled.missing is None
    assert doubled.inner.missing is None
    assert doubled.x.requires_grad
    assert not detach(doubled).x.requires_grad
    assert state.x.requires_grad


def test_states_are_stacked_along_any_axis():
    states = [Outer(torch.full((2,), float(i)), Inner(torch.tensor([i]), None), None) for i in range(3)]
    assert stack_states(states).x.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert stack_states(states, dim=1).x.shape == (2, 3)
    assert stack_states(states).inner.number.tolist() == [[0], [1], [2]]
    assert stack_states(states).inner.missing is None


def test_what_is_no_state_is_refused():
    with pytest.raises(TypeError, match="named tuple, got tuple"):
        map_state(lambda t: t, (torch.zeros(1),))
    with pytest.raises(TypeError, match=r"number of a state .* got int"):
        map_state(lambda t: t, Inner(3, None))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one"):
        stack_states([])
    with pytest.raises(ValueError, match="missing is None in some"):
        stack_states([Inner(torch.zeros(1), None), Inner(torch.zeros(1), torch.zeros(1))])
    with pytest.raises(ValueError, match="one type, got Inner, Outer"):
        stack_states([Inner(torch.zeros(1), None), Outer(torch.zeros(1), Inner(torch.zeros(1), None), None)])  # pyright: ignore[reportArgumentType]
