"""A network recorded in one run on numbers: what it holds, what it refuses, and that its replay computes the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuropil.structure.graph import trace_units
from neuropil.structure.graph.exporting import exported
from neuropil.structure.graph.recording import Recording, RecordingError, record
from neuropil.structure.graph.replay import Replay, replayed
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.surgery import shrink
from tests.structure.zoo import HOUSE, HUGGING_FACE, Case

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


class Does(nn.Module):
    """Whatever a function does with its weight and its input."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("offset", torch.tensor([0.0, 1.0, 0.0]))
        self.held = torch.tensor([2.0, 2.0, 2.0])
        self.function = function

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return self.function(self, *args, **keywords)


def recorded(net: nn.Module, *args: Any, **keywords: Any) -> Recording:
    with torch.no_grad():
        return record(net.eval(), args, keywords)


def replay(net: nn.Module, recording: Recording) -> Replay:
    return Replay(recording, {**dict(net.named_parameters()), **dict(net.named_buffers())})


def written(net: Does, x: Tensor) -> Tensor:
    total = torch.zeros(2, 3)
    total[0] = 1.5
    total[:, [0, 2]] = x[:, [2, 0]]
    total[1, np.array([1])] = 7
    numbers = torch.tensor([1.0, 2.0, 3.0])
    numbers += x[0]
    return total + numbers * net.weight


