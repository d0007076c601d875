import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.neurons.traces import DoubleExponentialTrace, LazyTrace, Trace


def spikes(generator, steps=200, neurons=5, rate=0.1, dtype=torch.float64):
    return (torch.rand(steps, 1, neurons, generator=generator) < rate).to(dtype)


def test_a_trace_is_the_sum_over_all_earlier_events(generator):
    s = spikes(generator)
    t = torch.arange(len(s), dtype=torch.float64)
    lag = t[:, None] - t[None, :]
    kernel = torch.where(lag >= 0, torch.exp(-lag * 0.5 / 8.0), 0.0)
    wanted = 0.3 * torch.einsum("ts,sbn->tbn", kernel, s)
    assert_close(Trace(5, tau=8.0, dt=0.5, amplitude=0.3)(s)[0], wanted)


def test_replacement_knows_the_last_event_alone(generator):
    s = spikes(generator)
    traces = Trace(5, tau=8.0, amplitude=0.3, accumulate="replace")(s)[0]
    for n in range(5):
        last = None
        for t in range(len(s)):
            last = t if s[t, 0, n] > 0 else last
            wanted = 0.0 if last is None else 0.3 * math.exp(-(t - last) / 8.0)
            assert math.isclose(float(traces[t, 0, n]), wanted, rel_tol=1e-12)


def test_a_final_trace_is_the_weighted_firing_rate(generator):
    s = spikes(generator, steps=20)
    weights = 0.9 ** torch.arange(19, -1, -1, dtype=torch.float64)
    assert_close(Trace(5, decay=0.9)(s)[1].x, (weights[:, None, None] * s).sum(0))


@given(st.floats(0.5, 50.0), st.sampled_from(["add", "replace"]), st.integers(0, 1000))
def test_the_lazy_form_is_the_dense_one(tau, accumulate, seed):
    s = spikes(torch.Generator().manual_seed(seed), steps=120, neurons=4)
    dense = Trace(4, tau=tau, amplitude=-0.7, accumulate=accumulate, dt=0.1)
    lazy = LazyTrace(tau, amplitude=-0.7, accumulate=accumulate, dt=0.1)
    state, x = lazy.init_state(4, s), torch.zeros(1, 4, dtype=torch.float64)
    dense_state = dense.init_state(1)
    dense_state = dense_state._replace(x=x)
    for t, s_t in enumerate(s):
        before = dense.decay(x) * dense_state.x
        assert_close(lazy.read(state, t), before[0], rtol=1e-12, atol=1e-14)
        trace, dense_state = dense.step(s_t, dense_state)
        neurons = s_t[0].nonzero().flatten()
        assert lazy.add_event_(state, t, neurons) is state
        assert_close(lazy.read(state, t), trace[0], rtol=1e-12, atol=1e-14)
        assert_close(lazy.read(state, t, neurons), trace[0, neurons], rtol=1e-12, atol=1e-14)


def test_an_event_touches_its_neurons_alone():
    lazy = LazyTrace(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    state = lazy.init_state(3, torch.zeros(0, dtype=torch.float64))
    lazy.add_event_(state, 2, torch.tensor([0, 2]))
    lazy.add_event_(state, 10**9, torch.tensor([2, 2]))
    assert state.last.tolist() == [2, 0, 10**9]
    assert state.x.tolist() == [1.0, 0.0, 2.0]
    assert_close(lazy.read(state, 10**9 + 1)[2].item(), 2 * math.exp(-1 / 4))
    assert lazy.read(state, 10**9 + 1, torch.tensor([2])).tolist() == [lazy.read(state, 10**9 + 1)[2].item()]
    with pytest.raises(ValueError, match="last event, at 1000000000, got 5"):
        lazy.read(state, 5)
    with pytest.raises(ValueError, match="last event"):
        lazy.add_event_(state, 5, torch.tensor([2]))
    assert state.last.tolist() == [2, 0, 10**9]


def test_a_double_exponential_peaks_at_its_amplitude_where_the_closed_form_says():
    rise, fall, dt = 2.0, 9.0, 0.001
    peak = math.log(fall / rise) * fall * rise / (fall - rise)
    s = torch.zeros(8000, 1, 1, dtype=torch.float64)
    s[0] = 1.0
    trace = DoubleExponentialTrace(1, tau_rise=rise, tau_fall=fall, amplitude=0.4, dt=dt)(s)[0].flatten()
    assert trace[0] == 0
    assert abs(float(trace.max()) - 0.4) < 1e-6
    assert abs(int(trace.argmax()) * dt - peak) < 2 * dt
    t = torch.arange(8000, dtype=torch.float64) * dt
    shape = torch.exp(-t / fall) - torch.exp(-t / rise)
    assert_close(trace, shape * (0.4 / (math.exp(-peak / fall) - math.exp(-peak / rise))), rtol=1e-9, atol=1e-12)


def test_a_double_exponential_can_differ_from_neuron_to_neuron(generator):
    s = spikes(generator, steps=30, neurons=2)
    rise = torch.tensor([1.0, 2.0], dtype=torch.float64)
    both = DoubleExponentialTrace(2, tau_rise=rise, tau_fall=5.0)(s)[0]
    each = [DoubleExponentialTrace(1, tau_rise=r, tau_fall=5.0)(s[..., i : i + 1])[0] for i, r in enumerate((1.0, 2.0))]
    assert_close(both, torch.cat(each, -1))


def test_gradients_flow_through_events_and_decay(generator):
    s = torch.rand(4, 1, 3, generator=generator, dtype=torch.float64).requires_grad_()
    for accumulate in ("add", "replace"):
        trace = Trace(3, tau=3.0, accumulate=accumulate)
        assert torch.autograd.gradcheck(lambda x, trace=trace: trace(x)[0], (s,))
    learned = Trace(3, tau=3.0, learnable=True)
    learned(s)[0].sum().backward()
    (logit,) = learned.parameters()
    assert logit.grad is not None
    assert float(logit.grad) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_follows_the_input(dtype, generator):
    s = spikes(generator, steps=5, dtype=dtype)
    assert Trace(5, tau=torch.full((5,), 3.0, dtype=torch.float64))(s)[0].dtype == dtype
    assert DoubleExponentialTrace(5, tau_rise=1.0, tau_fall=2.0)(s)[0].dtype == dtype
    lazy = LazyTrace(3.0)
    state = lazy.add_event_(lazy.init_state(5, s), 3, torch.tensor([1]))
    assert lazy.read(state, 7).dtype == dtype


def test_bad_traces_are_refused_in_words():
    with pytest.raises(ValueError, match="tau must be finite and above 0, got -2"):
        Trace(3, tau=-2.0)
    with pytest.raises(ValueError, match="amplitude must be finite, got nan"):
        Trace(3, tau=2.0, amplitude=math.nan)
    with pytest.raises(ValueError, match="tau_rise must be below tau_fall, got 3"):
        DoubleExponentialTrace(3, tau_rise=3.0, tau_fall=3.0)
    with pytest.raises(ValueError, match="tau must be finite and above 0, got 0"):
        LazyTrace(0.0)
    with pytest.raises(ValueError, match="dt must be finite and above 0, got -1"):
        LazyTrace(1.0, dt=-1.0)
