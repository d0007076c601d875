"""Layers of spiking neurons: explicit state, learnable parameters, composition."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.neurons.integrators import LeakyIntegrator
from neuropil.spiking.layers import ALIF, IF, LIF, PLIF, CubaLIF, LeakyReadout
from neuropil.spiking.neurons import LIFNeuron
from neuropil.spiking.recurrent import RecurrentLIF, RecurrentSpiking, SpikingSequential, checkpoint_sequence

LAYERS = {
    "if": IF,
    "lif": lambda: LIF(tau=3.0),
    "decay": lambda: LIF(decay=0.25, v_threshold=0.5, reset="soft", surrogate="rectangle"),
    "plif": PLIF,
    "cuba": lambda: CubaLIF(tau=3.0, tau_synapse=2.0),
    "alif": lambda: ALIF(tau=3.0, tau_adaptation=20.0),
    "recurrent": lambda: RecurrentLIF(6, tau=3.0, generator=torch.Generator().manual_seed(1)),
}


def tensors(state):
    """All tensors of a state, nested or not."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [] if state is None else [t for part in state for t in tensors(part)]


@pytest.fixture
def current(generator):
    return 2.0 * torch.rand(12, 3, 6, generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_in_two_parts_is_the_whole(name, current):
    layer = LAYERS[name]()
    whole, last = layer(current)
    first, middle = layer(current[:5])
    second, end = layer(current[5:], middle)
    assert 0 < whole.sum() < whole.numel()
    assert torch.equal(torch.cat((first, second)), whole)
    assert all(torch.equal(a, b) for a, b in zip(tensors(last), tensors(end), strict=True))


@pytest.mark.parametrize("name", ["plif", "recurrent"])
def test_learnable_parameters_have_gradients(name, current):
    layer = LAYERS[name]()
    spikes, _ = layer(current)
    spikes.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())
    assert any(bool(p.grad.abs().sum() > 0) for p in layer.parameters())


def test_layers_are_copied_saved_and_composed(current, tmp_path):
    net = SpikingSequential(nn.Linear(6, 8), LIF(tau=2.0), nn.Linear(8, 4), PLIF())
    spikes, state = net(current * 3)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = copy.deepcopy(net)
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    again, _ = other(current * 3)
    assert spikes.shape == (12, 3, 4)
    assert torch.equal(spikes, again)
    continued, _ = net(current * 3, state)
    assert continued.shape == spikes.shape


def test_potentials_before_the_reset_are_returned(current):
    spikes, _, potential = LIF(tau=3.0, return_potential=True)(current)
    assert torch.equal(spikes > 0, potential >= 1.0)


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="tau"):
        LIF(tau=-1.0)
    with pytest.raises(ValueError, match="either tau or decay"):
        LIF()
    with pytest.raises(ValueError, match="No surrogate is named"):
        LIF(tau=2.0, surrogate="none")


@pytest.mark.parametrize("layer", [LIF, PLIF, lambda *a, **o: ALIF(*a, 5.0, **o)], ids=["lif", "plif", "alif"])
@pytest.mark.parametrize("size", [None, (6,)])
def test_trained_parameters_have_the_gradients_of_the_loop(layer, size, current):
    options = {"learn_threshold": True, "size": size} | ({} if layer is PLIF else {"learn_decay": True})
    ours, theirs = (layer(3.0, backend=backend, **options).double() for backend in ("numba", "torch"))
    for net in (ours, theirs):
        (net(current.double())[0] * current).sum().backward()
    assert {name: p.shape for name, p in ours.named_parameters()} == dict.fromkeys(
        ("v_threshold", "leak"), torch.Size(size or ())
    )
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad.abs().sum() > 0
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-12)
    assert float(ours.neuron.a.detach().mean()) == pytest.approx(1 - 1 / 3)


def test_tensors_given_are_buffers_and_move_with_the_layer(current):
    layer = LIF(torch.linspace(2, 4, 6), v_threshold=torch.full((6,), 0.5)).double()
    assert {name for name, _ in layer.named_buffers()} == {"tau", "v_threshold"}
    assert not list(layer.parameters())
    assert layer(current.double())[0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"tau of shape \(6,\) does not broadcast"):
        layer(current[..., :5].double())


