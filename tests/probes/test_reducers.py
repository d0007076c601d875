import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from scipy import stats
from torch.testing import assert_close

from neuropil.probes.streams import (
    ActivityCounter,
    CrossCorrelation,
    Histogram,
    Moments,
    Quantile,
    Record,
    TopK,
)

KINDS = {
    "moments": Moments,
    "histogram": lambda: Histogram(low=-2, high=2, bins=8),
    "topk": lambda: TopK(4),
    "topk one per sample": lambda: TopK(4, one_per_sample=True),
    "quantile": lambda: Quantile([0.0, 0.25, 0.5, 0.99, 1.0]),
    "correlation": lambda: CrossCorrelation("full"),
    "activity": lambda: ActivityCounter(positions=5),
}
every = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(kind, x):
    """The tensors of one update; two where the reducer takes two."""
    return (x, x.flip(-1).exp()) if kind == "correlation" else (x,)


def fields(result):
    return {name: value for name, value in vars(result).items() if isinstance(value, torch.Tensor)}


def same(a, b):
    assert fields(a).keys() == fields(b).keys()
    for name, value in fields(a).items():
        assert_close(value, fields(b)[name], equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def fed(kind, *tensors, **context):
    reducer = KINDS[kind]()
    for x in tensors:
        reducer.update(*batch(kind, x), **context)
    return reducer


# What all of them do


@every
@given(cuts=st.lists(st.integers(1, 39), max_size=4, unique=True))
def test_batches_and_merges_do_not_matter(kind, cuts):
    x = draw(40, 5, 3)
    parts = x.tensor_split(sorted(cuts))
    whole = fed(kind, x)
    assert whole.count == 200 and whole.samples == 40
    same(fed(kind, *parts).result(), whole.result())
    merged = KINDS[kind]()
    for part in parts:
        merged.merge(fed(kind, part))
    same(merged.result(), whole.result())
    assert merged.count == 200 and merged.samples == 40


@every
def test_chunks_do_not_matter(kind, monkeypatch):
    x = draw(40, 5, 3)
    whole = fed(kind, x)
    monkeypatch.setattr("neuropil.probes.reducers.base.CHUNK", 21)
    same(fed(kind, x).result(), whole.result())


@every
def test_masked_rows_do_not_count(kind):
    x = draw(8, 5, 3)
    x[:, 3:] = torch.nan
    mask = torch.zeros(8, 5, dtype=torch.bool)
    mask[:, :3] = True
    ours = fed(kind, x, mask=mask)
    assert ours.count == 24
    theirs = fed(kind, x[:, :3].contiguous())
    same(ours.result(), theirs.result())
    by_sample = torch.arange(8) < 2
    assert fed(kind, draw(8, 5, 3), mask=by_sample).count == 10
    nothing = fed(kind, x, mask=torch.zeros(8, dtype=torch.bool))
    assert nothing.count == 0
    with pytest.raises(ValueError, match="seen no rows"):
        nothing.result()
    nothing.merge(theirs)
    same(nothing.result() if "topk" not in kind else theirs.result(), theirs.result())


@every
def test_the_axis_of_units_is_free(kind):
    x = draw(8, 5, 3)
    maps = x.movedim(-1, 1)
    reducer = KINDS[kind]()
    reducer.dim = 1
    reducer.update(*((maps, maps.flip(1).exp()) if kind == "correlation" else (maps,)))
    same(reducer.result(), fed(kind, x).result())


@every
def test_a_state_goes_through_safetensors(kind):
    x = draw(30, 5, 3)
    half = fed(kind, x[:17])
    again = KINDS[kind]()
    again.load_state_dict(load(save(half.state_dict())))
    for reducer in (half, again):
        reducer.update(*batch(kind, x[17:]))
    same(again.result(), half.result())
    empty = KINDS[kind]()
    empty.load_state_dict(load(save(KINDS[kind]().state_dict())))
    assert empty.count == 0 and not empty.units
    with pytest.raises(ValueError, match="lacks"):
        again.load_state_dict({"samples": torch.tensor(1)})


@every
def test_a_state_is_a_copy(kind):
    x = draw(30, 5, 3)
    reducer = fed(kind, x)
    state = {name: value.clone() for name, value in reducer.state_dict().items()}
    held = reducer.state_dict()
    result = {name: value.clone() for name, value in fields(reducer.result()).items()}
    kept = reducer.result()
    reducer.update(*batch(kind, 3 * x))
    for name, value in state.items():
        assert torch.equal(held[name], value)
    for name, value in result.items():
        assert_close(fields(kept)[name], value, equal_nan=True)


@every
def test_wrong_input_is_refused(kind):
    reducer = fed(kind, draw(8, 5, 3))
    with pytest.raises(ValueError, match="has seen"):
        reducer.update(*batch(kind, draw(8, 5, 4)))
    with pytest.raises(ValueError, match="A batch is"):
        reducer.update(*batch(kind, draw(8)))
    with pytest.raises(ValueError, match="tensors at a time"):
        reducer.update()
    with pytest.raises(ValueError, match="mask of shape"):
        reducer.update(*batch(kind, draw(8, 5, 3)), mask=torch.ones(7, dtype=torch.bool))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="not finite after"):
            reducer.update(*batch(kind, torch.full((8, 5, 3), bad)))
    with pytest.raises(ValueError, match="merges with another"):
        reducer.merge(reducer)
    with pytest.raises(ValueError, match="merges with another"):
        reducer.merge(Record())
    other = KINDS[kind]()
    other.update(*batch(kind, draw(8, 5, 4)))
    with pytest.raises(ValueError, match="units"):
        reducer.merge(other)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.bool])
