"""Surgery: shrunk equals masked, permuted and widened equal the original, and the optimizer goes on."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.masks import attach
from neuropil.structure.surgery import (
    Cut,
    cut,
    deepen,
    discover,
    load_pruned,
    mask_units,
    permute,
    permuted,
    shrink,
    widen,
)
from neuropil.structure.surgery.proof import outputs
from tests.structure.zoo import ZOO, Case, case

EXPORTED = [one for one in ZOO if one.exports]
# torch's exporter refuses these whole as well (adaptive_max_pool2d, a child named `code`, views of strided tensors).
NO_ONNX = {"vgg", "named-code", "hf-swin", "hf-beit", "hf-t5"}


def halved(graph: UnitGraph, names: list[str], seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name in names:
        kept = torch.ones(graph[name].size, dtype=torch.bool)
        kept[torch.randperm(len(kept), generator=generator)[: len(kept) // 2]] = False
        keep[name] = kept
    return keep


def gap(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest entry."""
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(
        float((x - y).abs().max() / (1 + y.abs().max())) for x, y in zip(a, b, strict=True) if x.is_floating_point()
    )


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_shrunk_equals_masked(one: Case):
    """Half of the units of every exact group go: both backends compute what the masked network does."""
    net, example = one.make(), one.inputs()
    graph = trace_units(net, example)
    exact = [group.name for group in graph.prunable()]
    keep = halved(graph, exact)
    masked = copy.deepcopy(net)
    mask_units(masked, keep, graph).apply_(masked)
    wanted, whole = outputs(masked, example), outputs(net, example)
    if exact:
        assert gap(wanted, whole) > 1e-3
    assert gap(outputs(shrink(net, keep, graph, backend="graph"), example), wanted) < one.tolerance
    found = discover(net, graph, [graph[name] for name in exact])
    able = halved(graph, [name for name in exact if not isinstance(found[name], str)])
    masked = copy.deepcopy(net)
    mask_units(masked, able, graph).apply_(masked)
    small = copy.deepcopy(net)
    made = cut(small, able, graph, known=found)
    assert gap(outputs(small, example), outputs(masked, example)) < one.tolerance
    assert sum(p.numel() for p in small.parameters()) == graph.parameters(able)
    if one.counted:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs(small, example)
        assert graph.macs(able) == counter.get_total_flops() // 2
    state = load(save({name: t.clone().contiguous() for name, t in small.state_dict().items()}))
    again = load_pruned(one.make, json.loads(json.dumps(made.spec())), state)
    assert gap(outputs(again.eval(), example), outputs(small, example)) < one.tolerance


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_without_proof_the_same_is_found(one: Case):
    """Where no size in the code changes, a trial finds nothing that the graph does not know."""
    net = one.make()
    graph = trace_units(net, one.inputs())
    proved, trusted = discover(net, graph), discover(net, graph, proof=False)
    for name, these in trusted.items():
        assert proved[name] == these or "together with those of other groups" in proved[name]


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_permuted_is_the_same_function(one: Case, generator: torch.Generator):
    net, example = one.make(), one.inputs()
    graph = trace_units(net, example)
    order = {g.name: torch.randperm(g.size, generator=generator) for g in graph if g.permutable}
    moved = permute(copy.deepcopy(net), order, graph)
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), moved.parameters(), strict=True))
    assert gap(outputs(moved, example), outputs(net, example)) < max(one.tolerance, 1e-9)
    state = permuted(net.state_dict(), order, graph)
    assert all(torch.equal(state[name], tensor) for name, tensor in moved.state_dict().items())
    back = {name: torch.argsort(index) for name, index in order.items()}
    restored = permuted(state, back, graph)
    assert all(torch.equal(restored[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_widened_is_the_same_function(one: Case, generator: torch.Generator):
    net, example = one.make(), one.inputs()
    graph = trace_units(net, example)
    before, done = outputs(net, example), 0
    for group in graph.prunable()[:3]:
        wide = copy.deepcopy(net)
        try:
            widen(wide, {group.name: group.size + max(1, group.size // 2)}, graph, generator=generator)
        except ValueError as error:
            assert "would change" in str(error) or "widened" in str(error) or "does not fit" in str(error)
            continue
        done += 1
        assert gap(outputs(wide, example), before) < one.tolerance
        assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in net.parameters())
    contracted = {"tied-transpose", "softmax", "hf-convnextv2"}  # made and read by one tensor, or summed over
    assert done or one.name in contracted


@pytest.mark.parametrize("one", [c for c in EXPORTED if c.name not in NO_ONNX], ids=str)
def test_the_shrunk_network_exports_to_onnx(one: Case):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, example = one.make(dtype=torch.float32), one.inputs(torch.float32)
    graph = trace_units(net, example)
    found = discover(net, graph, graph.prunable())
    cut(net, halved(graph, [k for k, v in found.items() if not isinstance(v, str)]), graph, known=found)
    args, keywords = arguments(example)
    program = torch.onnx.export(net.eval(), args, kwargs=keywords or None, dynamo=True, verbose=False)
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    values = [value for value in (*args, *keywords.values()) if isinstance(value, torch.Tensor)]
    feed = {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)}
    for got, wanted in zip(session.run(None, feed), outputs(net, example), strict=True):
        assert np.abs(got - wanted.numpy()).max() < 1e-4 * (1 + float(wanted.abs().max()))


def trained(net: nn.Module, make, steps: int, masks=None, optimizer=None):
    """Train on noise; gradients and weights stay double."""
    optimizer = make(net.parameters()) if optimizer is None else optimizer
    handle = attach(masks, net, optimizer) if masks is not None else None
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        optimizer.step()
    if handle is not None:
        handle.remove()
    return optimizer


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


def small() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    ).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_goes_on_as_if_the_removed_units_had_never_moved(make):
    """Train masked, shrink, train on: the same weights and state as training masked all the way and shrinking then."""
    graph = trace_units(small(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    keep = halved(graph, ["0", "2"])
    short, long = small(), small()
    for net in (short, long):
        mask_units(net, keep, graph).apply_(net)
    masks = mask_units(short, keep, graph)
    optimizer = trained(short, make, 5, masks)
    groups = [len(group["params"]) for group in optimizer.param_groups]
    shrink(short, keep, graph, optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == groups
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], short.parameters(), strict=True))
    trained(short, make, 5, optimizer=optimizer)
    other = trained(long, make, 5, masks)
    handle = attach(masks, long, other)
    trained(long, make, 5, optimizer=other)
    handle.remove()
    shrink(long, keep, graph, optimizer=other)
    for a, b in zip(short.parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        for key, value in optimizer.state[a].items():
            torch.testing.assert_close(value, other.state[b][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_goes_on_after_a_permutation(make, generator: torch.Generator):
    graph = trace_units(small(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    order = {"0": torch.randperm(6, generator=generator), "2": torch.randperm(4, generator=generator)}
    early, late = small(), small()
    one = trained(early, make, 4)
    permute(early, order, graph, optimizer=one)
    trained(early, make, 4, optimizer=one)
    two = trained(late, make, 4)
    trained(late, make, 4, optimizer=two)
    permute(late, order, graph, optimizer=two)
    for a, b in zip(early.parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_optimizer_goes_on_after_widening():
    net = small()
    graph = trace_units(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    make = OPTIMIZERS["adam"]
    optimizer = trained(net, make, 3)
    before = {k: v.clone() for k, v in optimizer.state[net[0].weight].items()}
    widen(net, {"0": 9}, graph, optimizer=optimizer)
    state = optimizer.state[net[0].weight]
    assert state["exp_avg"].shape == (9, 3, 3, 3)
    assert torch.equal(state["step"], before["step"])
    kept = [0, 2, 4, 6, 7, 8]  # the first three are copied, each copy behind its original
    assert torch.equal(state["exp_avg"][kept], before["exp_avg"])
    assert not state["exp_avg"][[1, 3, 5]].any()
    trained(net, make, 2, optimizer=optimizer)


def test_noise_parts_the_copies():
    net = small()
    graph = trace_units(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    widen(net, {"0": 12}, graph, noise=0.1)
    weight = net[0].weight.detach()
    apart = (weight[0::2] - weight[1::2]).flatten(1).norm(dim=1)
    assert bool((apart > 0).all())
    assert float(apart.max()) < 3 * 0.1 * float(weight.std()) * 27**0.5


def test_gradients_are_cut_too():
    net = small()
    graph = trace_units(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    net(torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).sum().backward()
    grad = net[0].weight.grad.clone()
    keep = {"0": torch.tensor([True, False, True, True, False, True])}
    shrink(net, keep, graph)
    assert torch.equal(net[0].weight.grad, grad[keep["0"]])


def test_frozen_parameters_stay_frozen():
    net = small()
    net[0].weight.requires_grad_(requires_grad=False)
    graph = trace_units(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    shrink(net, {"0": torch.tensor([True, False] * 3)}, graph)
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad
    assert (net[0].out_channels, net[2].in_channels, net[0].bias.shape) == (3, 3, (3,))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["old", "new"])
def test_layers_with_weight_norm_lose_lengths_and_directions(norm):
    torch.manual_seed(0)
    layers = norm(nn.Conv1d(2, 6, 3)), norm(nn.Conv1d(6, 6, 3, groups=3)), norm(nn.Linear(6, 4)), nn.Linear(4, 2)
    net = nn.Sequential(*layers[:2], nn.AdaptiveAvgPool1d(1), nn.Flatten(), layers[2], nn.Tanh(), layers[3]).double()
    x = torch.randn(3, 2, 9, dtype=torch.float64)
    graph = trace_units(net, x)
    groups = graph.prunable(inexact=True)
    assert all("norm" in group.reason for group in groups)
    keep = halved(graph, [group.name for group in groups])
    small = shrink(net, keep, graph, backend="graph")
    shrink(net, keep, graph)
    assert gap(outputs(net, x), outputs(small, x)) < 1e-12
    conv, grouped, linear, last = net[0], net[1], net[4], net[6]
    assert (conv.out_channels, grouped.in_channels) == (grouped.in_channels, grouped.weight.shape[1] * grouped.groups)
    assert (linear.in_features, linear.out_features, last.in_features) == (grouped.out_channels, 2, 2)
    assert sum(p.numel() for p in net.parameters()) == graph.parameters(keep)


def test_sizes_written_in_code_are_named_with_the_line():
    one = case("hf-bert")
    pytest.importorskip("transformers")
    net = one.make()
    graph = trace_units(net, one.inputs())
    found = discover(net, graph)
    stuck = [name for name, these in found.items() if isinstance(these, str)]
    assert stuck
    assert all("modeling_bert.py" in found[name] for name in stuck)
    with pytest.raises(ValueError, match="cannot be removed from the module: it needs code"):
        cut(net, halved(graph, stuck[:1]), graph)


def test_an_attribute_can_be_given():
    pytest.importorskip("transformers")
    one = case("hf-gpt2")
    net, example = one.make(), one.inputs()
    graph = trace_units(net, example)
    found = discover(net, graph)
    name, these = next((k, v) for k, v in found.items() if v and not isinstance(v, str))
    keep = halved(graph, [name])
    tried, told = copy.deepcopy(net), copy.deepcopy(net)
    shrink(tried, keep, graph)
    shrink(told, keep, graph, attributes={f"{a.module}.{a.name}": name for a in these})
    assert gap(outputs(told, example), outputs(tried, example)) == 0
    with pytest.raises(ValueError, match="neither the number of units"):
        shrink(net, keep, graph, attributes={f"{these[0].module}.layer_idx": name})


def test_bad_requests_are_named():
    net = small()
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    graph = trace_units(net, example)
    with pytest.raises(ValueError, match="needs the graph"):
        shrink(net, {})
    with pytest.raises(ValueError, match="must be a permutation of its 6 units"):
        permute(net, {"0": torch.zeros(6, dtype=torch.long)}, graph)
    with pytest.raises(ValueError, match="cannot be permuted: returned"):
        permute(net, {"5": torch.arange(5)}, graph)
    with pytest.raises(ValueError, match="must be at least that, got 3"):
        widen(net, {"0": 3}, graph)
    with pytest.raises(ValueError, match="cannot be widened"):
        widen(net, {"5": 9}, graph)
    with pytest.raises(ValueError, match="noise must be"):
        widen(net, {"0": 9}, graph, noise=-1.0)
    with pytest.raises(ValueError, match="read from a specification"):
        cut(net, {"0": torch.tensor([True, False] * 3)}, UnitGraph.from_spec(graph.spec()))
    with pytest.raises(ValueError, match="no specification of a cut"):
        Cut.from_spec({})
    with pytest.raises(ValueError, match="does not have: x"):
        load_pruned(small, {"format": "neuropil.cut/1", "rows": {"x": {"0": [0]}}, "attributes": {}}, {})
    assert shrink(small(), {"0": torch.ones(6, dtype=torch.bool)}, example_inputs=example)[0].out_channels == 6


def test_a_deeper_net_is_the_same_function():
    net = small()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = net(x)
    deep = deepen(net, 1, x)
    assert [type(m).__name__ for m in deep][:4] == ["Conv2d", "ReLU", "Conv2d", "ReLU"]
    torch.testing.assert_close(deep(x), wanted)
    dense = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    again = deepen(dense, 1, torch.zeros(1, 5), noise=0.01)
    y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert 0 < float((again(y) - dense(y)).abs().max()) < 0.2
    assert again[0] is dense[0]
    for place, message in ((0, "0 is Linear"), (7, "a chain of 3")):
        with pytest.raises(ValueError, match=message):
            deepen(dense, place, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="kernel must be odd"):
        deepen(net, 1, x, kernel=2)


def test_masks_and_cuts_of_nothing_change_nothing():
    net = small()
    graph = trace_units(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert len(mask_units(net, {}, graph)) == 0
    assert cut(net, {}, graph).rows == {}
