"""The event-driven simulator: closed forms, the same spikes from every backend, continuation, and bad input."""

import itertools
import math

import numpy as np
import pytest
import torch

from neuropil.spiking.kernels.engine import run as compiled_loop
from neuropil.spiking.network.network import Network
from neuropil.spiking.network.plasticity import PairSTDP, RewardSTDP, TripletSTDP
from neuropil.spiking.network.populations import PoissonInput, PoissonSource, Population, SpikeSource
from neuropil.spiking.network.rules import AllToAll, FixedIndegree, FixedProbability, JustInTime, OneToOne
from neuropil.spiking.network.short_term import ShortTermPlasticity
from neuropil.spiking.network.synapses import (
    COBA,
    CUBA,
    NMDA,
    Alpha,
    Delta,
    DualExponential,
    Exponential,
    MagnesiumBlock,
)
from neuropil.spiking.neurons import LIFNeuron

CELL = LIFNeuron(tau=20.0, v_rest=-60.0, v_threshold=-50.0, v_reset=-60.0, refractory=2.0)


def uniform_delays(low, high):
    """Delays of low to high steps of 0.1 ms."""
    return lambda n, generator: torch.randint(low, high + 1, (n,), generator=generator) * 0.1


def everything(dtype=torch.float64, threads=1):
    """A small network with every kind of synapse, source, delay and plasticity."""
    net = Network(dt=0.1, seed=5, dtype=dtype, threads=threads)
    cells = net.add(Population(130, CELL, "cells", bias=9.0))
    soft = LIFNeuron(
        tau=torch.linspace(10, 30, 70), v_threshold=torch.linspace(8, 12, 70), reset="soft", refractory=0.0
    )
    linear = net.add(Population(70, soft, "linear", bias=torch.linspace(0, 14, 70)))
    noise = net.add(PoissonSource(40, 60.0, "noise"))
    told = net.add(SpikeSource([[0.5 * i, 20.0 + i] for i in range(12)], "told"))
    some = FixedProbability(0.15)
    net.connect(noise, cells, some, 0.4, uniform_delays(1, 30), synapse=Exponential(5.0), output=COBA(0.0))
    net.connect(cells[:100], cells, some, 0.02, 1.5, synapse=DualExponential(0.5, 4.0), output=COBA(0.0))
    net.connect(cells[100:], cells, some, 0.3, 0.7, synapse=Alpha(3.0), output=COBA(-80.0))
    net.connect(cells[:20], cells[60:], AllToAll(), 0.002, 0.5, synapse=NMDA(), output=MagnesiumBlock())
    net.connect(told, cells, some, 2.0, 0.3, synapse=Exponential(2.0))
    release = ShortTermPlasticity(0.4, 50.0, 100.0)
    net.connect(cells, linear, FixedIndegree(9), 2.5, 1.0, synapse=Exponential(4.0), short_term=release)
    net.connect(cells, linear, some, 1.5, uniform_delays(2, 9), synapse=Alpha(2.0), short_term=release)
    net.connect(linear, cells, JustInTime(0.1), 0.3, 0.4, synapse=Delta())
    pair = PairSTDP(0.0, 1.0, potentiation=0.05, depression=0.06)
    draw = lambda n, g: torch.rand(n, generator=g)  # noqa: E731
    net.connect(noise, linear, some, draw, 0.6, synapse=Exponential(5.0), plasticity=pair, name="pairs")
    triplet = TripletSTDP(0.0, 1.0, potentiation=0.01, depression=0.05, potentiation3=0.06, depression3=0.01)
    net.connect(cells, linear, some, draw, 0.2, synapse=Exponential(5.0), plasticity=triplet, name="triplets")
    net.connect(noise, linear, some, draw, 0.4, plasticity=RewardSTDP(0.0, 1.0, nearest=True), name="rewarded")
    net.drive(linear, PoissonInput(800.0), 0.8, synapse=Delta())
    net.drive(cells[:50], PoissonInput(torch.linspace(0, 900, 50)), 0.05, synapse=Exponential(3.0), output=COBA(0.0))
    net.set("cells", v=-60 + 10 * torch.rand(130, generator=torch.Generator().manual_seed(1)))
    return net