def test_dtypes(kind, dtype):
    x = (draw(8, 5, 3) * 3).to(dtype)
    reducer = KINDS[kind]()
    reducer.update(*((x, x) if kind == "correlation" else (x,)))
    reference = KINDS[kind]()
    y = x.double()
    reference.update(*((y, y) if kind == "correlation" else (y,)))
    for name, value in fields(reducer.result()).items():
        assert_close(value.double(), fields(reference.result())[name].double(), equal_nan=True)


@every
def test_one_row_and_no_gradient(kind):
    x = draw(1, 3).requires_grad_()
    reducer = fed(kind, x)
    assert reducer.count == 1
    assert not any(value.requires_grad for value in fields(reducer.result()).values())


def test_settings_must_agree():
    for a, b, name in [
        (TopK(3), TopK(4), "k"),
        (TopK(3), TopK(3, dim=1), "dim"),
        (Histogram([0.0, 1.0]), Histogram([0.0, 2.0]), "edges"),
        (Quantile(0.5), Quantile(0.6), "q"),
        (ActivityCounter(0.0), ActivityCounter(0.1), "threshold"),
    ]:
        with pytest.raises(ValueError, match=f"differ in {name}"):
            a.merge(b)


def test_arguments_are_checked():
    for make in (
        lambda: TopK(0),
        lambda: Histogram([0.0]),
        lambda: Histogram([1.0, 1.0]),
        lambda: Histogram([0.0, torch.inf]),
        lambda: Histogram(bins=0),
        lambda: Quantile(1.5),
        lambda: Quantile([]),
        lambda: Quantile(0.5, k=4),
        lambda: ActivityCounter(torch.nan),
        lambda: ActivityCounter(positions=0),
        lambda: Record(-1),
    ):
        with pytest.raises(ValueError):
            make()


# Moments


@pytest.mark.parametrize("parts", [1, 7])
def test_moments_are_scipys(parts):
    x = draw(500, 4, dtype=torch.float64).exp()
    reducer = fed("moments", *x.tensor_split(parts))
    found, columns = reducer.result(), x.numpy()
    assert_close(found.mean, x.mean(0))
    assert_close(found.variance, x.var(0, correction=0))
    assert_close(found.std, x.std(0, correction=0))
    assert_close(found.skew.numpy(), stats.skew(columns))
    assert_close(found.kurtosis.numpy(), stats.kurtosis(columns, fisher=False))
    assert torch.equal(found.minimum, x.amin(0)) and torch.equal(found.maximum, x.amax(0))


