"""The unit graph on models that nobody here wrote, and on rules that closed forms decide."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.graph.labels import Labels
from neuropil.structure.surgery import permute
from neuropil.structure.surgery.proof import outputs
from tests.structure.zoo import ZOO, Case, case

# Operations that must freeze what enters them, by model; no other model has any.
UNKNOWN = {
    "unsupported-cumsum": {"cumsum"},
    "unsupported-sort": {"sort"},
    "unsupported-fft": {"fft_fft"},
    "unsupported-roll": {"roll"},
    "unsupported-stride": {"slice"},
    "hf-mixtral": {"topk"},
    "hf-fnet": {"fft_fftn"},
}


@pytest.mark.parametrize("one", [c for c in ZOO if c.exports], ids=str)
def test_every_model_is_read(one: Case):
    net = one.make()
    training = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph = trace_units(net, one.inputs())
    assert {unknown.what for unknown in graph.unknown} == UNKNOWN.get(one.name, set())
    assert graph.prunable(inexact=True)
    assert graph.parameters() == sum(p.numel() for p in net.parameters())
    assert [module.training for module in net.modules()] == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    if one.counted:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs(net, one.inputs())
        assert graph.macs() == counter.get_total_flops() // 2


@pytest.mark.parametrize("one", [c for c in ZOO if c.exports], ids=str)
def test_groups_hold_every_row_once(one: Case):
    net = one.make()
    graph = trace_units(net, one.inputs())
    shapes = {name: t.shape for name, t in [*net.named_parameters(), *net.named_buffers()]}
    for group in graph:
        for member in group.members:
            assert member.index.shape[0] == group.size
            assert member.index.unique().numel() == member.index.numel()
            assert 0 <= int(member.index.min()) <= int(member.index.max()) < shapes[member.parameter][member.axis]
        assert group.prunable or group.reason
        assert group.exact or group.reason
        assert not group.exact or group.prunable
    names = [group.name for group in graph]
    assert len(set(names)) == len(names)


def test_the_net_that_cannot_be_exported_is_refused_with_the_cure():
    one = case("branch")
    with pytest.raises(ValueError, match=r"cannot read Branch.*odd\.py.*torch.where"):
        trace_units(one.make(), one.inputs())


def test_an_example_that_does_not_run_is_refused():
    with pytest.raises(TypeError, match="does not run on example_inputs"):
        trace_units(nn.Linear(3, 2), torch.zeros(1, 4))


def graph_of(*layers: nn.Module, shape: tuple[int, ...] = (2, 3, 8, 8)) -> UnitGraph:
    return trace_units(nn.Sequential(*layers), torch.zeros(shape))


def rows(graph: UnitGraph, name: str) -> dict[tuple[str, int], list[list[int]]]:
    return {(m.parameter, m.axis): m.index.tolist() for m in graph[name].members}


def test_a_hidden_unit_is_a_row_a_bias_and_a_column():
    graph = graph_of(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), shape=(1, 3))
    assert rows(graph, "0") == {
        ("0.weight", 0): [[0], [1], [2], [3]],
        ("0.bias", 0): [[0], [1], [2], [3]],
        ("2.weight", 1): [[0], [1], [2], [3]],
    }
    assert [m.role for m in graph["0"].members] == ["out", "out", "in"]
    assert graph["0"].exact
    assert not graph["2"].prunable
    assert "returned" in graph["2"].reason
    assert not graph["0.in"].prunable


def test_a_flattened_channel_owns_a_block_of_columns():
    graph = graph_of(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert rows(graph, "0")["2.weight", 1] == [list(range(36 * k, 36 * k + 36)) for k in range(4)]


def test_channels_follow_through_norms_and_pools():
    graph = graph_of(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    assert {name for name, _ in rows(graph, "0")} == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "5.weight"
    }  # fmt: skip


def test_a_grouped_convolution_offers_whole_groups_and_positions():
    graph = graph_of(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1, groups=3), nn.Conv2d(6, 2, 1))
    assert {(g.name, g.size) for g in graph if g.prunable} == {("0:3x4", 3), ("0:4x3", 4), ("1", 2)}
    assert rows(graph, "0:3x4")["1.weight", 0] == [[0, 1], [2, 3], [4, 5]]
    assert rows(graph, "0:4x3")["1.weight", 1] == [[0], [1], [2], [3]]


def test_a_recurrent_unit_is_a_row_of_every_gate_and_a_column():
    class Reads(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True, **options)
            self.head = nn.Linear(3 if "proj_size" not in options else 2, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    graph = trace_units(Reads(), torch.zeros(1, 4, 2))
    gates = [[k, 3 + k, 6 + k, 9 + k] for k in range(3)]
    assert rows(graph, "lstm") == {
        ("lstm.weight_ih_l0", 0): gates,
        ("lstm.weight_hh_l0", 0): gates,
        ("lstm.weight_hh_l0", 1): [[0], [1], [2]],
        ("lstm.bias_ih_l0", 0): gates,
        ("lstm.bias_hh_l0", 0): gates,
        ("head.weight", 1): [[0], [1], [2]],
    }
    assert graph["lstm"].exact
    assert graph.macs() == 4 * (12 * 2 + 12 * 3 + 3 * 2)
    projected = trace_units(Reads(proj_size=2), torch.zeros(1, 4, 2))
    assert [unknown.reason for unknown in projected.unknown] == ["lstm projects its state"]
    assert not projected.prunable(inexact=True)


def test_layer_norm_makes_its_axis_inexact():
    graph = graph_of(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), shape=(1, 3))
    assert graph["0"].prunable and graph["0"].permutable and not graph["0"].exact
    assert "layer_norm" in graph["0"].reason


def test_group_norm_lets_whole_groups_go_exactly():
    graph = graph_of(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1))
    assert graph["0:3x4"].exact
    assert graph["0:4x3"].prunable and not graph["0:4x3"].exact


def test_two_factorisations_of_one_axis_keep_what_both_allow():
    """24 channels as 4 x 6 and as 3 x 8: blocks of 8 are frozen, what is left are even and odd channels."""
    labels = Labels()
    axis = labels.fresh(24)
    labels.split(axis, 3)
    labels.split(axis, 4)
    solution = labels.solve()
    positions, classes = solution.below(axis)
    live = solution.frozen[classes] < 0
    by_class = {c: tuple(sorted(positions[live & (classes == c)].tolist())) for c in np.unique(classes[live])}
    assert {tuple(range(0, 24, 2)), tuple(range(1, 24, 2))} <= set(by_class.values())
    assert all(len(rows) >= 12 for rows in by_class.values())
    assert any("4 x 6 and 3 x 8" in reason for reason in solution.reasons)


def test_an_axis_that_contains_itself_is_frozen():
    labels = Labels()
    outer, inner = labels.fresh(2), labels.fresh(2)
    labels.unite(labels.pairs(outer, inner)[:2].copy(), inner)
    solution = labels.solve()
    _, classes = solution.below(inner)
    assert (solution.frozen[classes] >= 0).any()


def test_tied_weights_are_one_tensor_with_two_names():
    one = case("tied-embedding")
    graph = trace_units(one.make(), one.inputs())
    assert any(graph.names.values())
    assert sum(name in str(graph.spec()) for name in next(filter(None, graph.names.values()))) == 0


def test_the_counts_after_a_cut_are_those_of_the_formula():
    graph = graph_of(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), shape=(5, 3))
    keep = {"0": torch.tensor([True, False, True, False])}
    assert graph.parameters(keep) == 3 * 2 + 2 + 2 * 2 + 2
    assert graph.macs(keep) == 5 * (3 * 2 + 2 * 2)
    assert graph.modules() == {"0": 60, "2": 40}


def test_scores_of_weights_become_scores_of_units():
    graph = graph_of(nn.Linear(2, 3), nn.Linear(3, 2), shape=(1, 2))
    scores = {"0.weight": torch.arange(6.0).reshape(3, 2), "1.weight": torch.ones(2, 3)}
    assert graph.reduce(scores, norm="none")["0"].tolist() == [1 + 2, 5 + 2, 9 + 2]
    assert graph.reduce(scores, agg="prod", norm="none")["0"].tolist() == [2, 10, 18]
    assert graph.reduce(scores, agg="max", norm="sum")["0"].tolist() == pytest.approx([2 / 16, 5 / 16, 9 / 16])
    assert float(graph.reduce(scores)["0"].mean()) == pytest.approx(1)
    assert graph.reduce({}) == {}


def test_groups_survive_json():
    graph = graph_of(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1, groups=3), nn.Conv2d(6, 2, 1))
    read = UnitGraph.from_spec(json.loads(json.dumps(graph.spec())))
    assert read.spec() == graph.spec()
    with pytest.raises(ValueError, match="no specification"):
        UnitGraph.from_spec({"format": "other"})


def test_bad_choices_are_named():
    graph = graph_of(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), shape=(1, 3))
    with pytest.raises(KeyError, match="no group 'x'"):
        graph.check({"x": torch.ones(4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="has 4 units"):
        graph.check({"0": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"frozen \(returned"):
        graph.check({"2": torch.tensor([True, False])})
    with pytest.raises(ValueError, match="cannot be cut to nothing"):
        graph.check({"0": torch.zeros(4, dtype=torch.bool)})


def test_what_is_frozen_is_listed_with_the_line():
    one = case("unsupported-cumsum")
    frozen = trace_units(one.make(), one.inputs()).frozen()
    line = frozen[frozen["what"] == "cumsum"]
    assert "odd.py" in line["where"].iloc[0]
    assert "runs over units" in line["reason"].iloc[0]
    assert trace_units(one.make(), one.inputs()).of("nobody") == []


class Rescales(nn.Module):
    """Writes into a parameter while it runs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        with torch.no_grad():
            self.two.weight.mul_(1.0)
        return self.two(torch.relu(self.one(x)))