KINDS: dict[str, Callable[..., Any]] = {
    "written into": written,
    "numbers in the code": lambda net, x: x * torch.tensor([1.0, 0.0, -1.0]) + torch.from_numpy(np.ones(3, "f4")),
    "numbers in the old way": lambda net, x: x * torch.FloatTensor([1.0, 0.0, -1.0]),
    "held by the module": lambda net, x: x * net.held + net.offset,
    "without gradient": lambda net, x: x * net.weight.data + net.weight.detach(),
    "in place": lambda net, x: x.clone().mul_(net.weight).relu_(),
    "several, nested": lambda net, x: {"a": x + 1, "b": [x.split(1, dim=1)[2], (x.max(1)[1], None)]},
    "unused": lambda net, x: (x.cumsum(0), x * net.weight)[1],
    "a constant that is read": lambda net, x: x * float(torch.tensor([2.0, 3.0]).sum()),
    "returned as it came": lambda net, x: (x, net.weight),
    "random": lambda net, x: x + 0 * torch.rand_like(x),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_replay_computes_the_same_for_other_numbers(kind: str):
    net = Does(KINDS[kind])
    again = replay(net, recorded(net, X))
    for x in (X, -3 * X, torch.zeros(2, 3)):
        torch.testing.assert_close(again(x.clone()), net(x.clone()))


@pytest.mark.parametrize("one", [c for c in HOUSE if c.exports], ids=str)
def test_recording_and_export_are_one_function(one: Case):
    net = one.make().eval()
    example = one.inputs()
    args, keywords = arguments(example)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    values = [*args, *keywords.values()]
    with torch.no_grad():
        mine, theirs = record(net, args, keywords), exported(net, args, keywords)
        ends = [replayed(how, tensors, values) for how in (mine, theirs)]
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def cast(net: Does, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ net.weight


def written_through(net: Does, x: Tensor) -> Tensor:
    total = torch.zeros(3)
    total.view(3, 1)[0] = x[0, 0]
    return x * total[0].item()


ELSEWHERE = torch.ones(3)


@pytest.mark.parametrize("one", [c for c in HUGGING_FACE if c.exports], ids=str)
def test_no_family_needs_the_slow_way(one: Case):
    args, keywords = arguments(one.inputs())
    recorded(one.make(), *args, **keywords)


REFUSED: dict[str, Callable[..., Any]] = {
    "a branch": lambda net, x: x if x.sum() > 0 else -x,
    "a number": lambda net, x: x * x.max().item(),
    "a parameter's number": lambda net, x: x * float(net.weight[0]),
    "a list": lambda net, x: x * torch.tensor(x[0].tolist()),
    "an array": lambda net, x: x + torch.from_numpy(np.sin(x.numpy())),
    "a tensor of numbers of a tensor": lambda net, x: x * torch.tensor([x[0, 0], x[0, 1], x[0, 2]]),
    "a shape": lambda net, x: x[x > 0],
    "places": lambda net, x: x.nonzero(),
    "a transform": lambda net, x: torch.func.vmap(torch.sin)(x),
    "casting": cast,
    "numbers written through a view": written_through,
    "an object": lambda net, x: (x, object()),
    "a tensor from elsewhere": lambda net, x: x + ELSEWHERE,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_run_on_numbers_cannot_see_is_refused(kind: str):
    with pytest.raises(RecordingError):
        recorded(Does(REFUSED[kind]), X)


def test_masks_may_write_but_not_choose_a_shape():
    def masked(net: Does, x: Tensor) -> Tensor:
        y = x.clone()
        y[x < 0] = 0.0
        return y.index_select(1, torch.tensor([0, 2]))

    net = Does(masked)
    again = replay(net, recorded(net, X))
    torch.testing.assert_close(again(-X), net(-X))


class Condition(nn.Module):
    """Control flow that export can carry through, and a recording cannot."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: y.sin(), (x,))
        return self.two(x)


def test_control_flow_is_left_to_export_and_reported():
    net = Condition()
    graph = trace_units(net, X)
    assert [unknown.what for unknown in graph.unknown] == ["cond"]
    assert not graph["one"].prunable
    assert graph["two"].reason == "returned by the network"


class Casting(nn.Module):
    """A stretch in bfloat16: a graph within the graph."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.one(x).relu()
        return self.two(x.float())


def test_casting_is_left_to_export_and_cut():
    torch.manual_seed(0)
    net = Casting().eval()
    graph = trace_units(net, X)
    keep = {"one": torch.arange(8) % 2 == 0}
    small = shrink(net, keep, graph, backend="graph")
    shrink(net, keep, graph)
    with torch.no_grad():
        torch.testing.assert_close(small(X), net(X))


def test_the_users_line_and_module_are_noted():
    net = nn.Sequential(nn.Linear(3, 4), Does(lambda net, x: x[:, :3] * net.weight))
    nodes = {str(n.target): n for n in recorded(net, X).graph.nodes if n.op == "call_function"}
    assert "test_recording.py" in nodes["aten.mul.Tensor"].meta["where"]
    assert nodes["aten.mul.Tensor"].meta["module"] == "1"
    assert nodes["aten.linear.default"].meta["module"] == "0"
    assert "linear.py" in nodes["aten.linear.default"].meta["where"]


def test_an_error_of_the_network_leaves_nothing_behind():
    def fails(net: Does, x: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        recorded(Does(fails), X)
    assert not torch.compiler.is_exporting()
    assert torch.equal(recorded_again(), X + 1)


def recorded_again() -> Tensor:
    net = Does(lambda net, x: x + 1)
    return replay(net, recorded(net, X))(X)


def test_the_recording_holds_no_parameters():
    net = nn.Linear(3, 4)
    recording = recorded(net, X)
    assert not recording.constants
    assert [(feed.kind, feed.name) for feed in recording.feeds] == [
        ("tensor", "weight"), ("tensor", "bias"), ("input", "")
    ]  # fmt: skip
    assert [str(node.target) for node in recording.reads("weight")] == ["aten.linear.default"]


def test_keywords_come_in_any_order_and_other_layouts_are_refused():
    net = Does(lambda net, x, *, a, b: x + a - b)
    again = replay(net, recorded(net, X, a=X, b=2 * X))
    assert torch.equal(again(X, b=X, a=3 * X), X + 3 * X - X)
    for args, keywords in (((X,), {"a": X}), ((X, X), {"a": X, "b": X}), (([X],), {"a": X, "b": X})):
        with pytest.raises(TypeError, match="laid out"):
            again(*args, **keywords)


def test_a_tensor_given_twice_is_two_inputs():
    net = Does(lambda net, x, y, z: x - 2 * y + 3 * z)
    again = replay(net, recorded(net, X, X, net.weight))
    torch.testing.assert_close(again(X, 2 * X, 3 * X), X - 4 * X + 9 * X)


def test_a_graph_that_was_cut_is_a_module_like_others():
    """It has the names of the network, learns, and can be traced and cut again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    net[0].bias.requires_grad_(False)
    graph = trace_units(net, X)
    keep = {"0": torch.arange(8) < 4}
    small = shrink(net, keep, graph, backend="graph")
    shrink(net, keep, graph)
    assert list(small.state_dict()) == list(net.state_dict())
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]
    small(X).sum().backward()
    assert small.get_parameter("3.weight").grad is not None
    again = trace_units(small, X)
    keep = {"0": torch.arange(4) < 2}
    smaller = shrink(small, keep, again, backend="graph")
    shrink(net, keep, trace_units(net, X))
    torch.testing.assert_close(smaller(X), net(X))


def test_buffers_that_are_no_state_stay_so():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)
            self.register_buffer("scale", torch.tensor(2.0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) * self.scale)

    net = Holds().eval()
    graph = trace_units(net, X)
    small = shrink(net, {"one": torch.arange(8) < 3}, graph, backend="graph")
    assert set(small.state_dict()) == set(net.state_dict())
    assert "scale" in dict(small.named_buffers())