def test_a_large_mean_does_not_drown_a_small_variance():
    """Sums of squares lose all of it: squared, 1e9 and 1e-3 are 24 orders apart. A mean of 1e9 is rounded at 1e-7."""
    x = draw(4000, 3, dtype=torch.float64)
    found = fed("moments", *(1e9 + 1e-3 * x).split(100)).result()
    moved = (1e9 + 1e-3 * x) - 1e9  # as rounded
    assert_close(found.variance, moved.var(0, correction=0), rtol=1e-5, atol=0)
    assert_close(found.kurtosis.numpy(), stats.kurtosis(moved.numpy(), fisher=False), rtol=1e-5, atol=0)


def test_float16_streams_do_not_overflow():
    x = torch.full((1000, 2), 6e4, dtype=torch.float16)
    x[::2] = -6e4
    found = fed("moments", *x.split(9)).result()
    assert_close(found.variance, torch.full((2,), float(x[1, 0]) ** 2, dtype=torch.float64))
    assert_close(found.kurtosis, torch.ones(2, dtype=torch.float64))


def test_a_unit_that_never_changes_has_no_shape():
    x = draw(50, 2)
    x[:, 1] = 0.1
    found = fed("moments", *x.split(7)).result()
    assert float(found.variance[1]) == 0 and float(found.mean[1]) == float(x[0, 1])
    assert found.skew.isnan().tolist() == found.kurtosis.isnan().tolist() == [False, True]


# Histogram


def test_histograms_are_numpys_with_what_is_outside():
    x = draw(300, 3, dtype=torch.float64)
    x[0], x[1], x[2] = 2.0, -2.0, 0.5  # on edges
    found = fed("histogram", *x.split(41)).result()
    for unit in range(3):
        expected, edges = np.histogram(x[:, unit].numpy(), bins=8, range=(-2, 2))
        assert found.counts[unit].tolist() == expected.tolist()
        assert_close(found.edges.numpy(), edges)
        assert int(found.below[unit]) == int((x[:, unit] < -2).sum())
        assert int(found.above[unit]) == int((x[:, unit] > 2).sum())
    assert_close((found.density * 0.5).sum(1), found.counts.sum(1) / 300.0, check_dtype=False)


# CrossCorrelation


@pytest.mark.parametrize("keep", ["max", "full"])
def test_correlations_are_numpys(keep):
    x, y = draw(200, 3, dtype=torch.float64), draw(200, 4, seed=1, dtype=torch.float64)
    y[:, 2] = 1e6 - 3 * x[:, 1]
    y[:, 0] = 1e6 + 1e-3 * x[:, 1]
    reducer = CrossCorrelation(keep)
    for a, b in zip(x.split(30), y.split(30), strict=True):
        reducer.update(a, b)
    found = reducer.result()
    expected = torch.from_numpy(np.corrcoef(x.T.numpy(), y.T.numpy())[:3, 3:])
    assert_close(found.max, expected.amax(1))
    assert torch.equal(found.argmax, expected.argmax(1))
    assert int(found.argmax[1]) == 0
    assert found.diag is None
    assert int(found.histogram.sum()) == 12 and int(found.histogram[0]) == int(found.histogram[-1]) == 1
    assert found.matrix is None if keep == "max" else bool(torch.isclose(found.matrix, expected).all())


def test_a_layer_goes_with_itself_and_constants_with_nothing():
    x = draw(64, 3)
    x[:, 1] = 0.1
    reducer = CrossCorrelation("full")
    for part in x.split(9):
        reducer.update(part, part)
    found = reducer.result()
    assert_close(found.diag, torch.tensor([1.0, torch.nan, 1.0]).double(), equal_nan=True)
    assert found.argmax.tolist() == [0, -1, 2]
    assert found.max.isnan().tolist() == [False, True, False]
    assert int(found.histogram.sum()) == 4


