"""Masks hold under every optimizer, exactly, and leave everything else alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.masks import Masks, attach, prunable_parameters
from neuropil.structure.optimizers import state_like

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9, weight_decay=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1, weight_decay=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def make(generator: torch.Generator, density: float = 0.3) -> tuple[nn.Sequential, Masks]:
    net = mlp(6, 8, 4, generator=generator)
    return net, random_masks(net, generator, density)


def random_masks(net: nn.Module, generator: torch.Generator, density: float = 0.3) -> Masks:
    names = prunable_parameters(net)
    return Masks({name: torch.rand(net.get_parameter(name).shape, generator=generator) < density for name in names})


def batch(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(16, 6, generator=generator, dtype=dtype), torch.randint(4, (16,), generator=generator)


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, steps: int = 5, **kwargs
) -> None:
    for _ in range(steps):
        x, y = batch(generator, **kwargs)
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Tells -0.0 from 0.0, and one NaN from another."""
    return tensor.detach().view(torch.int64 if tensor.element_size() == 8 else torch.int32)


def assert_held(net: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks) -> None:
    for name, mask in masks.items():
        parameter = net.get_parameter(name)
        held = masks.fill[name] if isinstance(masks.fill, dict) else torch.zeros_like(parameter)
        assert torch.equal(bits(parameter)[~mask], bits(held.to(parameter))[~mask])
        for value in state_like(optimizer, parameter).values():
            assert not bits(value)[~mask].any()


@pytest.mark.parametrize("frozen", [False, True], ids=["zero", "theta_0"])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_nothing_drifts_in_a_thousand_steps(make_optimizer, frozen, generator):
    net, masks = make(generator)
    if frozen:
        masks = masks.filled({name: net.get_parameter(name).detach().clone() for name in masks})
    optimizer = make_optimizer(net.parameters())
    attach(masks, net, optimizer)
    start = copy.deepcopy(net)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    noise = [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in range(50)]
    for step in range(1000):  # gradients without backward: a thousand steps in a second
        for parameter, gradient in zip(net.parameters(), noise[step % 50], strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        scheduler.step()
    assert_held(net, optimizer, masks)
    for name, mask in masks.items():
        assert (net.get_parameter(name) != start.get_parameter(name))[mask].all()  # it did train
        assert net.get_parameter(name).isfinite().all()


def test_accumulated_gradients_are_one_step(generator):
    net, masks = make(generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    attach(masks, net, optimizer)
    twin, _ = make(torch.Generator().manual_seed(0))
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    attach(masks, twin, other)
    for _ in range(10):
        x, y = batch(generator)
        cross_entropy(twin(x), y).backward()
        for part in range(0, 16, 4):
            (cross_entropy(net(x[part : part + 4]), y[part : part + 4]) / 4).backward()
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
        assert_held(net, optimizer, masks)
    assert_close(net[0].weight, twin[0].weight)


def test_kept_entries_train_as_if_the_masked_ones_were_never_there(generator):
    """A mask over whole units is the smaller network."""
    net = mlp(6, 8, 4, generator=generator)
    small = mlp(6, 5, 4, generator=generator)
    with torch.no_grad():
        small[0].weight.copy_(net[0].weight[:5])
        small[2].weight.copy_(net[2].weight[:, :5])
    first, second = torch.zeros(8, 6, dtype=torch.bool), torch.zeros(4, 8, dtype=torch.bool)
    first[:5], second[:, :5] = True, True
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-2)
    attach(Masks({"0.weight": first, "2.weight": second}), net, optimizer)
    train(net, optimizer, torch.Generator().manual_seed(1), 50)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2, weight_decay=1e-2)
    train(small, optimizer, torch.Generator().manual_seed(1), 50)
    assert_close(net[0].weight[:5], small[0].weight)
    assert_close(net[2].weight[:, :5], small[2].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
def test_every_dtype_is_held_exactly(dtype, generator):
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(7, 5, generator=generator).to(dtype))
    mask = torch.rand(7, 5, generator=generator) < 0.5
    fill = torch.randn(7, 5, generator=generator).to(dtype)
    before = net.weight.detach().clone()
    Masks({"weight": mask}, {"weight": fill}).apply_(net)
    assert torch.equal(net.weight, torch.where(mask, before, fill))
    Masks({"weight": mask}).apply_(net)
    assert torch.equal(net.weight, torch.where(mask, before, torch.zeros_like(before)))


