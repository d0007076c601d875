import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.testing import assert_close

from neuropil.learning import Backpropagation, mlp
from neuropil.learning.feedback import DirectFeedbackAlignment, FixedProjections, Shallow
from tests.learning.nets import CASES, Block, case


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(rule, x, y, mask=3):
    rule.net.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(mask)
        loss = rule.backward(x, y)
    return loss, {name: None if p.grad is None else p.grad.clone() for name, p in rule.net.named_parameters()}


def network(*sizes, dtype=torch.float32):
    return mlp(*sizes, activation=nn.Tanh, generator=seeded()).to(dtype)


@pytest.mark.parametrize("name", CASES)
def test_the_last_stage_and_the_loss_are_those_of_backpropagation(name):
    net, points, x, y = case(name)
    exact, true = gradients(Backpropagation(net, cross_entropy), x, y)
    net, points, x, y = case(name)  # batch norm has moved
    loss, ours = gradients(DirectFeedbackAlignment(net, cross_entropy, points), x, y)
    assert_close(loss, exact)
    last = {"dense": "4.weight", "conv": "9.weight", "residual": "head.weight"}.get(name, "norm.weight")
    assert_close(ours[last], true[last])
    hidden = next(iter(ours))
    assert not torch.allclose(ours[hidden], true[hidden])
    assert all(gradient is not None and gradient.isfinite().all() for gradient in ours.values())


def test_tied_weights_get_the_sum_of_both_stages():
    net, points, x, y = case("tied transformer")
    both = gradients(DirectFeedbackAlignment(net, cross_entropy, points), x, y)[1]["embedding.weight"]
    _, shallow = gradients(Shallow(net, cross_entropy, points), x, y)
    assert not torch.allclose(both, shallow["embedding.weight"])
    rows = torch.tensor([row for row in range(11) if row not in set(x.flatten().tolist())])
    assert len(rows)
    assert_close(both[rows], shallow["embedding.weight"][rows])  # tokens that are not in the input


def test_the_gradient_is_the_closed_form():
    net = network(5, 7, 6, 3, dtype=torch.float64)
    rule = DirectFeedbackAlignment(net, mse_loss, generator=seeded(1))
    x, y = (torch.randn(4, n, generator=seeded(2), dtype=torch.float64) for n in (5, 3))
    _, ours = gradients(rule, x, y)
    h1 = net[1](net[0](x))
    h2 = net[3](net[2](h1))
    e = 2 * (net(x) - y) / y.numel()
    B = rule.projections.matrix / math.sqrt(7)
    first, second = (e @ B) * (1 - h1**2), (e @ B[:, :6]) * (1 - h2**2)
    assert_close(ours["0.weight"], first.T @ x)
    assert_close(ours["0.bias"], first.sum(0))
    assert_close(ours["2.weight"], second.T @ h1)
    assert_close(ours["4.weight"], e.T @ h2)


def test_feedback_by_the_transpose_is_backpropagation():
    net = network(5, 7, 3, dtype=torch.float64)
    rule = DirectFeedbackAlignment(net, mse_loss, normalise=False)
    x, y = (torch.randn(4, n, generator=seeded(2), dtype=torch.float64) for n in (5, 3))
    rule.backward(x, y)
    rule.projections.matrix = net[2].weight.detach().clone()
    _, ours = gradients(rule, x, y)
    _, true = gradients(Backpropagation(net, mse_loss), x, y)
    for name, gradient in true.items():
        assert_close(ours[name], gradient)


def test_hidden_stages_hear_nothing_of_later_weights_but_through_the_error():
    net = network(5, 7, 6, 3)
    rule = DirectFeedbackAlignment(net, lambda z, y: (z * y).mean())  # the error does not depend on the output
    x, y = (torch.randn(4, n, generator=seeded(2)) for n in (5, 3))
    _, before = gradients(rule, x, y)
    with torch.no_grad():
        net[4].weight.mul_(-10)
        net[2].weight.mul_(3)
    _, after = gradients(rule, x, y)
    assert_close(after["0.weight"], before["0.weight"], rtol=0, atol=0)


