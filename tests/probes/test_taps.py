import gc
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from neuropil.probes.taps import Site, add, clamp, patch, record, scale, tap, two_pass, zero
from tests.probes.nets import Failing, Shared, dense, hooks


@pytest.fixture
def x(generator):
    return torch.randn(7, 4, generator=generator)


def shout(tensor, context):
    raise RuntimeError("from the tap")


# Installation and removal


def test_a_tap_that_returns_nothing_changes_nothing(x):
    net = dense()
    expected = net(x)
    with tap(net, {"*": lambda tensor, context: None}) as fired:
        assert torch.equal(net(x), expected)
    assert hooks(net) == 0
    assert list(fired.values()) == [1] * len(net)


@pytest.mark.parametrize("net", [Failing(), nn.Sequential(Failing())])
def test_hooks_are_gone_after_an_exception_in_the_model(net, x):
    with pytest.raises(RuntimeError, match="broken"), tap(net, {"*line": zero()}):
        net(x)
    assert hooks(net) == 0


def test_hooks_are_gone_after_an_exception_in_a_function_or_the_block(x):
    net = dense()
    with pytest.raises(RuntimeError, match="from the tap"), tap(net, {"0": shout}):
        net(x)
    with pytest.raises(ZeroDivisionError), tap(net, {"0": shout}):  # that it never fired is not the news here
        1 / 0  # noqa: B018
    assert hooks(net) == 0


def test_nothing_is_installed_if_one_site_is_unknown():
    net = dense()
    with pytest.raises(ValueError, match=r"matches 'nowhere'"), tap(net, {"0": shout, "nowhere": shout}):
        pass
    assert hooks(net) == 0


def test_a_site_that_was_never_met_raises(x):
    net = Shared()
    with pytest.raises(ValueError, match=r"Never met: idle; the forward pass does not call"), tap(net, {"*": zero()}):
        net(x)
    with pytest.raises(ValueError, match=r"was not run"), tap(net, {"first": zero()}):
        pass
    with pytest.raises(ValueError, match="Never met: out_proj"), tap(net := nn.MultiheadAttention(4, 2), {"*": zero()}):
        net(x, x, x)


def test_data_parallel_is_refused():
    with pytest.raises(ValueError, match="DataParallel"), tap(nn.DataParallel(dense()), {"*": zero()}):
        pass


def test_a_model_that_leaves_the_scope_is_freed_at_once(x):
    net = dense()
    gone = weakref.ref(net)
    gc.disable()  # by counting references alone: a cycle would wait for the collector
    try:
        with record(net, "*") as recording:
            net(x)
        del net
        assert gone() is None
        assert len(recording) == 5
    finally:
        gc.enable()


def live_bytes():
    gc.collect()
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if type(o) is torch.Tensor)


def test_memory_stays_flat_over_200_batches(generator):
    net, sizes, references = dense(), [], []
    for batch in range(200):
        with tap(net, {"1": clamp(0.5)}), record(net, ["0", Site("2", "in")]) as recording:
            net(torch.randn(64, 4, generator=generator)).sum().backward()
        references += [weakref.ref(tensor) for tensor in recording.values()]
        net.zero_grad()
        del recording
        if batch in (20, 199):
            sizes.append((live_bytes(), sys.getrefcount(net), len(gc.get_objects())))
    assert sum(reference() is not None for reference in references) == 0
    assert hooks(net) == 0
    assert sizes[1][:2] == sizes[0][:2]
    assert sizes[1][2] - sizes[0][2] < 1000  # the weak references themselves, and no more


# Order and counting


def test_nested_taps_compose_in_order_of_entry(x):
    net = dense()
    with tap(net, {"0": add(1.0)}), tap(net, {"0": scale(2.0)}), record(net, "0") as recording:
        net(x)
    assert_close(recording["0"], 2 * (net[0](x) + 1))
    with tap(net, {Site("1", "in"): add(1.0)}), tap(net, {Site("1", "in"): scale(2.0)}), record(net, "1") as recording:
        net(x)
    assert_close(recording["1"], (2 * (net[0](x) + 1)).relu())


def test_an_inner_tap_leaves_the_outer_one(x):
    net = dense()
    with tap(net, {"0": zero()}), record(net, "0") as outer:
        with tap(net, {"0": add(5.0)}):
            net(x)
        net(x)
    assert_close(outer.calls("0"), (torch.zeros(7, 6), torch.zeros(7, 6)))


def test_a_shared_module_has_a_counter_of_calls(x):
    net, seen = Shared(), []

    def second(tensor, context):
        seen.append((context.call, context.step, context.fired))
        return torch.zeros_like(tensor) if context.call == 1 else None

    with tap(net, {"first": second}) as fired:
        assert_close(net(x), x)
        assert_close(net(x), x)
    assert seen == [(0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 3)]
    assert fired == {Site("first"): 4}
    with record(net, "first") as recording:
        net(x)
    assert len(recording.calls("first")) == 2
    with pytest.raises(ValueError, match="met 2 times"):
        recording["first"]


# Gradients


def test_gradients_flow_through_what_a_clamp_leaves(x):
    net = dense()
    mask = torch.tensor([True, False, False, True, False, False])
    value = torch.full((6,), 0.3, requires_grad=True)
    with tap(net, {"1": clamp(value, mask)}):
        net(x).square().sum().backward()
    reference = dense()
    h = torch.where(mask, 0.3, reference[0](x).relu())
    reference[2:](h).square().sum().backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)
    assert value.grad is None
    assert bool((net[0].weight.grad[mask] == 0).all()) and bool((net[0].weight.grad[~mask] != 0).any())


