"""Other neuron models and astrocytes in the simulator."""

import pytest
import torch

from neuropil.spiking.astrocytes import LinearAstrocyte, LiRinzelAstrocyte
from neuropil.spiking.hodgkin_huxley import HodgkinHuxleyNeuron
from neuropil.spiking.membranes import AdExNeuron, IzhikevichNeuron
from neuropil.spiking.network.astrocytes import AstrocyteCoupling
from neuropil.spiking.network.network import Network
from neuropil.spiking.network.plasticity import PairSTDP
from neuropil.spiking.network.populations import PoissonInput, PoissonSource, Population
from neuropil.spiking.network.rules import FixedProbability, OneToOne
from neuropil.spiking.network.synapses import COBA, CUBA, Delta, Exponential
from neuropil.spiking.neurons import ALIFNeuron, LIFNeuron
from tests.spiking.test_network import same


def all_models(threads=1):
    """Populations of three models that excite and inhibit each other."""
    net = Network(dt=0.05, seed=2, dtype=torch.float64, threads=threads)
    adex = net.add(Population(70, AdExNeuron(), "adex", bias=700.0))
    izhikevich = net.add(Population(70, IzhikevichNeuron.preset("fast_spiking"), "izhikevich", bias=6.0))
    hodgkin = net.add(Population(70, HodgkinHuxleyNeuron(), "hodgkin", bias=400.0))
    some = FixedProbability(0.2)
    net.connect(adex, izhikevich, some, 2.0, 1.0, synapse=Exponential(5.0), output=CUBA())
    net.connect(izhikevich, hodgkin, some, 1.0, 0.5, synapse=Exponential(10.0), output=COBA(-80.0))
    net.connect(hodgkin, adex, some, 6.0, 1.5, synapse=Exponential(5.0), output=COBA(0.0))
    net.drive(adex, PoissonInput(300.0), 1.0, synapse=Delta())
    return net


def test_every_model_gives_the_same_spikes_in_every_backend():
    nets = [all_models(), all_models(threads=2), all_models()]
    runs = [net.run(60.0, backend=b) for net, b in zip(nets, ("numba", "numba", "torch"), strict=True)]
    assert all(len(runs[0].times[name]) > 20 for name in ("adex", "izhikevich", "hodgkin"))
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    first, other = nets[0].state(), nets[2].state()
    assert all(torch.equal(value, other[name]) for name, value in first.items())


def test_models_without_a_compiled_step_run_in_torch_and_say_so():
    net = Network(dt=1.0)
    net.add(Population(3, ALIFNeuron(tau=20.0, tau_adaptation=100.0), "cells", bias=2.0))
    with pytest.raises(ValueError, match="does not know ALIFNeuron"):
        net.run(10.0)
    record = net.run(400.0, backend="torch")
    intervals = record.times["cells"][record.neurons["cells"] == 0]
    assert intervals[2] - intervals[1] < intervals[-1] - intervals[-2]


def coupled(acts, **options):
    """Noise that excites cells, watched by one astrocyte."""
    net = Network(dt=0.1, seed=4, dtype=torch.float64)
    noise = net.add(PoissonSource(30, 100.0, "noise"))
    cells = net.add(Population(40, LIFNeuron(tau=20.0, v_threshold=10.0), "cells"))
    glia = AstrocyteCoupling(LinearAstrocyte(tau=50.0, weight=0.02, bias=0.1), acts, every=1.0, **options)
    plasticity = PairSTDP(0.0, 5.0, potentiation=0.01, depression=0.01) if acts == "depression" else None
    projection = net.connect(
        noise, cells, FixedProbability(0.5), 2.0, synapse=Exponential(5.0), astrocyte=glia, plasticity=plasticity
    )
    return net, projection


@pytest.mark.parametrize("acts", ["gain", "current", "depression"])
def test_astrocytes_act_alike_in_every_backend_and_go_on_from_a_state(acts):
    options = {"gain": {"baseline": 1.0}, "current": {"strength": 3.0}, "depression": {"weight_pre": 0.1}}[acts]
    (one, _), (other, _), (third, _) = (coupled(acts, **options) for _ in range(3))
    expected = one.run(80.0)
    assert len(expected.times["cells"]) > 20
    assert same(other.run(80.0, backend="torch"), expected)
    begun = third.run(33.3)
    state = third.state()
    again, _ = coupled(acts, **options)
    again.load_state(state)
    assert same(begun.concatenate(again.run(46.7)), expected)
    assert all(torch.equal(value, other.state()[name]) for name, value in again.state().items())


def test_a_linear_astrocyte_follows_the_spikes_that_it_reads():
    net, _ = coupled("gain", baseline=1.0, weight_pre=1.0, weight_post=0.0)
    record = net.run(60.0)
    cell = LinearAstrocyte(tau=50.0, weight=0.02, bias=0.1)
    state = cell.init_state(1, torch.zeros(1, dtype=torch.float64))
    for ms in range(60):
        times = record.times["noise"]
        drive = torch.tensor([float(((times >= ms * 10) & (times < ms * 10 + 10)).sum())], dtype=torch.float64)
        output, state = cell.step(drive, state, 1.0)
    scale = net.state()["projection0.scale"]
    torch.testing.assert_close(scale, (1.0 + output).expand(40))


def test_each_domain_has_a_cell_of_its_own():
    net = Network(dt=0.1, seed=4, dtype=torch.float64)
    source = net.add(PoissonSource(4, torch.tensor([0.0, 0.0, 400.0, 400.0]), "source"))
    cells = net.add(Population(4, LIFNeuron(tau=20.0, v_threshold=5.0), "cells"))
    glia = AstrocyteCoupling(
        LiRinzelAstrocyte(), "gain", baseline=1.0, domains=torch.tensor([0, 0, 1, 1]), strength=0.5, every=2.0
    )
    net.connect(source, cells, OneToOne(), 20.0, synapse=Exponential(5.0), astrocyte=glia)
    net.run(300.0)
    state = net.state()
    scale, ip3 = state["projection0.scale"], state["projection0.glia.ip3"]
    assert scale[0] == scale[1]
    assert scale[2] == scale[3]
    assert ip3[1] > ip3[0]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("multiple of dt", {"every": 0.25}),
        (r"shape \(40,\)", {"domains": torch.zeros(3, dtype=torch.long)}),
        ("needs one cell and a plastic", {"acts": "depression"}),
        ("strength must be finite", {"strength": float("nan")}),
    ],
)
def test_couplings_that_do_not_fit_are_refused(words, options):
    net = Network(dt=0.1)
    noise = net.add(PoissonSource(3, 10.0))
    cells = net.add(Population(40, LIFNeuron(tau=20.0), "cells"))
    with pytest.raises(ValueError, match=words):
        net.connect(
            noise, cells, FixedProbability(0.5), 1.0, astrocyte=AstrocyteCoupling(LinearAstrocyte(50.0, 0.1), **options)
        )
