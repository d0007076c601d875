import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from neuropil.spiking.hodgkin_huxley import HodgkinHuxleyNeuron, _ratio
from neuropil.spiking.kernels.membranes import COMPILED
from neuropil.spiking.membranes import IZHIKEVICH, AdExNeuron, IzhikevichNeuron
from neuropil.spiking.surrogate import FastSigmoid, Sigmoid, Smooth

MODELS: dict[Any, float] = {AdExNeuron: 800.0, IzhikevichNeuron: 10.0, HodgkinHuxleyNeuron: 500.0}
"""A current of each model that makes it fire."""
DOUBLE = torch.zeros((), dtype=torch.float64)


def run(neuron, currents, time, state=None, conductance: Any = 0.0):
    """Steps of the spikes of each neuron under constant inputs, potentials after each step, and the last state.

    By the compiled twins, which give the same bits (see below) in less time.
    """
    current = np.atleast_1d(np.asarray(currents, np.float64))
    state = neuron.init_state(current.shape, DOUBLE) if state is None else copied(state)
    build, _, advance = COMPILED[type(neuron)]
    arrays, n, steps = build(neuron, state, np.float64), len(current), round(time / neuron.dt)
    inputs = current, np.broadcast_to(conductance, n).astype(np.float64), np.zeros(n)
    raster, potentials = np.zeros((steps, n), np.uint8), np.zeros((steps, n))
    for t in range(steps):
        advance(arrays, 0, n, *inputs, raster[t])
        potentials[t] = arrays.v
    return [np.flatnonzero(row) + 1 for row in raster.T], potentials, state


def copied(state):
    return type(state)(*(None if part is None else part.clone() for part in state))


def intervals(neuron, current, time):
    (steps,), _, _ = run(neuron, current, time)
    return np.diff(steps) * neuron.dt


def solved(flow, start, event, reset, time):
    """Spike times of equations, integrated from event to event by an adaptive method."""
    event.terminal, event.direction = True, 1
    t, y, times = 0.0, start, []
    while True:
        piece = solve_ivp(flow, (t, time), y, events=event, rtol=1e-8, atol=1e-8, method="LSODA")
        if piece.status != 1:
            return np.array(times)
        t, y = piece.t[-1], reset(piece.y[:, -1])
        times.append(t)


# Adaptive exponential integrate-and-fire


def adex_times(current, time):
    n = AdExNeuron()

    def flow(_, y):
        v, w = y
        rise = n.g_leak * n.slope * math.exp(min((v - n.v_threshold) / n.slope, 30.0))
        return [
            (n.g_leak * (n.e_leak - v) + rise - w + current) / n.capacitance,
            (n.a * (v - n.e_leak) - w) / n.tau_w,
        ]

    return solved(flow, [n.e_leak, 0.0], lambda _, y: y[0] - n.v_peak, lambda y: [n.v_reset, y[1] + n.b], time)


def test_below_threshold_adex_is_the_linear_system():
    n = AdExNeuron()
    current = 30.0
    _, potentials, state = run(n, current, 300.0)
    matrix = np.array([[-n.g_leak / n.capacitance, -1 / n.capacitance], [n.a / n.tau_w, -1 / n.tau_w]])
    constant = np.array([current / n.capacitance, 0.0])
    values, vectors = np.linalg.eig(matrix)
    t = np.arange(1, 3001)[:, None] * n.dt
    rest = -np.linalg.solve(matrix, constant)
    wanted = rest + np.real((np.exp(values * t) * np.linalg.solve(vectors, -rest)) @ vectors.T)
    # The tail of the exponential is 0.1 % of the leak here.
    assert np.abs(potentials[:, 0] - n.e_leak - wanted[:, 0]).max() < 0.003
    assert abs(float(state.w) - wanted[-1, 1]) < 0.02


def test_adex_has_the_rheobase_of_its_equations():
    # At rest I = (g + a)(v - E) - g D exp((v - V_T)/D), largest where the exponential is 1 + a/g: a saddle node, which
    # a rising current meets before the Hopf bifurcation if C/g < tau_w and a/g < C/(g tau_w).
    n = AdExNeuron(a=1.0, b=0.0)
    v = n.v_threshold + n.slope * math.log(1 + n.a / n.g_leak)
    rheobase = (n.g_leak + n.a) * (v - n.e_leak - n.slope)
    start = n.init_state((2,), DOUBLE)
    near = start._replace(v=start.v * 0 + v - 2.0, w=start.w + n.a * (v - 2.0 - n.e_leak))
    spikes, _, _ = run(n, [rheobase - 2.0, rheobase + 2.0], 1500.0, near)
    assert len(spikes[0]) == 0
    assert len(spikes[1]) > 0


