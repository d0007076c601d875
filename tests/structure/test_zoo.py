"""The models that units are tested on: reproducible, alive, and without a value that would hide a wrong rule."""

import pytest
import torch

from tests.structure.zoo import HOUSE, ZOO


def test_names_are_unique():
    assert len({one.name for one in ZOO}) == len(ZOO)


@pytest.mark.parametrize("one", HOUSE, ids=str)
def test_a_model_is_drawn_from_its_seed_alone(one):
    state = torch.get_rng_state()
    net, again, other = one.make(1), one.make(1), one.make(2)
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(net.state_dict().items(), again.state_dict().values(), other.state_dict().values(), strict=True)
    for (name, value), same, different in pairs:
        assert torch.equal(value, same)
        assert name.endswith("num_batches_tracked") or not torch.equal(value, different)


@pytest.mark.parametrize("one", HOUSE, ids=str)
def test_no_value_is_special(one):
    net = one.make()
    for name, parameter in net.named_parameters():
        assert len(parameter.unique()) == parameter.numel(), name
        assert bool((parameter != 0).all()), name
    for name, buffer in net.named_buffers():
        assert not name.endswith("running_var") or bool((buffer > 0).all()), name
    out = one.call(net)
    assert out
    for tensor in out:
        assert bool(tensor.isfinite().all())
        assert 0.01 < float(tensor.std()) < 100
    assert all(tensor.dtype == torch.float64 for tensor in out)
    assert all(
        tensor.dtype == torch.float32 for tensor in one.call(one.make(dtype=torch.float32), one.inputs(torch.float32))
    )
