import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.spiking.neurons import ALIFNeuron, CubaLIFNeuron, IFNeuron, LIFNeuron, LIFState


def sequence(neuron, currents):
    """Spikes and potentials before the reset of one neuron, step after step."""
    x = torch.tensor(currents, dtype=torch.float64)
    state, spikes, potentials = neuron.init_state((1,), x), [], []
    for current in x[:, None]:
        s, state, h = neuron.step(current, state)
        spikes.append(s.item())
        potentials.append(h.item())
    return spikes, potentials


def intervals(spikes):
    return [b - a for a, b in itertools.pairwise(t for t, s in enumerate(spikes) if s)]


@given(st.floats(1.0, 50.0), st.floats(-1.0, 1.0), st.floats(0.1, 1.0), st.sampled_from(["exact", "euler"]))
def test_a_constant_current_is_approached_as_in_closed_form(tau, rest, current, integration):
    _, h = sequence(LIFNeuron(tau, v_threshold=100.0, v_rest=rest, integration=integration), [current] * 8)
    a = math.exp(-1 / tau) if integration == "exact" else 1 - 1 / tau
    assert h == pytest.approx([rest + current * (1 - a ** (t + 1)) for t in range(8)], abs=1e-12)


def test_the_period_of_regular_firing_is_that_of_the_closed_form():
    spikes, _ = sequence(LIFNeuron(20.0), [1.5] * 400)
    assert set(intervals(spikes)) == {math.ceil(20.0 * math.log(1.5 / 0.5))}


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"reset": "hard"}, 0.0),
        ({"reset": "hard", "v_reset": -0.5}, -0.5),
        ({"reset": "soft"}, 1.0),
        ({"reset": "soft", "reset_amount": 0.25}, 1.75),
        ({"reset": "none"}, 2.0),
    ],
)
def test_resets(options, after):
    neuron = IFNeuron(**options)
    spikes, state, h = neuron.step(torch.tensor([2.0]), neuron.init_state((1,), torch.zeros(1)))
    assert (spikes.item(), state.v.item(), h.item()) == (1.0, after, 2.0)


def test_a_neuron_fires_at_its_threshold_and_below_it_with_negative_polarity():
    x, state = torch.tensor([-1.5, -1.0, -0.5, 0.5, 1.0]), LIFState(torch.zeros(5))
    assert IFNeuron().step(x, state).spikes.tolist() == [0, 0, 0, 0, 1]
    assert IFNeuron(v_threshold=-1.0, polarity=-torch.ones(5)).step(x, state).spikes.tolist() == [1, 1, 0, 0, 0]


def test_a_refractory_neuron_is_held_for_its_time():
    spikes, h = sequence(IFNeuron(refractory=3.0, v_reset=-0.25), [2.0] * 9)
    assert spikes == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert h[1:4] == [-0.25] * 3


def test_conductances_pull_towards_their_equilibrium():
    v, g, current = (torch.full((1,), value, dtype=torch.float64) for value in (0.0, 3.0, 8.0))
    for _ in range(4):
        v = LIFNeuron(10.0, v_threshold=9.0).driven(v, current, g)
    assert v.item() == pytest.approx(8.0 / 4.0 * (1 - math.exp(-4 / 10 * 4)))
    with pytest.raises(ValueError, match="Conductances need a neuron with tau"):
        IFNeuron().driven(v, v, g)


def test_the_synaptic_filter_sums_past_currents():
    _, h = sequence(CubaLIFNeuron(decay=0.5, v_threshold=9.0, decay_synapse=0.25), [1.0, 0.0, 0.0])
    assert h == [1.0, 0.75, 0.4375]


def test_an_adaptive_threshold_rises_with_spikes_and_lengthens_intervals():
    neuron = ALIFNeuron(decay=1.0, gain=1.0, tau_adaptation=50.0, strength=20.0)
    gaps = intervals(sequence(neuron, [0.5] * 60)[0])
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0]
    _, state, _ = neuron.step(torch.tensor([2.0]), neuron.init_state((1,), torch.zeros(1)))
    assert state.adaptation.item() == pytest.approx(1 - math.exp(-1 / 50))


def test_gradients_of_the_adaptive_threshold_reach_it():
    threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    neuron = ALIFNeuron(decay=0.9, v_threshold=threshold, decay_adaptation=0.5, reset="soft")
    one = torch.ones(1, dtype=torch.float64)
    spikes, state, _ = neuron.step(one, neuron.init_state((1,), one))
    slope = neuron.spike.derivative(one - threshold.detach())[0]
    assert_close(torch.autograd.grad(spikes.sum(), threshold, retain_graph=True)[0], -slope)
    assert_close(torch.autograd.grad(state.v.sum(), threshold)[0], -1.0 + threshold.detach() * slope)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Give either tau or decay"),
        ({"tau": 2.0, "decay": 0.5}, "Give either tau or decay"),
        ({"tau": 0.0}, "tau must be finite and above 0, got 0"),
        ({"tau": 0.5, "integration": "euler"}, "tau with integration='euler' must be finite and at least 1"),
        ({"tau": torch.tensor([2.0, -1.0])}, "tau must be finite and above 0, got -1"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": 1 + 1e-9}, r"decay must be in \[0, 1\]"),
        ({"tau": 2.0, "v_threshold": math.nan}, "v_threshold must be finite"),
        ({"tau": 2.0, "v_threshold": math.inf, "reset": "soft"}, "infinite v_threshold cannot be subtracted"),
        ({"tau": 2.0, "polarity": torch.tensor([1.0, 0.5])}, r"polarity must hold \+1 and -1"),
    ],
)
def test_parameters_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        LIFNeuron(**options)


def test_an_infinite_threshold_silences_and_harms_nothing():
    spikes, h = sequence(LIFNeuron(2.0, v_threshold=math.inf), [1e6, 1.0])
    assert spikes == [0, 0]
    assert all(map(math.isfinite, h))


def test_synapses_and_adaptation_need_one_time_constant():
    with pytest.raises(ValueError, match="Give either tau_synapse or decay_synapse"):
        CubaLIFNeuron(2.0)
    with pytest.raises(ValueError, match="Give either tau_adaptation or decay_adaptation"):
        ALIFNeuron(2.0, tau_adaptation=1.0, decay_adaptation=0.5)
