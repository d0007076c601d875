from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.testing import assert_close

from neuropil.data import load
from neuropil.learning import Backpropagation, Contender, compare, mlp, train_epoch
from neuropil.learning.contrastive import Alternating, Bernoulli, ForwardForward, LabelOverlay, hoyer_sparseness
from tests.learning.nets import Transformer, case


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(*sizes, dtype=torch.float32):
    return nn.Sequential(*mlp(*(sizes or (6, 8, 7)), generator=seeded()), nn.ReLU()).to(dtype)


def batch(samples=5, features=6, classes=3, dtype=torch.float32):
    generator = seeded(1)
    return (
        torch.rand(samples, features, generator=generator, dtype=dtype),
        torch.randint(classes, (samples,), generator=generator),
    )


def grads(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


LABEL = LabelOverlay(3, value=1.0)
NORMS = {"l2": (lambda y: y.norm(dim=1), 2), "max": (lambda y: y.amax(1), float("inf"))}
NORMS["mean_square"] = (lambda y: (y**2).mean(1), 2)


@pytest.mark.parametrize("goodness", NORMS)
def test_gradients_are_those_of_the_equations_written_out(goodness):
    x, y = batch(dtype=torch.float64)
    model, reference = net(dtype=torch.float64), net(dtype=torch.float64)
    rule = ForwardForward(model, label=LABEL, goodness=goodness, threshold=0.7, generator=seeded(4))
    loss = rule.backward(x, y)

    wrong = (y + torch.randint(1, 3, (5,), generator=seeded(4))) % 3
    measure, order = NORMS[goodness]
    good, bad, expected = LABEL(x, y), LABEL(x, wrong), 0.0
    for layer in (reference[0], reference[2]):
        good, bad = (v.detach() / v.detach().norm(order, dim=1, keepdim=True) for v in (good, bad))
        good, bad = layer(good).relu(), layer(bad).relu()
        expected = expected + softplus(0.7 - measure(good)).mean() + softplus(measure(bad) - 0.7).mean()
    expected.backward()
    assert_close(loss, expected.detach())
    assert_close(grads(model), grads(reference), atol=1e-9, rtol=1e-6)


def test_a_function_of_activities_is_a_goodness_too():
    x, y = batch()
    named, given = net(), net()
    ForwardForward(named, label=LABEL, goodness="mean_square").backward(x, y)
    ForwardForward(given, label=LABEL, goodness=lambda h: h.square().mean(1)).backward(x, y)
    assert_close(grads(named), grads(given))


def test_a_stage_hears_of_no_other():
    x, y = batch()
    model = net()
    rule = ForwardForward(model, label=LABEL)
    (packet,) = rule.packets(x, y)
    first, second = packet.outputs
    assert torch.autograd.grad(second.sum(), model[0].weight, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(first.sum(), model[2].weight, allow_unused=True, retain_graph=True) == (None,)
    rule.generator.manual_seed(0)
    rule.backward(x, y)
    before = grads(model)["0.weight"]
    with torch.no_grad():
        model[2].weight.mul_(10)
    model.zero_grad()
    rule.generator.manual_seed(0)
    rule.backward(x, y)
    assert torch.equal(grads(model)["0.weight"], before)


def test_a_pair_is_the_sum_of_its_phases_and_random_phases_weigh_one():
    x, y = batch()
    both = net()
    ForwardForward(both, label=LABEL, generator=seeded(2)).backward(x, y)
    total, b = {}, 0.2
    for sign in (1, -1):
        single = net()
        schedule = Bernoulli(b, generator=seeded(_seed_of(sign, b)))
        ForwardForward(single, label=LABEL, generator=seeded(2), schedule=schedule).backward(x, y)
        for name, gradient in grads(single).items():
            total[name] = total.get(name, 0) + gradient * (b if sign > 0 else 1 - b)
    assert_close(grads(both), total)


def _seed_of(sign, b):
    """A seed whose first phase has this sign."""
    return next(s for s in range(99) if Bernoulli(b, generator=seeded(s)).next()[0].sign == sign)


def test_signals_of_single_phases_make_the_same_packet():
    x, y = batch()
    joint, single = net(), net()
    ForwardForward(joint, label=LABEL, generator=seeded(2)).backward(x, y)
    rule = ForwardForward(single, label=LABEL, generator=seeded(2))
    for phase in Alternating().next():
        outputs, teaching, loss = rule.signals(x, y, phase)
        torch.autograd.backward(outputs, [phase.weight * signal for signal in teaching])
        assert float(phase.weight * loss) > 0
    assert_close(grads(joint), grads(single))


@pytest.mark.parametrize("name", ["dense", "conv", "residual"])
@pytest.mark.parametrize("schedule", [Alternating, Bernoulli])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_any_net_that_can_be_cut_is_trained(name, schedule, end_to_end):
    model, points, x, y = case(name)
    rule = ForwardForward(model, label=4, points=points, schedule=schedule(), end_to_end=end_to_end)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    counted = []
    for _ in range(3):
        assert rule.learn(x, y, optimizer).isfinite()
        counted += [m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters() if "weight" in key)
    assert counted == ([1, 1, 2, 2, 3, 3] if name == "conv" else [])
    model.eval()
    assert rule.predict(x).shape == (5, 4)
    assert len(rule.activities(x, y)) == len(rule.stages)


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_are_refused_by_name_before_training(tied):
    model, points, x, y = case("tied transformer" if tied else "transformer")
    rule = ForwardForward(model, label=4, points=points)
    for call in (rule.predict, rule.activities, lambda x: rule.backward(x, y)):
        with pytest.raises(TypeError, match=r"Transformer was given torch.int64 of shape \(5, 5\).*behind 'embedding'"):
            call(x)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("x", [(torch.ones(2, 6),), {"x": torch.ones(2, 6)}])
def test_several_arguments_are_refused(x):
    with pytest.raises(TypeError, match="one floating-point tensor"):
        ForwardForward(Transformer(), label=4, points="blocks").predict(x)


def test_end_to_end_is_autograd_on_the_summed_goodness():
    x, y = batch(dtype=torch.float64)
    model, reference = net(dtype=torch.float64), net(dtype=torch.float64)
    ForwardForward(model, label=LABEL, end_to_end=True, threshold=1.5, generator=seeded(4)).backward(x, y)
    wrong = (y + torch.randint(1, 3, (5,), generator=seeded(4))) % 3

    def goodness(v):
        total = 0.0
        for layer in (reference[0], reference[2]):
            v = layer(v / v.norm(dim=1, keepdim=True)).relu()
            total = total + v.norm(dim=1)
        return total

    loss = softplus(1.5 - goodness(LABEL(x, y))).mean() + softplus(goodness(LABEL(x, wrong)) - 1.5).mean()
    loss.backward()
    assert_close(grads(model), grads(reference), atol=1e-9, rtol=1e-6)


def test_stages_can_learn_one_after_the_other():
    x, y = batch()
    model = net(6, 8, 8, 8)
    rule = ForwardForward(model, label=LABEL, active=[1])
    rule.backward(x, y)
    assert [p.grad is not None for p in (model[0].weight, model[2].weight, model[4].weight)] == [False, True, False]
    rule.active = [0, 2]
    model.zero_grad()
    rule.backward(x, y)
    assert [p.grad is not None for p in (model[0].weight, model[2].weight, model[4].weight)] == [True, False, True]
    for wrong in ([3], [-1], []):
        rule.active = wrong
        with pytest.raises(ValueError, match="active must name some of the stages 0 to 2"):
            rule.backward(x, y)


@pytest.mark.parametrize("readout", ["softmax", "sum"])
def test_all_labels_in_one_batch_score_as_one_by_one(readout):
    x, _ = batch()
    rule = ForwardForward(net(), label=LABEL, readout=readout)
    stages = [
        torch.stack([rule.activities(x, torch.full((5,), label))[stage].norm(dim=1) for label in range(3)], 1)
        for stage in range(2)
    ]
    expected = sum(goodness.softmax(1) if readout == "softmax" else goodness for goodness in stages)
    assert_close(rule.predict(x), expected)
    assert_close(rule(x), expected)


@pytest.mark.parametrize("goodness", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fill", [0.0, 1e30, -1e30])
def test_silent_and_huge_inputs_teach_finite_things(goodness, dtype, fill):
    model = net(dtype=dtype)
    with torch.no_grad():
        model[0].bias.fill_(-10.0)  # the first stage says nothing at all
    x = torch.full((1, 6), fill, dtype=dtype)
    rule = ForwardForward(model, label=LABEL, goodness=goodness)
    assert rule.backward(x, torch.tensor([0])).isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert rule.predict(x).isfinite().all()


def test_the_same_generator_gives_the_same_gradient_and_the_global_one_is_left_alone():
    x, y = batch()
    state = torch.random.get_rng_state()
    ours, theirs = net(), net()
    for model in (ours, theirs):
        ForwardForward(model, label=3).backward(x, y)
    assert_close(grads(ours), grads(theirs))
    assert torch.equal(state, torch.random.get_rng_state())


def test_wrong_labels_are_all_others_alike():
    rule = ForwardForward(net(), label=3)
    y = torch.tensor([0, 1, 2]).repeat(2000)
    wrong = rule._wrong(y)
    table = torch.zeros(3, 3).index_put((y, wrong), torch.ones(len(y)), accumulate=True) / 2000
    assert_close(table, (1 - torch.eye(3)) / 2, atol=0.05, rtol=0)
    assert not table.diag().any()


def test_two_rules_never_share_the_value_of_a_label():
    label = LabelOverlay(3)
    one, other = ForwardForward(net(), label=label), ForwardForward(net(), label=label)
    x, y = batch()
    one.backward(x, y)
    other.backward(10 * x, y)
    assert label.value is None
    assert other.label.value == pytest.approx(10 * one.label.value)


def digits(seed=0):
    """Standardised, as the label's value of 3 wants it."""
    data = load("digits", seed=seed).flat()
    mean, spread = data.x_train.mean(), data.x_train.std()
    return replace(data, x_train=(data.x_train - mean) / spread, x_test=(data.x_test - mean) / spread)


def test_it_learns_digits_sparsely_and_hears_when_labels_are_exchanged():
    data = digits()
    model = net(74, 100, 100)
    rule = ForwardForward(model, label=LabelOverlay(10, value=3.0, append=True))
    untrained = hoyer_sparseness(rule.activities(data.x_test, data.y_test)[0]).nanmean()
    optimizer, order = torch.optim.Adam(model.parameters(), lr=1e-2), seeded(3)
    for _ in range(15):
        train_epoch(rule, optimizer, data, generator=order)
    guess = rule.predict(data.x_test).argmax(1)
    assert (guess == data.y_test).float().mean() > 0.75
    assert ((guess + 1) % 10 == data.y_test).float().mean() < 0.15
    sparseness = hoyer_sparseness(rule.activities(data.x_test, data.y_test)[0]).nanmean()
    assert sparseness > 0.5 > untrained


def test_it_drops_into_compare():
    arms = {
        "backpropagation": Contender(lambda g: mlp(64, 12, 10, generator=g), Backpropagation),
        "forward-forward": Contender(
            lambda g: nn.Sequential(*mlp(74, 50, 50, generator=g), nn.ReLU()),
            lambda model, loss_fn: ForwardForward(model, loss_fn, label=LabelOverlay(10, value=3.0, append=True)),
            1e-2,
        ),
    }
    table = compare(arms, lambda seed: digits(seed).subset(300, 100), epochs=12, batch_size=20, seeds=1)
    assert table.groupby("rule")["accuracy"].last().min() > 0.5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ForwardForward(net(), label=3, goodness="l3"), TypeError, "goodness must be one of"),
        (lambda: ForwardForward(net(), label=3, readout="vote"), ValueError, 'readout must be "softmax" or "sum"'),
        (lambda: ForwardForward(net(), label=3, end_to_end=True, active=[0]), ValueError, "End to end"),
        (lambda: ForwardForward(net(), label=1), ValueError, "n_classes must be at least 2"),
        (lambda: ForwardForward(Transformer(), label=3), ValueError, "no Sequential"),
        (lambda: ForwardForward(net(), label=3).backward(batch()[0]), ValueError, "pass y"),
        (
            lambda: ForwardForward(net(), label=7).backward(*batch()),
            ValueError,
            "as many features as there are classes",
        ),
        (
            lambda: ForwardForward(nn.Sequential(nn.Flatten(0)), label=3).backward(*batch()),
            ValueError,
            "goodness needs",
        ),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
