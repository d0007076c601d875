"""Similarity of networks: closed forms and invariances, then streams against all samples at once."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

from neuropil.learning.networks import mlp, small_conv
from neuropil.probes.similarity import Agreement, JensenShannon, LinearCKA, similarity, stream_pair
from neuropil.probes.sites import Site


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def of(reducer, x, y, size=None):
    for one, two in zip(x.split(size or len(x)), y.split(size or len(y)), strict=True):
        reducer.update(one, two)
    return reducer.result().value


def cka_of_gram_matrices(x, y):
    """The same number from samples times samples, the way round in which it was defined."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, g = (centre @ (z @ z.T) @ centre for z in (x.numpy(), y.numpy()))
    return np.trace(k @ g) / math.sqrt(np.trace(k @ k) * np.trace(g @ g))


def test_cka_equals_that_of_gram_matrices_for_layers_of_any_widths():
    x, y = draw(0, 40, 7), draw(1, 40, 3)
    y += x[:, :3]
    assert of(LinearCKA(), x, y) == pytest.approx(cka_of_gram_matrices(x, y), abs=1e-12)


def test_cka_is_one_under_rotation_scale_and_shift_and_not_under_shear():
    x = draw(2, 50, 6)
    rotation = torch.linalg.qr(draw(3, 6, 6))[0]
    assert of(LinearCKA(), x, 3.0 * x @ rotation + 5.0) == pytest.approx(1.0, abs=1e-12)
    assert of(LinearCKA(), x, -x) == pytest.approx(1.0, abs=1e-12)
    shear = torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 1], dtype=torch.float64))
    assert of(LinearCKA(), x, x @ shear) < 0.8


def test_cka_of_independent_units_falls_with_samples_and_orthogonal_columns_give_zero():
    assert of(LinearCKA(), draw(4, 20_000, 3), draw(5, 20_000, 3)) < 1e-3
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert of(LinearCKA(), x, y) == 0.0


@pytest.mark.parametrize("reducer", [LinearCKA, Agreement, JensenShannon])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_of_any_size_give_what_all_samples_give(reducer, size):
    x, y = draw(6, 64, 5) + 1000.0, draw(7, 64, 5)
    assert of(reducer(), x, y, size) == pytest.approx(of(reducer(), x, y), abs=1e-12)


@pytest.mark.parametrize("reducer", [LinearCKA, Agreement, JensenShannon])
def test_merging_and_going_on_from_a_state_are_one_stream(reducer):
    x, y = draw(8, 30, 4), draw(9, 30, 4)
    first, second, again = reducer(), reducer(), reducer()
    first.update(x[:10], y[:10])
    second.update(x[10:], y[10:])
    again.load_state_dict(first.state_dict())
    again.update(x[10:], y[10:])
    first.merge(second)
    assert first.result().value == pytest.approx(of(reducer(), x, y), abs=1e-12)
    assert again.result().value == pytest.approx(of(reducer(), x, y), abs=1e-12)
    assert first.result().count == 30


def test_cka_holds_for_tiny_and_huge_activations_and_says_where_nothing_varies():
    x, y = draw(10, 40, 3), draw(11, 40, 3)
    wanted = of(LinearCKA(), x, y)
    for scale in (1e-120, 1e120):
        assert of(LinearCKA(), scale * x, y) == pytest.approx(wanted, rel=1e-9)
    assert math.isnan(of(LinearCKA(), torch.full((40, 3), 0.1), y))
    assert math.isnan(of(LinearCKA(), x[:1], y[:1]))  # one sample does not vary


