from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss
from torch.testing import assert_close

from neuropil.learning import Backpropagation, LearningRule, Stages, mlp
from neuropil.learning.energy import IncrementalPredictiveCoding, PredictiveCoding, cross_entropy_energy, squared_energy
from neuropil.learning.energy import predictive as module
from neuropil.learning.energy.chain import read_chain
from neuropil.losses import half_squared_error
from tests.learning.nets import CASES, case

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.GELU, nn.SiLU]


def gradient(rule: LearningRule, x, y, **options):
    rule.net.zero_grad()
    rule.backward(x, y, **options)
    return torch.cat([p.grad.flatten() for p in rule.net.parameters() if p.grad is not None])


def small(generator, *, activation=nn.Tanh, dtype=torch.float64):
    net = mlp(6, 8, 7, 4, activation=activation, generator=generator).to(dtype)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64).to(dtype)
    return net, x, torch.tensor([0, 3, 1, 1, 2])


def free_energy(net, stages, x, y, activities, loss_fn, ratio=1.0):
    """G of the module's docstring, from nothing but one pass of the net at clamped activities."""
    outputs = stages(x, activities=activities)
    terms = [0.5 * (h - p).square().sum() for h, p in zip(activities, outputs[:-1], strict=True)]
    terms.append(len(y) * loss_fn(outputs[-1], y))
    return sum(ratio**power * term for power, term in enumerate(terms))


@pytest.mark.parametrize("cut", ["activation", "preactivation"])
@pytest.mark.parametrize("loss_fn", [cross_entropy, squared_energy])
def test_gradients_are_those_of_the_free_energy_at_the_relaxed_activities(cut, loss_fn, generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, loss_fn, cut=cut, steps=7, rate_own=0.1, rate_above=0.2)
    ours = gradient(rule, x, y)
    stages = Stages(net, cut=cut)
    stages(x)
    energy = free_energy(net, stages, x, y, rule.last.activities, loss_fn) / len(y)
    expected = torch.autograd.grad(energy, list(net.parameters()))
    assert_close(ours, torch.cat([g.flatten() for g in expected]))
    assert_close(rule.last.energy[-1].sum(), energy.detach())


