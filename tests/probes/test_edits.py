import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.probes.taps import Site, add, clamp, patch, record, scale, tap, zero
from tests.probes.nets import dense, hooks


@pytest.fixture
def x(generator):
    return torch.randn(7, 4, generator=generator)


# Edits


def test_edits_follow_their_equations(x):
    net = dense()
    h = net[0](x)
    mask = torch.tensor([True, False, True, False, False, False])
    for edit, expected in [
        (clamp(2.0, mask), torch.where(mask, 2.0, h)),
        (clamp(h.flip(0)), h.flip(0)),
        (zero(mask), torch.where(mask, 0.0, h)),
        (scale(h.exp(), mask), torch.where(mask, h * h.exp(), h)),
        (add(torch.arange(6.0)), h + torch.arange(6)),
        (patch(h.flip(0), mask), torch.where(mask, h.flip(0), h)),
    ]:
        with tap(net, {"0": edit}), record(net, "0") as recording:
            net(x)
        assert torch.equal(recording["0"], expected)


def test_silence_is_0_even_where_scaling_is_not():
    net = nn.Identity()
    infinite = torch.tensor([[torch.inf, torch.nan, 1.0]])
    with tap(net, {Site(""): zero()}):
        assert net(infinite).tolist() == [[0.0, 0.0, 0.0]]
    with tap(net, {Site(""): scale(0.0)}):
        assert net(infinite).isnan().tolist() == [[True, True, False]]


def test_what_does_not_broadcast_is_named(x):
    net = dense()
    for edit, message in [
        (clamp(0.0, torch.ones(5, dtype=torch.bool)), r"0: mask of shape \(5,\) does not broadcast to \(7, 6\)"),
        (clamp(torch.zeros(1, 7, 6)), r"0: value of shape \(1, 7, 6\)"),
        (scale(torch.ones(7)), r"0: factor of shape"),
        (add(torch.ones(2, 6)), r"0: offset of shape"),
        (patch(torch.zeros(6)), r"0: recorded \(6,\), now there is \(7, 6\)"),
        (lambda tensor, context: tensor[:1], r"0: a tap returned shape \(1, 6\) in place of \(7, 6\)"),
    ]:
        with pytest.raises(ValueError, match=message), tap(net, {"0": edit}):
            net(x)
    assert hooks(net) == 0
    for wrong in (lambda tensor, context: 3.0, lambda tensor, context: tensor > 0):
        with pytest.raises(TypeError, match="0: a tap return"), tap(net, {"0": wrong}):
            net(x)
    for edit in (clamp, scale, add):
        with pytest.raises(ValueError, match="must not be NaN"):
            edit(torch.tensor([0.0, torch.nan]))


def test_an_infinite_clamp_masks_scores():
    with tap(net := nn.Identity(), {Site(""): clamp(-torch.inf, torch.tensor([True, False]))}):
        assert net(torch.zeros(1, 2)).softmax(-1).tolist() == [[0.0, 1.0]]


def test_patching_with_too_few_calls_says_so(x):
    net = dense()
    with record(net, "0") as recording:
        net(x)
    with pytest.raises(ValueError, match="call 2, but 1 were recorded"), tap(net, {"0": patch(recording.calls("0"))}):
        net(x)
        net(x)


def test_patching_another_net_grafts_it(x):
    net, other = dense(0), dense(1)
    with record(other, "1") as recording:
        other(x)
    with tap(net, {"1": patch(recording["1"])}):
        assert_close(net(x), net[2:](other[:2](x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_follow_the_site(x, dtype):
    net = dense().to(dtype)
    with (
        tap(net, {"0": clamp(torch.ones(6))}),
        tap(net, {"1": lambda t, c: t.float() * 2}),
        record(net, "1") as recording,
    ):
        assert net(x.to(dtype)).dtype == dtype
    assert recording["1"].dtype == dtype and bool((recording["1"] == 2).all())


def test_it_works_under_autocast_and_without_gradients(x):
    net, kinds = dense(), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        tap(net, {"0": clamp(torch.ones(6)), "2": lambda t, c: kinds.append(t.dtype)}),
    ):
        out = net(x)
    assert kinds == [torch.bfloat16] == [out.dtype]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, tap(net, {"0": clamp(1.0)}), record(net, "0") as recording:
            assert not net(x).requires_grad
        assert bool((recording["0"] == 1).all())


def test_a_fast_path_gives_way():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad(), tap(layer, {"linear2": zero()}) as fired:
        layer(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)))
    assert sum(fired.values()) == 1
