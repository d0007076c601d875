"""What every rule keeps, tested over all rules and the kinds of nets that users bring.

A rule either trains a net or refuses it by name before anything is trained; `REFUSED` says which it must refuse, so
that a rule cannot drop a net in silence.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.data import Dataset
from neuropil.learning.rules import RULES, contender, find_rule
from neuropil.learning.training import made
from tests.learning.nets import case
from tests.learning.test_stages import reached

NETS = ["dense", "conv", "residual", "projected transformer", "transformer"]
CIRCUITS = [name for name, rule in RULES.items() if rule.circuit]
REROUTING = ["feedback-alignment", "kolen-pollack", "sign-symmetry", "product-feedback-alignment"]
REFUSED = {
    **{(name, "transformer"): "uses its weights without calling a layer" for name in REROUTING},
    **{("forward-forward", net): "floating-point" for net in NETS if "transformer" in net},
    ("node-perturbation", "conv"): "makes every sample's loss depend on the others",
    **{(name, net): "must be a|needs a|takes a|trains a" for name in CIRCUITS for net in NETS},
}
PAIRS = [(rule, net) for rule, net in itertools.product(RULES, NETS) if (rule, net) not in REFUSED]
PAIRS += [(rule, "circuit") for rule in CIRCUITS]
pairs = pytest.mark.parametrize(("name", "kind"), PAIRS, ids=lambda value: value)


def problem(name, kind, *, dtype=torch.float32, batch=5, seed=0, loss=cross_entropy):
    """(rule, x, y), the same for the same arguments."""
    points, classes = None, 4
    if kind == "circuit":
        x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
        y = torch.tensor([0, 1, 2, 3, 0])
    else:
        net, points, x, y = case(kind)
    x = x.to(dtype) if x.is_floating_point() else x
    names = tuple(map(str, range(classes)))
    data = Dataset("small", x, y, x, y, names)
    maker = None if kind == "circuit" else lambda _: net
    arm = contender(name, data, maker, hidden=(7, 5), points=points)
    trained = arm.net(torch.Generator().manual_seed(seed)).to(dtype)
    return made(arm.rule, trained, loss, seed), x[:batch], y[:batch]


def gradients(rule, x, y, *, mask=7):
    rule.net.zero_grad()
    rule.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(mask)  # dropout is the net's own draw
        rule.backward(x, y)
    return {
        name: p.grad.clone()
        for name, p in [*rule.net.named_parameters(), *rule.named_parameters(prefix="rule")]
        if p.grad is not None
    }


@pytest.mark.parametrize(("name", "kind"), REFUSED, ids=lambda value: value)
def test_what_a_rule_cannot_train_it_refuses_by_name_before_training(name, kind):
    net, points, x, y = case(kind)
    make = find_rule(name).load()
    options = {"label": 4} if name == "forward-forward" else {}
    if points is not None and name == "forward-forward":
        options["points"] = points
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match=REFUSED[name, kind]):
        make(net, cross_entropy, **options).backward(x, y)
    assert all(p.grad is None for p in net.parameters())
    assert_close(net.state_dict(), before)


@pairs
def test_gradients_have_the_shape_and_type_of_their_parameters_and_are_finite(name, kind):
    for dtype in (torch.float32, torch.float64):
        rule, x, y = problem(name, kind, dtype=dtype)
        grads = gradients(rule, x, y)
        assert grads
        for key, parameter in rule.net.named_parameters():
            if key in grads:
                assert grads[key].shape == parameter.shape
                assert grads[key].dtype == dtype
                assert grads[key].isfinite().all()


@pairs
def test_a_packet_reaches_each_stages_own_parameters_only(name, kind):
    rule, x, y = problem(name, kind)
    for packet in rule.packets(x, y):
        if packet.outputs[0].dim() == 0:
            continue  # one graph for the whole net: backpropagation, or it with the transpose replaced
        owners = [reached(output, rule.net) for output in packet.outputs if output.requires_grad]
        assert owners
        for first, second in itertools.combinations(owners, 2):
            assert not first & second
        assert not any(signal.requires_grad for signal in packet.teaching)


@pairs
def test_gradients_add_up_and_scale(name, kind):
    rule, x, y = problem(name, kind)
    once = gradients(rule, x, y)
    again, _, _ = problem(name, kind)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        again.backward(x, y, scale=0.25)
    quarter = {key: p.grad.clone() for key, p in again.net.named_parameters() if p.grad is not None}
    for key, gradient in quarter.items():
        assert_close(gradient, once[key] / 4)
    other, _, _ = problem(name, kind)
    marker = {key: torch.full_like(p, 3.0) for key, p in other.net.named_parameters()}
    for key, parameter in other.net.named_parameters():
        parameter.grad = marker[key].clone()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        other.backward(x, y)
    for key, parameter in other.net.named_parameters():
        assert_close(parameter.grad - marker[key], once.get(key, torch.zeros_like(parameter)), rtol=1e-4, atol=1e-5)


@pairs
def test_the_same_seed_gives_the_same_gradient_and_the_global_state_is_left_alone(name, kind):
    rule, x, y = problem(name, kind)
    rule.net.eval()  # without dropout, nothing but the rule itself could draw
    before = torch.random.get_rng_state()
    rule.backward(x, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (gradients(problem(name, kind)[0], x, y) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pairs
def test_running_statistics_move_once_a_batch(name, kind):
    rule, x, y = problem(name, kind)
    gradients(rule, x, y)
    for key, buffer in rule.net.named_buffers():
        if key.endswith("num_batches_tracked"):
            assert int(buffer) == 1


SILENT = [pair for pair in PAIRS if pair[0] not in ("forward-forward",)]  # which brings its own learning signal


@pytest.mark.parametrize(("name", "kind"), SILENT, ids=lambda value: value)
def test_without_a_learning_signal_nothing_changes(name, kind):
    rule, x, y = problem(name, kind, loss=lambda output, _: 0.0 * output.sum())
    for key, gradient in gradients(rule, x, y).items():
        assert float(gradient.abs().max()) < 1e-6, key


@pairs
def test_learning_goes_on_bit_by_bit_from_saved_states(name, kind):
    def learner():
        rule, x, y = problem(name, kind)
        return rule, torch.optim.Adam([*rule.net.parameters(), *rule.parameters()], lr=1e-2), x, y

    def steps(rule, optimizer, x, y, seeds):
        for seed in seeds:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                rule.learn(x, y, optimizer)

    straight = learner()
    steps(*straight, seeds=range(4))
    first = learner()
    steps(*first, seeds=range(2))
    saved = [part.state_dict() for part in (first[0].net, first[0], first[1])]
    resumed = learner()
    for part, state in zip((resumed[0].net, resumed[0], resumed[1]), saved, strict=True):
        part.load_state_dict(state)
    steps(*resumed, seeds=range(2, 4))
    for one, other in ((straight[0].net, resumed[0].net), (straight[0], resumed[0])):
        for key, value in one.state_dict().items():
            same = other.state_dict()[key]
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else str(value) == str(same), key


@pairs
def test_learning_lowers_the_loss_it_reports(name, kind):
    rule, x, y = problem(name, kind)
    rule.net.eval()  # the same net at both ends
    optimizer = torch.optim.Adam([*rule.net.parameters(), *rule.parameters()], lr=5e-3)
    losses = [float(rule.learn(x, y, optimizer)) for _ in range(12)]
    assert min(losses[-3:]) < losses[0]


@given(pair=st.sampled_from(PAIRS), batch=st.integers(1, 5), seed=st.integers(0, 99), double=st.booleans())
def test_a_batch_is_the_mean_of_its_samples_in_number_and_scale(pair, batch, seed, double):
    """Any batch size, one sample included, gives finite gradients of the right size and type, twice the same."""
    options = {"dtype": torch.float64 if double else torch.float32, "batch": batch, "seed": seed}
    first, second = (gradients(*problem(*pair, **options)) for _ in range(2))
    assert first
    for key, gradient in first.items():
        assert gradient.isfinite().all()
        assert gradient.dtype == options["dtype"]
        assert torch.equal(gradient, second[key])


def test_names_are_found_and_others_are_told_what_there_is():
    assert find_rule("pfa") is RULES["product-feedback-alignment"]
    with pytest.raises(ValueError, match=r"'dfaa'\. Did you mean 'dfa'\? There are: backpropagation \(bp\), "):
        find_rule("dfaa")
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    data = Dataset("small", x, y, x, y, ("a", "b"))
    with pytest.raises(ValueError, match="backpropagation needs a net"):
        contender("bp", data)
    with pytest.raises(ValueError, match="dis-inhibition trains a circuit of its own: say its hidden sizes"):
        contender("inhibition", data, lambda _: nn.Linear(3, 2))