def test_blocks_of_the_result_do_not_matter(monkeypatch):
    x, y = draw(200, 30), draw(200, 7, seed=1)
    results = []
    for chunk in (2**20, 20):
        monkeypatch.setattr("neuropil.probes.reducers.correlation.CHUNK", chunk)
        reducer = CrossCorrelation("full")
        reducer.update(x, y)
        results.append(reducer.result())
    same(*results)


def test_tiny_and_huge_units_correlate():
    x = draw(100, 2, dtype=torch.float64)
    reducer = CrossCorrelation("full")
    reducer.update(1e-120 * x, 1e120 * x)
    assert_close(reducer.result().diag, torch.ones(2, dtype=torch.float64))


# ActivityCounter


def test_activity_is_counted_by_position_and_token():
    x, tokens = draw(9, 5, 3), torch.randint(7, (9, 5), generator=torch.Generator().manual_seed(1))
    x[..., 1] = 0.0  # at the threshold is not above it
    counter = ActivityCounter(positions=5, tokens=7)
    for a, t in zip(x.split(2), tokens.split(2), strict=True):
        counter.update(a, tokens=t)
    found, active = counter.result(), x > 0
    assert torch.equal(found.active, active.sum((0, 1)))
    assert found.dead.tolist() == [False, True, False]
    assert_close(found.frequency, active.double().mean((0, 1)))
    assert_close(found.position_frequency, active.double().mean(0))
    for token in range(7):
        assert int(found.token_rows[token]) == int((tokens == token).sum())
        assert torch.equal(found.token_active[token], active[tokens == token].sum(0))
    assert found.dead_bound == pytest.approx(3 / 45, rel=0.05)
    bits = ActivityCounter()
    bits.update(active)
    assert torch.equal(bits.result().active, found.active)
    assert bits.result().position_frequency is None and bits.result().token_frequency is None


def test_positions_may_be_given():
    x = torch.ones(2, 3, 1)
    counter = ActivityCounter(positions=10)
    counter.update(x, positions=torch.tensor([2, 5, 9]))
    counter.update(x, positions=torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert counter.result().position_rows.tolist() == [3, 3, 2, 0, 0, 2, 0, 0, 0, 2]


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"positions 0 to 4, room for 3"):
        ActivityCounter(positions=3).update(torch.ones(2, 5, 1))
    with pytest.raises(ValueError, match=r"tokens 7 to 7, room for 7"):
        ActivityCounter(tokens=7).update(torch.ones(2, 1), tokens=torch.tensor([7, 7]))
    with pytest.raises(ValueError, match="needs the tokens"):
        ActivityCounter(tokens=7).update(torch.ones(2, 1))
    with pytest.raises(ValueError, match="fewer than the rows"):
        ActivityCounter(tokens=7).update(torch.ones(2, 1), tokens=torch.tensor([1]))


# Record


def test_a_record_keeps_copies_up_to_its_limit():
    keeper, x = Record(max_bytes=2 * 4 * 12), draw(4, 3)
    keeper.update(x)
    before = x.clone()
    x.zero_()
    keeper.update(before)
    assert torch.equal(keeper.result().values, torch.cat([before, before]))
    with pytest.raises(MemoryError, match=r"takes 12 bytes beside 96"):
        keeper.update(x, mask=torch.tensor([True, False, False, False]))
    other = Record()
    other.merge(keeper)
    assert (other.count, other.samples, len(other.result().batches)) == (8, 8, 2)
    with pytest.raises(MemoryError):
        keeper.merge(other)
    again = Record()
    again.load_state_dict(load(save(keeper.state_dict())))
    assert torch.equal(again.result().values, keeper.result().values)


def test_a_record_keeps_the_rows_that_count():
    keeper, x = Record(), draw(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    keeper.update(x, mask=mask)
    assert torch.equal(keeper.result().values, x[mask])
    with pytest.raises(ValueError, match="mask of shape"):
        keeper.update(x, mask=mask[:, :2])
