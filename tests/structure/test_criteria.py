"""Criteria equal their closed forms, leave the network alone, and refuse what they cannot score."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.testing import assert_close

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.criteria import (
    SNIP,
    Criterion,
    Gradient,
    HessianDiagonal,
    Magnitude,
    Random,
    SynFlow,
    TaylorFirst,
)

EVERY = [
    Magnitude(),
    Gradient(),
    SNIP(),
    SNIP("before"),
    TaylorFirst("signed"),
    TaylorFirst("absolute"),
    TaylorFirst("square"),
    HessianDiagonal(),
    HessianDiagonal("fisher"),
    SynFlow(),
    Random(),
]
LABELS = [f"{type(criterion).__name__}-{place}" for place, criterion in enumerate(EVERY)]
NAMES = ["0.weight", "2.weight"]


@pytest.fixture
def net(generator):
    return mlp(6, 8, 4, activation=nn.Tanh, generator=generator).double()


@pytest.fixture
def batches(generator):
    def one(size):
        return (
            torch.randn(size, 6, generator=generator, dtype=torch.float64),
            torch.randint(4, (size,), generator=generator),
        )

    return [one(12), one(5)]


def gradients(net, batches, names=NAMES):
    loss = cross_entropy(net(batches[0]), batches[1])
    return dict(zip(names, torch.autograd.grad(loss, [net.get_parameter(name) for name in names]), strict=True))


def everything(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_magnitude_and_gradient(net, batches):
    assert_close(Magnitude()(net)["2.weight"], net[2].weight.abs())
    expected = gradients(net, everything(batches))
    assert_close(Gradient()(net, batches, cross_entropy), {name: g.abs() for name, g in expected.items()})


def test_snip_takes_the_magnitude_after_or_before_the_mean(net, batches):
    whole = gradients(net, everything(batches))
    parts = [gradients(net, batch) for batch in batches]
    for name in NAMES:
        weight = net.get_parameter(name)
        assert_close(SNIP()(net, batches, cross_entropy)[name], (weight * whole[name]).abs())
        before = (12 * (weight * parts[0][name]).abs() + 5 * (weight * parts[1][name]).abs()) / 17
        assert_close(SNIP("before")(net, batches, cross_entropy)[name], before)
        assert (before >= (weight * whole[name]).abs() - 1e-12).all()


def test_taylor_is_the_first_order_rise_when_a_weight_goes(net, batches):
    small = 1e-6
    with torch.no_grad():
        net[2].weight[1, 3] = small
    x, y = everything(batches)
    loss = cross_entropy(net(x), y)
    score = TaylorFirst("signed")(net, batches, cross_entropy)["2.weight"][1, 3]
    with torch.no_grad():
        net[2].weight[1, 3] = 0
    assert_close(score, (cross_entropy(net(x), y) - loss).detach(), rtol=1e-3, atol=0)
    signed, absolute = (TaylorFirst(form)(net, batches[:1], cross_entropy) for form in ("signed", "absolute"))
    square = TaylorFirst("square")(net, batches[:1], cross_entropy)
    assert_close(signed["0.weight"].abs(), absolute["0.weight"])
    assert_close(signed["0.weight"].square(), square["0.weight"])


def test_second_order_scores_are_exact_for_a_quadratic_loss(generator):
    """Least squares in one layer: removing w changes the loss by -w g + h w^2 / 2 exactly, if inputs are orthogonal."""
    net = mlp(4, 3, generator=generator).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    score = HessianDiagonal(samples=1, first_order=True)(net, [(x, y)], mse_loss)["0.weight"]
    loss = mse_loss(net(x), y).item()
    for row in range(3):
        for column in range(4):
            cut = copy.deepcopy(net)
            with torch.no_grad():
                cut[0].weight[row, column] = 0
            assert score[row, column].item() == pytest.approx(mse_loss(cut(x), y).item() - loss, abs=1e-12)


def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_of_one_sample(net, batches):
    score = HessianDiagonal("fisher")(net, batches, cross_entropy)
    x, y = everything(batches)
    each = [gradients(net, (x[place : place + 1], y[place : place + 1])) for place in range(17)]
    for name in NAMES:
        fisher = torch.stack([gradient[name].square() for gradient in each]).mean(0)
        assert_close(score[name], fisher * net.get_parameter(name).detach().square() / 2)


def test_hutchinson_comes_near_the_diagonal(net, batches):
    x, y = everything(batches)
    weight = net[2].weight.detach()
    loss = lambda w: cross_entropy(net[1](net[0](x)) @ w.T + net[2].bias, y)  # noqa: E731
    exact = torch.func.hessian(loss)(weight).reshape(32, 32).diagonal().view(4, 8)
    score = HessianDiagonal(samples=400)(net, batches, cross_entropy)["2.weight"]
    assert_close(score, exact * weight.square() / 2, rtol=0.5, atol=2e-3)


def test_flow_is_conserved_through_layers_without_biases(generator):
    """In a homogeneous net the scores of every layer sum to R itself."""
    net = mlp(6, 8, 7, 4, generator=generator)
    for layer in (net[0], net[2], net[4]):
        layer.bias = None
    scores = SynFlow()(net, [(torch.randn(3, 6, generator=generator), None)])
    flow = torch.ones(1, 6, dtype=torch.float64)
    for layer in (net[0], net[2], net[4]):
        flow = flow @ layer.weight.double().abs().T
    for score in scores.values():
        assert score.dtype == torch.float64
        assert_close(score.sum(), flow.sum())


def test_flow_is_of_paths_not_of_signs_norms_or_data(generator):
    net = small_conv((1, 8, 8), 10, generator=generator)
    x = torch.randn(5, 1, 8, 8, generator=generator)
    scores = SynFlow()(net, [(x, None)])
    with torch.no_grad():
        net[0].weight.neg_()
        net[1].running_var.fill_(100.0)
        net[1].weight.fill_(7.0)
    again = SynFlow()(net.eval(), [(x * 100 + 3, None)])
    assert_close(scores, again)
    deep = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(60)])
    with torch.no_grad():
        for layer in deep:
            layer.weight.fill_(100.0)
    many = SynFlow()(deep, [(torch.zeros(1, 4), None)])["59.weight"]
    assert many.isfinite().all()
    assert many.sum() > 1e140  # beyond float32
    with torch.no_grad():
        deep[0].weight.fill_(1e38)
        deep[1].weight.fill_(1e38)
        for layer in deep:
            layer.weight.mul_(1e5)
    with pytest.raises(ValueError, match="SynFlow: the flow through the network is inf"):
        SynFlow()(deep, [(torch.zeros(1, 4), None)])


class Forked(nn.Module):
    """Named inputs, dropout, batch norm, an unused weight and a frozen one."""

    def __init__(self, generator):
        super().__init__()
        self.first = mlp(6, 8, generator=generator)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = mlp(8, 4, generator=generator)
        self.last[0].weight.requires_grad_(False)
        self.idle = mlp(3, 3, generator=generator)

    def forward(self, a, b):
        return self.last(self.drop(torch.tanh(self.norm(self.first(a + b)))))


@pytest.mark.parametrize("criterion", EVERY, ids=LABELS)
def test_the_network_is_left_as_it_was(criterion, generator):
    net = Forked(generator)
    x, y = torch.randn(2, 9, 6, generator=generator), torch.randint(4, (9,), generator=generator)
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    for inputs in ({"a": x[0], "b": x[1]}, (x[0], x[1])):
        scores = criterion(net, [(inputs, y)], cross_entropy)
    assert list(scores) == ["first.0.weight", "last.0.weight", "idle.0.weight"]
    for name, score in scores.items():
        assert score.shape == net.get_parameter(name).shape
        assert score.dtype in (torch.float32, torch.float64)
        assert not score.requires_grad
        assert score.isfinite().all()
    if not isinstance(criterion, Magnitude | Random):
        assert not scores["idle.0.weight"].any()
        assert scores["last.0.weight"].any()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.last[0].weight.requires_grad


# Magnitude and the Hessian's diagonal look at weights in their own precision.
@pytest.mark.parametrize("criterion", [c for c in EVERY if not isinstance(c, HessianDiagonal | Magnitude)], ids=repr)
def test_half_precision_gives_full_precision_scores(criterion, generator):
    net = mlp(6, 8, 4, generator=generator).bfloat16()
    x, y = torch.randn(9, 6, generator=generator).bfloat16(), torch.randint(4, (9,), generator=generator)
    for score in criterion(net, [(x, y), (x, y)], cross_entropy).values():
        assert score.dtype in (torch.float32, torch.float64)


# Random does not look at weights, SynFlow refuses them itself (tested apart).
@pytest.mark.parametrize("criterion", [c for c in EVERY if not isinstance(c, Random | SynFlow)], ids=repr)
def test_undefined_scores_are_refused_by_criterion_and_parameter(criterion, net, batches):
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"{type(criterion).__name__} gave NaN .*of '\d.weight'"):
        criterion(net, batches, cross_entropy)


@pytest.mark.parametrize("criterion", [c for c in EVERY if c.needs in ("gradient", "curvature")], ids=repr)
def test_missing_batches_and_losses_are_named(criterion, net, batches):
    with pytest.raises(ValueError, match=rf"{type(criterion).__name__}.* needs batches"):
        criterion(net, [], cross_entropy)
    with pytest.raises(ValueError, match=rf"{type(criterion).__name__}.* needs a loss"):
        criterion(net, batches)
    with pytest.raises(ValueError, match="no parameter 'body'"):
        criterion(net, batches, cross_entropy, ["body"])


def test_one_pair_is_one_batch(net, batches):
    pair = Gradient()(net, batches[0], cross_entropy)
    assert_close(pair, Gradient()(net, [batches[0]], cross_entropy))


def test_scores_from_a_gradient_that_is_there(net, batches):
    cross_entropy(net(batches[0][0]), batches[0][1]).backward()
    weights = {name: net.get_parameter(name) for name in NAMES}
    given = {name: weight.grad for name, weight in weights.items()}
    for criterion in EVERY:
        if criterion.needs == "gradient":
            assert_close(criterion.from_gradients(weights, given), criterion(net, batches[:1], cross_entropy))
    with pytest.raises(TypeError, match=r"SynFlow needs outputs: a gradient will not do"):
        SynFlow().from_gradients(weights, given)


def test_draws_are_those_of_the_generator(net):
    first, second = (Random(torch.Generator().manual_seed(5))(net) for _ in range(2))
    assert_close(first, second)
    assert not torch.equal(first["0.weight"], Random(torch.Generator().manual_seed(6))(net)["0.weight"])


def test_inputs_that_cannot_be_ones(net):
    with pytest.raises(TypeError, match=r"must be floating-point, got torch.int64"):
        SynFlow()(net, [(torch.zeros(2, 6, dtype=torch.int64), None)])
    with pytest.raises(ValueError, match="one batch"):
        SynFlow()(net, [])


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="samples must be at least 1"):
        HessianDiagonal(samples=0)


def test_a_criterion_of_ones_own_is_checked(net):
    class Partial(Criterion):
        def scores(self, net, batches, loss_fn, names):
            return {names[0]: torch.ones(2)}

    with pytest.raises(ValueError, match=r"Partial gave scores of shape \(2,\) for '0.weight'"):
        Partial()(net)
    with pytest.raises(ValueError, match=r"Partial gave scores of shape"):
        Partial()(net, params=["2.weight"])

    class Forgetful(Criterion):
        def scores(self, net, batches, loss_fn, names):
            return {}

    with pytest.raises(ValueError, match=r"Forgetful gave no scores for '0.weight'"):
        Forgetful()(net)
