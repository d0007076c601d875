"""NIR there and back, against its equations, and against three simulators that read it."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuropil.spiking.layers import ALIF, IF, LIF, PLIF, CubaLIF, LeakyReadout, Spiking
from neuropil.spiking.membranes import IzhikevichNeuron
from neuropil.spiking.neurons import LIFNeuron
from neuropil.spiking.nir import from_nir, to_nir
from neuropil.spiking.recurrent import RecurrentLIF, RecurrentSpiking, SpikingSequential
from neuropil.spiking.surrogate import FastSigmoid, Sigmoid, Smooth

nir = pytest.importorskip("nir", reason="the package nir is not installed (neuropil[nir])")


def drawn(net, generator, scale=1.0):
    """The net with weights that make it fire."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                for parameter in layer.parameters():
                    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net


def varied(*shape, low=4.0):
    """Time constants that differ, (*shape)."""
    return low + torch.linspace(0.0, 5.0, int(np.prod(shape))).reshape(shape)


NETS = {
    "dense": ((6,), lambda: [nn.Linear(6, 9), LIF(5.0), nn.Linear(9, 4, bias=False), LIF(8.0, v_reset=-0.5)]),
    "rest": ((6,), lambda: [nn.Linear(6, 9), LIF(5.0, gain=0.7, v_threshold=0.3, v_rest=-0.2, v_reset=-0.4)]),
    "exact": ((6,), lambda: [nn.Linear(6, 9), LIF(5.0, integration="exact"), nn.Linear(9, 4), LIF(decay=0.9)]),
    "integrators": ((6,), lambda: [nn.Linear(6, 9), IF(), nn.Linear(9, 4), LIF(decay=1.0, gain=0.3, v_reset=0.1)]),
    "trained": ((6,), lambda: [nn.Linear(6, 9), PLIF(5.0), PLIF(4.0, decay_input=False, size=(9,))]),
    "each": (
        (6,),
        lambda: [nn.Linear(6, 6), LIF(varied(6), v_threshold=varied(6, low=0.2) / 9), LeakyReadout(varied(6))],
    ),
    "synapses": ((6,), lambda: [nn.Linear(6, 9), CubaLIF(6.0, 4.0, v_rest=0.1), nn.Linear(9, 4), LeakyReadout(5.0)]),
    "recurrent": (
        (6,),
        lambda: [nn.Linear(6, 9), RecurrentLIF(9, tau=5.0), nn.Linear(9, 4), LeakyReadout(decay=1.0)],
    ),
    "biased": ((9,), lambda: [RecurrentSpiking(LIFNeuron(tau=varied(9)), nn.Linear(9, 9))]),
    "images": (
        (2, 8, 6),
        lambda: [
            nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            PLIF(4.0, size=(3, 1, 1)),
            nn.Sequential(nn.AvgPool2d(2), nn.Identity(), nn.Conv2d(3, 2, (1, 3), padding="same", bias=False)),
            nn.Sequential(nn.AvgPool2d((2, 1), 1, divisor_override=1), nn.Flatten()),
            nn.Linear(2, 4),
            LIF(4.0),
        ],
    ),
    "signals": (
        (2, 10),
        lambda: [nn.Conv1d(2, 3, 3, padding="same", bias=False), LIF(4.0), nn.Flatten(1, 2), nn.Linear(30, 4), IF()],
    ),
}