def test_a_rectifier_is_for_training_and_must_leave_the_threshold(current):
    calls = []

    def rectifier(h):
        calls.append(h.shape)
        return h + 0.2 * (h - 1.0)

    layer = LIF(2.0, rectifier=rectifier, gain=1.0)
    trained = layer(current)[0]
    before = len(calls)
    assert torch.equal(layer.eval()(current)[0], trained)
    assert len(calls) == before
    with pytest.raises(ValueError, match=r"rectifier must leave v_threshold = 0\.5 in place"):
        LIF(2.0, v_threshold=0.5, rectifier=rectifier)


def test_a_normalizer_is_a_submodule_and_is_called(current):
    layer = LIF(2.0, normalizer=nn.LayerNorm(6))
    layer(current)[0].sum().backward()
    assert {name for name, _ in layer.named_parameters()} == {"normalizer.weight", "normalizer.bias"}
    assert layer.normalizer.bias.grad.abs().sum() > 0
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.normalizer.bias += 10
    assert twin(current)[0].mean() > layer(current)[0].mean()


def test_hooks_see_potentials_without_their_being_returned(current):
    layer, seen = LIF(3.0), []
    layer.potential_hooks.append(lambda _, potential, spikes: seen.append((potential, spikes)))
    spikes, _ = layer(current)
    assert torch.equal(seen[0][1], spikes)
    assert torch.equal(seen[0][0], LIF(3.0, return_potential=True)(current)[2])


def test_recurrence_adds_the_last_spikes(current):
    layer = RecurrentLIF(6, tau=2.0, generator=torch.Generator().manual_seed(3))
    spikes, _ = layer(current)
    last = torch.cat((torch.zeros_like(spikes[:1]), spikes[:-1]))
    assert torch.equal(LIF(2.0)(current + layer.recurrent(last))[0], spikes)
    other = RecurrentSpiking(LIFNeuron(2.0, integration="euler"), layer.recurrent, checkpoint=True)
    assert torch.equal(other(current)[0], spikes)


def test_a_readout_has_the_bits_of_the_leaky_integrator(current):
    for options in ({"tau": 3.0}, {"decay": 0.7}, {"decay": torch.linspace(0.1, 0.9, 6), "gain": 0.5}):
        ours, last = LeakyReadout(**options, integration="exact")(current)
        theirs, state = LeakyIntegrator(6, **options)(current)
        assert torch.equal(ours, theirs)
        assert torch.equal(last.v, state.v)


@pytest.mark.parametrize("chunks", [None, 1, 5, 99])
def test_checkpointed_chunks_change_nothing(chunks, current):
    net = SpikingSequential(nn.Linear(6, 4), LIF(2.0), LeakyReadout(2.0))
    found = []
    for call in (net, lambda x: checkpoint_sequence(net, x, None, chunks)):
        net.zero_grad()
        out, state = call(current * 3)
        out.sum().backward()
        found.append((out, state[0].v, state[1].v, net[0].bias.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="chunks must be at least 1"):
        checkpoint_sequence(net, current, None, 0)


def test_convolutions_see_time_and_batch_as_one(generator):
    net = SpikingSequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), LIF(2.0), nn.Flatten(), nn.Linear(12, 5), LIF(2.0))
    images = torch.randn(4, 2, 2, 4, 4, generator=generator)
    spikes, state = net(images)
    assert spikes.shape == (4, 2, 5)
    assert [each.v.shape for each in state] == [(2, 3, 2, 2), (2, 5)]
    with pytest.raises(ValueError, match="one entry for each of 2 layers, got 1"):
        net(images, (None,))


COMPILED = """
import torch
from neuropil.spiking.layers import ALIF, LIF, PLIF
from neuropil.spiking.recurrent import RecurrentLIF

for layer in (LIF(3.0), PLIF(), ALIF(3.0, 5.0), RecurrentLIF(6, tau=3.0)):
    x = 2 * torch.rand(12, 3, 6, generator=torch.Generator().manual_seed(0))
    plain, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted, _ = layer(plain)
    wanted.sum().backward()
    spikes, _ = torch.compile(layer, backend="eager")(compiled)
    spikes.sum().backward()
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(spikes, wanted)
    assert torch.equal(plain.grad, compiled.grad)
"""


def test_compiling_changes_nothing():
    # In a process of its own: torch cannot trace the checks of shapes that the tests put around every function.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
