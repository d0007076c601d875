"""Proxies in closed form, in their limits, and against plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import linear, mlp, small_conv
from neuropil.structure.search.correlation import rank_correlation, rank_table
from neuropil.structure.search.proxies import ACTIVATIONS, PROXIES, correlations, zero_cost


@pytest.fixture
def net(generator):
    return mlp(6, 8, 8, 3, generator=generator)


@pytest.fixture
def batch(generator):
    return torch.randn(10, 6, generator=generator), torch.randint(3, (10,), generator=generator)


def one(net, batch, kind):
    return zero_cost(net, batch, cross_entropy, [kind])[kind]


def test_gradient_scores_are_the_plain_sums(net, batch):
    cross_entropy(net(batch[0]), batch[1]).backward()
    weights = [net[0].weight, net[2].weight, net[4].weight]
    norms = sum(float(weight.grad.norm()) for weight in weights)
    assert one(net, batch, "grad_norm") == pytest.approx(norms, rel=1e-5)
    products = sum((weight.detach() * weight.grad).abs().sum().item() for weight in weights)
    assert one(net, batch, "snip") == pytest.approx(products, rel=1e-5)


def test_synflow_of_a_chain_is_its_flow_times_its_depth(generator):
    net = nn.Sequential(*(linear(4, 4, bias=False, generator=generator) for _ in range(3)))
    flow = torch.ones(4)
    for layer in net:
        flow = layer.weight.detach().abs() @ flow
    # Each layer's saliencies sum to the whole flow (Tanaka et al. 2020, theorem 1).
    x, y = torch.randn(2, 4, generator=generator), torch.tensor([0, 1])
    assert one(net, (x, y), "synflow") == pytest.approx(3 * float(flow.sum()), rel=1e-5)
    with torch.no_grad():
        net[0].weight *= -2
    assert one(net, (x, y), "synflow") == pytest.approx(6 * float(flow.sum()), rel=1e-5)


def test_fisher_against_a_loop_over_samples(net, batch):
    total = 0.0
    for x, y in zip(*batch, strict=True):
        h = x[None]
        for layer in net:
            h = layer(h)
            if isinstance(layer, nn.Linear):
                h.retain_grad()
                rows = [*rows, h] if layer is not net[0] else [h]
        cross_entropy(h, y[None]).backward()
        total += sum(float((row.detach() * row.grad).square().sum()) for row in rows) / 2
    assert one(net, batch, "fisher") == pytest.approx(total / 10, rel=1e-4)


def test_fisher_sums_over_the_positions_of_a_convolution(generator):
    net = small_conv((1, 4, 4), 3, (2,), generator=generator)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x, y = torch.randn(5, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        maps = net[0](x)
    maps.requires_grad_()
    logits = net[1:-1].eval()(maps)
    out = net[-1](logits)
    loss = 5 * cross_entropy(out, y)
    slope, head = torch.autograd.grad(loss, [maps, out])
    expected = ((maps * slope).sum((2, 3)).square().mean(0).sum() + (out * head).square().mean(0).sum()) / 2
    net.train()
    assert one(net, (x, y), "fisher") == pytest.approx(float(expected), rel=1e-4)


def test_jacob_cov_of_a_linear_network_is_the_lowest_there_is(generator, batch):
    net = mlp(6, 3, generator=generator)
    n, k = 10, 1e-5  # every sample has the same gradient: eigenvalues n, 0 .. 0
    lowest = -(math.log(n + k) + 1 / (n + k) + (n - 1) * (math.log(k) + 1 / k))
    assert one(net, batch, "jacob_cov") == pytest.approx(lowest, rel=1e-6)
    dead = nn.Sequential(nn.Linear(6, 3))
    nn.init.zeros_(dead[0].weight)
    assert one(dead, batch, "jacob_cov") == pytest.approx(lowest, rel=1e-6)
    bent = mlp(6, 64, 64, 3, generator=generator)
    assert one(bent, batch, "jacob_cov") > lowest


def test_correlations_are_numpys(generator):
    rows = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    assert np.allclose(correlations(rows), np.corrcoef(rows))
    rows[2] = 4.0
    assert correlations(rows)[2].tolist() == [1.0] * 5


def test_naswot_counts_codes(net, batch):
    codes = []
    h = batch[0]
    for layer in net:
        if isinstance(layer, nn.ReLU):
            codes.append(h > 0)
        h = layer(h)
    bits = torch.cat(codes, 1)
    kernel = torch.tensor([[float((a == b).sum()) for b in bits] for a in bits], dtype=torch.float64)
    expected = torch.logdet(kernel + 1e-6 * torch.eye(10))
    assert one(net, batch, "naswot") == pytest.approx(float(expected), rel=1e-9)


def test_naswot_without_activations_tells_nothing_apart(batch, generator):
    assert one(mlp(6, 3, generator=generator), batch, "naswot") == pytest.approx(10 * math.log(1e-6))
    same = (batch[0][:1].repeat(10, 1), batch[1])
    assert one(mlp(6, 8, 3, generator=generator), same, "naswot") == pytest.approx(
        9 * math.log(1e-6) + math.log(10 * 8), rel=1e-6
    )


def test_costs(net, batch):
    assert one(net, batch, "params") == 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert one(net, batch, "macs") == 6 * 8 + 8 * 8 + 8 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_left_behind(dtype, generator):
    net = small_conv((1, 6, 6), 4, (3, 5), generator=generator).to(dtype)
    net.insert(3, nn.Dropout(0.5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(8, 1, 6, 6, generator=generator, dtype=dtype).transpose(2, 3)
    y = torch.randint(4, (8,), generator=generator)
    scores = zero_cost(net, (x, y), cross_entropy)
    assert list(scores) == list(PROXIES)
    assert all(math.isfinite(score) for score in scores.values())
    assert zero_cost(net, (x, y), cross_entropy) == scores
    assert net.training
    assert not net[0]._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_all_activations_have_codes(make, generator, batch):
    net = nn.Sequential(linear(6, 8, generator=generator), make(), linear(8, 3, generator=generator))
    relu = nn.Sequential(net[0], nn.ReLU(), net[2])
    assert one(net, batch, "naswot") == one(relu, batch, "naswot")


def test_bad_input_is_named(net, batch):
    with pytest.raises(ValueError, match="luck"):
        zero_cost(net, batch, cross_entropy, ["luck"])
    with pytest.raises(ValueError, match="two samples"):
        zero_cost(net, (batch[0][:1], batch[1][:1]), cross_entropy)
    with pytest.raises(ValueError, match="two samples"):
        zero_cost(net, (batch[0], batch[1][:3]), cross_entropy)
    with pytest.raises(ValueError, match="no weights"):
        zero_cost(nn.Sequential(nn.ReLU()), batch, cross_entropy, ["snip"])
    with torch.no_grad():
        net[0].weight.fill_(math.inf)
    with pytest.raises(ValueError, match="SNIP"):
        zero_cost(net, batch, cross_entropy, ["snip"])


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(0)
    for ties, count in ((False, 30), (True, 30), (False, 400), (True, 400)):
        x, y = rng.normal(size=count), rng.normal(size=count)
        x, y = (np.round(x), np.round(x + y)) if ties else (x, x + y)
        assert rank_correlation(x, y, resamples=5).value == pytest.approx(kendalltau(x, y).statistic)
        assert rank_correlation(x, y, kind="spearman", resamples=5).value == pytest.approx(spearmanr(x, y).statistic)


def test_intervals_of_rank_correlations():
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    perfect = rank_correlation(x, x**3)
    assert (perfect.value, *perfect.interval) == pytest.approx((1, 1, 1))
    assert rank_correlation(np.ones(40), x).value == 0
    covered = 0
    for _ in range(60):  # independent: the truth is 0
        low, high = rank_correlation(rng.normal(size=40), rng.normal(size=40), resamples=200).interval
        covered += low <= 0 <= high
    assert covered >= 50  # of 57 expected; fewer has a probability below 1%


def test_predictors_are_compared_on_the_same_resamples():
    rng = np.random.default_rng(2)
    y = rng.normal(size=50)
    good, bad = y + 0.1 * rng.normal(size=50), y + 3 * rng.normal(size=50)
    table = rank_table({"bad": bad, "good": good, "twin": bad}, y, baseline="bad", resamples=300).set_index("predictor")
    assert table.loc["good", "lead low"] > 0
    assert table.loc["twin", ["lead", "lead low", "lead high"]].tolist() == [0, 0, 0]
    assert "lead" not in rank_table({"bad": bad}, y, resamples=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_correlation([1, 2], [1, 2]), "three numbers"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3, 4]), "three numbers"),
        (lambda: rank_correlation([1, 2, math.nan], [1, 2, 3]), "finite"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], kind="pearson"), "pearson"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], resamples=0), "resamples"),
        (lambda: rank_table({"a": [1, 2, 3]}, [1, 2, 3], baseline="b"), "baseline"),
    ],
)
def test_bad_rankings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