def same(one, other):
    """Whether two recordings hold the same spikes."""
    return all(
        np.array_equal(one.times[name], other.times[name]) and np.array_equal(one.neurons[name], other.neurons[name])
        for name in one.sizes
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backends_and_threads_give_the_same_spikes_and_states(dtype):
    nets = [everything(dtype), everything(dtype, threads=2), everything(dtype, threads=3), everything(dtype)]
    runs = [n.run(60.0, backend=b) for n, b in zip(nets, ["numba"] * 3 + ["torch"], strict=True)]
    assert len(runs[0].times["cells"]) > 100
    assert len(runs[0].times["linear"]) > 100
    assert all(same(runs[0], other) for other in runs[1:])
    first = nets[0].state()
    for other in nets[1:]:
        for name, value in other.state().items():
            assert torch.equal(value, first[name]), name
    assert not torch.equal(first["triplets.weight"], everything(dtype).state()["triplets.weight"])


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_run_goes_on_from_a_saved_state_bit_by_bit(backend, tmp_path):
    whole = everything()
    expected = whole.run(40.0, backend=backend)
    first = everything()
    begun = first.run(13.7, backend="numba")
    torch.save(first.state(), tmp_path / "state.pt")
    second = everything(threads=2)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = second.run(26.3, backend=backend)
    assert same(begun.concatenate(rest), expected)
    assert all(torch.equal(value, whole.state()[name]) for name, value in second.state().items())


def test_two_neurons_meet_their_closed_form():
    """The first fires at a time that is known; the second's potential is a difference of exponentials."""
    net = Network(dt=0.1, dtype=torch.float64)
    fast = net.add(Population(1, LIFNeuron(tau=10.0, v_threshold=1.0, refractory=3.0), "fast", bias=1.25))
    slow = net.add(Population(1, LIFNeuron(tau=20.0, v_threshold=9.0), "slow"))
    net.connect(fast, slow, OneToOne(), 2.0, 1.4, synapse=Exponential(5.0))
    record = net.run(60.0, monitors=("spikes", "slow.v"))
    # v = 1.25 (1 - exp(-t/10)) reaches 1 at 10 ln 5 = 16.09 ms: after 161 steps, the one with index 160.
    rise, period = 161, 161 + 30
    spikes = [rise - 1 + i * period for i in range(3)]
    assert record.times["fast"].tolist() == spikes
    t = 0.1 * np.arange(1, 601)
    expected = np.zeros_like(t)
    for s in spikes:
        since = t - 0.1 * (s + 14)
        epsp = 2.0 * 5.0 / (20.0 - 5.0) * (np.exp(-since / 20.0) - np.exp(-since / 5.0))
        expected += np.where(since > 0, epsp, 0.0)
    np.testing.assert_allclose(record.values["slow.v"][:, 0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("synapse", "response"),
    [
        (Exponential(5.0), lambda t: np.exp(-t / 5.0)),
        (Alpha(3.0), lambda t: t / 3.0 * np.exp(1 - t / 3.0)),
        (DualExponential(1.0, 6.0), lambda t: _dual(t, 1.0, 6.0)),
    ],
)
def test_synapses_follow_their_time_course(synapse, response):
    net = Network(dt=0.1, dtype=torch.float64)
    source = net.add(SpikeSource([[1.0]]))
    cell = net.add(Population(1, LIFNeuron(tau=20.0, v_threshold=100.0), "cell"))
    net.connect(source, cell, OneToOne(), 1.7, 0.3, synapse=synapse)
    g = net.run(30.0, monitors=("cell/receptor0.g", "v")).values
    t = np.maximum(0.1 * np.arange(1, 301) - 1.3, 0.0)
    expected = np.where(t > 1e-9, 1.7 * response(t), 0.0)
    np.testing.assert_allclose(g["cell/receptor0.g"][:, 0], expected, atol=1e-12)
    # The membrane integrates it: a fine trapezoidal rule is close.
    fine = np.linspace(0, 28.7, 200_001)
    kernel = np.exp(-(28.7 - fine) / 20.0) / 20.0 * 1.7 * response(fine)
    assert g["v"][-1, 0].item() == pytest.approx(np.trapezoid(kernel, fine), rel=1e-7)


def _dual(t, rise, decay):
    peak = math.log(decay / rise) * rise * decay / (decay - rise)
    height = math.exp(-peak / decay) - math.exp(-peak / rise)
    return (np.exp(-t / decay) - np.exp(-t / rise)) / height


def test_conductances_approach_their_equilibrium():
    net = Network(dt=0.1, dtype=torch.float64)
    cell = net.add(Population(1, LIFNeuron(tau=20.0, v_rest=-70.0, v_threshold=0.0), "cell", bias=5.0))
    source = net.add(SpikeSource([[0.0]]))
    net.connect(source, cell, OneToOne(), 3.0, synapse=Exponential(1e15), output=COBA(-20.0))
    v = net.run(200.0, monitors=("v",)).values["v"][-1].item()
    assert v == pytest.approx((-70.0 + 5.0 + 3.0 * -20.0) / 4.0, abs=1e-9)


def test_nmda_gates_and_the_block_approach_their_equations():
    """Against an accurate solution, the error is small and halves with the step."""
    from scipy.integrate import solve_ivp

    def flow(t, y):
        block = 1 / (1 + 1.0 / 3.57 * math.exp(-0.062 * y[2]))
        return [-y[0] / 80 + 0.5 * y[1] * (1 - y[0]), -y[1] / 2, (-65 - y[2] + 0.5 * y[0] * block * -y[2]) / 20]

    errors = []
    for dt in (0.1, 0.05):
        net = Network(dt=dt, dtype=torch.float64)
        source = net.add(SpikeSource([[0.0, 4.0, 8.0]]))
        cell = net.add(Population(2, LIFNeuron(tau=20.0, v_rest=-65.0, v_threshold=0.0), "cell"))
        net.connect(source, cell, AllToAll(), 0.5, synapse=NMDA(80.0, 2.0, 0.5), output=MagnesiumBlock(0.0, 1.0))
        values = net.run(30.0, monitors=("gate0.g", "v")).values
        y = np.array([0.0, 0.0, -65.0])
        for start, stop in itertools.pairwise((dt, 4.0 + dt, 8.0 + dt, 30.0)):
            y = solve_ivp(flow, (start, stop), y + np.array([0.0, 1.0, 0.0]), rtol=1e-10, atol=1e-12).y[:, -1]
        assert values["v"][-1, 0] == values["v"][-1, 1]
        errors.append([values["gate0.g"][-1, 0].item() / y[0] - 1, values["v"][-1, 0].item() - y[2]])
    coarse, fine = np.array(errors)
    np.testing.assert_allclose(coarse / fine, 2.0, rtol=0.05)
    assert coarse[0] < 0.01
    assert coarse[1] < 0.01


def test_release_depends_on_the_spikes_before():
    """A train at regular intervals: the releases of Tsodyks & Markram by hand."""
    net = Network(dt=0.1, dtype=torch.float64)
    source = net.add(SpikeSource([[10.0 * i for i in range(8)]]))
    cell = net.add(Population(1, LIFNeuron(tau=20.0, v_threshold=1e6), "cell"))
    rule = ShortTermPlasticity(0.3, 60.0, 150.0)
    net.connect(source, cell, OneToOne(), 1.0, synapse=Exponential(1e15), short_term=rule)
    g = net.run(90.0, monitors=("cell/receptor0.g",)).values["cell/receptor0.g"][:, 0].numpy()
    u, x, total = 0.0, 1.0, []
    for i in range(8):
        u, x = (u * math.exp(-10 / 60), 1 + (x - 1) * math.exp(-10 / 150)) if i else (u, x)
        u += 0.3 * (1 - u)
        total.append(u * x)
        x -= u * x
    np.testing.assert_allclose(g[np.arange(8) * 100 + 5], np.cumsum(total), rtol=1e-12)


@pytest.mark.parametrize("nearest", [False, True])
def test_pairs_of_spikes_change_weights_as_the_sum_over_pairs_says(nearest):
    rng = np.random.default_rng(2)
    pre, post = (np.sort(rng.choice(np.arange(1, 2000), 40, replace=False)) for _ in range(2))
    net = Network(dt=0.1, dtype=torch.float64)
    source = net.add(SpikeSource([(pre * 0.1).tolist()]))
    teacher = net.add(SpikeSource([(post * 0.1).tolist()]))
    cell = net.add(Population(1, LIFNeuron(tau=1.0, v_threshold=1.0), "cell"))
    rule = PairSTDP(-100.0, 100.0, nearest, potentiation=0.3, depression=0.2, tau_plus=17.0, tau_minus=31.0)
    learned = net.connect(source, cell, OneToOne(), 0.0, 1.2, synapse=Exponential(1e-3), plasticity=rule)
    net.connect(teacher, cell, OneToOne(), 50.0, synapse=Delta())
    record = net.run(230.0)
    fired, arrived = record.times["cell"], pre + 12
    assert np.array_equal(fired, post + 1)
    expected = 0.0
    for t in arrived:
        before = fired[fired < t]
        expected -= 0.2 * np.exp(-(t - (before[-1:] if nearest else before)) * 0.1 / 31.0).sum()
    for t in fired:
        before = arrived[arrived < t]
        expected += 0.3 * np.exp(-(t - (before[-1:] if nearest else before)) * 0.1 / 17.0).sum()
    assert net.weights(learned).item() == pytest.approx(expected, abs=1e-10)


def test_reward_turns_eligibility_into_weight():
    net = Network(dt=0.1, dtype=torch.float64)
    source = net.add(SpikeSource([[1.0]]))
    cell = net.add(Population(1, LIFNeuron(tau=5.0, v_threshold=1.0), "cell"))
    rule = RewardSTDP(0.0, 1e6, potentiation=0.4, tau_plus=20.0, eligibility=50.0)
    learned = net.connect(source, cell, OneToOne(), 30.0, synapse=Delta(), plasticity=rule)
    net.connect(source, cell, OneToOne(), 30.0, 3.0, synapse=Delta())
    net.run(20.0)
    # The first arrival makes the cell fire at once, the second 2.9 ms after the first arrival; the latter pair counts.
    assert net.weights(learned).item() == 30.0
    net.reward(learned, 2.0)
    fired_at, now = 10 + 30, 200
    expected = 30.0 + 2.0 * 0.4 * math.exp(-2.9 / 20.0) * math.exp(-(now - fired_at) * 0.1 / 50.0)
    assert net.weights(learned).item() == pytest.approx(expected, rel=1e-12)


def test_triplets_follow_pfister_and_gerstner():
    pre, post = [20, 60, 90, 200], [40, 70, 75, 220]
    net = Network(dt=0.1, dtype=torch.float64)
    source = net.add(SpikeSource([[t * 0.1 for t in pre]]))
    teacher = net.add(SpikeSource([[t * 0.1 for t in post]]))
    cell = net.add(Population(1, LIFNeuron(tau=1.0, v_threshold=1.0), "cell"))
    rule = TripletSTDP(-9.0, 9.0, False, 0.1, 0.2, 16.8, 33.7, 0.3, 0.05, 101.0, 114.0)
    learned = net.connect(source, cell, OneToOne(), 0.0, synapse=Exponential(1e-3), plasticity=rule)
    net.connect(teacher, cell, OneToOne(), 50.0, synapse=Delta())
    net.run(30.0)
    arrivals, spikes, w = [t + 1 for t in pre], [t + 1 for t in post], 0.0
    trace = lambda times, now, tau: sum(math.exp(-(now - t) * 0.1 / tau) for t in times if t < now)  # noqa: E731
    for t in range(300):
        if t in arrivals:
            w -= trace(spikes, t, 33.7) * (0.2 + 0.05 * trace(arrivals, t, 101.0))
        if t in spikes:
            w += trace(arrivals, t, 16.8) * (0.1 + 0.3 * trace(spikes, t, 114.0))
    assert net.weights(learned).item() == pytest.approx(w, abs=1e-12)


def test_poisson_inputs_and_sources_have_their_rates():
    net = Network(dt=0.1, seed=3)
    cells = net.add(Population(500, LIFNeuron(tau=20.0, v_threshold=1e9), "cells"))
    net.add(PoissonSource(400, torch.linspace(0, 200, 400), "noise"))
    net.drive(cells, PoissonInput(20_000.0), 1.0, synapse=Exponential(1e12), output=CUBA())
    net.drive(cells, PoissonInput(torch.full((500,), 20_000.0)), 1.0, synapse=Exponential(1e11), output=CUBA())
    record = net.run(500.0, monitors=("spikes", "cells/receptor0.g", "cells/receptor1.g"), every=500.0)
    rates = record.rates("noise")
    assert abs(rates.mean() - 100.0) < 5 * math.sqrt(100.0 / (400 * 0.5))
    assert rates[0] == 0
    state = net.state()
    for key in ("cells/receptor0.g", "cells/receptor1.g"):
        counts = state[key].double()
        assert abs(counts.mean() - 10_000) < 5 * math.sqrt(10_000 / 500)
        assert abs(counts.var() / 10_000 - 1) < 5 * math.sqrt(2 / 500)


def test_a_given_current_equals_a_bias():
    def net(bias):
        made = Network(dt=0.1, dtype=torch.float64)
        made.add(Population(3, LIFNeuron(tau=10.0, v_threshold=1.0), "cells", bias=bias))
        return made

    expected = net(1.5).run(50.0)
    assert len(expected.times["cells"]) > 5
    for backend in ("numba", "torch"):
        assert same(net(0.0).run(50.0, torch.full((500, 3), 1.5), backend=backend), expected)
        assert same(net(0.0).run(50.0, {"cells": lambda k: torch.full((3,), 1.5)}, backend=backend), expected)


def test_monitors_sample_at_multiples_of_their_interval_across_runs():
    def net():
        made = Network(dt=0.1, dtype=torch.float64)
        made.add(Population(5, LIFNeuron(tau=10.0, v_threshold=1.0), "cells", bias=torch.linspace(0, 2, 5)))
        return made

    whole = net().run(10.0, monitors=("v[1:4]", "rate"), every=0.7)
    assert whole.values["v[1:4]"].shape == (15, 3)
    parts = net()
    kept = [
        parts.run(t, monitors=("v[1:4]", "rate"), every=0.7, backend=b) for t, b in ((3.3, "numba"), (6.7, "torch"))
    ]
    assert torch.equal(torch.cat([r.values["v[1:4]"] for r in kept]), whole.values["v[1:4]"])
    assert torch.equal(torch.cat([r.values["cells.count"] for r in kept]), whole.values["cells.count"])


def test_every_neuron_firing_in_every_step_is_recorded():
    net = Network(dt=0.1)
    net.add(Population(3000, LIFNeuron(tau=1.0, v_threshold=0.5), "cells", bias=1e6))
    record = net.run(50.0)
    assert len(record.times["cells"]) == 3000 * 500


def test_nothing_happens_in_no_time():
    net = everything()
    before = net.state()
    record = net.run(0.0, monitors=("spikes", "cells.v"))
    assert record.steps == 0
    assert record.values["cells.v"].shape == (0, 130)
    assert all(torch.equal(value, before[name]) for name, value in net.state().items())


def test_the_loop_is_compiled_once_for_equal_networks():
    net = Network(dt=0.1)
    net.add(Population(10, LIFNeuron(tau=1.0), "cells"))
    net.run(1.0)
    compiled = len(compiled_loop.signatures)
    other = Network(dt=0.2, seed=9)
    other.add(Population(77, LIFNeuron(tau=3.0), "cells"))
    other.run(2.0)
    assert len(compiled_loop.signatures) == compiled


def cells_of(net, n=4):
    return net.add(Population(n, CELL, "cells"))


@pytest.mark.parametrize(
    ("words", "act"),
    [
        ("at least a step of 0.1 ms", lambda net, c: net.connect(c, c, AllToAll(), 1.0, 0.05)),
        ("multiple of dt", lambda net, c: net.connect(c, c, AllToAll(), 1.0, 0.25)),
        ("weight must be finite", lambda net, c: net.connect(c, c, AllToAll(), float("nan"))),
        ("weight must be finite", lambda net, c: net.connect(c, c, OneToOne(), torch.tensor([1, 2, 3, math.inf]))),
        (r"weight must be a number or of shape \(4,\)", lambda net, c: net.connect(c, c, OneToOne(), torch.ones(5))),
        ("delay must be finite", lambda net, c: net.connect(c, c, OneToOne(), 1.0, math.inf)),
        (
            "tau must be finite and above 0",
            lambda net, c: net.connect(c, c, OneToOne(), 1.0, synapse=Exponential(-5.0)),
        ),
        ("one number where rows", lambda net, c: net.connect(c, c, JustInTime(0.5), torch.ones(6))),
        ("neither plastic", lambda net, c: net.connect(c, c, JustInTime(0.5), 0.5, plasticity=PairSTDP())),
        ("same delay", lambda net, c: net.connect(c, c, OneToOne(), 1.0, torch.tensor([1.0, 2, 3, 4]), synapse=NMDA())),
        ("within the rule's bounds", lambda net, c: net.connect(c, c, OneToOne(), -1.0, plasticity=PairSTDP())),
        ("its output must be CUBA", lambda net, c: net.connect(c, c, OneToOne(), 1.0, synapse=Delta(), output=COBA(0))),
        (
            "no group of this network",
            lambda net, c: net.connect(Network().add(Population(9, CELL)), c, OneToOne(), 1.0),
        ),
        ("at most once a step", lambda net, c: net.add(PoissonSource(3, 2e4))),
        ("name of its own", lambda net, c: net.add(Population(3, CELL, "cells"))),
        ("bias must be finite", lambda net, c: net.add(Population(3, CELL, bias=math.nan))),
        (r"rate must be in \[0, 5e\+06\]", lambda net, c: net.drive(c, PoissonInput(1e8), 1.0)),
        ("multiple of dt=0.1 ms", lambda net, c: net.run(1.05)),
        ("duration must be a multiple", lambda net, c: net.run(-1.0)),
        (r"shape \(10, 4\)", lambda net, c: net.run(1.0, torch.zeros(10, 5))),
        ("NaN or infinite", lambda net, c: net.run(1.0, torch.full((10, 4), math.nan))),
        (r"must return \(4,\)", lambda net, c: net.run(1.0, lambda k: torch.zeros(3))),
        ("No neurons are named 'others'", lambda net, c: net.run(1.0, {"others": torch.zeros(10, 4)})),
        ("No state variable for monitor 'w'", lambda net, c: net.run(1.0, monitors=("w",))),
        ("has no state variable 'u'", lambda net, c: net.set("cells", u=1.0)),
        (r"v must be a number or of shape \(4,\)", lambda net, c: net.set("cells", v=torch.zeros(3))),
        ("keeps no eligibility", lambda net, c: net.reward(net.connect(c, c, OneToOne(), 1.0), 1.0)),
        ("backend must be", lambda net, c: net.run(1.0, backend="cuda")),
    ],
)
def test_bad_input_is_refused_in_words(words, act):
    net = Network(dt=0.1)
    with pytest.raises(ValueError, match=words):
        act(net, cells_of(net))


def test_what_has_run_is_not_rewired():
    net = Network()
    cells = cells_of(net)
    net.run(1.0)
    with pytest.raises(RuntimeError, match="before the first run"):
        net.connect(cells, cells, OneToOne(), 1.0)


def test_delays_between_steps_are_rounded_on_demand():
    net = Network(dt=0.1)
    cells = cells_of(net)
    delays = torch.tensor([0.01, 0.24, 0.26, 1.0])
    projection = net.connect(cells, cells, OneToOne(), 1.0, delays, round_delays=True)
    assert projection.delays.tolist() == [1, 2, 3, 10]


def test_a_state_of_another_network_is_refused():
    one, other = Network(), Network()
    cells_of(one)
    cells_of(other, 5)
    with pytest.raises(ValueError, match=r"wanted \(4,\)|has shape"):
        one.load_state(other.state())
    with pytest.raises(ValueError, match="another network"):
        one.load_state({"step": torch.tensor(1)})


def test_a_potential_that_is_not_finite_is_reported():
    net = Network(dt=0.1)
    net.add(Population(2, LIFNeuron(tau=10.0, v_threshold=math.inf, reset="none"), "cells", bias=3e38))
    source = net.add(SpikeSource([[0.0], [0.0]]))
    net.connect(source, net["cells"], OneToOne(), 3e38, synapse=Delta())
    net.connect(source, net["cells"], OneToOne(), 3e38, 0.2, synapse=Delta())
    with pytest.raises(FloatingPointError, match="cells became NaN or infinite"):
        net.run(5.0)