def tensors(state):
    """All tensors of a state, nested or not."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [] if state is None else [t for part in state for t in tensors(part)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETS)
def test_there_and_back_through_a_file_gives_the_same_bits(name, dtype, generator, tmp_path):
    shape, layers = NETS[name]
    net = drawn(SpikingSequential(*layers()).to(dtype), generator, 2.0)
    x = 2.0 * torch.randn(30, 2, *shape, generator=generator, dtype=dtype)
    wanted, last = net(x)
    assert wanted.count_nonzero() > 0
    cases: list[tuple[float, Any]] = [(1.0, "euler"), (1e-3, "euler"), (1e-3, "exact")]
    for dt, integration in cases:
        nir.write(tmp_path / "net.nir", to_nir(net, x, dt, integration))
        back = from_nir(tmp_path / "net.nir", dt, integration)
        found, end = back(x)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)
        assert all(torch.equal(a, b) for a, b in zip(tensors(last), tensors(end), strict=True))


@given(
    st.floats(0.0, 1.0, exclude_max=True),
    st.floats(-10.0, 10.0),
    st.sampled_from([1.0, 1e-3, 1e-4, 0.1]),
    st.sampled_from(["euler", "exact"]),
)
def test_numbers_survive_or_move_by_a_rounding(decay, gain, dt, integration):
    if integration == "exact" and decay < 1e-9:
        decay = 0.5
    leaky = LIF(decay=decay, gain=1.0 - decay)
    weighed = LIF(decay=decay, gain=gain)
    for layer in (leaky, weighed):
        read: Any = from_nir(to_nir(layer, torch.zeros(1, 1, 2), dt, integration), dt, integration)[0]
        a, k = read.neuron.a, read.neuron.k
        assert abs(a - decay) <= (0.0 if decay >= 0.75 else 5e-16)
        assert k == pytest.approx(gain if layer is weighed else 1.0 - decay, rel=2e-15, abs=0.0)
        if decay >= 0.75 and layer is leaky:
            assert k == 1.0 - decay
        if decay > 1e-6:
            assert np.float32(a) == np.float32(decay)


def test_time_constants_are_written_in_the_unit_of_the_step():
    layers = [LIF(20.0), LIF(decay=0.9, gain=1.0), CubaLIF(20.0, 5.0), IF(), LeakyReadout(20.0, integration="exact")]
    graph = to_nir(SpikingSequential(*layers), torch.zeros(1, 1, 3), dt=1e-3)
    lif, summing, cuba, integrator, readout = (graph.nodes[str(i)] for i in range(5))
    assert lif.tau.tolist() == [0.02] * 3
    assert lif.r.tolist() == [1.0] * 3
    assert summing.tau == pytest.approx([0.01] * 3)
    assert summing.r == pytest.approx([10.0] * 3)
    assert (cuba.tau_mem.tolist(), cuba.tau_syn.tolist()) == ([0.02] * 3, [0.005] * 3)
    assert cuba.w_in == pytest.approx([5.0] * 3)
    assert integrator.r.tolist() == [1000.0] * 3
    assert readout.tau == pytest.approx([1e-3 / (1.0 - np.exp(-1 / 20.0))] * 3)
    exact = to_nir(LIF(20.0, integration="exact"), torch.zeros(1, 1, 3), dt=1e-3, integration="exact")
    assert exact.nodes["0"].tau.tolist() == [0.02] * 3
    assert exact.nodes["0"].r.tolist() == [1.0] * 3


def full(n, **numbers):
    """Parameters of nodes, (n,)."""
    return {name: np.full(n, float(value)) for name, value in numbers.items()}


def test_exact_steps_are_the_solution_of_the_equation():
    graph = nir.NIRGraph.from_list(nir.LI(**full(1, tau=0.02, r=3.0, v_leak=0.0)))
    times = torch.arange(1, 41, dtype=torch.float64)
    wanted = 3.0 * 0.5 * (1 - torch.exp(-times * 1e-3 / 0.02))
    x = torch.full((40, 1, 1), 0.5, dtype=torch.float64)
    assert torch.allclose(from_nir(graph, 1e-3, "exact")(x)[0].flatten(), wanted, rtol=1e-13)
    euler = 3.0 * 0.5 * (1 - (1 - 1e-3 / 0.02) ** times)
    assert torch.allclose(from_nir(graph, 1e-3)(x)[0].flatten(), euler, rtol=1e-13)


def test_neurons_fire_when_the_equation_says():
    node = nir.LIF(**full(1, tau=0.02, r=2.0, v_leak=-0.3, v_threshold=1.0, v_reset=0.25))
    cases: list[tuple[float, Any, float]] = [(1e-5, "exact", 2e-5), (1e-6, "euler", 2e-6)]
    for dt, integration, error in cases:
        steps = round(0.05 / dt)
        x = torch.full((steps, 1, 1), 1.0, dtype=torch.float64)
        spikes, _ = from_nir(nir.NIRGraph.from_list(node), dt, integration)(x)
        times = dt * (1 + spikes.flatten().nonzero().flatten())
        level = 2.0 - 0.3
        first, period = (0.02 * np.log((level - start) / (level - 1.0)) for start in (-0.3, 0.25))
        assert times[0].item() == pytest.approx(first, abs=error)
        assert (times[1] - times[0]).item() == pytest.approx(period, abs=2 * error)


def test_current_based_neurons_follow_their_equations(generator):
    numbers = full(5, tau_syn=0.004, tau_mem=0.01, r=1.7, v_leak=0.1, v_threshold=0.6, v_reset=-0.1, w_in=2.5)
    numbers["tau_mem"] += np.arange(5) * 1e-3
    dt = 1e-3
    u = torch.rand(80, 2, 5, generator=generator, dtype=torch.float64).numpy()
    i, v, wanted = np.zeros((2, 5)), np.full((2, 5), 0.1), []
    p = SimpleNamespace(**numbers)
    for now in u:
        i = i + dt / p.tau_syn * (-i + p.w_in * now)
        v = v + dt / p.tau_mem * (p.v_leak - v + p.r * i)
        wanted.append(v > p.v_threshold)
        v = np.where(wanted[-1], p.v_reset, v)
    net = from_nir(nir.NIRGraph.from_list(nir.Linear(np.eye(5)), nir.CubaLIF(**numbers)), dt)
    with torch.no_grad():
        found, state = net(torch.from_numpy(u))
    assert 20 < np.sum(wanted) < 700
    assert np.array_equal(found.numpy(), np.array(wanted))
    assert np.allclose(state[0].v.numpy(), v, rtol=1e-12, atol=1e-12)


def test_graphs_in_the_graph_are_taken_apart(generator):
    net = SpikingSequential(nn.Linear(6, 9), RecurrentLIF(9, tau=5.0), nn.Linear(9, 4), LIF(4.0))
    net = drawn(net, generator, 2.0)
    flat = to_nir(net, dt=1e-3)
    names = {"1.lif": "neurons", "1.w_rec": "back"}
    inner = {new: flat.nodes[old] for old, new in names.items()}
    inner |= {"input": nir.Input(np.array([9])), "output": nir.Output(np.array([9]))}
    edges = [("input", "neurons"), ("neurons", "back"), ("back", "neurons"), ("neurons", "output")]
    nodes = {name: node for name, node in flat.nodes.items() if name not in names} | {"1": nir.NIRGraph(inner, edges)}
    outer = [("input", "0"), ("0", "1"), ("1", "2"), ("2", "3"), ("3", "output")]
    nested = nir.NIRGraph(nodes, outer, type_check=False)
    x = torch.randn(20, 2, 6, generator=generator)
    assert torch.equal(from_nir(nested, 1e-3)(x)[0], net(x)[0])
    assert net(x)[0].sum() > 0


def test_layers_named_as_the_ends_and_layers_used_twice(generator):
    shared = LIF(4.0)
    net = SpikingSequential()
    for name, layer in {"input": nn.Linear(6, 6), "a": shared, "output": nn.Linear(6, 6), "b": shared}.items():
        net.add_module(name, layer)
    graph = to_nir(drawn(net, generator))
    assert list(graph.nodes) == ["input", "input_", "a", "output_", "b", "output"]
    x = torch.randn(20, 2, 6, generator=generator)
    assert torch.equal(from_nir(graph, 1.0)(x)[0], net(x)[0])


def test_numbers_are_copied(generator):
    net = drawn(SpikingSequential(nn.Linear(3, 4), RecurrentLIF(4, tau=3.0)), generator)
    graph = to_nir(net)
    back = from_nir(graph, 1.0)
    before = [p.detach().clone() for p in back.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    graph.nodes["0"].weight[:] = 5.0
    assert all(torch.equal(a, b) for a, b in zip(before, back.parameters(), strict=True))
    assert np.any(graph.nodes["1.w_rec"].weight != 0)


def test_what_was_read_can_be_trained_and_cut(generator):
    graph = to_nir(drawn(SpikingSequential(nn.Linear(3, 4), LIF(3.0)), generator))
    net: Any = from_nir(graph, 1.0, surrogate="sigmoid")
    assert net[1].neuron.spike == Sigmoid()
    x = torch.randn(10, 2, 3, generator=generator)
    whole, _ = net(x)
    first, state = net(x[:4])
    assert torch.equal(torch.cat((first, net(x[4:], state)[0])), whole)
    whole.sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_flattening_knows_the_axes_before_it(generator):
    x = torch.randn(5, 2, 3, 4, generator=generator)
    for net in (SpikingSequential(nn.Flatten(1)), SpikingSequential(nn.Flatten(2), flatten=False)):
        graph = to_nir(net, x)
        assert (graph.nodes["0"].start_dim, graph.output_type["output"].tolist()) == (0, [12])
        assert torch.equal(from_nir(graph, 1.0)(x)[0], net(x)[0])


class Own(Spiking):
    """A layer with a loop of its own."""

    def _sequence(self, current, state, potential):
        return current, state, None


UNSAID = {
    "soft": (lambda: LIF(3.0, reset="soft"), "reset='soft'"),
    "none": (lambda: LIF(3.0, reset="none"), "reset='none'"),
    "adaptive": (lambda: ALIF(3.0, 9.0), "ALIFNeuron"),
    "izhikevich": (lambda: Spiking(IzhikevichNeuron()), "Izhikevich"),
    "normalizer": (lambda: LIF(3.0, normalizer=torch.tanh), "normalizer"),
    "rectifier": (lambda: LIF(3.0, rectifier=lambda h: 1 + 2 * (h - 1)), r"eval\(\) leaves the rectifier out"),
    "polarity": (lambda: LIF(3.0, polarity=torch.ones(1)), "polarity"),
    "refractory": (lambda: Spiking(LIFNeuron(3.0, refractory=2.0)), "refractory"),
    "smooth": (lambda: LIF(3.0, surrogate=Smooth(FastSigmoid())), "Smooth replaces"),
    "loop": (lambda: Own(LIFNeuron(3.0)), "way of its own"),
    "back": (lambda: RecurrentSpiking(LIFNeuron(3.0), nn.Sequential(nn.Linear(3, 3))), "one Sequential"),
    "some": (lambda: LIF(decay=torch.tensor([0.5, 1.0, 0.5])), "integrator is another node"),
    "begin": (lambda: LIF(decay=1.0, v_rest=0.5), "v_rest = 0.5"),
    "filter": (lambda: CubaLIF(3.0, decay_synapse=1.0), "decay_synapse of 1 has no time constant"),
    "norm": (lambda: nn.BatchNorm1d(3), "no node computes"),
    "groups": (lambda: nn.Conv1d(4, 4, 3, groups=2), "one group"),
    "oblong": (lambda: nn.Conv2d(1, 1, (3, 1)), r"kernels for square, and this one is \(3, 1\)"),
    "circular": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "circular"),
    "ceil": (lambda: nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
    "uncounted": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), "counts its padding"),
    "batch": (lambda: nn.Flatten(0), "flattens the batch"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_nir_cannot_say_is_refused_by_name(name):
    layer, words = UNSAID[name]
    with pytest.raises(ValueError, match=rf"NIR cannot say layer '1.0' .*{words}"):
        to_nir(SpikingSequential(nn.Linear(3, 3), nn.Sequential(layer())))


def test_a_rectifier_is_left_out_after_training():
    layer = LIF(3.0, rectifier=lambda h: 1 + 2 * (h - 1)).eval()
    assert isinstance(to_nir(layer, torch.zeros(1, 1, 3)).nodes["0"], nir.LIF)


def test_exact_time_constants_do_not_forget_all_at_once():
    with pytest.raises(ValueError, match="decay of 0 has no time constant"):
        to_nir(LIF(decay=0.0), torch.zeros(1, 1, 3), integration="exact")
    assert to_nir(LIF(decay=0.0), torch.zeros(1, 1, 3), dt=0.5).nodes["0"].tau.tolist() == [0.5] * 3


def test_shapes_and_options_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"Give a sample: the first layer, '0' \(LIF\)"):
        to_nir(LIF(3.0))
    with pytest.raises(ValueError, match="module has no layer"):
        to_nir(SpikingSequential(nn.Identity()))
    with pytest.raises(
        ValueError, match=r"Layer '1' does not take its input of shape \(4, 3\): it wants a vector of 3"
    ):
        to_nir(SpikingSequential(LIF(3.0), nn.Linear(3, 3)), torch.zeros(1, 1, 4, 3))
    with pytest.raises(ValueError, match=r"Layer '0' does not take its input of shape \(5,\)"):
        to_nir(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match=r"Layer '0' does not take its input of shape \(5,\)"):
        to_nir(LIF(varied(3)), torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="dt must be finite and above 0, got 0"):
        to_nir(nn.Linear(3, 3), dt=0.0)
    with pytest.raises(ValueError, match="dt must be finite and above 0, got inf"):
        from_nir(to_nir(nn.Linear(3, 3)), float("inf"))
    with pytest.raises(ValueError, match=r"sample must be of shape \(T, B, \*\) with neurons, got \(5, 2\)"):
        to_nir(LIF(3.0), torch.zeros(5, 2))


LEAK = full(3, tau=3.0, r=1.0, v_leak=0.0)
FIRE = full(3, v_threshold=1.0, v_reset=0.0)


def graph(*edges, **nodes):
    ends = {"input": nir.Input(np.array([3])), "output": nir.Output(np.array([3]))}
    return nir.NIRGraph({**ends, **nodes}, [tuple(edge.split(">")) for edge in edges], type_check=False)


UNREAD = {
    "kinds": (
        lambda: graph("input>a", "a>b", "b>output", a=nir.Scale(np.ones(3)), b=nir.Delay(np.ones(3))),
        r"'a' \(Scale\), 'b' \(Delay\); known are Linear",
    ),
    "branch": (
        lambda: graph("input>a", "input>b", "a>output", "b>output", a=nir.Linear(np.eye(3)), b=nir.Linear(np.eye(3))),
        r"comes after \['a', 'b'\] and before \['a', 'b'\]",
    ),
    "readout": (
        lambda: graph("input>a", "a>b", "b>a", "a>output", a=nir.LI(**LEAK), b=nir.Linear(np.eye(3))),
        "neurons may feed back",
    ),
    "circle": (
        lambda: graph(
            "input>a", "a>output", "b>c", "c>b", a=nir.LIF(**LEAK, **FIRE), b=nir.I(np.ones(3)), c=nir.I(np.ones(3))
        ),
        r"No way leads from the input to \['b', 'c'\]",
    ),
    "readout's rest": (
        lambda: nir.NIRGraph.from_list(nir.LI(**{**LEAK, "v_leak": np.ones(3)})),
        r"Node 'li' \(LI\): a readout decays to 0",
    ),
    "resets": (
        lambda: nir.NIRGraph.from_list(nir.LIF(**LEAK, **{**FIRE, "v_reset": np.arange(3.0)})),
        r"Node 'lif' \(LIF\): v_reset must be one number for all neurons, got 0 to 2",
    ),
    "fast": (
        lambda: nir.NIRGraph.from_list(nir.LIF(**{**LEAK, "tau": np.full(3, 0.5)}, **FIRE)),
        "at least dt = 1 with integration='euler', got 0.5",
    ),
    "maps": (lambda: nir.NIRGraph.from_list(nir.Linear(np.ones((2, 3, 3)))), "weight must have two axes"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_cannot_be_read_is_refused_by_name(name):
    made, words = UNREAD[name]
    with pytest.raises(ValueError, match=words):
        from_nir(made(), 1.0)


def test_something_else_than_a_graph_is_refused():
    with pytest.raises(TypeError, match=r"graph must be a nir.NIRGraph or the path of one, got LIF"):
        from_nir(nir.LIF(**LEAK, **FIRE), 1.0)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: to_nir(nn.Linear(3, 3)), lambda: from_nir("net.nir", 1.0)):
        with pytest.raises(ImportError, match=r"neuropil\[nir\]"):
            call()


# Other simulators. All three take float32 and forward Euler with the step of this library: leak and input, then spike,
# then reset, in one step. They sum in another order, so potentials must stay clear of the threshold for equal spikes.


def norse(graph, dt):
    """Ignores r and v_reset, so 1 and 0; begins at v_leak; fires above the threshold."""
    peer = pytest.importorskip("norse.torch", reason="Norse is not installed", exc_type=ImportError)
    return peer.from_nir(graph, dt=dt)


def snntorch(graph, dt):
    """Knows one step, 0.1 ms, and v_leak = 0; divides the threshold by the gain; its delay of the reset is off."""
    peer = pytest.importorskip("snntorch.import_nir", reason="snnTorch is not installed", exc_type=ImportError)
    assert dt == 1e-4
    return peer.import_from_nir(graph)


def spikingjelly(graph, dt):
    """Wants v_leak = v_reset and r either 1 or tau/dt; fires at the threshold, as this library does."""
    peer = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange.from_nir",
        reason="SpikingJelly is not installed",
        exc_type=ImportError,
    )
    return peer.import_from_nir(graph, dt=dt)


def watched(*layers):
    """A list that will hold how near potentials of layers came to the threshold."""
    margins: list[float] = []
    for layer in layers:
        th = layer.neuron.v_threshold
        layer.potential_hooks.append(lambda _, h, s, th=th: margins.append((h - th).abs().min().item()))
    return margins


def summed(size):
    return LIF(decay=0.8, v_threshold=3.0)


PEERS = [
    (norse, lambda size: LIF(5.0), 1e-3),
    (norse, lambda size: RecurrentLIF(size, tau=5.0), 1e-3),
    (norse, lambda size: LIF(5.0, v_rest=0.1, v_reset=0.0), 1e-3),
    (snntorch, lambda size: LIF(5.0), 1e-4),
    (snntorch, summed, 1e-4),
    (spikingjelly, lambda size: LIF(5.0, v_rest=-0.1), 1e-3),
    (spikingjelly, lambda size: RecurrentLIF(size, tau=5.0), 1e-3),
    (spikingjelly, summed, 1e-3),
    (spikingjelly, lambda size: IF(v_threshold=4.0), 1e-3),
]


@pytest.mark.parametrize(("peer", "neurons", "dt"), PEERS)
def test_other_simulators_give_the_same_spikes(peer, neurons, dt, generator):
    net: Any = SpikingSequential(nn.Linear(8, 16), neurons(16), nn.Linear(16, 6, bias=False), neurons(6))
    net = drawn(net, generator, 2.0)
    x = torch.randn(60, 2, 8, generator=generator)
    margins = watched(net[1], net[3])
    with torch.no_grad():
        wanted, _ = net(x)
        other, found, state = peer(to_nir(net, x, dt), dt), [], None
        for now in x:
            out, state = other(now, state)
            found.append(out)
    assert min(margins) > 1e-5
    assert 20 < wanted.sum() < 0.8 * wanted.numel()
    assert torch.equal(torch.stack(found), wanted)


def test_what_another_simulator_wrote_is_read(generator):
    peer = pytest.importorskip(
        "spikingjelly.activation_based", reason="SpikingJelly is not installed", exc_type=ImportError
    )
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange.to_nir", exc_type=ImportError)
    neurons = [peer.neuron.LIFNode(tau=5.0, decay_input=False, v_threshold=3.0), peer.neuron.IFNode(v_threshold=2.0)]
    other = nn.Sequential(peer.layer.Linear(8, 16), neurons[0], peer.layer.Linear(16, 6), neurons[1])
    peer.functional.set_step_mode(drawn(other, generator), "m")
    x = torch.randn(60, 2, 8, generator=generator)
    net: Any = from_nir(exchange.export_to_nir(other, x, dt=1e-3), 1e-3)
    peer.functional.reset_net(other)
    margins = watched(net[1], net[3])
    with torch.no_grad():
        found, wanted = net(x)[0], other(x)
    assert min(margins) > 1e-5
    assert 20 < wanted.sum() < 0.8 * wanted.numel()
    assert torch.equal(found, wanted)
