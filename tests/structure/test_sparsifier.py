"""Exact counts at every event, nothing alive that is masked, and runs that can be taken up again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp
from neuropil.structure.criteria import SNIP, HessianDiagonal, Magnitude, Random, SynFlow, TaylorFirst
from neuropil.structure.growth import GradientGrowth, MomentumGrowth, RandomGrowth
from neuropil.structure.masks import Masks
from neuropil.structure.optimizers import state_like
from neuropil.structure.schedules import Constant, CosineDecay, Cubic, Iterative, OneShot
from neuropil.structure.sparsifier import Sparsifier, gmp, granet, rigl, set_

TOTAL = 12 * 20 + 20 * 5  # weights of the net


def make(seed: int = 0) -> nn.Sequential:
    return mlp(12, 20, 5, generator=torch.Generator().manual_seed(seed))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def train(net, optimizer, sparsifier, steps, generator):
    for _ in range(steps):
        x, y = torch.randn(8, 12, generator=generator), torch.randint(5, (8,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
        sparsifier.step()
        yield sparsifier


def assert_held(sparsifier: Sparsifier) -> None:
    for name, mask in sparsifier.masks.items():
        parameter = sparsifier.net.get_parameter(name)
        assert not parameter[~mask].any()
        for value in state_like(sparsifier.optimizer, parameter).values():
            assert not value[~mask].any()


def test_granet_has_exact_counts_at_every_event(generator):
    net = make()
    optimizer = sgd(net)
    keep = granet(net, optimizer, 200, 0.1, every=20)
    assert keep.masks.kept() == round(0.5 * TOTAL)
    for _ in train(net, optimizer, keep, 200, generator):
        assert_held(keep)
    assert [event.step for event in keep.history] == list(range(20, 201, 20))
    schedule = Cubic(0, 100, 0.5, 0.1)
    for event in keep.history:
        wanted = round(schedule.density(event.step) * TOTAL)
        assert round(event.density * TOTAL) == wanted
        assert sum(round(d * n) for d, n in zip(event.per_layer.values(), (240, 100), strict=True)) == wanted
        assert (event.pruned > 0) == (event.step <= 100)
    assert sum(event.pruned for event in keep.history) == round(0.5 * TOTAL) - round(0.1 * TOTAL)
    assert keep.history[5].grown > 0
    layers = [event.per_layer for event in keep.history[4:]]
    assert all(layer == layers[0] for layer in layers)  # regrowth changes no layer's count


@pytest.mark.parametrize("method", [rigl, set_], ids=["RigL", "SET"])
def test_one_density_throughout(method, generator):
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    keep = method(net, optimizer, 120, 0.1, every=10)
    first = keep.masks
    for _ in train(net, optimizer, keep, 120, generator):
        assert_held(keep)
    assert keep.masks.densities() == first.densities()
    assert keep.masks != first
    grown = [event.grown for event in keep.history]
    assert all(event.pruned == 0 for event in keep.history)
    assert grown[0] > 0
    if method is rigl:
        assert not any(grown[8:])  # nothing is exchanged in the last quarter
    else:
        assert grown[-1] > 0


def test_gradual_pruning_never_reopens(generator):
    net = make()
    optimizer = sgd(net)
    keep = gmp(net, optimizer, 100, 0.2, every=10)
    assert keep.density() == 1
    before = keep.masks
    for _ in train(net, optimizer, keep, 100, generator):
        assert (keep.masks & ~before).kept() == 0
        before = keep.masks
    assert keep.masks.kept() == round(0.2 * TOTAL)
    assert all(event.grown == 0 for event in keep.history)


def test_growth_opens_the_steepest_closed_entries_at_zero(generator):
    net = make()
    optimizer = sgd(net)
    keep = Sparsifier(net, optimizer, schedule=Constant(0.2), grow=GradientGrowth(), regrow_fraction=0.3, every=4)
    list(train(net, optimizer, keep, 3, generator))
    before = keep.masks
    weights = {name: net.get_parameter(name).detach().clone() for name in before}
    list(train(net, optimizer, keep, 1, generator))
    name = "0.weight"
    opened = keep.masks[name] & ~before[name]
    assert opened.any()
    gradient, weight = net.get_parameter(name).grad.abs(), net.get_parameter(name)
    assert gradient[opened].min() >= gradient[~keep.masks[name]].max()
    assert not weight[opened].any()
    assert not optimizer.state[weight]["momentum_buffer"][opened].any()
    stayed = keep.masks[name] & before[name]
    assert (weight[stayed] != 0).all()
    assert not torch.equal(weights[name], weight)


def test_a_dense_start_and_given_masks(generator):
    net = make()
    keep = Sparsifier(net, sgd(net), schedule=Constant(0.2), init="dense")
    assert keep.density() == 1
    masks = Masks({name: torch.rand(keep.masks[name].shape, generator=generator) < 0.4 for name in keep.masks})
    net = make()
    keep = Sparsifier(net, sgd(net), schedule=Constant(0.2), init=masks)
    assert keep.masks == masks
    assert not net[0].weight[~masks["0.weight"]].any()
    with pytest.raises(ValueError, match=r"init has masks of 0.weight, wanted"):
        Sparsifier(net, sgd(net), schedule=Constant(0.2), init=Masks({"0.weight": masks["0.weight"]}))


def test_uniform_and_erk_starts():
    net = make()
    uniform = Sparsifier(net, sgd(net), schedule=Constant(0.2), init="uniform").masks.densities()
    assert uniform == pytest.approx({"0.weight": 0.2, "2.weight": 0.2})
    net = make()
    erk = Sparsifier(net, sgd(net), schedule=Constant(0.2)).masks.densities()
    factor = 0.2 * TOTAL / (32 + 25)
    assert erk == pytest.approx({"0.weight": factor * 32 / 240, "2.weight": factor * 25 / 100}, abs=0.01)


def test_the_same_seed_gives_the_same_places():
    first, second, third = (
        Sparsifier(net, sgd(net), schedule=Constant(0.2), generator=torch.Generator().manual_seed(seed)).masks
        for seed, net in ((1, make()), (1, make()), (2, make()))
    )
    assert first == second
    assert first != third


GROWTHS = {
    "gradient": GradientGrowth,
    "momentum": MomentumGrowth,
    "random": lambda: RandomGrowth(torch.Generator().manual_seed(4)),
}


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_a_run_that_was_interrupted_goes_on_bit_by_bit(growth, tmp_path):
    def start():
        net = make()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        decay = CosineDecay(0.5, 0.005, 100)
        schedule = Cubic(0, 60, 0.5, 0.1)
        keep = Sparsifier(net, optimizer, schedule=schedule, grow=growth(), regrow_fraction=decay, every=10)
        return net, optimizer, keep

    whole = start()
    generator = torch.Generator().manual_seed(7)
    list(train(*whole, 100, generator))
    first = start()
    generator = torch.Generator().manual_seed(7)
    list(train(*first, 45, generator))
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    second = start()
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    list(train(*second, 55, generator))
    assert second[2].history == whole[2].history
    assert second[2].masks == whole[2].masks
    for mine, theirs in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_random_criterion_goes_on_too():
    net = make()
    keep = Sparsifier(net, sgd(net), schedule=Iterative(0.2, every=1), criterion=Random())
    keep.step()
    state = keep.state_dict()
    keep.step()
    other = make()
    again = Sparsifier(other, sgd(other), schedule=Iterative(0.2, every=1), criterion=Random())
    again.load_state_dict(state)
    again.step()
    assert again.masks == keep.masks


def test_a_state_of_other_parameters_is_refused():
    net, other = make(), mlp(12, 5, generator=torch.Generator().manual_seed(0))
    state = Sparsifier(other, sgd(other), schedule=Constant(0.2)).state_dict()
    with pytest.raises(ValueError, match=r"The state has masks of 0.weight, wanted 0.weight, 2.weight"):
        Sparsifier(net, sgd(net), schedule=Constant(0.2)).load_state_dict(state)


@pytest.mark.parametrize(
    "criterion", [Magnitude(), SNIP(), TaylorFirst("signed"), SynFlow(), HessianDiagonal("fisher")]
)
def test_every_kind_of_criterion_gets_what_it_needs(criterion, generator):
    net = make()
    optimizer = sgd(net)
    look = [(torch.randn(8, 12, generator=generator), torch.randint(5, (8,), generator=generator))]
    options = {"batches": lambda: look, "loss_fn": cross_entropy} if criterion.needs in ("outputs", "curvature") else {}
    keep = Sparsifier(net, optimizer, schedule=OneShot(3, 0.25), criterion=criterion, **options)
    list(train(net, optimizer, keep, 5, generator))
    assert keep.density() == 0.25
    assert [event.step for event in keep.history] == [3]
    if options:
        with pytest.raises(ValueError, match=r"needs batches: give batches and loss_fn"):
            Sparsifier(net, optimizer, schedule=OneShot(3, 0.25), criterion=criterion)


def test_other_shares_between_layers(generator):
    net = make()
    optimizer = sgd(net)
    keep = gmp(net, optimizer, 40, 0.1, every=10, scope="layer")
    list(train(net, optimizer, keep, 40, generator))
    assert keep.masks.densities() == pytest.approx({"0.weight": 0.1, "2.weight": 0.1})
    net = make()
    optimizer = sgd(net)
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    keep = gmp(net, optimizer, 20, 0.1, every=10, min_per_layer=9)
    list(train(net, optimizer, keep, 20, generator))
    assert {name: int(mask.sum()) for name, mask in keep.masks.items()} == {"0.weight": 9, "2.weight": 25}


def test_frozen_rather_than_pruned(generator):
    net = make()
    theta = {name: net.get_parameter(name).detach().clone() for name in ("0.weight", "2.weight")}
    masks = Masks({name: torch.rand(value.shape, generator=generator) < 0.5 for name, value in theta.items()}, theta)
    optimizer = sgd(net)
    keep = Sparsifier(
        net, optimizer, schedule=Cubic(0, 20, 0.5, 0.1), init=masks, grow=GradientGrowth(), regrow_fraction=0.2, every=5
    )
    list(train(net, optimizer, keep, 30, generator))
    for name, mask in keep.masks.items():
        assert torch.equal(net.get_parameter(name)[~mask], theta[name][~mask])


def test_a_step_without_a_gradient_is_refused_by_name():
    net = make()
    keep = rigl(net, sgd(net), 10, 0.2, every=2)
    keep.step()
    with pytest.raises(ValueError, match=r"'0.weight' has no gradient. Step after loss.backward\(\)"):
        keep.step()
    net = make()
    keep = Sparsifier(net, sgd(net), schedule=OneShot(1, 0.5), criterion=SNIP())
    with pytest.raises(ValueError, match=r"SNIP\(\) needs a gradient of '0.weight'"):
        keep.step()


def test_undefined_weights_and_gradients_are_refused_by_name(generator):
    net = make()
    optimizer = sgd(net)
    keep = rigl(net, optimizer, 10, 0.2, every=2)
    list(train(net, optimizer, keep, 1, generator))
    net[2].weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"gradient of '2.weight' is NaN at 1 of 100"):
        keep.step()
    net = make()
    keep = gmp(net, sgd(net), 10, 0.2, every=2)
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    keep.step()
    with pytest.raises(ValueError, match=r"Magnitude gave NaN for 1 of 100 entries of '2.weight'"):
        keep.step()


def test_bad_arguments_are_named():
    net = make()
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        granet(net, sgd(net), 100, 0.1, every=0)
    with pytest.raises(ValueError, match=r"final must be in \(0, 1\], got 0"):
        granet(net, sgd(net), 100, 0.0)
    with pytest.raises(ValueError, match=r"initial must be at least final, got 0.1 and 0.5"):
        granet(net, sgd(net), 100, 0.5, initial=0.1)
    with pytest.raises(ValueError, match="no event in 100 steps: every is 1000"):
        granet(net, sgd(net), 100, 0.1)
    with pytest.raises(ValueError, match=r"optimizer does not hold '0.weight'"):
        gmp(net, torch.optim.SGD(net[2].parameters(), lr=0.1), 100, 0.1, every=10)
    with pytest.raises(ValueError, match="no parameters to make sparse"):
        gmp(nn.LayerNorm(3), torch.optim.SGD(nn.LayerNorm(3).parameters(), lr=0.1), 100, 0.1, every=10)


def test_only_what_is_included_is_counted(generator):
    net = make()
    optimizer = sgd(net)
    keep = gmp(net, optimizer, 20, 0.1, every=10, include=["2.weight"])
    list(train(net, optimizer, keep, 20, generator))
    assert keep.masks.kept() == 10
    assert (net[0].weight != 0).all()


def test_removed_it_enforces_nothing(generator):
    net = make()
    optimizer = sgd(net)
    keep = gmp(net, optimizer, 20, 0.1, every=10)
    list(train(net, optimizer, keep, 20, generator))
    keep.remove()
    twin = copy.deepcopy(keep.masks["0.weight"])
    list(train(net, optimizer, keep, 3, generator))
    assert net[0].weight[~twin].any()


def test_network_optimizer_and_sparsifier_are_copied_together():
    net = make()
    optimizer = sgd(net)
    keep = granet(net, optimizer, 40, 0.2, every=5)
    list(train(net, optimizer, keep, 12, torch.Generator().manual_seed(1)))
    twin, twin_optimizer, twin_keep = copy.deepcopy((net, optimizer, keep))
    list(train(net, optimizer, keep, 28, torch.Generator().manual_seed(2)))
    list(train(twin, twin_optimizer, twin_keep, 28, torch.Generator().manual_seed(2)))
    assert twin_keep.net is twin
    assert_held(twin_keep)
    assert twin_keep.history == keep.history
    assert torch.equal(net[0].weight, twin[0].weight)
