"""Dynamic channels: which carry the mass, what masks do, what they cost, and that leaving out equals masking."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.structure.dynamic.channels import (
    DynamicChannels,
    MaskPredictor,
    above_threshold,
    dynamic_layers,
    set_mode,
    ss_loss,
    using,
)
from neuropil.structure.dynamic.counting import SampleMacs, estimate_macs, used_macs
from neuropil.structure.dynamic.heads import calibrate_heads, quantile_for, train_heads
from neuropil.structure.dynamic.inference import SparseLayer, infer_sparse
from neuropil.structure.dynamic.mass import mass_topk
from neuropil.structure.dynamic.wrapping import make_dynamic
from neuropil.structure.graph import trace_units
from neuropil.structure.profile import count_macs
from neuropil.structure.surgery import mask_units, shrink
from tests.structure.zoo import case


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def block(inputs, outputs, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), act())


def drawn(net, seed=0):
    generator = seeded(seed)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise.abs() + 0.5 if name.endswith(("running_var", "1.weight")) else 0.4 * noise)
    return net.eval()


def plain(act=nn.ReLU):
    return drawn(
        nn.Sequential(
            block(4, 6, act), block(6, 10, act), nn.MaxPool2d(2), block(10, 8, act), nn.Flatten(), nn.Linear(8 * 9, 5)
        ).double()
    )


def images(count=12, seed=1):
    return torch.randn(count, 4, 6, 6, generator=seeded(seed), dtype=torch.float64)


def batches(count=12):
    x = images(count)
    y = torch.arange(count) % 5
    return [(x[: count // 2], y[: count // 2]), (x[count // 2 :], y[count // 2 :])]


# The mass.


def test_the_mass_of_known_vectors():
    h = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -9.0, 0.0]])
    mask, k = mass_topk(h, 0.7)
    assert k.tolist() == [2, 3, 1, 1]
    assert mask.tolist() == [
        [True, False, True, False],
        [True, True, True, False],
        [True, False, False, False],
        [False, False, True, False],
    ]
    assert mass_topk(h, 0.5)[1].tolist() == [2, 2, 1, 1]
    assert mass_topk(h, 1.0)[1].tolist() == [4, 4, 1, 1]


def test_space_counts_by_its_largest_magnitude():
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, 1, 0, 0], x[0, 2] = 1.0, -3.0, 1.0, 0.9
    assert mass_topk(x, 0.6)[0].tolist() == [[False, True, False]]


@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.sampled_from([1e-30, 1.0, 1e37]))
def test_the_marked_hold_the_mass_and_one_fewer_do_not(seed, mass, size):
    x = torch.rand(5, 7, generator=seeded(seed)) * size
    mask, k = mass_topk(x, mass)
    assert torch.equal(mask.sum(1), k)
    heat = x.double()
    share = (heat * mask).sum(1) / heat.sum(1)
    smallest = torch.where(mask, heat, torch.inf).amin(1) / heat.sum(1)
    assert bool((share >= mass - 2e-6).all())
    assert bool(((share - smallest < mass) | (k == 1)).all())
    assert bool((torch.where(mask, heat, torch.inf).amin(1) >= torch.where(mask, -1.0, heat).amax(1)).all())


def test_exact_fractions_do_not_depend_on_rounding():
    for channels in range(2, 200):
        for kept in (1, channels // 2, channels):
            assert mass_topk(torch.full((1, channels), 0.1), kept / channels)[1].item() == max(kept, 1)


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.01, float("nan")])
def test_a_mass_out_of_range_is_refused(mass):
    with pytest.raises(ValueError, match="mass"):
        mass_topk(torch.ones(2, 3), mass)


def test_activations_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="1 numbers that are not finite"):
        mass_topk(torch.tensor([[1.0, float("nan")]]), 0.5)
    with pytest.raises(ValueError, match="channels"):
        mass_topk(torch.ones(3, 0), 0.5)


def test_huge_and_noncontiguous_activations():
    x = torch.full((2, 5, 3), 1e308, dtype=torch.float64)
    assert mass_topk(x, 0.6)[1].tolist() == [3, 3]
    y = torch.rand(4, 6, 3, generator=seeded())
    assert torch.equal(mass_topk(y.transpose(1, 2), 0.8)[0], mass_topk(y.transpose(1, 2).contiguous(), 0.8)[0])


# The head and the layer.


def test_a_head_costs_what_it_multiplies_and_is_drawn_from_its_generator():
    head = MaskPredictor(6, 9, hidden=4, generator=seeded(3))
    assert head.macs == 6 * 4 + 4 * 9 == count_macs(head, torch.ones(1, 6))[0][""]
    again = MaskPredictor(6, 9, hidden=4, generator=seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    x = torch.randn(2, 6, 4, 4, generator=seeded())
    assert torch.equal(head(x), head(x.amax((2, 3))))
    with pytest.raises(ValueError, match="c_out"):
        MaskPredictor(3, 0)


def test_a_sample_without_channels_keeps_its_largest_logit():
    z = torch.tensor([[-3.0, -1.0, -2.0], [1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    assert above_threshold(z).int().tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def layer_of(mass=0.7):
    conv, norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
    made = DynamicChannels(conv, nn.Sequential(norm, nn.ReLU()), MaskPredictor(4, 6, generator=seeded(5)), mass)
    made = drawn(made.double())
    made.threshold.zero_()
    return made


def test_the_modes_of_a_layer():
    layer, x = layer_of(), images()
    whole = layer.norm_act(layer.layer(x))
    assert torch.equal(layer(x), whole)
    target, k = mass_topk(whole, 0.7)
    assert torch.equal(layer.seen.target, target)
    assert torch.equal(layer.k, k)
    assert layer.density == pytest.approx(float(target.double().mean()))
    layer.mode = "train"
    mask = above_threshold(layer.predictor(x))
    assert torch.equal(layer(x), whole * mask[:, :, None, None])
    assert torch.equal(layer.seen.target, target)  # of the output before its mask
    assert torch.equal(layer.k, mask.sum(1))
    layer.mode = "infer"
    assert torch.equal(layer(x), whole * mask[:, :, None, None])
    with pytest.raises(RuntimeError, match="no targets"):
        _ = layer.loss


def test_the_loss_teaches_the_head_alone_and_the_task_the_channels_that_were_computed():
    layer, x = layer_of(), images().requires_grad_()
    layer(x)
    layer.loss.backward()
    assert x.grad is None
    assert layer.layer.weight.grad is None
    assert all(bool(p.grad.any()) for p in layer.predictor.parameters())
    layer.predictor.zero_grad()
    layer.mode = "train"
    layer.rule = lambda logits, _: torch.arange(6).expand_as(logits) < 2
    layer(x).sum().backward()
    taught = layer.layer.weight.grad.flatten(1).any(1)
    assert taught.tolist() == [True] * 2 + [False] * 4
    assert all(p.grad is None or not p.grad.any() for p in layer.predictor.parameters())
    layer.detached = False
    x.grad = None
    layer(x)
    layer.loss.backward()
    assert bool(x.grad.any())


def test_a_layer_that_was_run_can_be_copied_and_saved():
    layer, x = layer_of(), images()
    layer(x)
    layer.threshold.fill_(0.3)
    twin = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="not been run"):
        _ = twin.k
    twin.mode = layer.mode = "infer"
    assert torch.equal(twin(x), layer(x))
    assert float(layer.state_dict()["threshold"]) == pytest.approx(0.3)


# Whole networks.


def test_a_dynamic_network_computes_what_it_did_until_it_is_told_to_mask():
    net, x = plain(), images()
    made = make_dynamic(net, x[:1], 0.7)
    assert list(dynamic_layers(made)) == ["0.0", "1.0", "3.0"]
    assert torch.equal(made(x), net(x))
    assert float(ss_loss(made).detach()) == pytest.approx(
        sum(float(layer.loss.detach()) for layer in dynamic_layers(made).values()) / 3, rel=1e-9
    )
    set_mode(made, "infer")
    assert not torch.allclose(made(x), net(x))


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.ReLU6, nn.Hardswish, lambda: nn.LeakyReLU(0.3)])
def test_a_static_mask_is_the_masked_network(act):
    net, x = plain(act), images()
    graph = trace_units(net, x[:1])
    made = make_dynamic(net, x[:1], 0.7, graph=graph)
    keep = {layer.group: torch.arange(layer.layer.out_channels) % 3 > 0 for layer in dynamic_layers(made).values()}
    masked = copy.deepcopy(net)
    mask_units(masked, keep, graph).apply_(masked)
    rules = {name: lambda z, _, on=keep[layer.group]: on.expand_as(z) for name, layer in dynamic_layers(made).items()}
    with using(made, "infer", rules):
        assert torch.allclose(made(x), masked(x), atol=1e-10)
        used = used_macs(made, graph, [(x, x)])
    heads = sum(layer.predictor.macs for layer in dynamic_layers(made).values())
    assert used["macs"].sum() == pytest.approx(graph.macs(keep) + heads)
    assert used["whole"].sum() == graph.macs()


def test_targets_are_taken_behind_the_activation():
    for act in (nn.ReLU, nn.SiLU, lambda: nn.LeakyReLU(0.3)):
        net, x = plain(act), images()
        made = make_dynamic(net, x[:1], 0.6)
        made(x)
        target = mass_topk(net[:2](x), 0.6)[0]
        assert torch.equal(dynamic_layers(made)["1.0"].seen.target, target)


def test_a_residual_stream_gets_no_heads_and_says_why():
    one = case("residual")
    net, x = one.make(), one.inputs()
    graph = trace_units(net, x)
    made = make_dynamic(net, x, 0.8)
    assert torch.allclose(made(x), net(x), atol=1e-9)
    for layer in dynamic_layers(made).values():
        assert sum(m.parameter.endswith("weight") and m.axis == 0 for m in graph[layer.group].producing()) <= 2
    shared = next(
        g.name
        for g in graph.prunable()
        if len({m.parameter for m in g.producing() if net.state_dict()[m.parameter].ndim > 1}) > 1
    )
    with pytest.raises(ValueError, match=f"Group {shared} cannot be dynamic: .* residual"):
        make_dynamic(net, x, 0.8, include=[shared])


FAMILIES = ("resnet18-32", "vgg", "mobile", "unet-interpolated", "convnext-own", "vit-own", "mlp", "conflict")


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_networks_keep_their_function_and_leave_out_what_they_mask(name):
    one = case(name)
    net, x = one.make(), one.inputs()
    graph = trace_units(net, x)
    made = make_dynamic(net, x, 0.6, graph=graph)
    assert torch.allclose(made(x), net(x), atol=1e-10)
    set_mode(made, "infer")
    sparse = infer_sparse(made, graph)
    for sample in x.split(1):
        assert torch.allclose(sparse(sample), made(sample), atol=1e-9)
    assert torch.allclose(sparse(x), made(x), atol=1e-9)


def test_code_that_looks_at_a_wrapped_layer_still_sees_it():
    made = make_dynamic(plain(), images(1), 0.7)
    layer = dynamic_layers(made)["0.0"]
    assert layer.stride == (1, 1)
    assert layer.weight is layer.layer.weight
    assert infer_sparse(made).get_submodule("0.0").padding == (1, 1)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = layer.nonsense


def test_an_activation_that_does_not_keep_zero_is_refused():
    net = drawn(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)).double())
    with pytest.raises(ValueError, match="does not give 0"):
        make_dynamic(net, torch.randn(1, 4, generator=seeded(), dtype=torch.float64), 0.8)


def test_first_layers_of_images_get_no_head_unless_named():
    net = drawn(nn.Sequential(block(3, 6), block(6, 8), nn.Flatten(), nn.Linear(8 * 16, 2)))
    x = torch.randn(1, 3, 4, 4, generator=seeded())
    assert list(dynamic_layers(make_dynamic(net, x, 0.8))) == ["1.0"]
    assert list(dynamic_layers(make_dynamic(net, x, 0.8, include=["0.0"]))) == ["0.0"]
    with pytest.raises(ValueError, match="3 channels or fewer"):
        make_dynamic(drawn(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))), torch.ones(1, 3), 0.8)


def test_linear_layers_over_tokens():
    net = drawn(nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 4)).double())
    x = torch.randn(3, 7, 5, generator=seeded(), dtype=torch.float64)
    made = make_dynamic(net, x[:1], 0.7)
    assert torch.equal(made(x), net(x))
    assert dynamic_layers(made)["0"].k.shape == (3,)
    set_mode(made, "infer")
    sparse = infer_sparse(made)
    for one in x.split(1):
        assert torch.allclose(sparse(one), made(one), atol=1e-12)


def test_modes_and_layers_that_do_not_exist():
    made = make_dynamic(plain(), images(1), 0.7)
    with pytest.raises(ValueError, match="no dynamic layers"):
        set_mode(plain(), "infer")
    with pytest.raises(KeyError, match="no dynamic layer 'x'"), using(made, "infer", {"x": lambda z, _: z > 0}):
        pass
    with using(made, "infer", {"0.0": lambda z, _: z > 0}):
        pass
    assert {layer.mode for layer in dynamic_layers(made).values()} == {"record"}
    assert all(layer.rule is None for layer in dynamic_layers(made).values())
    with pytest.raises(ValueError, match=r"must give a bool mask"), using(made, "infer", {"0.0": lambda z, _: z}):
        made(images())


# Heads.


def test_heads_learn_a_linear_target_and_nothing_else_moves():
    net = drawn(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = torch.randn(600, 8, generator=seeded())
    made = make_dynamic(net, x[:1], 0.6)
    before = {name: value.clone() for name, value in made.state_dict().items() if "predictor" not in name}
    history = train_heads(made, [(x, x)], epochs=30, lr=3e-2)
    assert history["hits"].iloc[-1] > 0.9 > history["hits"].iloc[0]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
    again = make_dynamic(net, x[:1], 0.6)
    assert train_heads(again, [(x, x)], epochs=30, lr=3e-2).equals(history)
    with pytest.raises(ValueError, match="no"):
        train_heads(made, [])


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99, 1.0])
def test_a_quantile_leaves_the_density(density):
    z = torch.randn(40, 25, generator=seeded())
    assert float((z > quantile_for(z, density)).double().mean()) == pytest.approx(density, abs=1e-9)


def test_calibrated_heads_fire_as_often_as_their_targets_under_the_masks_of_earlier_layers():
    data = batches(60)
    made = make_dynamic(plain(), data[0][0][:1], 0.6)
    train_heads(made, data, epochs=3)
    wanted = {}
    with using(made, "record"):
        for name, layer in dynamic_layers(made).items():
            made(torch.cat([x for x, _ in data]))
            wanted[name] = layer.density
    found = calibrate_heads(made, data)
    assert list(found) == ["0.0", "1.0", "3.0"]
    assert {layer.mode for layer in dynamic_layers(made).values()} == {"record"}
    set_mode(made, "infer")
    made(torch.cat([x for x, _ in data]))
    for name, layer in dynamic_layers(made).items():
        assert layer.density == pytest.approx(wanted[name], abs=0.01)
    calibrate_heads(made, data, {"0.0": 1.0, "1.0": 0.5, "3.0": 0.25})
    made(torch.cat([x for x, _ in data]))
    assert [layer.density for layer in dynamic_layers(made).values()] == pytest.approx([1.0, 0.5, 0.25], abs=0.01)
    with pytest.raises(KeyError, match=r"3\.0"):
        calibrate_heads(made, data, {"0.0": 1.0, "1.0": 0.5})


# Cost.


def test_macs_of_samples_are_those_of_networks_cut_that_way():
    net, x = plain(), images()
    graph = trace_units(net, x[:1])
    generator = seeded(2)
    masks = {g.name: torch.rand(4, g.size, generator=generator) > 0.4 for g in graph.prunable()}
    for mask in masks.values():
        mask[:, 0] = True
    counted = sum(SampleMacs(graph)(masks).values())
    for sample in range(4):
        keep = {name: mask[sample] for name, mask in masks.items()}
        small = copy.deepcopy(net)
        shrink(small, keep, graph)
        assert float(counted[sample]) == graph.macs(keep) == count_macs(small, x[:1])[0][""]
    with pytest.raises(ValueError, match="its mask has shape"):
        SampleMacs(graph)({"0.0": torch.ones(2, 3, dtype=torch.bool)})


def test_the_estimate_is_the_oracle_s_cost_where_nothing_is_masked_before():
    net, data = plain(), batches()
    graph = trace_units(net, data[0][0][:1])
    table = estimate_macs(net, data, (0.5, 0.9, 1.0))
    total = table.groupby("mass")["macs"].sum()
    assert total[0.5] < total[0.9] < total[1.0]
    made = make_dynamic(net, data[0][0][:1], 0.5, graph=graph)
    assert table.equals(estimate_macs(made, data, (0.5, 0.9, 1.0), graph=graph))
    x = torch.cat([part for part, _ in data])
    made(x)
    layers = dynamic_layers(made)
    masks = {layer.group: layer.seen.target for layer in layers.values()}
    counted = SampleMacs(graph)(masks)
    row = table[(table["mass"] == 0.5) & (table["layer"] == "1.0")].iloc[0]
    pairs = masks["0.0"].sum(1) * masks["1.0"].sum(1)
    assert row["macs"] == pytest.approx(float(counted["1.0"].mean())) == 36 * 9 * float(pairs.double().mean())
    with pytest.raises(ValueError, match="graph is needed"):
        estimate_macs(made, data, (0.5,))
    with pytest.raises(ValueError, match="record"):
        used_macs(made, graph, data)
    with pytest.raises(ValueError, match="mass"):
        estimate_macs(net, data, (0.0,))


# Leaving out.


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_leaving_out_equals_masking(act):
    net, data = plain(act), batches()
    graph = trace_units(net, data[0][0][:1])
    made = make_dynamic(net, data[0][0][:1], 0.5, graph=graph)
    train_heads(made, data, epochs=2)
    calibrate_heads(made, data)
    set_mode(made, "infer")
    for sparse in (infer_sparse(made), infer_sparse(made, graph)):
        assert torch.allclose(sparse(data[0][0]), made(data[0][0]), atol=1e-10)
        for one in data[0][0].split(1):
            assert torch.allclose(sparse(one), made(one), atol=1e-10)


def test_residual_blocks_skip_what_their_first_layer_left_out():
    one = case("residual")
    net, x = one.make(), one.inputs()
    graph = trace_units(net, x)
    made = make_dynamic(net, x, 0.5, graph=graph)
    set_mode(made, "infer")
    sparse = infer_sparse(made, graph)
    readers = [name for name, module in sparse.named_modules() if isinstance(module, SparseLayer)]
    assert len(readers) > len(dynamic_layers(made))
    for sample in x.split(1):
        assert torch.allclose(sparse(sample), made(sample), atol=1e-9)


def test_all_zero_inputs_and_what_cannot_be_folded():
    layer = SparseLayer(nn.Conv2d(3, 4, 3), predictor=MaskPredictor(3, 4))
    assert layer(torch.zeros(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    with pytest.raises(TypeError, match="MaxPool2d"):
        SparseLayer(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    with pytest.raises(TypeError, match="without groups"):
        SparseLayer(nn.Conv2d(4, 4, 3, groups=2))


def test_both_losses_train_the_network_and_its_heads_at_once():
    net, data = plain(), batches(40)
    made = make_dynamic(net, data[0][0][:1], 0.7)
    set_mode(made, "train")
    made.train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        for x, y in data:
            loss = cross_entropy(made(x), y) + ss_loss(made)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