def test_the_sum_over_examples_makes_hidden_stages_learn_faster_and_the_last_as_before():
    x, y = torch.randn(6, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0, 1, 2])
    net = network(5, 7, 3)
    _, mean = gradients(DirectFeedbackAlignment(net, cross_entropy), x, y)
    _, total = gradients(DirectFeedbackAlignment(net, cross_entropy, hidden_reduction="sum"), x, y)
    assert_close(total["0.weight"], 6 * mean["0.weight"])
    assert_close(total["2.weight"], mean["2.weight"])


def test_reproducible_whatever_happens_before_the_first_batch():
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])

    def gradient(seed, wait=False, size=4):
        generator = seeded(seed)
        rule = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy, generator=generator)
        if wait:
            torch.rand(10, generator=generator)
        if size != 4:
            rule.backward(x[:size], y[:size])
        return gradients(rule, x, y)[1]["0.weight"]

    assert torch.equal(gradient(1), gradient(1, wait=True))
    assert torch.equal(gradient(1), gradient(1, size=1))  # nor does the size of the first batch matter
    assert not torch.allclose(gradient(1), gradient(2))
    default = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy)
    assert torch.equal(gradients(default, x, y)[1]["0.weight"], gradient(0))


def test_state_dict_keeps_the_feedback_even_for_a_rule_that_has_seen_no_batch():
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    first = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy, generator=seeded(1))
    _, wanted = gradients(first, x, y)
    second = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy, generator=seeded(9))
    second.load_state_dict(first.state_dict())
    _, found = gradients(second, x, y)
    assert_close(found["0.weight"], wanted["0.weight"], rtol=0, atol=0)
    assert not list(first.parameters())
    third = DirectFeedbackAlignment(network(5, 8, 3), cross_entropy)
    third.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"feedback matrix is \(3, 7\), this net needs \(3, 8\)"):
        third.backward(x, y)


def test_frozen_stages_are_left_out_and_copies_teach_alike():
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    net = network(5, 7, 6, 3)
    net[2].requires_grad_(False)
    rule = DirectFeedbackAlignment(net, cross_entropy)
    _, ours = gradients(rule, x, y)
    assert ours["2.weight"] is None
    twin = copy.deepcopy(rule)
    assert_close(gradients(twin, x, y)[1]["0.weight"], ours["0.weight"])


def test_a_net_of_one_stage_is_trained_by_its_own_error():
    net = network(5, 3)
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    _, ours = gradients(DirectFeedbackAlignment(net, cross_entropy), x, y)
    _, true = gradients(Backpropagation(net, cross_entropy), x, y)
    assert_close(ours, true)


