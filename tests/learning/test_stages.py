import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Stages, undisturbed
from tests.learning.nets import CASES, Residual, case, dense


def reached(output, net):
    """Names of the parameters that a stage's output reaches."""
    leaves, stack, seen = set(), [output.grad_fn], set()
    names = {id(p): name for name, p in net.named_parameters(remove_duplicate=False)}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(names[id(node.variable)])
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves


@pytest.mark.parametrize("name", CASES)
def test_stages_partition_the_parameters(name):
    net, points, x, _ = case(name)
    outputs = Stages(net, points)(x)
    owners = [reached(output, net) for output in outputs]
    assert set.union(*owners) == {n for n, _ in net.named_parameters(remove_duplicate="tied" in name)} or "tied" in name
    if "tied" not in name:
        assert sum(map(len, owners)) == len(set.union(*owners))


@pytest.mark.parametrize("name", CASES)
def test_chaining_the_stages_backwards_is_backpropagation(name):
    net, points, x, y = case(name)
    net.eval()  # one forward pass for each way: dropout would differ
    cross_entropy(net(x), y).backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    stages = Stages(net, points)
    whole = stages(x, detach=False)
    signals = torch.autograd.grad(cross_entropy(whole[-1], y), whole)
    outputs = stages(x)
    assert_close([o.detach() for o in outputs], [o.detach() for o in whole])
    torch.autograd.backward(outputs, signals)
    for n, parameter in net.named_parameters():
        assert_close(parameter.grad, expected[n])


@pytest.mark.parametrize("name", CASES)
def test_given_activities_are_what_the_next_stage_sees(name):
    net, points, x, _ = case(name)
    net.eval()
    stages = Stages(net, points)
    outputs = stages(x)
    same = stages(x, activities=[o.detach() for o in outputs[:-1]])
    assert_close([o.detach() for o in same], [o.detach() for o in outputs])
    noise = torch.Generator().manual_seed(0)
    moved = [o.detach() + torch.randn(o.shape, generator=noise) for o in outputs[:-1]]
    clamped = stages(x, activities=moved)
    assert_close(clamped[0].detach(), outputs[0].detach())
    assert not torch.allclose(clamped[-1], outputs[-1])


def test_default_cuts_leave_norms_and_pools_with_the_stage_below():
    net, _, x, _ = case("conv")
    stages = Stages(net)
    stages(x)
    assert stages.names == ["2", "8"]
    assert Stages(net, cut="preactivation").names == ["0", "3"]
    assert len(stages) == 3


def test_blocks_are_cut_where_they_begin_and_end():
    net, points, x, _ = case("transformer")
    stages = Stages(net, points)
    stages(x)
    assert stages.names == ["input of blocks.0", "blocks.0", "blocks.1"]


def test_points_are_put_in_the_order_of_the_forward_pass():
    net = Residual()
    stages = Stages(net, ["out", "mix"])
    stages(torch.ones(2, 6))
    assert stages.names == ["mix", "out"]


def test_empty_stages_of_blocks_are_dropped():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net = Net()
    stages = Stages(net, "blocks")
    assert len(stages(torch.ones(2, 6))) == 2
    assert stages.names == ["layers.0"]


def test_inplace_modules_do_not_overwrite_what_was_recorded():
    net = nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    outputs = Stages(net)(x)
    assert_close(outputs[0].detach(), net[0](x).detach())
    given = -torch.ones(6, 5)
    Stages(net)(x, activities=[given])
    assert_close(given, -torch.ones(6, 5))


def test_hooks_are_gone_after_a_call_and_after_an_error():
    net, _, x, _ = case("dense")
    stages = Stages(net)
    stages(x)
    with pytest.raises(RuntimeError):
        stages(torch.ones(5, 3))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_the_first_call_leaves_statistics_and_dropout_as_one_pass_would():
    one, _, x, _ = case("conv")
    other, _, _, _ = case("conv")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = one(x)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        cut = Stages(other)(x)[-1]
    assert_close(cut.detach(), plain.detach())
    assert_close(one.state_dict(), other.state_dict())


