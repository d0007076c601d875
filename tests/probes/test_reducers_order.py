import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neuropil.probes.streams import (
    Quantile,
    TopK,
)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fed(reducer, *tensors):
    for x in tensors:
        reducer.update(x)
    return reducer


# TopK


def brute(x, k):
    """(units, k) values, samples and positions by a stable sort of everything."""
    flat = x.reshape(-1, x.shape[-1])
    order = flat.sort(dim=0, descending=True, stable=True).indices[:k]
    return flat.gather(0, order).T, (order // x.shape[1]).T, (order % x.shape[1]).T


@pytest.mark.parametrize("rounded", [False, True])
def test_the_largest_are_found_and_ties_go_to_the_earlier(rounded):
    x = draw(40, 5, 3)
    x = x.round().relu() if rounded else x
    found = fed(TopK(4), *x.split(3)).result()
    for ours, theirs in zip((found.values, found.samples, found.positions), brute(x, 4), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("chunk", [13, 2**20])
def test_one_per_sample_gives_distinct_samples(rounded, chunk, monkeypatch):
    monkeypatch.setattr("neuropil.probes.reducers.base.CHUNK", chunk)
    x = draw(40, 5, 3)
    x = x.round().relu() if rounded else x
    found = fed(TopK(4, one_per_sample=True), *x.split(3)).result()
    best = x.max(1)  # the earliest of equal ones
    values, samples, _ = brute(best.values[:, None], 4)
    assert torch.equal(found.values, values) and torch.equal(found.samples, samples)
    earliest = (x == best.values[:, None]).long().argmax(1)
    assert torch.equal(found.positions, earliest.gather(0, samples.T).T)


def test_fewer_rows_than_k():
    found = fed(TopK(4), draw(3, 2)).result()
    assert found.values.shape == found.samples.shape == (2, 3)


# Quantile


def test_quantiles_are_exact_while_they_fit():
    x = draw(251, 3)
    found = fed(Quantile([0.0, 0.25, 0.5, 0.99, 1.0]), *x.split(10)).result()
    expected = np.quantile(x.numpy(), found.q, axis=0, method="inverted_cdf")
    assert found.exact
    assert_close(found.values.numpy(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["drawn", "ascending", "descending"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_ranks_stay_close_in_a_long_stream(order, pieces):
    n, q = 60_000, (0.0, 0.01, 0.5, 0.99, 1.0)
    x = draw(n, 20)
    if order != "drawn":
        x = x.sort(dim=0, descending=order == "descending").values
    merged = Quantile(q, k=128)
    for seed, part in enumerate(x.tensor_split(pieces)):
        sketch = Quantile(q, k=128, seed=seed)
        for some in part.split(700):
            sketch.update(some)
        merged.merge(sketch)
    found = merged.result()
    ranks = (x[None] <= found.values[:, None]).double().mean(1)
    error = (ranks - torch.tensor(q).double()[:, None]).abs()
    assert not found.exact and merged.count == n
    assert float(error[1:-1].max()) < 2.3 / 128**0.9
    assert float(error[1:-1].mean()) < 1 / 128
    assert torch.equal(found.values[0], x.amin(0)) and torch.equal(found.values[-1], x.amax(0))
    assert sum(map(len, merged.levels)) < 3.5 * 128 + 8 * len(merged.levels)
    weight = sum(2**level * len(values) for level, values in enumerate(merged.levels))
    assert weight == n


def test_coins_come_from_the_seed():
    x = draw(20_000, 3)
    a, b, c = (Quantile([0.3, 0.6], k=16, seed=seed) for seed in (1, 1, 2))
    for sketch in (a, b, c):
        sketch.update(x)
    assert torch.equal(a.result().values, b.result().values)
    assert not torch.equal(a.result().values, c.result().values)