class Tokens(nn.Module):
    """A logit vector for every token."""

    def __init__(self):
        super().__init__()
        self.embedding, self.blocks, self.head = nn.Embedding(11, 8), nn.ModuleList([Block(8)]), nn.Linear(8, 11)

    def forward(self, x):
        h = self.embedding(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_every_token_is_taught_by_its_own_error():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Tokens(), torch.randint(11, (2, 5))

    def only_one(z, y):
        return z[0, 2, 4]  # one token's error

    rule = DirectFeedbackAlignment(net, only_one, "blocks", batch_dims=(0, 1))
    (packet,) = rule.packets(x, x)
    assert rule.projections.matrix is not None
    assert rule.projections.matrix.shape == (11, 8)
    for signal in packet.teaching[:-1]:
        heard = signal.abs().sum(-1) > 0
        assert heard[0, 2]
        assert int(heard.sum()) == 1
    list(rule.packets(x[:, :3], x))  # another length is no trouble
    fixed = DirectFeedbackAlignment(net, lambda z, y: z.mean(), "blocks")
    list(fixed.packets(x, x))
    with pytest.raises(ValueError, match="batch_dims has to count it"):
        list(fixed.packets(x[:, :3], x))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.deep = nn.Sequential(nn.Linear(8, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, user, item):
        return self.head(self.deep(torch.cat([self.user(user), self.item(item)], 1)))[:, 0]


def test_several_arguments_embeddings_as_stages_and_one_output_a_sample():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TwoInputs()
    x, y = {"user": torch.tensor([0, 1, 4]), "item": torch.tensor([5, 5, 0])}, torch.ones(3)
    rule = DirectFeedbackAlignment(net, mse_loss, ["user", "item", "deep"])
    rule.backward(x, y)
    assert rule.projections.matrix is not None
    assert rule.projections.matrix.shape == (1, 6)
    for embedding, used in ((net.user, {0, 1, 4}), (net.item, {0, 5})):
        moved = set(embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist())
        assert moved == used
    (as_tuple,) = rule.packets((x["user"], x["item"]), y)
    (as_mapping,) = rule.packets(x, y)
    assert_close(as_tuple.teaching, as_mapping.teaching)


@given(
    init=st.sampled_from(["uniform", "gaussian"]),
    normalise=st.booleans(),
    shared=st.booleans(),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    outputs=st.integers(1, 6),
)
def test_projections_are_linear_shared_and_as_large_as_said(init, normalise, shared, widths, outputs):
    projections = FixedProjections(shared=shared, init=init, normalise=normalise, generator=seeded(1))
    e = torch.randn(3, outputs, generator=seeded(2), dtype=torch.float64)
    like = {str(index): torch.empty(3, width) for index, width in enumerate(widths)}
    signals = projections(e, like)
    assert [tuple(signal.shape) for signal in signals] == [(3, width) for width in widths]
    assert_close(projections(-2 * e, like), [-2 * signal for signal in signals])
    B = projections.matrix
    assert B is not None
    assert B.shape == (outputs, max(widths) if shared else sum(widths))
    start = 0
    for width, signal in zip(widths, signals, strict=True):
        scale = 1.0
        if normalise:
            scale = (width * outputs) ** -0.5 if init == "gaussian" else (max(widths) if shared else width) ** -0.5
        assert_close(signal, scale * e @ B[:, start : start + width])
        start += 0 if shared else width


@pytest.mark.parametrize("init", ["uniform", "gaussian"])
def test_normalised_feedback_is_of_a_size_that_does_not_depend_on_the_width(init):
    e = torch.randn(50, 10, generator=seeded(2))
    lengths = []
    for width in (100, 1000):
        (signal,) = FixedProjections(init=init, generator=seeded(3))(e, {"h": torch.empty(50, width)})
        lengths.append(float(signal.norm() / e.norm()))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.15)
    expected = 3**-0.5 if init == "uniform" else 10**-0.5
    assert lengths[1] == pytest.approx(expected, rel=0.1)


def test_the_same_numbers_in_every_dtype():
    e, like = torch.randn(3, 4, generator=seeded(2)), {"h": torch.empty(3, 9)}
    single, double, half = (
        FixedProjections(generator=seeded(1))(e.to(dtype), like)[0]
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    )
    assert (double.dtype, half.dtype) == (torch.float64, torch.bfloat16)
    assert_close(double.float(), single)
    assert_close(half.float(), single, rtol=0.05, atol=0.05)


def test_rows_are_repeated_over_the_samples_of_a_ray():
    e = torch.randn(3, 2, generator=seeded(2))
    once = FixedProjections(generator=seeded(1))
    (plain,) = once(e, {"h": torch.empty(3, 7)})
    flat, grid = FixedProjections(generator=seeded(1)), FixedProjections(batch_dims=(0, 1), generator=seeded(1))
    (rows,) = flat(e, {"h": torch.empty(12, 7)})
    (cells,) = grid(e, {"h": torch.empty(3, 4, 7)})
    assert_close(rows, plain.repeat_interleave(4, 0) / 2)
    assert_close(cells, rows.view(3, 4, 7))
    assert_close(rows.view(3, 4, 7).square().sum(1), plain.square())  # as much signal as without repeats


def test_axes_of_examples_may_stand_anywhere():
    first, second = FixedProjections(batch_dims=(0, 1), generator=seeded(1)), FixedProjections(generator=seeded(1))
    e = torch.randn(6, 2, generator=seeded(2))
    images = FixedProjections(batch_dims=(0, 2, 3), generator=seeded(1))
    (maps,) = images(e.view(3, 2, 1, 2).transpose(1, 3), {"h": torch.empty(3, 5, 2, 1)})
    (rows,) = second(e, {"h": torch.empty(6, 5)})
    assert_close(maps, rows.view(3, 2, 1, 5).permute(0, 3, 1, 2))
    (tokens,) = first(e.view(3, 2, 2), {"h": torch.empty(3, 2, 5)})
    assert_close(tokens.flatten(0, 1), rows)


def test_empty_batches_zeros_and_huge_errors():
    projections = FixedProjections(generator=seeded(1))
    like = {"h": torch.empty(1, 7)}
    (signal,) = projections(torch.zeros(1, 3), like)
    assert not signal.any()
    (signal,) = projections(torch.full((1, 3), 1e37), like)
    assert signal.isfinite().all()
    x, y = torch.randn(1, 5, generator=seeded(2)), torch.tensor([1])
    _, ours = gradients(DirectFeedbackAlignment(network(5, 7, 3), cross_entropy), x, y)
    assert all(gradient.isfinite().all() for gradient in ours.values())
    strided = torch.randn(5, 8, generator=seeded(2)).T[::2]
    labels = torch.tensor([0, 1, 2, 0])
    rule = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy)
    assert_close(gradients(rule, strided, labels), gradients(rule, strided.contiguous(), labels))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: FixedProjections(init="normal"), ValueError, "init must be"),
        (lambda: FixedProjections(batch_dims=()), ValueError, "batch_dims must be distinct"),
        (lambda: FixedProjections(batch_dims=(0, 0)), ValueError, "batch_dims must be distinct"),
        (lambda: FixedProjections(batch_dims=(-1,)), ValueError, "batch_dims must be distinct"),
        (
            lambda: FixedProjections()(torch.ones(3, 2), {"h": torch.empty(4, 5)}),
            ValueError,
            r"h has 4 rows over batch_dims=\(0,\), the error 3",
        ),
        (
            lambda: FixedProjections(batch_dims=(0, 1))(torch.ones(3, 2), {"h": torch.empty(3)}),
            ValueError,
            "too few axes",
        ),
        (lambda: DirectFeedbackAlignment(nn.Linear(2, 2), mse_loss), ValueError, "no Sequential"),
        (
            lambda: DirectFeedbackAlignment(network(5, 7, 3), mse_loss, hidden_reduction="max"),
            ValueError,
            "hidden_reduction must be",
        ),
        (
            lambda: DirectFeedbackAlignment(network(5, 7, 3)).backward(torch.ones(2, 5), torch.ones(2, 3)),
            ValueError,
            "needs a loss_fn",
        ),
        (
            lambda: DirectFeedbackAlignment(network(5, 7, 3), mse_loss).backward(torch.ones(2, 5)),
            ValueError,
            "pass y",
        ),
    ],
)
def test_wrong_use_is_named(call, error, words):
    with pytest.raises(error, match=words), torch.random.fork_rng():
        call()