def test_adaptation_lengthens_intervals_towards_those_of_the_equations():
    wanted = np.diff(adex_times(1000.0, 400.0))
    ours = intervals(AdExNeuron(), 1000.0, 400.0)
    assert ours[-1] > 2 * ours[0]
    assert (np.diff(ours[:6]) > 0).all()
    assert len(ours) == len(wanted)
    # One substep: within a step of 0.1 ms, part of which is that spikes stand on the grid.
    assert abs(ours.mean() - wanted.mean()) < 0.15
    unadapted = intervals(AdExNeuron(a=0.0, b=0.0), 1000.0, 100.0)
    assert np.ptp(unadapted) < 0.11


def test_adex_converges_as_the_step_falls():
    wanted = adex_times(1000.0, 60.0)
    steps = np.array([0.2, 0.05, 0.0125])
    errors = np.array([np.abs(run(AdExNeuron(dt=dt), 1000.0, 60.0)[0][0][:3] * dt - wanted[:3]).max() for dt in steps])
    # Each of three intervals is up to two steps too long: a spike is seen at the end of its step.
    assert (errors < 3 * 2 * steps).all()
    assert errors[2] < errors[0] / 8
    # Substeps take what the grid does not: below threshold, where no spike is, the order is the second.
    exact = run(AdExNeuron(substeps=32), 400.0, 20.0)[1]
    first, second = (np.abs(run(AdExNeuron(substeps=k), 400.0, 20.0)[1] - exact).max() for k in (1, 2))
    assert 3.5 < first / second < 4.5
    assert first < 1e-3


def test_adex_is_held_and_adapts_meanwhile():
    n = AdExNeuron(refractory=3.0)
    (steps,), potentials, _ = run(n, 2000.0, 30.0)
    for step in steps[:-1]:
        assert (potentials[step : step + 30] == n.v_reset).all()
        assert potentials[step + 30] != n.v_reset
    assert np.diff(steps).min() > 30


# Izhikevich


def test_regular_spiking_has_the_rate_of_its_equations():
    n = IzhikevichNeuron.preset("regular_spiking")

    def flow(_, y):
        return [0.04 * y[0] ** 2 + 5 * y[0] + 140 - y[1] + 10.0, n.a * (n.b * y[0] - y[1])]

    start = [-70.0, -14.0]
    rest = n.init_state((), DOUBLE)
    assert_close((float(rest.v), float(rest.u)), tuple(start))
    wanted = solved(flow, start, lambda _, y: y[0] - n.v_peak, lambda y: [n.c, y[1] + n.d], 300.0)
    gaps = [intervals(replace(n, dt=dt), 10.0, 300.0)[-1] - (wanted[-1] - wanted[-2]) for dt in (0.2, 0.1, 0.05)]
    assert 0 < gaps[1] < 0.01 * (wanted[-1] - wanted[-2])
    assert 1.6 < gaps[0] / gaps[1] < 2.4
    assert 1.6 < gaps[1] / gaps[2] < 2.6


def test_half_steps_are_the_program_of_the_paper():
    n = IzhikevichNeuron.preset("chattering", half_steps=True, dt=1.0)
    v, u, fired = -70.0, -14.0, []
    for t in range(300):
        for _ in range(2):
            v += 0.5 * (0.04 * v * v + 5 * v + 140 - u + 10)
        u += n.a * (n.b * v - u)
        if v >= 30:
            v, u = n.c, u + n.d
            fired.append(t + 1)
    (steps,), _, state = run(n, 10.0, 300.0)
    assert len(fired) > 10
    assert steps.tolist() == fired
    assert_close((float(state.v), float(state.u)), (v, u), rtol=1e-6, atol=1e-6)