def test_learnt_offsets_and_factors_get_gradients(x):
    net = dense()
    offset, factor = torch.zeros(6, requires_grad=True), torch.ones((), requires_grad=True)
    with tap(net, {"1": add(offset)}), tap(net, {"2": scale(factor)}):
        net(x).sum().backward()
    assert bool((offset.grad != 0).any()) and float(factor.grad) != 0


def test_recorded_tensors_have_the_gradient_of_their_site(x):
    net = dense()
    with record(net, ["1", Site("2", "in")], graph=True) as recording:
        loss = net(x).square().sum()
    (out, inp) = torch.autograd.grad(loss, [recording["1"], recording[Site("2", "in")]])
    h = net[1](net[0](x)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net[2:](h).square().sum(), h)
    assert_close(out, expected)
    assert_close(inp, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_clamp_holds_when_checkpointing_recomputes(x, reentrant):
    def run(block):
        net = dense()
        inner = x.clone().requires_grad_()
        mask = torch.tensor([True, False, False, True, False, False])
        with tap(net, {"1": clamp(0.3, mask)}) as fired, record(net, "1") as recording:
            block(net, inner).square().sum().backward()
        assert fired == {Site("1"): 1} and len(recording.calls("1")) == 1
        return [p.grad for p in net.parameters()] + [inner.grad]

    plain = run(lambda net, inner: net(inner))
    again = run(lambda net, inner: checkpoint(net, inner, use_reentrant=reentrant))
    assert_close(again, plain)


def test_a_patch_call_by_call_cannot_be_told_apart_in_recomputation(x):
    net = Shared()
    with record(net, "first") as recording:
        net(x)
    inner = x.clone().requires_grad_()
    edit = patch(recording.calls("first"), torch.tensor([True, False, False, False]))
    with pytest.raises(RuntimeError, match="several times a pass"), tap(net, {"first": edit}):
        checkpoint(lambda x: net(x).square(), inner, use_reentrant=False).sum().backward()


# Recording


def test_a_recording_is_not_changed_by_what_works_in_place(x):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    with record(net, "*") as recording, record(net, "0", graph=True) as live:
        net(x)
    for kept in (recording["0"], live["0"]):
        assert torch.equal(kept, net[0](x))
    assert bool((recording["0"] < 0).any())


def test_the_budget_is_asked_before_anything_is_copied(x):
    net = dense()
    with (
        pytest.raises(MemoryError, match=r"Keeping 1, \(7, 6\), takes 168 bytes beside 168"),
        record(net, "*", max_bytes=300),
    ):
        net(x)
    assert hooks(net) == 0
    with record(net, "*", max_bytes=168 * 2 + 140 * 2 + 84) as recording:
        net(x)
    assert len(recording) == 5
    with pytest.raises(ValueError, match="max_bytes"), record(net, "*", max_bytes=-1):
        pass


def test_a_recording_names_what_it_lacks(x):
    net = dense()
    with record(net, ["0", Site("0", "in")]) as recording:
        net(x)
    assert torch.equal(recording[Site("0", "in")], x)
    assert Site("0") in recording and "1" not in recording
    for where, message in [("0", "names 2"), ("1", "names 0"), (Site("3"), "was not recorded")]:
        with pytest.raises(KeyError, match=message):
            recording[where]


# Two passes


class Head(nn.Module):
    """Attention whose pattern and values are sites."""

    def __init__(self, generator):
        super().__init__()
        self.pattern, self.value = nn.Identity(), nn.Identity()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, x):
        pattern = self.pattern((x @ self.weight @ x.T).softmax(-1))
        return x + pattern @ self.value(x)


def test_two_passes_keep_patterns_while_values_are_silenced(x, generator):
    net = nn.Sequential(Head(generator), Head(generator))
    with record(net, "*.pattern") as plain:
        net(x)
    kept = two_pass(net, x, "*.pattern", {"0.value": zero()})
    assert_close(kept, x + plain["1.pattern"] @ x)  # the first block adds nothing, the second looks where it did
    assert_close(two_pass(net, x, "*.pattern"), net(x))
    assert hooks(net) == 0


def test_two_passes_draw_the_same_dropout_and_count_a_batch_once(x):
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6))
    with record(net, "1") as before:
        torch.manual_seed(3)
        net(x)
    torch.manual_seed(3)
    with record(net, "1") as recording:
        two_pass(net, x, "0")
    assert torch.equal(recording.calls("1")[0], recording.calls("1")[1])
    assert torch.equal(recording.calls("1")[1], before["1"])
    assert int(net[2].num_batches_tracked) == 2


def test_context_finds_the_grid_of_tokens(x):
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(0, 1), nn.Linear(4, 3))
    grids = []
    with tap(net, {"2": lambda tensor, context: grids.append(context.on_grid(tensor).shape)}):
        net(torch.zeros(2, 6, dtype=torch.long))
    assert grids == [(2, 6, 3)]
    with (
        pytest.raises(ValueError, match="no grid"),
        tap(net[2], {Site(""): lambda t, context: context.on_grid(t) and None}),
    ):
        net[2](x)
    with (
        pytest.raises(ValueError, match=r"shape \(5, 4\) does not go"),
        tap(net[0], {Site(""): lambda t, c: c.on_grid(t[0, :5])}),
    ):
        net[0](torch.zeros(2, 6, dtype=torch.long))