def test_negative_infinite_and_undefined_numbers_become_a_positive_zero(generator):
    net, _ = make(generator)
    with torch.no_grad():
        net[0].weight[0, :3] = torch.tensor([-1.0, torch.inf, torch.nan])
    masks = Masks({"0.weight": torch.zeros(8, 6, dtype=torch.bool)})
    masks.apply_(net)
    assert not bits(net[0].weight).any()


def test_a_weight_that_is_not_contiguous_is_held(generator):
    net = nn.Module()
    net.weight = nn.Parameter(
        torch.randn(3, 4, 5, 6, generator=generator).contiguous(memory_format=torch.channels_last)
    )
    net.turned = nn.Parameter(torch.randn(5, 4, generator=generator).T)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    masks = Masks(
        {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in net.named_parameters()},
        {name: p.detach().clone() for name, p in net.named_parameters()},
    )
    attach(masks, net, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (net.weight.square().sum() + net.turned.pow(3).sum()).backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter[~masks[name]], masks.fill[name][~masks[name]])
        assert (parameter != masks.fill[name])[masks[name]].all()


def test_gradients_of_masked_entries_are_left_alone(generator):
    net, masks = make(generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(masks, net, optimizer)
    train(net, optimizer, generator, 1)
    assert (net[2].weight.grad[~masks["2.weight"]] != 0).any()


def test_several_groups_and_a_parameter_without_gradient(generator):
    net, masks = make(generator)
    net.idle = nn.Linear(3, 3, bias=False)
    masks = Masks({**masks, "idle.weight": torch.eye(3, dtype=torch.bool)})
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters(), "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW([*groups, {"params": net.idle.parameters()}], lr=0.01)
    attach(masks, net, optimizer)
    for _ in range(3):
        x, y = batch(generator)
        optimizer.zero_grad()
        cross_entropy(net[2](net[1](net[0](x))), y).backward()
        optimizer.step()
    assert_held(net, optimizer, masks)


def test_mixed_precision_with_a_scaler_that_skips_steps(generator):
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    attach(masks, net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # too large at first
    for _ in range(20):
        x, y = batch(generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = 8 * cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_held(net, optimizer, masks)
    assert scaler.get_scale() < 2.0**127
    assert optimizer.state[net[0].weight]["step"] > 0


def test_a_copy_of_the_network_is_a_plain_network(generator):
    net, masks = make(generator)
    attach(masks, net, torch.optim.SGD(net.parameters(), lr=0.1))
    twin = copy.deepcopy(net)
    assert list(twin.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    train(twin, optimizer, generator)
    assert (twin[0].weight[~masks["0.weight"]] != 0).any()  # nothing holds the copy


def test_network_optimizer_and_handle_are_copied_together(generator):
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    handle = attach(masks, net, optimizer)
    train(net, optimizer, generator)
    twin, twin_optimizer, twin_handle = copy.deepcopy((net, optimizer, handle))
    train(twin, twin_optimizer, torch.Generator().manual_seed(3))
    assert_held(twin, twin_optimizer, masks)
    train(net, optimizer, torch.Generator().manual_seed(3))
    assert torch.equal(net[0].weight, twin[0].weight)
    twin_handle.remove()
    train(twin, twin_optimizer, generator)
    train(net, optimizer, generator)
    assert_held(net, optimizer, masks)
    with pytest.raises(TypeError, match="copied with what it holds"):
        copy.deepcopy(handle)


def test_state_dicts_are_loaded_beneath_the_masks(generator):
    net, masks = make(generator)
    dense = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    handle = attach(masks, net, optimizer)
    other = torch.optim.Adam(dense.parameters(), lr=0.01)
    train(dense, other, generator)
    net.load_state_dict(dense.state_dict())
    optimizer.load_state_dict(other.state_dict())
    handle.enforce()
    assert_held(net, optimizer, masks)
    train(net, optimizer, generator)
    assert_held(net, optimizer, masks)


def test_opened_entries_start_at_nothing_and_live_ones_go_on(generator):
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    handle = attach(masks, net, optimizer)
    train(net, optimizer, generator)
    weight, state = net[0].weight, optimizer.state[net[0].weight]
    before, moment = weight.detach().clone(), state["exp_avg_sq"].clone()
    old = masks["0.weight"]
    new = Masks({"0.weight": old.roll(1, 0), "2.weight": masks["2.weight"]})
    handle.masks = new
    both = old & new["0.weight"]
    assert torch.equal(weight[both], before[both])
    assert torch.equal(state["exp_avg_sq"][both], moment[both])
    assert not weight[~both].any()
    assert not state["exp_avg_sq"][~both].any()
    assert handle.masks is new
    train(net, optimizer, generator)
    assert_held(net, optimizer, new)
    assert (weight[new["0.weight"] & ~old] != 0).any()


def test_opened_entries_may_take_the_mean_second_moment(generator):
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    handle = attach(masks, net, optimizer, fill="mean")
    train(net, optimizer, generator)
    state, old = optimizer.state[net[0].weight], masks["0.weight"]
    mean = state["exp_avg_sq"][old].mean()
    handle.masks = Masks.full(net)
    assert_close(state["exp_avg_sq"][~old], mean.expand(int((~old).sum())))
    assert not state["exp_avg"][~old].any()


def test_adams_first_step_at_an_opened_entry(generator):
    """m = (1 - b1) g, v = (1 - b2) g^2 and a bias correction that is over: (1 - b1) / sqrt(1 - b2) = 3.16 rates."""
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    handle = attach(masks, net, optimizer)
    for state in optimizer.state.values():
        state["step"].fill_(1e6)
    train(net, optimizer, generator, 1)
    for state in optimizer.state.values():
        state["step"].fill_(1e6)
    handle.masks = Masks.full(net)
    train(net, optimizer, generator, 1)
    moved = net[2].weight[~masks["2.weight"]].abs()
    assert_close(moved, torch.full_like(moved, 1e-4 * 0.1 / 0.001**0.5), rtol=1e-2, atol=0)


def test_restored_masks_open_nothing_anew(generator):
    net, masks = make(generator)
    handle = attach(masks, net, torch.optim.SGD(net.parameters(), lr=0.1))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    handle.restore(Masks.full(net))
    assert (net[0].weight == 2).all()


def test_masks_of_a_network_after_surgery_are_asked_for(generator):
    net, masks = make(generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(masks, net, optimizer)
    net[0].weight = nn.Parameter(net[0].weight[:4].detach().clone())
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(4, 6\) now, its mask \(8, 6\)"):
        handle.enforce()


def test_what_cannot_be_enforced_is_refused_by_name(generator):
    net, masks = make(generator)
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer does not hold '2.weight'"):
        attach(masks, net, optimizer)
    with pytest.raises(ValueError, match="no parameter 'body'"):
        attach(Masks({"body": torch.ones(2, 2, dtype=torch.bool)}), net, optimizer)
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(8, 6\), its mask \(6, 8\)"):
        attach(Masks({"0.weight": torch.ones(6, 8, dtype=torch.bool)}), net, optimizer)
    with pytest.raises(TypeError, match=r"boolean, got torch.float32"):
        Masks({"0.weight": torch.ones(8, 6)})
    with pytest.raises(ValueError, match="fill must be 0"):
        Masks(masks, 1.0)
    with pytest.raises(ValueError, match=r"fill lacks '2.weight'"):
        masks.filled({"0.weight": torch.zeros(8, 6)})
    with pytest.raises(ValueError, match="fill has shape"):
        masks.filled({"0.weight": torch.zeros(8, 6), "2.weight": torch.zeros(8, 4)})
    net.tied = net[0]
    tied = Masks({"0.weight": masks["0.weight"], "tied.weight": masks["0.weight"]})
    with pytest.raises(ValueError, match="are one parameter"):
        attach(tied, net, optimizer)
    for before, after in zip(net.parameters(), make(torch.Generator().manual_seed(0))[0].parameters(), strict=True):
        assert torch.equal(before, after)  # nothing was done before it was refused


def test_what_is_counted_as_prunable():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.pos_embedding = nn.Parameter(torch.zeros(1, 3, 4))
            self.kernel = nn.Parameter(torch.zeros(4, 4))
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.lookup = nn.Embedding(9, 4)
            self.norm = nn.LayerNorm((3, 4))
            self.gru = nn.GRU(4, 3)
            self.readout = nn.Linear(4, 9, bias=False)
            self.readout.weight = self.lookup.weight

    attention = ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert prunable_parameters(Odd()) == ["kernel", *attention, "gru.weight_ih_l0", "gru.weight_hh_l0"]
    conv = small_conv((1, 8, 8), 10)
    assert prunable_parameters(conv) == ["0.weight", "3.weight", "8.weight"]
    assert prunable_parameters(conv, ["8.weight", "0.bias"]) == ["0.bias", "8.weight"]
    assert prunable_parameters(conv, lambda name, parameter: parameter.ndim == 4) == ["0.weight", "3.weight"]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert prunable_parameters(normed) == ["parametrizations.weight.original1"]  # directions, not lengths
    with pytest.raises(ValueError, match="include names 'nine'"):
        prunable_parameters(conv, ["nine"])


def test_masks_are_a_mapping_with_an_algebra(generator):
    net, masks = make(generator)
    full = Masks.full(net)
    assert list(masks) == ["0.weight", "2.weight"]
    assert full.density() == 1
    assert masks.total() == 80
    assert masks.kept() == sum(int(mask.sum()) for mask in masks.values())
    assert masks.density() == masks.kept() / 80
    assert masks.densities() == {name: float(mask.double().mean()) for name, mask in masks.items()}
    assert (masks | ~masks) == full
    assert (masks & ~masks).kept() == 0
    assert ~~masks == masks
    assert masks != full
    assert Masks({}).density() == 1
    with pytest.raises(ValueError, match="other parameters"):
        masks & Masks({"0.weight": masks["0.weight"]})
    with pytest.raises(ValueError, match="different fills"):
        masks & masks.filled({name: torch.zeros(mask.shape) for name, mask in masks.items()})


@pytest.mark.parametrize("frozen", [False, True])
def test_masks_are_the_same_after_saving(frozen, generator, tmp_path):
    net, masks = make(generator)
    masks = Masks({name: masks[name] for name in reversed(list(masks))})
    if frozen:
        masks = masks.filled({name: net.get_parameter(name) for name in masks})
    masks.save(tmp_path / "masks.safetensors")
    loaded = Masks.load(tmp_path / "masks.safetensors")
    assert loaded == masks
    assert list(loaded) == ["2.weight", "0.weight"]
    assert [file.name for file in tmp_path.iterdir()] == ["masks.safetensors"]


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no masks"):
        Masks.load(tmp_path / "weights.safetensors")


def test_an_optimizer_forgets_what_is_masked_once(generator):
    net, masks = make(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    train(net, optimizer, generator)
    masks.apply_optimizer_(net, optimizer, "mean")
    state, mask = optimizer.state[net[0].weight], masks["0.weight"]
    assert not state["exp_avg"][~mask].any()
    assert_close(state["exp_avg_sq"][~mask], state["exp_avg_sq"][mask].mean().expand(int((~mask).sum())))
    assert float(state["step"]) == 5