def test_types_of_neurons_fire_as_their_names_say():
    gaps = {name: intervals(IzhikevichNeuron.preset(name), 10.0, 500.0) for name in IZHIKEVICH}
    regular = gaps["regular_spiking"]
    assert regular[-1] > regular[0]
    assert len(gaps["fast_spiking"]) > 3 * len(regular)
    assert np.ptp(gaps["fast_spiking"][3:]) < 0.3
    bursts = gaps["chattering"]
    assert bursts.max() > 5 * bursts.min()
    assert gaps["intrinsically_bursting"][:2].max() < 0.5 * gaps["intrinsically_bursting"][3:].min()
    assert len(gaps["low_threshold_spiking"]) > len(regular)
    silent, _, _ = run(IzhikevichNeuron.preset("resonator"), 0.0, 200.0)
    assert len(silent[0]) == 0
    with pytest.raises(ValueError, match="named 'bursting'; there are regular_spiking"):
        IzhikevichNeuron.preset("bursting")


def test_a_neuron_without_a_rest_begins_where_it_is_slowest():
    state = IzhikevichNeuron(b=0.5).init_state((1,), DOUBLE)
    assert_close(float(state.v), -4.5 / 0.08)


# Hodgkin-Huxley


def hodgkin_huxley(_, y, current):
    v, m, h, n = y
    x = v + 63.0

    def f(z):
        return z / np.expm1(z)

    rates = (
        (0.32 * 4 * f((13 - x) / 4), 0.28 * 5 * f((x - 40) / 5), m),
        (0.128 * np.exp((17 - x) / 18), 4 / (1 + np.exp((40 - x) / 5)), h),
        (0.032 * 5 * f((15 - x) / 5), 0.5 * np.exp((10 - x) / 40), n),
    )
    currents = 10 * (-65 - v) + 20e3 * m**3 * h * (50 - v) + 6e3 * n**4 * (-90 - v) + current
    return [currents / 200, *(alpha * (1 - g) - beta * g for alpha, beta, g in rates)]


