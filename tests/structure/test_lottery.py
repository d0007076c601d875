"""Tickets: exact counts, exact rewinding, zeros that stay, and distances with closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp
from neuropil.structure.criteria import SNIP, Random
from neuropil.structure.lottery import distances, find_ticket, stability
from neuropil.structure.masks import Masks

X = torch.randn(120, 8, generator=torch.Generator().manual_seed(5))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


def make(seed):
    hidden = mlp(8, 20, 12, generator=torch.Generator().manual_seed(seed))
    return nn.Sequential(
        *hidden, nn.BatchNorm1d(12), nn.ReLU(), mlp(12, 4, generator=torch.Generator().manual_seed(seed))
    )


def train_with(optimizer):
    def train(net, first, last, seed):
        steps = optimizer(net.parameters())
        order = torch.Generator().manual_seed(seed)
        batches = [torch.randint(len(X), (30,), generator=order) for _ in range(last)]
        net.train()
        for chosen in batches[first:]:
            steps.zero_grad()
            cross_entropy(net(X[chosen]), Y[chosen]).backward()
            steps.step()

    return train


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
}
ADAM = train_with(OPTIMIZERS["adam"])
TOTAL = 8 * 20 + 20 * 12 + 12 * 4


def ticket_of(**changes):
    options = {"rewind": 5, "total": 30, "rounds": 3, "seed": 2} | changes
    return find_ticket(make, options.pop("train", ADAM), **options)


def test_every_round_takes_its_fraction_of_the_survivors_and_the_smallest_go_first():
    ticket = ticket_of(rounds=1, evaluate=lambda net: float(net.training))
    dense = ticket.dense().trained(ADAM)
    assert ticket.masks.kept() == round(0.8 * TOTAL)
    kept = torch.cat([dense.get_parameter(name)[mask].abs() for name, mask in ticket.masks.items()])
    gone = torch.cat([dense.get_parameter(name)[~mask].abs() for name, mask in ticket.masks.items()])
    assert kept.min() >= gone.max()
    assert ticket.history.to_dict("records") == [{"round": 0, "density": 1.0, "accuracy": 1.0}]


def test_counts_over_rounds_are_exact_and_masks_are_nested():
    tickets = [ticket_of(rounds=rounds) for rounds in (1, 2, 3)]
    left = TOTAL
    for ticket in tickets:
        left = round(0.8 * left)
        assert ticket.masks.kept() == left
    assert list(tickets[2].history["density"]) == [1.0, *(ticket.masks.density() for ticket in tickets[:2])]
    for larger, smaller in pairwise(tickets):
        assert all(not bool((smaller.masks[name] & ~larger.masks[name]).any()) for name in smaller.masks)


def test_the_layer_rule_has_its_own_fractions():
    ticket = ticket_of(scope="layer", per_layer_fraction={"5.0.weight": 0.1, "0.weight": 0.0})
    sizes = {name: mask.numel() for name, mask in ticket.masks.items()}
    left = dict(sizes)
    for _ in range(3):
        left = {name: round((1 - {"5.0.weight": 0.1, "0.weight": 0.0}.get(name, 0.2)) * left[name]) for name in left}
    assert {name: int(mask.sum()) for name, mask in ticket.masks.items()} == left
    assert left["0.weight"] == sizes["0.weight"]


def test_the_weights_to_start_from_are_those_of_step_k_bit_for_bit():
    ticket = ticket_of()
    net = make(2)
    ADAM(net, 0, 5, 2)
    made = ticket.make()
    for name, value in net.state_dict().items():
        mask = ticket.masks.get(name)
        expected = value if mask is None else torch.where(mask, value, torch.zeros(()))
        assert torch.equal(made.state_dict()[name], expected)
    assert int(made.get_buffer("3.num_batches_tracked")) == 5
    assert all(
        torch.equal(ticket_of(rewind=0).rewind_state[name], value) for name, value in make(2).state_dict().items()
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_stay_zero_under_an_optimizer_that_knows_of_no_mask(name):
    train = train_with(OPTIMIZERS[name])
    ticket = ticket_of(train=train)
    net = ticket.trained(train)
    for key, mask in ticket.masks.items():
        weight = net.get_parameter(key)
        assert not bool(weight[~mask].any())
        assert not torch.equal(weight[mask], ticket.make().get_parameter(key)[mask])


def test_training_is_the_same_again_and_the_full_mask_is_the_dense_net():
    ticket = ticket_of()
    table = distances(ticket.trained(ADAM), ticket.trained(ADAM, 2), ticket.masks)
    assert (table["l2"] == 0).all()
    assert (table["angle"] == 0).all()
    dense, plain = ticket.dense().trained(ADAM), make(2)
    ADAM(plain, 0, 5, 2)
    ADAM(plain, 5, 30, 2)  # a new optimizer at step k, as in every round
    assert all(torch.equal(dense.state_dict()[name], value) for name, value in plain.state_dict().items())
    assert ticket.dense().masks.density() == 1


def test_controls_share_what_they_should():
    ticket = ticket_of()
    state = torch.random.get_rng_state()
    fresh, mixed = ticket.random_reinit(9), ticket.shuffled(9)
    assert torch.equal(state, torch.random.get_rng_state())
    assert fresh.masks == ticket.masks
    assert (fresh.rewind, mixed.rewind) == (0, 5)
    assert all(torch.equal(fresh.rewind_state[name], value) for name, value in make(9).state_dict().items())
    assert mixed.masks != ticket.masks
    assert mixed.masks.densities() == ticket.masks.densities()
    assert mixed.rewind_state is ticket.rewind_state
    assert ticket.shuffled(9).masks == mixed.masks != ticket.shuffled(8).masks


def test_distances_have_closed_forms():
    first, second = nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        first[0].weight.copy_(torch.tensor([[3.0, 0.0]]))
        second[0].weight.copy_(torch.tensor([[0.0, 4.0]]))
    table = distances(first, second, Masks.full(first))
    for row in table.to_dict("records"):
        assert row == {"layer": row["layer"], "l2": 5.0, "angle": pytest.approx(90.0), "norm": 3.0, "other_norm": 4.0}
    half = distances(first, second, Masks({"0.weight": torch.tensor([[True, False]])}))
    assert half["l2"].tolist() == [3.0, 3.0]
    assert all(math.isnan(angle) for angle in half["angle"])


def test_stability_compares_the_trainings_that_it_names():
    ticket = ticket_of()
    found = stability(ticket, ADAM, (2, 7))
    dense, first, second = ticket.dense().trained(ADAM, 2), ticket.trained(ADAM, 2), ticket.trained(ADAM, 7)
    assert found.to_pruning.equals(distances(dense, first, ticket.masks))
    assert found.to_order.equals(distances(first, second, ticket.masks))
    layers, total = found.to_order["l2"].to_numpy()[:-1], found.to_order["l2"].to_numpy()[-1]
    assert total == pytest.approx((layers**2).sum() ** 0.5)


def test_other_criteria_can_be_had():
    assert ticket_of(criterion=Random(), rounds=1).masks.kept() == round(0.8 * TOTAL)
    assert ticket_of(criterion=SNIP(), batches=[(X, Y)], loss_fn=cross_entropy, rounds=1).masks.kept() == round(
        0.8 * TOTAL
    )
    with pytest.raises(ValueError, match="needs a loss"):
        ticket_of(criterion=SNIP())


def test_training_that_moves_masked_weights_is_refused():
    def cheat(net, first, last, seed):
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(1.0)

    with pytest.raises(ValueError, match=r"train moved \d+ masked entries of"):
        ticket_of(train=cheat)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewind": 30}, "rewind must be at least 0 and less than total, got 30 of 30"),
        ({"rewind": -1}, "rewind must be"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"fraction": 1.0}, r"fraction must be in \(0, 1\)"),
        ({"per_layer_fraction": {"0.weight": 0.1}}, 'needs scope "layer"'),
        ({"scope": "layer", "per_layer_fraction": {"0.bias": 0.1}}, "names '0.bias'; prunable are 0.weight"),
        ({"scope": "layer", "per_layer_fraction": {"0.weight": 1.0}}, "per_layer_fraction of '0.weight' must be"),
        ({"scope": "layer", "fraction": 0.999, "rounds": 1}, "Another round would leave nothing of"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ticket_of(**changes)
