"""Counts equal closed forms, what is measured is measured in turns, and zeros are not called speed."""

import pytest
import torch
from torch import Tensor, nn

from neuropil.structure.profile import (
    CostComparison,
    ModuleCost,
    Profile,
    compare_profiles,
    count_macs,
    profile,
)
from neuropil.structure.speed import Timing
from tests.structure.zoo import HOUSE, case

pytestmark = pytest.mark.filterwarnings("error")


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, groups=2))


ATTENTION = 6 * 12 * 48 + 2 * 6 * 6 * 12
COUNTS = {
    "linear": (lambda: nn.Linear(5, 7), torch.ones(4, 5), 35),
    "linear on positions": (lambda: nn.Linear(5, 7), torch.ones(4, 3, 5), 105),
    "convolutions": (convolutions, torch.ones(2, 3, 9, 9), 81 * 27 * 8 + 16 * 36 * 6),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2), torch.ones(1, 4, 5, 5), 25 * 4 * 3 * 4),
    "attention": (lambda: nn.MultiheadAttention(12, 3, batch_first=True), (torch.ones(2, 6, 12),) * 3, ATTENTION),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(12, 3, 16, batch_first=True),
        torch.ones(2, 6, 12),
        ATTENTION + 2 * 6 * 12 * 16,
    ),
    "fused attention": (
        lambda: Called(nn.functional.scaled_dot_product_attention),
        (torch.ones(2, 3, 6, 4), torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5, 7)),
        3 * 6 * 5 * (4 + 7),
    ),
    "lstm": (lambda: nn.LSTM(6, 5, batch_first=True), torch.ones(2, 7, 6), 7 * 4 * 5 * 11),
    "lstm, two layers, two directions": (
        lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
        torch.ones(2, 7, 6),
        2 * 7 * 4 * 5 * (11 + 15),
    ),
    "gru": (lambda: nn.GRU(6, 5, batch_first=True), torch.ones(2, 7, 6), 7 * 3 * 5 * 11),
    "bilinear": (lambda: nn.Bilinear(4, 3, 6), (torch.ones(2, 4), torch.ones(2, 3)), 72),
    "matrix by vector": (lambda: Called(lambda x: x[0] @ x[0, 0]), torch.ones(1, 4, 3), 12),
    "inner product": (lambda: Called(lambda x: x[0] @ x[0]), torch.ones(1, 4), 4),
    "shifted matrix by vector": (
        lambda: Called(lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0])),
        torch.ones(1, 4, 4),
        16,
    ),
    "elementwise": (nn.ReLU, torch.ones(2, 4), 0),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_equal_closed_forms(name, dtype):
    make, example, expected = COUNTS[name]
    given = tuple(x.to(dtype) for x in example) if isinstance(example, tuple) else example.to(dtype)
    macs, uncounted = count_macs(make().to(dtype), given)
    assert macs.get("", 0) == expected
    assert uncounted == ()


def test_a_module_is_counted_with_all_in_it_and_a_reused_one_as_often_as_it_runs():
    net = case("resnet18-32").make(dtype=torch.float32)
    macs, _ = count_macs(net, case("resnet18-32").inputs(torch.float32))
    children = [name for name, _ in net.named_children()]
    assert macs[""] == sum(macs.get(name, 0) for name in children) > 0
    assert macs["0.0"] == 32 * 32 * 27 * 6
    one = case("reused")
    assert count_macs(one.make(), one.inputs())[0]["twice"] == 2 * 64


def test_what_cannot_be_counted_is_named():
    macs, uncounted = count_macs(Called(lambda x: torch.fft.fft(x).real), torch.ones(2, 8))
    assert macs.get("", 0) == 0
    assert uncounted == ("aten._fft_r2c",)


def test_parameters_are_counted_once_and_zeros_apart():
    one = case("tied-embedding")
    net = one.make()
    got = profile(net, one.inputs(), batches=())
    assert got.parameters == sum(p.numel() for p in net.parameters()) == 88 + 8 * 12 + 12 + 12 * 8 + 8
    assert got.nonzero == got.parameters
    assert got.bytes == 8 * got.parameters
    assert got.timings == {}
    with torch.no_grad():
        net.get_parameter("mix.0.weight")[:3] = 0.0
    assert profile(net, one.inputs(), batches=()).nonzero == got.parameters - 24