@pytest.mark.parametrize("cut", ["activation", "preactivation"])
def test_a_step_of_inference_is_a_step_down_the_free_energy(cut, generator):
    net, x, y = small(generator)
    stages = Stages(net, cut=cut)
    start = [h.detach() for h in stages(x)[:-1]]
    leaves = [(h + 0.3 * torch.randn(h.shape, generator=generator, dtype=h.dtype)).requires_grad_() for h in start]
    own, above, decay = 0.1, 0.25, 0.03
    energy = free_energy(net, stages, x, y, leaves, cross_entropy, ratio=above / own)
    slopes = torch.autograd.grad(energy, leaves)
    expected = [
        h.detach() - own / (above / own) ** power * slope - decay * h.detach()
        for power, (h, slope) in enumerate(zip(leaves, slopes, strict=True))
    ]
    rule = PredictiveCoding(
        net, cross_entropy, cut=cut, steps=1, rate_own=own, rate_above=above, decay=decay, init="random", guard=False
    )
    given = iter(leaves)
    rule._random = lambda like: next(given).detach()
    assert_close(rule.relax(x, y).activities, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cut", ["activation", "preactivation"])
def test_closed_form_equals_autograd(activation, cut, generator, monkeypatch):
    net, x, y = small(generator, activation=activation)
    rules = [
        PredictiveCoding(net, squared_energy, cut=cut, steps=6, rate_own=0.2, rate_above=0.2),
        IncrementalPredictiveCoding(net, cross_entropy, cut=cut, steps=4, rate=0.2, momentum=0.3),
    ]
    assert read_chain(rules[0].stages, x) is not None
    closed = [gradient(rule, x, y) for rule in rules]
    traces = [rule.last.energy for rule in rules]
    monkeypatch.setattr(module, "read_chain", lambda stages, x: None)
    for rule, ours, trace in zip(rules, closed, traces, strict=True):
        assert_close(gradient(rule, x, y), ours, rtol=1e-10, atol=1e-12)
        assert_close(rule.last.energy, trace)


def test_in_float32_closed_form_and_autograd_agree_to_a_millionth(generator, monkeypatch):
    net, x, y = small(generator, dtype=torch.float32)
    rule = PredictiveCoding(net, cross_entropy, steps=20)
    closed = gradient(rule, x, y)
    monkeypatch.setattr(module, "read_chain", lambda stages, x: None)
    assert_close(gradient(rule, x, y), closed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_small_nudge_at_the_end_of_inference_is_backpropagation(name):
    net, points, x, y = case(name)[:4]
    net.eval()
    expected = gradient(Backpropagation(net, cross_entropy), x, y)
    slow = "transformer" in name
    options = {"rate_own": 0.1, "rate_above": 0.1, "steps": 300 if slow else 200, "points": points}
    for sign in (1,) if slow else (1, -1):
        rule = PredictiveCoding(net.double(), cross_entropy, nudge=sign * 1e-4, **options)
        inputs = x.double() if x.dtype.is_floating_point else x
        ours = gradient(rule, inputs, y)
        assert float(cosine_similarity(ours, expected.double(), dim=0)) > (0.999 if slow else 0.9999)
        assert float(ours.norm() / expected.norm()) == pytest.approx(1, abs=5e-2 if slow else 1e-2)
        net.float()


@pytest.mark.parametrize("name", CASES)
def test_any_net_trains(name):
    net, points, x, y = case(name)[:4]
    rule = IncrementalPredictiveCoding(net, cross_entropy, points=points, steps=5, rate=0.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = [float(rule.learn(x, y, optimizer)) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_linear_net_relaxes_to_the_solution_of_its_linear_system(generator):
    net = nn.Sequential(nn.Linear(6, 5), nn.Identity(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.4, generator=generator)
    x, y = torch.randn(4, 6, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    rule = PredictiveCoding(net, half_squared_error, steps=3000, rate_own=0.2, rate_above=0.2, tol=1e-13)
    (h,) = rule.relax(x, y).activities
    W, b = net[2].weight, net[2].bias
    solved = torch.linalg.solve(torch.eye(5).double() + W.T @ W, (net[0](x) + (y - b) @ W).T).T
    assert_close(h, solved.detach())
    assert len(rule.relax(x, y).energy) < 3000  # tol ends it


def test_the_guard_keeps_the_energy_from_rising_where_plain_steps_diverge(generator):
    net, x, y = small(generator)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(6)
    options = {"steps": 60, "rate_own": 0.5, "rate_above": 0.5}
    plain = PredictiveCoding(net, squared_energy, guard=False, **options).relax(x, y).energy.sum(1)
    assert float(plain.max()) > 1.5 * float(plain[0])
    guarded = PredictiveCoding(net, squared_energy, **options).relax(x, y).energy.sum(1)
    assert float(guarded.diff().max()) <= 1e-6 * float(guarded[0])
    assert float(guarded[-1]) < 0.5 * float(guarded[0])


@pytest.mark.filterwarnings("ignore:PredictiveCoding. 1 steps")
@pytest.mark.parametrize(("own", "above", "decay"), [(0.1, 0.1, 0.0), (0.05, 0.2, 0.0), (0.2, 0.1, 0.05)])
def test_with_any_rates_the_weighted_energy_falls(own, above, decay, generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, cross_entropy, rate_own=own, rate_above=above, decay=decay, steps=1)
    stages = Stages(net)
    values = []
    for steps in range(1, 12):
        rule.inference = type(rule.inference)(steps, own, above, decay, None, False)
        h = rule.relax(x, y).activities
        value = free_energy(net, stages, x, y, h, cross_entropy, ratio=above / own)
        shrink = sum((above / own) ** k * decay / (2 * own) * v.square().sum() for k, v in enumerate(h))
        values.append(float(value.detach() + shrink))
    assert all(b < a for a, b in pairwise(values))


def test_samples_do_not_interact_without_batch_statistics(generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, squared_energy, steps=9, guard=False)
    together = rule.relax(x, y).activities
    alone = rule.relax(x[2:3], y[2:3]).activities
    assert_close([h[2:3] for h in together], alone)


def test_batch_norm_counts_a_batch_once_and_dropout_masks_stay():
    for learn in (False, True):
        net, _, x, y = case("conv")[:4]
        twin = case("conv")[0]
        rule = (IncrementalPredictiveCoding if learn else PredictiveCoding)(net, cross_entropy, steps=4)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            rule.backward(x, y)
            after = torch.random.get_rng_state()
            torch.manual_seed(3)
            twin(x)
            assert torch.equal(after, torch.random.get_rng_state())
        assert int(net[1].num_batches_tracked) == 1
        assert_close(dict(net.named_buffers()), dict(twin.named_buffers()))
    net, _, x, y = case("conv")[:4]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rule = PredictiveCoding(net, cross_entropy)
    rule.relax(x, y)
    assert_close(net.state_dict(), before)


def test_dropout_masks_are_the_same_in_every_pass():
    seen = []

    class Dropping(nn.Module):
        def forward(self, x):
            mask = nn.functional.dropout(torch.ones_like(x), 0.5)
            seen.append(mask)
            return x * mask

    net = nn.Sequential(nn.Linear(4, 30), Dropping(), nn.Linear(30, 3))
    rule = PredictiveCoding(net, cross_entropy, steps=5)
    rule.backward(torch.ones(2, 4), torch.tensor([0, 1]))
    first = seen[1]  # seen[0] is the trace of the cuts
    assert all(torch.equal(first, mask) for mask in seen[1:])
    seen.clear()
    rule.backward(torch.ones(2, 4), torch.tensor([0, 1]))
    assert not torch.equal(first, seen[0])


def test_hooks_and_buffers_are_as_before_after_an_error():
    net, _, x, y = case("conv")[:4]
    rule = PredictiveCoding(net, cross_entropy, rate_own=0.5, rate_above=1e30, guard=False, steps=8)
    with pytest.raises(FloatingPointError):
        rule.backward(x, y)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert net[1]._buffers["running_mean"] is net.get_buffer("1.running_mean")


def test_micro_batches_add_up_and_scale_works(generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, cross_entropy, steps=5, guard=False)
    whole = gradient(rule, x, y)
    net.zero_grad()
    for part in (slice(0, 2), slice(2, 5)):
        rule.backward(x[part], y[part], scale=len(x[part]) / 5)
    assert_close(torch.cat([p.grad.flatten() for p in net.parameters()]), whole)


def test_frozen_stages_stay_and_hand_errors_through(generator):
    for chain in (True, False):
        net, x, y = small(generator)
        if not chain:
            net.register_forward_hook(lambda *args: None)
        whole = PredictiveCoding(net, cross_entropy, rate_own=0.1, rate_above=0.1)
        gradient(whole, x, y)
        expected = net[0].weight.grad.clone()
        net[2].requires_grad_(False)
        net[2].weight.grad = net[2].bias.grad = None
        gradient(whole, x, y)
        assert net[2].weight.grad is None
        assert_close(net[0].weight.grad, expected)


def test_chains_are_read_only_where_they_are_chains(generator):
    net, x, _ = small(generator)
    assert read_chain(Stages(net), x) is not None
    assert read_chain(Stages(nn.Sequential(nn.Flatten(), *net)), x.view(5, 2, 3)) is not None
    assert read_chain(Stages(net), x.float()) is None
    assert read_chain(Stages(nn.Sequential(net[0], nn.Dropout(0.5), net[2], net[3], net[4])), x) is None
    assert read_chain(Stages(nn.Sequential(nn.Linear(6, 6).double(), nn.ReLU(), nn.Softmax(1), net[0])), x) is None
    shared = nn.Linear(6, 6).double()
    tied = nn.Linear(6, 6).double()
    tied.weight = shared.weight
    assert read_chain(Stages(nn.Sequential(shared, nn.ReLU(), tied)), x) is None
    handle = net[1].register_forward_hook(lambda *args: None)
    assert read_chain(Stages(net), x) is None
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert read_chain(Stages(net), x) is None


def test_images_are_flattened_as_the_net_does(generator):
    net, x, y = small(generator)
    flat = gradient(PredictiveCoding(net, cross_entropy), x, y)
    images = nn.Sequential(nn.Flatten(), *net)
    assert_close(gradient(PredictiveCoding(images, cross_entropy), x.view(5, 1, 2, 3), y), flat)


def test_nested_sequentials_are_cut_at_their_ends(generator):
    net, x, y = small(generator)
    flat = gradient(PredictiveCoding(net, cross_entropy), x, y)
    nested = nn.Sequential(nn.Sequential(net[0], net[1]), nn.Sequential(net[2], net[3]), net[4])
    assert_close(gradient(PredictiveCoding(nested, cross_entropy), x, y), flat)


@pytest.mark.parametrize("target", ["indices", "one-hot"])
def test_losses_without_a_closed_form_work_as_those_with_one(target, generator):
    net, x, y = small(generator)
    hot = torch.eye(4).double()[y]
    given = y if target == "indices" else hot
    plain = gradient(PredictiveCoding(net, cross_entropy), x, given)
    assert_close(gradient(PredictiveCoding(net, nn.CrossEntropyLoss()), x, given), plain)
    assert_close(gradient(PredictiveCoding(net, cross_entropy_energy), x, given), plain)
    squared = gradient(PredictiveCoding(net, squared_energy), x, given)
    assert_close(gradient(PredictiveCoding(net, lambda o, t: 2 * mse_loss(o, hot)), x, hot), squared)
    ignoring = y.clone()
    ignoring[0] = -100
    lone = gradient(PredictiveCoding(net, nn.CrossEntropyLoss()), x, ignoring)
    assert_close(gradient(PredictiveCoding(net, cross_entropy), x, ignoring), lone)


def test_zeros_one_sample_and_strided_inputs(generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, cross_entropy)
    assert torch.isfinite(gradient(rule, torch.zeros_like(x), y)).all()
    assert torch.isfinite(gradient(rule, x[:1], y[:1])).all()
    strided = x.T.contiguous().T
    assert not strided.is_contiguous()
    assert_close(gradient(rule, strided, y), gradient(rule, x, y))
    assert gradient(rule, x, y).dtype == torch.float64


def test_random_starts_come_from_the_generator(generator):
    net, x, y = small(generator)

    def energy(seed):
        source = torch.Generator().manual_seed(seed)
        return PredictiveCoding(net, squared_energy, init="random", generator=source).relax(x, y).energy

    assert torch.equal(energy(1), energy(1))
    assert not torch.equal(energy(1), energy(2))
    assert float(energy(1)[0, 0]) > 0.5


def test_divergence_says_where(generator):
    net, x, y = small(generator)
    rule = PredictiveCoding(net, squared_energy, rate_own=3.0, rate_above=3.0, steps=3000, guard=False)
    with pytest.raises(FloatingPointError, match=r"at step \d+ the energy of stage \d of 3 is (inf|nan), at rates 3"):
        rule.backward(x, y)
    with pytest.raises(FloatingPointError, match="before inference has begun"):
        PredictiveCoding(net, squared_energy).backward(torch.full_like(x, torch.nan), y)


def test_too_few_steps_are_said(generator):
    net, x, y = small(generator)
    with pytest.warns(UserWarning, match="do not carry the error to the first of 3 stages"):
        PredictiveCoding(net, squared_energy, steps=1).backward(x, y)
    assert float(net[0].weight.grad.abs().max()) == 0
    with pytest.warns(UserWarning, match="take at least 3"):
        IncrementalPredictiveCoding(net, squared_energy, steps=2).backward(x, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"rate_own": -1.0}, "rate 'own' must be"),
        ({"rate_above": float("nan")}, "rate 'above' must be"),
        ({"decay": 2.0}, "decay must lie"),
        ({"nudge": 0.0}, "nudge must be"),
        ({"init": "zeros"}, "init must be"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"cut": "middle"}, "cut must be"),
    ],
)
def test_arguments_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        PredictiveCoding(nn.Linear(2, 2) if "cut" in options else mlp(2, 3, 2), squared_energy, **options)


def test_wrong_targets_are_named(generator):
    net, x, y = small(generator)
    with pytest.raises(ValueError, match="pass y"):
        PredictiveCoding(net, cross_entropy).backward(x)
    with pytest.raises(ValueError, match="needs a loss_fn"):
        PredictiveCoding(net).backward(x, y)
    with pytest.raises(ValueError, match="class indices 0 to 9, for 4"):
        PredictiveCoding(net, squared_energy).backward(x, torch.tensor([0, 9, 1, 1, 2]))
    with pytest.raises(ValueError, match=r"target has shape \(5, 3\)"):
        PredictiveCoding(net, squared_energy).backward(x, torch.zeros(5, 3))