def test_a_weight_that_is_scaled_still_reads_units():
    """As with equalised learning rates and fake quantisation."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(2, 6, 3, 3))
            self.gain = nn.Parameter(torch.ones(2, 1, 1, 1))

        def forward(self, x):
            weight = torch.fake_quantize_per_tensor_affine(self.two * self.gain / 9**0.5, 0.1, 0, -100, 100)
            return nn.functional.conv2d(torch.relu(self.one(x) + self.one.bias[:, None, None]), weight)

    graph = trace_units(Scaled(), torch.zeros(2, 3, 4, 4))
    roles = {(m.parameter, m.axis): m.role for m in graph["one"].members}
    assert roles == {("one.weight", 0): "out", ("one.bias", 0): "out", ("two", 1): "in"}
    assert {m.axis for group in graph for m in group.members if m.parameter == "two"} == {0, 1}  # none for the kernel


def test_a_parameter_that_is_written_into_still_reads_units():
    graph = trace_units(Rescales(), torch.zeros(2, 3))
    assert {(m.parameter, m.role) for m in graph["one"].members} == {
        ("one.weight", "out"), ("one.bias", "out"), ("two.weight", "in")
    }  # fmt: skip


class Caches(nn.Module):
    """Keeps in evaluation what it made of a parameter, until it is trained again."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 8, bias=False), nn.Linear(8, 2)
        self.bias, self.cache = nn.Parameter(torch.randn(8)), {}

    def train(self, mode: bool = True) -> "Caches":
        if mode:
            self.cache.clear()
        return super().train(mode)

    def forward(self, x):
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = 2 * self.bias
        return self.two(torch.tanh(self.one(x)) + (2 * self.bias if self.training else self.cache["bias"]))


def test_what_is_kept_for_evaluation_is_read_anew_and_not_left_behind():
    net, x = Caches().eval(), torch.randn(4, 3)
    net(x)
    graph = trace_units(net, x)
    assert ("bias", 0) in rows(graph, "one")
    assert not net.cache
    assert not net.training
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(permute(copy.deepcopy(net), {"one": order}, graph)(x), net(x))