def test_undisturbed_restores_buffers_and_random_state():
    net, _, x, _ = case("conv")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    with undisturbed(net):
        net(x)
    assert_close(net.state_dict(), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_compiled_children_can_be_cut():
    net, _, x, _ = case("dense")
    compiled = nn.Sequential(*(torch.compile(child, backend="eager") for child in net))
    for ours, theirs in zip(Stages(compiled)(x), Stages(net)(x), strict=True):
        assert_close(ours.detach(), theirs.detach())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.a(self.a(x)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize(
    ("net", "points", "words"),
    [
        (Residual(), None, "is no Sequential"),
        (Residual(), "mix", "sequence of module names"),
        (Residual(), ["nowhere"], "No module named 'nowhere'"),
        (Residual(), ["mix", "mix"], "named twice"),
        (Residual(), ["first"], "leads around the cut at first"),
        (Residual(), ["head"], "the net's own output"),
        (dense(), "blocks", "no ModuleList"),
        (Twice(), ["a"], "passed 2 times"),
        (Twice(), ["unused"], "never reaches unused"),
        (Pair(), ["rnn"], "gives a tuple"),
    ],
)
def test_cuts_that_cannot_be_are_named(net, points, words):
    with pytest.raises(ValueError, match=words):
        Stages(net, points)(torch.ones(3, 6))


def test_activities_must_fit():
    net, _, x, _ = case("dense")
    stages = Stages(net)
    with pytest.raises(ValueError, match="1 activities for 2 cuts"):
        stages(x, activities=[torch.ones(5, 8)])
    with pytest.raises(ValueError, match=r"Activity 1 has shape \(5, 8\)"):
        stages(x, activities=[torch.ones(5, 8), torch.ones(5, 8)])
    with pytest.raises(ValueError, match="cut must be"):
        Stages(net, cut="middle")


@pytest.mark.parametrize("name", CASES)
def test_between_decides_what_the_next_stage_sees(name):
    net, points, x, _ = case(name)
    net.eval()
    stages = Stages(net, points)
    plain = stages(x)
    halved = stages(x, activities=[o.detach() / 2 for o in plain[:-1]])[1].detach()
    seen = []

    def half(index, value):
        seen.append((index, value.requires_grad))
        return value / 2

    assert_close(stages(x, between=half)[1].detach(), halved)
    assert seen == [(index, False) for index in range(len(plain) - 1)]
    with pytest.raises(ValueError, match="exclude each other"):
        stages(x, activities=[o.detach() for o in plain[:-1]], between=half)


def test_installed_hooks_serve_many_calls_and_let_others_pass():
    net, points, x, _ = case("dense")
    stages = Stages(net, points)
    expected = stages(x)
    with stages.installed():
        assert_close(net(x), expected[-1])
        for _ in range(3):
            assert_close(stages(x)[1].detach(), expected[1].detach())
        assert sum(len(m._forward_hooks) for m in net.modules()) == len(expected) - 1
    assert all(not m._forward_hooks for m in net.modules())


class TwoArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, shift):
        return self.second(torch.tanh(self.first(x)) + shift)


def test_nets_of_several_arguments_are_called_by_position_or_by_name():
    net, x, shift = TwoArguments(), torch.ones(5, 3), torch.ones(4)
    stages = Stages(net, ["first"])
    for given in ((x, shift), {"x": x, "shift": shift}):
        assert_close(stages(given)[-1], net(x, shift))


def test_lists_within_a_block_belong_to_the_block():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            return x + sum(head(x) for head in self.heads)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks, self.head = nn.Linear(3, 4), nn.ModuleList([Heads(), Heads()]), nn.Linear(4, 2)

        def forward(self, x):
            h = self.stem(x)
            for block in self.blocks:
                h = block(h)
            return self.head(h)

    stages = Stages(Net(), "blocks")
    stages(torch.ones(5, 3))
    assert stages.names == ["input of blocks.0", "blocks.0", "blocks.1"]


def test_a_graph_made_undisturbed_can_go_backward_afterwards():
    net, _, x, y = case("conv")
    with undisturbed(net):
        loss = cross_entropy(net(x), y)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(int(buffer) == 0 for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked"))
