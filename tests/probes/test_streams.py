import gc

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.probes.streams import CrossCorrelation, Histogram, Moments, Quantile, Record, TopK, stream
from neuropil.probes.taps import Site
from tests.probes.nets import Shared, dense, hooks


@pytest.fixture
def data(generator):
    return [torch.randn(16, 4, generator=generator) for _ in range(5)]


def test_one_run_feeds_every_reducer(data):
    net, x = dense(), torch.cat(data)
    hidden = Site("1")
    seen = stream(net, iter(data), {"1": Moments(), Site("1", "in"): TopK(3), ("0", "2"): CrossCorrelation("full")})
    assert list(seen) == [hidden, Site("1", "in"), (Site("0"), Site("2"))]
    pre, post = net[0](x), net[:2](x)
    assert_close(seen[hidden].result().mean, post.double().mean(0).detach())
    assert_close(seen[Site("1", "in")].result().values, pre.detach().sort(dim=0, descending=True).values[:3].T)
    expected = torch.corrcoef(torch.cat([pre, net[:3](x)], 1).T.double())[:6, 6:]
    assert_close(seen[Site("0"), Site("2")].result().matrix, expected.detach())
    assert hooks(net) == 0


def test_a_pattern_gives_each_site_its_own_and_more_data_goes_on(data):
    net, reducer = dense(), Moments()
    seen = stream(net, data[:2], {"[13]": reducer})
    assert [site.module for site in seen] == ["1", "3"] and reducer.count == 0
    again = stream(net, data[2:], seen)
    assert all(again[site] is seen[site] for site in seen)
    for site, moments in again.items():
        assert_close(moments.result().mean, net[: int(site.module) + 1](torch.cat(data)).double().mean(0).detach())
    stream(net, data, {"1": reducer})
    assert reducer.count == 80


def test_parts_of_a_stream_merge(data):
    net = dense()
    parts = [stream(net, part, {"1": TopK(3)})[Site("1")] for part in (data[:2], data[2:])]
    parts[0].merge(parts[1])
    whole = stream(net, data, {"1": TopK(3)})[Site("1")].result()
    assert torch.equal(parts[0].result().values, whole.values)
    assert torch.equal(parts[0].result().samples, whole.samples)


def test_modes_come_back_and_running_statistics_stay(data):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.9))
    net[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    seen = stream(net, data, {"2": Record()})
    assert (net.training, net[1].training, net[2].training) == (True, False, True)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    kept = seen[Site("2")].result()
    assert not kept.values.requires_grad and bool((kept.values != 0).all())
    with pytest.raises(FloatingPointError):
        stream(net, [torch.full((2, 4), torch.nan)], {"2": Moments()})
    assert net.training and hooks(net) == 0


def test_inputs_and_context_are_taken_from_the_batch(data):
    net = dense()
    loader = [(x, torch.arange(16) % 2) for x in data]
    seen = stream(
        net,
        loader,
        {"0": Moments()},
        inputs=lambda batch: batch[0],
        context=lambda batch: {"mask": batch[1].bool(), "labels": batch[1]},
    )
    assert_close(seen[Site("0")].result().mean, net[0](torch.cat([x[1::2] for x in data])).double().mean(0).detach())


def test_a_convolution_counts_every_place(generator):
    net = nn.Sequential(nn.Conv2d(1, 3, 3))
    x = torch.randn(4, 1, 6, 6, generator=generator)
    seen = stream(net, [x], {"0": Moments(dim=1)})
    assert seen[Site("0")].count == 4 * 16
    assert_close(seen[Site("0")].result().mean, net(x).double().mean((0, 2, 3)).detach())


def test_a_shared_module_counts_at_every_call_but_not_in_a_tuple(data):
    seen = stream(Shared(), data, {"first": Moments()})
    assert seen[Site("first")].count == 2 * 80
    with pytest.raises(ValueError, match="more than once in a pass"):
        stream(Shared(), data, {("first", Site("", "in")): CrossCorrelation()})


def test_what_cannot_be_is_named(data):
    net, one = dense(), Moments()
    for reducers, message in [
        ({"0": one, "1": one}, "two places"),
        ({"0": CrossCorrelation()}, "takes 2 sites"),
        ({("0", "1"): Moments()}, "takes 1 sites"),
        ({("0", "[12]"): CrossCorrelation()}, "stands for 2 sites"),
        ({"0": Moments(), Site("0"): Moments()}, "named twice"),
        ({"9": Moments()}, "No module"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream(net, data, reducers)
    with pytest.raises(ValueError, match="no batches"):
        stream(net, [], {"0": Moments()})
    with pytest.raises(MemoryError):
        stream(net, data, {"0": Record(max_bytes=1000)})
    assert hooks(net) == 0


def test_a_stream_takes_no_more_memory_the_longer_it_is(generator):
    net, sizes = dense(), []

    def batches():
        for number in range(200):
            if number in (50, 199):
                gc.collect()
                sizes.append(sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is torch.Tensor))
            yield torch.randn(64, 4, generator=generator)

    reducers = {"0": Moments(), "1": TopK(5), "2": Quantile(0.5, k=8), "3": Histogram(), ("0", "1"): CrossCorrelation()}
    stream(net, batches(), reducers)
    assert sizes[1] - sizes[0] < 1000  # two levels of the sketch more: the logarithm of the length
