"""Layers of spiking neurons: explicit state, learnable parameters, composition."""

import copy

import pytest
import torch
from torch import nn

from neuropil.spiking.layers import ALIF, IF, LIF, PLIF, CubaLIF, RecurrentLIF, SpikingSequential

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