def test_the_ratio_of_the_rates_is_smooth_through_its_singular_point():
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    x = torch.cat([x, torch.tensor([0.0, 1e-300, -1e-9, 0.25, -0.25, 0.2499999, 1e4, -1e4], dtype=torch.float64)])
    wanted = torch.where(x == 0, 1.0, x / torch.expm1(torch.where(x == 0, 1.0, x)))
    assert_close(_ratio(x), wanted, rtol=3e-15, atol=1e-300)
    single = _ratio(x.float())
    assert_close(single.double(), _ratio(x.float().double()), rtol=2e-6, atol=1e-30)
    points = torch.tensor([0.0, 0.1, -0.1, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(_ratio(points).sum(), points)
    assert abs(float(gradient[0]) + 0.5) < 1e-15
    assert torch.autograd.gradcheck(_ratio, (points,))


def test_the_membrane_rests_where_currents_balance():
    n = HodgkinHuxleyNeuron()
    state = n.init_state((1,), DOUBLE)
    y = [float(part) for part in (state.v, state.m, state.h, state.n)]
    assert np.abs(hodgkin_huxley(0.0, y, 0.0)).max() < 1e-12
    spikes, potentials, after = run(n, 0.0, 50.0, state)
    assert len(spikes[0]) == 0
    assert np.abs(potentials - float(state.v)).max() < 1e-9
    assert_close(after.n, state.n)


def test_the_action_potential_is_that_of_the_equations():
    start = HodgkinHuxleyNeuron().init_state((1,), DOUBLE)
    y = [float(part) for part in (start.v, start.m, start.h, start.n)]

    crossing: Any = lambda _, y, __: y[0] + 20  # noqa: E731 - a function that takes attributes
    crossing.direction = 1
    exact = solve_ivp(
        hodgkin_huxley,
        (0, 60),
        y,
        "LSODA",
        np.arange(0, 60, 0.01),
        events=crossing,
        args=(500.0,),
        rtol=1e-9,
        atol=1e-9,
    )
    wanted, errors = exact.t_events[0], []
    for dt in (0.1, 0.05, 0.025):
        (steps,), potentials, state = run(HodgkinHuxleyNeuron(dt=dt), 500.0, 60.0)
        v = potentials[:, 0]
        # The crossing between steps by a line, so that the grid does not hide the order.
        times = (steps - (v[steps - 1] + 20) / (v[steps - 1] - v[steps - 2])) * dt
        assert len(times) == len(wanted)
        errors.append(np.abs(np.diff(times) - np.diff(wanted)).mean())
        assert all(0 <= float(g) <= 1 for g in (state.m, state.h, state.n))
    assert errors[0] < 0.02 * np.diff(wanted).mean()
    assert errors[2] < errors[0] / 8
    assert abs(v.max() - exact.y[0].max()) < 0.3
    assert abs(v.min() - exact.y[0].min()) < 0.3


def test_no_second_spike_counts_within_the_refractory_time_and_the_membrane_goes_on():
    # Jumps lift the potential over the threshold every other step.
    free, held = HodgkinHuxleyNeuron(refractory=0.0), HodgkinHuxleyNeuron(refractory=1.0)
    counts, traces = [], []
    for n in (free, held):
        state, count, trace = n.init_state((1,), DOUBLE), [], []
        for t in range(60):
            s, state, h = n.step(DOUBLE.reshape(1), state, jump=DOUBLE.reshape(1) + (-60.0 if t % 2 else 60.0))
            count.append(int(s))
            trace.append(float(h))
        counts.append(np.flatnonzero(count))
        traces.append(trace)
    assert traces[0] == traces[1]
    assert np.diff(counts[0]).min() == 2
    assert np.diff(counts[1]).min() > 10


# What all have in common


@pytest.mark.parametrize("model", MODELS)
def test_conductance_pulls_towards_its_reversal_potential_whatever_its_size(model):
    g = np.array([0.0, 1.0, 1e3, 1e6])
    spikes, potentials, _ = run(model(), -75.0 * g, 100.0, conductance=g)
    assert np.isfinite(potentials).all()
    assert [len(steps) for steps in spikes] == [0] * 4
    assert np.abs(potentials[-1, 2:] + 75).max() < 1
    assert abs(potentials[-1, 3] + 75) < 0.01


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dt", [0.1, 2.0])
def test_huge_inputs_leave_finite_numbers(model, dtype, dt):
    n, x = model(dt=dt), torch.tensor([1e3, 1e6, 1e9, -1e3, -1e6, -1e9], dtype=dtype)
    state = n.init_state((6,), x)
    for t in range(30):
        s, state, h = n.step(x if t % 3 else torch.zeros_like(x), state, jump=x / 100 if t % 5 == 4 else None)
        assert s.dtype == h.dtype == dtype
        assert all(part.isfinite().all() for part in (h, *state) if part is not None), t


@pytest.mark.parametrize("model", MODELS)
def test_any_shape_and_parameters_of_each_neuron(model, generator):
    current = MODELS[model] * (2 + torch.rand(2, 3, 4, generator=generator, dtype=torch.float64))
    name = "a" if model is IzhikevichNeuron else "capacitance"
    values = getattr(model(), name) * torch.tensor([0.8, 1.0, 1.2, 1.4], dtype=torch.float64)
    many = model(**{name: values, "refractory": 1.0})
    each: list[dict[str, Any]] = [{name: float(x), "refractory": 1.0} for x in values]
    singles = [model(**options) for options in each]
    state = many.init_state((2, 3, 4), DOUBLE)
    states = [n.init_state((2, 3), DOUBLE) for n in singles]
    for _ in range(60):
        s, state, h = many.step(current, state)
        for i, n in enumerate(singles):
            one, states[i], potential = n.step(current[..., i], states[i])
            assert torch.equal(one, s[..., i])
            assert_close(potential, h[..., i], rtol=1e-12, atol=1e-9)
    assert state.refractory is not None
    assert state.refractory.dtype == torch.int32
    assert state.v.shape == (2, 3, 4)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_not_given_is_zero_to_the_bit(model):
    n, current = model(), torch.linspace(0, 4, 5, dtype=torch.float32) * MODELS[model]
    state = given = n.init_state((5,), current)
    zero = torch.zeros(5)
    for _ in range(80):
        s, state, h = n.step(current, state)
        one, given, potential = n.step(current, given, conductance=zero, jump=zero)
        assert torch.equal(h, potential)
        assert torch.equal(s, one)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_smooth_neuron(model, generator):
    n = model(surrogate=Smooth(Sigmoid(0.1)))
    start = n.init_state((2,), DOUBLE)
    start = start._replace(v=start.v + torch.tensor([5.0, 12.0], dtype=torch.float64))
    current = MODELS[model] * torch.rand(2, generator=generator, dtype=torch.float64)
    inputs = [current, start.v, torch.full_like(current, 0.01), torch.full_like(current, 0.5)]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]

    def three_steps(x, v, conductance, jump):
        state, total = start._replace(v=v), []
        for _ in range(3):
            s, state, _ = n.step(x, state, conductance=conductance, jump=jump)
            total.append(s)
        return torch.stack(total), state.v, state[-1]

    assert torch.autograd.gradcheck(three_steps, inputs)


@pytest.mark.parametrize("model", MODELS)
def test_surrogate_gradients_through_spikes_are_finite_and_reach_currents_and_parameters(model):
    name = "a" if model is IzhikevichNeuron else "capacitance"
    parameter = torch.full((4,), float(getattr(model(), name)), dtype=torch.float64, requires_grad=True)
    n = model(**{name: parameter, "surrogate": FastSigmoid(0.1)})
    current = torch.linspace(3.0, 5.0, 4, dtype=torch.float64) * MODELS[model]
    current.requires_grad_()
    state, total = n.init_state((4,), DOUBLE), torch.zeros(4, dtype=torch.float64)
    for _ in range(100):
        s, state, _ = n.step(current, state)
        total = total + s
    assert (total.detach() > 0).all()
    gradients = torch.autograd.grad(total.sum(), [current, parameter])
    assert all(g.isfinite().all() and g.abs().min() > 0 for g in gradients)


@pytest.mark.parametrize("model", [AdExNeuron, IzhikevichNeuron])
def test_a_detached_reset_leaves_out_the_path_through_the_spike(model):
    gradients = []
    for detach in (False, True):
        n = model(detach_reset=detach, surrogate=FastSigmoid(0.1))
        v = torch.tensor([float(n.v_peak) + 5.0], dtype=torch.float64, requires_grad=True)
        jump = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        s, state, _ = n.step(torch.zeros(1, dtype=torch.float64), n.init_state((1,), DOUBLE)._replace(v=v), jump=jump)
        assert float(s.detach()) == 1
        gradients.append(float(torch.autograd.grad(state.v.sum(), jump)[0]))
    assert gradients[1] == 0
    assert gradients[0] < 0


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (AdExNeuron, {"capacitance": -1.0}, "capacitance must be finite and above 0, got -1"),
        (AdExNeuron, {"tau_w": 0.0}, "tau_w must be finite and above 0, got 0"),
        (AdExNeuron, {"slope": -2.0}, "slope must be finite and above 0"),
        (AdExNeuron, {"e_leak": math.nan}, "e_leak must be finite, got nan"),
        (AdExNeuron, {"capacitance": torch.tensor([1.0, math.nan])}, "capacitance .* got nan"),
        (AdExNeuron, {"v_reset": 10.0}, "v_reset must lie below v_peak, got 10.0 and v_peak 0.0"),
        (AdExNeuron, {"v_peak": math.nan}, "v_peak must be finite"),
        (AdExNeuron, {"substeps": 0}, "substeps must be at least 1, got 0"),
        (AdExNeuron, {"dt": 0.0}, "dt must be finite and above 0"),
        (AdExNeuron, {"refractory": -1.0}, "refractory must be finite and at least 0, got -1"),
        (IzhikevichNeuron, {"a": -0.02}, "a must be finite and above 0, got -0.02"),
        (IzhikevichNeuron, {"b": math.nan}, "b must be finite"),
        (IzhikevichNeuron, {"c": 40.0}, "c must lie below v_peak"),
        (IzhikevichNeuron, {"surrogate": "steep"}, "No surrogate is named 'steep'"),
        (HodgkinHuxleyNeuron, {"capacitance": 0.0}, "capacitance must be finite and above 0, got 0"),
        (HodgkinHuxleyNeuron, {"g_sodium": -1.0}, "g_sodium must be finite and at least 0, got -1"),
        (HodgkinHuxleyNeuron, {"v_traub": math.inf}, "v_traub must be finite, got inf"),
    ],
)
def test_bad_parameters_are_refused_in_words(model, options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


# The compiled twins

N = 299
"""Neurons of the comparison: no multiple of a vector's length."""


def twins():
    each = torch.linspace(0.8, 1.2, N, dtype=torch.float64)
    return {
        "adex": AdExNeuron(),
        "adex, held, each": AdExNeuron(
            refractory=1.5, substeps=2, capacitance=281 * each, b=80.5 * each, v_reset=-65 * each
        ),
        "izhikevich": IzhikevichNeuron(),
        "izhikevich, half steps, held, each": IzhikevichNeuron(
            half_steps=True, dt=1.0, refractory=4.0, a=0.02 * each, c=-60 * each, v_peak=30 * each
        ),
        "hodgkin-huxley": HodgkinHuxleyNeuron(),
        "hodgkin-huxley, all count, each": HodgkinHuxleyNeuron(
            refractory=0.0, g_sodium=20_000 * each, e_leak=-65 * each, v_traub=-63 * each, v_threshold=-20 * each
        ),
    }


SCALES = {
    AdExNeuron: (1500.0, 30.0, 3.0),
    IzhikevichNeuron: (30.0, 0.05, 3.0),
    HodgkinHuxleyNeuron: (1000.0, 50.0, 3.0),
}
"""Of random currents, conductances and jumps."""


def bits(tensor):
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", twins())
def test_the_compiled_twin_gives_the_same_bits(name, dtype, generator):
    neuron = twins()[name]
    scales, build = SCALES[type(neuron)], COMPILED[type(neuron)]
    state = neuron.init_state((N,), torch.zeros((), dtype=dtype))
    shared = copied(state)
    arrays = build[0](neuron, shared, torch.zeros(0, dtype=dtype).numpy().dtype)
    assert isinstance(arrays, build[1])
    fired, counts, seen = np.full(N + 3, 7, np.uint8), 0, set()
    for t in range(250):
        current = torch.rand(N, generator=generator, dtype=dtype) * scales[0]
        conductance = torch.rand(N, generator=generator, dtype=dtype) * scales[1]
        jump = torch.randn(N, generator=generator, dtype=dtype) * scales[2]
        if t % 50 == 49:  # far beyond every cut
            current, jump = current * 1e4, jump * 100
        spikes, state, _ = neuron.step(current, state, conductance=conductance, jump=jump)
        for lo, hi in ((0, 48), (48, N)):
            tile = [x[lo:hi].numpy().copy() for x in (current, conductance, jump)]
            build[2](arrays, lo, hi, *tile, fired)
            assert all(
                np.array_equal(x, y[lo:hi].numpy()) for x, y in zip(tile, (current, conductance, jump), strict=True)
            )
        assert np.array_equal(fired[:N], spikes.numpy()), t
        for ours, theirs in zip(state, shared, strict=True):
            if ours is not None:
                assert torch.equal(bits(ours), bits(theirs)), t
        counts += int(spikes.sum())
        seen |= set() if state.refractory is None else set(state.refractory.tolist())
    assert (fired[N:] == 7).all()
    assert counts > 2 * N
    assert state.refractory is None or seen == set(range(neuron.held_steps + 1))


@pytest.mark.parametrize("model", MODELS)
def test_a_tile_touches_its_neurons_alone(model):
    neuron = model(refractory=2.0)
    state = neuron.init_state((20,), DOUBLE)
    before = [part.clone() for part in state]
    arrays = COMPILED[model][0](neuron, state, np.float64)
    fired = np.full(20, 7, np.uint8)
    inputs = [np.full(5, x) for x in SCALES[model]]
    COMPILED[model][2](arrays, 5, 10, *inputs, fired)
    for old, new in zip(before, state, strict=True):
        assert torch.equal(old[:5], new[:5])
        assert torch.equal(old[10:], new[10:])
    assert (state.v[5:10] != before[0][5:10]).all()
    assert fired.tolist() == [7] * 5 + [0] * 5 + [7] * 10


@pytest.mark.parametrize("model", MODELS)
def test_states_that_cannot_be_shared_are_refused(model):
    build = COMPILED[model][0]
    state = model().init_state((4, 2), DOUBLE)
    assert build(model(), state, np.float64).v.shape == (8,)
    with pytest.raises(ValueError, match="v must be float32, got float64"):
        build(model(), state, np.float32)
    with pytest.raises(ValueError, match="v must be contiguous"):
        build(model(), state._replace(v=state.v.T), np.float64)
    # Arrays do as well as tensors.
    arrays = type(state)(*(None if part is None else part.numpy() for part in state))
    assert np.shares_memory(build(model(), arrays, np.float64).v, arrays.v)