def test_connections_around_a_point_are_named():
    net, _, x, y = case("residual")
    rule = DirectFeedbackAlignment(net, cross_entropy, ["first", "out"])
    with pytest.raises(ValueError, match="leads around the cut at first"):
        rule.backward(x, y)


def test_shallow_trains_the_last_stage_only_and_as_backpropagation_would():
    for name in ("dense", "conv", "residual", "transformer"):
        net, points, x, y = case(name)
        _, true = gradients(Backpropagation(net, cross_entropy), x, y)
        net, points, x, y = case(name)
        _, ours = gradients(Shallow(net, cross_entropy, points), x, y)
        learning = {key for key, gradient in ours.items() if gradient is not None}
        heads = {"dense": "4", "conv": "9", "residual": "head", "transformer": "head"}
        assert f"{heads[name]}.weight" in learning
        assert not any(key.startswith(("0", "embedding", "stem", "blocks")) for key in learning)
        for key in learning:
            assert_close(ours[key], true[key])


def test_hidden_layers_learn_where_random_features_do_not_suffice():
    generator = seeded(4)
    x = torch.rand(256, 2, generator=generator) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()  # exclusive or
    losses = {}
    for make in (Backpropagation, DirectFeedbackAlignment, Shallow):
        net = network(2, 12, 12, 2)
        rule, optimizer = make(net, cross_entropy), torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(150):
            losses[make] = float(rule.learn(x, y, optimizer))
    assert losses[DirectFeedbackAlignment] < 0.5 * losses[Shallow]
    assert losses[DirectFeedbackAlignment] < 0.15