def test_agreement_counts_equal_predictions():
    x = torch.eye(4)
    y = x.clone()
    y[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert of(Agreement(), x, y) == 0.75
    assert of(Agreement(), x, 7 * x) == 1.0


def test_divergence_equals_scipys_and_keeps_to_its_bounds():
    x, y = 3 * draw(12, 20, 6), 3 * draw(13, 20, 6)
    wanted = [jensenshannon(p.softmax(0), q.softmax(0)) ** 2 for p, q in zip(x, y, strict=True)]
    assert of(JensenShannon(), x, y) == pytest.approx(np.mean(wanted), abs=1e-12)
    assert of(JensenShannon(), x, x + 5) == pytest.approx(0.0, abs=1e-15)  # logits that differ by a constant
    certain = torch.tensor([[1e4, 0.0]])
    assert of(JensenShannon(), certain, -certain) == pytest.approx(math.log(2))
    assert of(JensenShannon(), x, y) == pytest.approx(of(JensenShannon(), y, x))


def test_a_net_is_like_itself_and_like_its_copy_with_permuted_units():
    net = mlp(6, 10, 4, generator=torch.Generator().manual_seed(0))
    other = mlp(6, 10, 4, generator=torch.Generator().manual_seed(0))
    order = torch.arange(10).roll(3)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[2].weight.copy_(net[2].weight[:, order])
    data = [(draw(seed, 16, 6, dtype=torch.float32), None) for seed in range(3)]
    for where in (None, "1", "0", Site("2", io="in"), ("1", Site("2", io="in"))):
        assert similarity(net, other, data, at=where) == pytest.approx(1.0, abs=1e-6)
    assert similarity(net, other, data, "agreement") == 1.0
    assert similarity(net, other, data, "js") == pytest.approx(0.0, abs=1e-10)
    stranger = mlp(6, 10, 4, generator=torch.Generator().manual_seed(1))
    assert similarity(net, stranger, data) < 0.9


def test_sites_of_other_widths_are_compared_and_positions_count_as_samples():
    a = small_conv((1, 6, 6), 3, (4,), generator=torch.Generator().manual_seed(0)).eval()
    b = small_conv((1, 6, 6), 3, (7,), generator=torch.Generator().manual_seed(1)).eval()
    x = draw(14, 8, 1, 6, 6, dtype=torch.float32)
    (result,) = stream_pair(a, b, [x], {"cka": LinearCKA(dim=1)}, at="0").values()
    assert result.count == 8 * 36
    with torch.no_grad():
        rows = [net[0](x).movedim(1, -1).flatten(0, 2).double() for net in (a, b)]
    assert result.value == pytest.approx(cka_of_gram_matrices(*rows), abs=1e-9)


def test_nets_run_in_evaluation_mode_without_gradients_and_come_back_as_they_were():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train()
    net[1].eval()
    before = torch.random.get_rng_state()
    data = [draw(15, 20, 4, dtype=torch.float32)]
    assert similarity(net, net, data) == pytest.approx(1.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in net.modules()] == [True, True, False]


def test_several_measures_of_one_pass_over_a_generator():
    a, b = (mlp(3, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    batches = (draw(seed, 9, 3, dtype=torch.float32) for seed in range(4))
    found = stream_pair(a, b, batches, {"cka": LinearCKA(), "same": Agreement(), "apart": JensenShannon()})
    assert list(found) == ["cka", "same", "apart"]
    assert {result.count for result in found.values()} == {36}


def test_inputs_that_are_no_tensors_go_through_a_function():
    class Sum(nn.Module):
        def forward(self, left, right):
            return left + right

    data = [{"left": draw(16, 5, 3), "right": draw(17, 5, 3), "label": None}]
    found = similarity(Sum(), Sum(), data, inputs=lambda batch: (batch["left"], batch["right"]))
    assert found == pytest.approx(1.0)


def test_what_cannot_be_compared_is_named():
    a, b = mlp(3, 4), mlp(3, 5)
    x = [draw(18, 6, 3, dtype=torch.float32)]
    with pytest.raises(ValueError, match="Agreement compares as many classes, got 4 and 5"):
        similarity(a, b, x, "agreement")
    with pytest.raises(ValueError, match="data has no batches"):
        similarity(a, a, [])
    with pytest.raises(TypeError, match=r"returns a tuple.*with `at`"):
        similarity(nn.LSTM(3, 4), nn.LSTM(3, 4), [draw(19, 2, 5, 3, dtype=torch.float32)])
    with pytest.raises(FloatingPointError, match="not finite"):
        similarity(a, a, [torch.full((2, 3), math.inf)])
    net = mlp(3, 4, 4)
    with pytest.raises(ValueError, match="must be one tensor of a pass, it is 3"):
        similarity(net, net, x, at="*")
    with pytest.raises(ValueError, match="has seen no rows"):
        LinearCKA().result()


def test_an_unknown_kind_is_refused():
    net = mlp(3, 4)
    with pytest.raises((ValueError, TypeError), match="kind"):
        similarity(net, net, [], kind="cosine")


def test_memory_is_that_of_the_units_not_of_the_samples():
    reducer = LinearCKA()
    for seed in range(20):
        reducer.update(draw(seed, 100, 8), draw(seed + 50, 100, 5))
    assert sum(value.numel() for value in reducer.state_dict().values()) == 8 + 5 + 64 + 40 + 25 + 2 + 2
