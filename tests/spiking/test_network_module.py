"""The differentiable form of a network: the spikes of the simulator, gradients that finite differences confirm."""

import pytest
import torch

from neuropil.spiking.network.network import Network
from neuropil.spiking.network.plasticity import PairSTDP
from neuropil.spiking.network.populations import PoissonInput, Population, SpikeSource
from neuropil.spiking.network.rules import AllToAll, FixedProbability, OneToOne
from neuropil.spiking.network.short_term import ShortTermPlasticity
from neuropil.spiking.network.synapses import COBA, Alpha, Delta, Exponential
from neuropil.spiking.neurons import LIFNeuron
from neuropil.spiking.surrogate import FastSigmoid, Smooth
from tests.spiking.test_network import uniform_delays


def network(surrogate="atan", *, refractory=0.3, noise=True, conductance=True):
    """Twenty neurons, excitation and inhibition, delays of all kinds."""
    net = Network(dt=0.1, seed=1, dtype=torch.float64)
    cell = LIFNeuron(tau=5.0, v_threshold=1.0, refractory=refractory, surrogate=surrogate)
    cells = net.add(Population(20, cell, "cells", bias=0.9))
    draw = lambda n, g: 0.2 * torch.rand(n, generator=g, dtype=torch.float64)  # noqa: E731
    net.connect(cells[:15], cells, FixedProbability(0.4), draw, 0.3, synapse=Exponential(2.0), name="fixed")
    net.connect(cells[:15], cells, FixedProbability(0.3), draw, uniform_delays(1, 5), synapse=Alpha(1.0), name="spread")
    output = COBA(-2.0) if conductance else None
    net.connect(cells[15:], cells, FixedProbability(0.5), 0.1, synapse=Exponential(3.0), output=output, name="inhibit")
    net.connect(cells, cells, OneToOne(), 0.05, 0.2, short_term=ShortTermPlasticity(), name="released")
    if noise:
        net.drive(cells, PoissonInput(500.0), 0.2, synapse=Delta())
    return net


def test_the_module_gives_the_spikes_of_the_simulator():
    current = 0.5 * torch.rand(300, 1, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    module = network().as_module()
    spikes, state = module(current)
    record = network().run(30.0, current[:, 0])
    assert record.to_dense("cells").equal(spikes[:, 0] > 0)
    assert 50 < spikes.sum() < 3000
    first, middle = module(current[:130])
    second, last = module(current[130:], middle)
    assert torch.equal(torch.cat((first, second)), spikes)
    assert all(torch.equal(value, state[name]) for name, value in last.items())


def test_members_of_a_batch_have_noise_of_their_own():
    spikes, _ = network().as_module()(torch.zeros(200, 3, 20, dtype=torch.float64))
    assert not torch.equal(spikes[:, 0], spikes[:, 1])
    alone, _ = network().as_module()(torch.zeros(200, 1, 20, dtype=torch.float64))
    assert torch.equal(alone[:, 0], spikes[:, 0])


def test_gradients_equal_finite_differences_where_spikes_are_smooth():
    net = network(Smooth(FastSigmoid(3.0)), refractory=0.0, noise=False)
    module = net.as_module()
    generator = torch.Generator().manual_seed(3)
    current = 0.3 * torch.rand(25, 2, 20, generator=generator, dtype=torch.float64)
    readout = torch.randn(25, 2, 20, generator=generator, dtype=torch.float64)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    assert len(names) == 4

    def loss(x, *weights):
        spikes, state = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return (spikes * readout).sum() + state["cells.v"].sum() + state["cells/receptor0.g"].sum()

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(loss, (current.requires_grad_(), *values), eps=1e-6, atol=1e-6, fast_mode=True)


def test_checkpointing_changes_no_gradient():
    current = torch.rand(60, 1, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for steps in (0, 8):
        module = network().as_module()
        module.checkpoint_steps = steps
        spikes, _ = module(current)
        (spikes.mean() + spikes[-5:].sum()).backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_only_chosen_projections_are_trained_and_the_network_is_left_alone():
    net = network()
    before = net.state()
    chosen = net.wiring.projections[1]
    module = net.as_module(trainable=[chosen], inputs=net["cells"][:5], outputs=net["cells"][10:12])
    spikes, _ = module(torch.ones(80, 2, 5, dtype=torch.float64))
    assert spikes.shape == (80, 2, 2)
    spikes.sum().backward()
    assert [p.grad is not None for p in module.parameters()] == [False, True, False, False]
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(net.weights(chosen), network().weights(network().wiring.projections[1]))
    assert all(torch.equal(value, before[name]) for name, value in net.state().items())


def test_spike_sources_speak_in_modules_too():
    net = Network(dt=1.0, dtype=torch.float64)
    source = net.add(SpikeSource([[2.0, 5.0]]))
    cells = net.add(Population(2, LIFNeuron(tau=10.0, v_threshold=1.0), "cells"))
    net.connect(source, cells, AllToAll(), 2.0, 2.0, synapse=Delta())
    spikes, _ = net.as_module()(torch.zeros(10, 3, 2, dtype=torch.float64))
    assert spikes[:, 1, 0].nonzero()[:, 0].tolist() == [4, 7]


@pytest.mark.parametrize(
    ("words", "act"),
    [
        (r"must be \(time, batch, 20\)", lambda net: net.as_module()(torch.zeros(5, 1, 19, dtype=torch.float64))),
        ("NaN or infinite", lambda net: net.as_module()(torch.full((5, 1, 20), torch.nan, dtype=torch.float64))),
        ("of another network", lambda net: net.as_module(trainable=[network().wiring.projections[0]])),
        ("learn in Network.run", lambda net: plastic().as_module()),
    ],
)
def test_what_a_module_cannot_do_is_refused(words, act):
    with pytest.raises(ValueError, match=words):
        act(network())


def plastic():
    """A network with a plastic projection."""
    net = network()
    net.connect(net["cells"], net["cells"], OneToOne(), 0.5, plasticity=PairSTDP())
    return net