@pytest.mark.parametrize("one", HOUSE, ids=str)
def test_any_forward_is_counted_and_nothing_is_left_behind(one):
    net = one.make().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    got = profile(net, one.inputs(), batches=())
    assert got.macs > 0
    assert [cost.name for cost in got.modules] == [name for name, _ in net.named_modules()]
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert "share of MACs" in got.table(1)


def test_the_table_stops_at_its_depth():
    got = profile(case("residual").make(), case("residual").inputs(), batches=())
    lines = got.table(1).splitlines()
    assert [line.split()[0] for line in lines] == ["module", "all", "stem", "one", "two", "head"]
    assert len(got.table().splitlines()) == 1 + len(list(case("residual").make().named_modules()))
    assert len({len(line) for line in lines}) == 1


def test_keywords_and_tuples_are_measured_at_any_batch():
    one = case("several")
    got = profile(one.make(), one.inputs(), batches=(1, 5), runs=3, warm=1, threads=1)
    assert {n: (t.batch, len(t.seconds), t.warm, t.threads) for n, t in got.timings.items()} == {
        1: (1, 3, 1, 1),
        5: (5, 3, 1, 1),
    }
    assert got.peaks[5] == 5 * got.peaks[1] > 0
    words = {"x": case("tied-embedding").inputs()}
    assert profile(case("tied-embedding").make(), words, batches=(3,), runs=2, warm=0).timings[3].batch == 3


def costs(parameters: int, macs: int, nonzero: int, seconds: tuple[float, ...], peak: int) -> Profile:
    timing = Timing(64, seconds, 10, 2, "cpu")
    return Profile((ModuleCost("", "Net", parameters, macs),), nonzero, 4 * parameters, (), {64: timing}, {64: peak})


def test_a_report_prints_both_ratios():
    both = CostComparison(costs(1000, 4000, 1000, (3.0, 3.0, 9.0), 8000), costs(400, 1000, 400, (2.0, 2.0, 3.0), 2000))
    assert both.parameter_ratio == 2.5
    assert both.macs_ratio == 4.0
    assert both.speedup(64) == 1.5  # the median of the rounds' ratios 1.5, 1.5, 3
    assert not both.masked
    text = both.report()
    assert "batch 64: MACs promise 4.00 x, measured 1.50 x (3 forwards each in turns, cpu, 2 threads)" in text
    assert "dense" not in text
    assert str(both) == text
    with pytest.raises(KeyError):
        both.speedup(1)


def test_masks_are_not_called_a_speed_up():
    one = case("mlp")
    dense, masked = one.make(), one.make()
    with torch.no_grad():
        for p in masked.parameters():
            p[..., ::2] = 0.0
    both = compare_profiles(dense, masked, one.inputs(), runs=3, warm=1, batches=(2,))
    assert both.masked
    assert both.macs_ratio == both.parameter_ratio == 1.0
    assert "Unstructured masks give no dense speed-up" in both.report()
    assert not CostComparison(both.after, both.after).masked


def test_half_the_width_is_fewer_counts_and_less_time():
    wide, narrow = (nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 64)) for n in (4096, 512))
    both = compare_profiles(wide, narrow, torch.ones(1, 64), batches=(32,), runs=15, threads=1)
    assert both.macs_ratio == 8.0
    assert both.speedup(32) > 2
    assert both.before.peaks[32] > 7 * both.after.peaks[32]


def test_nothing_to_count_divides_nothing_by_zero():
    got = profile(nn.Identity(), torch.ones(2, 3), batches=(1,), runs=1, warm=0)
    assert (got.parameters, got.macs, got.nonzero, got.bytes) == (0, 0, 0, 0)
    assert got.table().splitlines()[1].split()[-1] == "-"
    both = CostComparison(got, got)
    assert both.macs_ratio == both.parameter_ratio == 1.0
    assert "nan" not in both.report() + str(got)


@pytest.mark.parametrize(
    ("example", "settings", "words"),
    [
        (torch.ones(2, 5), {"batches": (0,)}, "batch must be at least 1, got 0"),
        (torch.ones(2, 5), {"runs": 0}, "runs must be at least 1, got 0"),
        (torch.ones(2, 5), {"warm": -1}, "warm must be at least 0, got -1"),
        (torch.ones(2, 5), {"threads": 0}, "threads must be at least 1, got 0"),
        (torch.tensor(1.0), {}, "batch axis"),
        (torch.ones(0, 5), {}, "batch axis"),
        ((), {}, "no tensor"),
    ],
)
def test_bad_input_is_named(example, settings, words):
    with pytest.raises(ValueError, match=words):
        profile(nn.Linear(5, 2), example, **settings)
