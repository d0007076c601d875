from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.feedback import DirectFeedbackAlignment, FeedbackAlignment
from neuropil.learning.networks import small_conv
from neuropil.learning.spectrum import PhaseAmplitudeStopping, spectral_part

X_, Y = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 3, 0, 1])
RULES = {
    "backpropagation": Backpropagation,
    "feedback alignment": FeedbackAlignment,
    "direct feedback": DirectFeedbackAlignment,
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)


def small(dtype=torch.float32):
    return small_conv((1, 4, 4), 4, (2, 3), generator=torch.Generator().manual_seed(0)).to(dtype)


def stopping(net, layers=("3",), **options):
    options = {"stop_amplitude": 1, "stop_phase": 3, "refine": [("8", 2)], **options}
    return PhaseAmplitudeStopping(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), layers, **options)


def grads(rule, x=X_, y=Y):
    rule.net.zero_grad()
    rule.backward(x, y)
    return {name: None if p.grad is None else p.grad.clone() for name, p in rule.net.named_parameters()}


def test_the_schedule_amplitude_first_then_refinement_then_confident_samples():
    keeper = stopping(small())
    (gate,) = keeper.gates.values()
    seen = [(keeper.step(epoch), gate.stop_amplitude, gate.stop_phase) for epoch in range(6)]
    assert seen == [
        ("free", False, False),
        ("stopped", True, False),
        ("stopped", True, False),
        ("refine", False, False),
        ("confident", False, False),
        ("confident", False, False),
    ]
    assert keeper.step(1) == "stopped"  # a function of the epoch alone: going back is no different
    assert gate.stop_amplitude


def test_equal_epochs_are_progressive_early_stopping_and_later_amplitude_the_reverse():
    keeper = stopping(small(), stop_amplitude=2, stop_phase=2)
    assert [keeper.step(epoch) for epoch in range(4)] == ["free", "free", "refine", "confident"]
    keeper = stopping(small(), stop_amplitude=3, stop_phase=1)
    (gate,) = keeper.gates.values()
    assert keeper.step(2) == "stopped"
    assert (gate.stop_amplitude, gate.stop_phase) == (False, True)


def test_without_refinement_both_stay_stopped_and_lower_layers_are_frozen():
    net = small()
    keeper = stopping(net, refine=())
    assert [keeper.step(epoch) for epoch in (0, 1, 3, 9)] == ["free", "stopped", "stopped", "stopped"]
    found = grads(Backpropagation(net, cross_entropy))
    below = [name for name in found if name.split(".")[0] in {"0", "1", "3"}]
    assert len(below) == 6
    assert all((found[name] is None) == (name in below) for name in found)


@every_rule
@pytest.mark.parametrize("layer", ["3", "5", "6"])  # a weight layer (errors are rerouted there), a ReLU, a pool
def test_gates_act_inside_every_rule(make, layer):
    """The gradient of the gated layer's own weights is what the projected signal at its output gives."""
    net = small(torch.float64)
    rule, x = make(net, cross_entropy), X_.double()
    with stopping(net, (layer,)) as keeper:
        keeper.step(0)
        open_ = grads(rule, x)
        keeper.step(1)
        assert (keeper.gates[layer].stop_amplitude, keeper.gates[layer].stop_phase) == (True, False)
        gated = grads(rule, x)
        keeper.gates[layer].stop_amplitude, keeper.gates[layer].stop_phase = False, True
        other = grads(rule, x)
    plain = grads(rule, x)
    for name, gradient in plain.items():
        assert torch.equal(gradient, open_[name])
        if name == "3.weight":
            # Both parts sum to the whole: the only zeros of this spectrum are those of dead channels.
            assert float((gated[name] - gradient).abs().max()) > 1e-6
            assert_close(gated[name] + other[name], gradient, rtol=1e-9, atol=1e-12)
        elif name.startswith("8."):
            assert torch.equal(gated[name], gradient)


@pytest.mark.parametrize("make", [Backpropagation, partial(FeedbackAlignment)])
def test_what_lies_below_a_gated_weight_layer_hears_the_projected_signal(make):
    net = small(torch.float64)
    rule, x = make(net, cross_entropy), X_.double()
    with stopping(net, ("3",)) as keeper:
        keeper.step(0)
        whole = grads(rule, x)["0.weight"]
        keeper.step(1)
        phase = grads(rule, x)["0.weight"]
        keeper.gates["3"].stop_amplitude, keeper.gates["3"].stop_phase = False, True
        amplitude = grads(rule, x)["0.weight"]
        assert float((phase - whole).abs().max()) > 1e-6
        assert_close(phase + amplitude, whole, rtol=1e-9, atol=1e-12)
        keeper.gates["3"].stop_amplitude = True
        assert grads(rule, x)["0.weight"] is None


def test_direct_feedback_projects_the_teaching_signal_of_a_stage_that_ends_at_the_gate():
    net = small(torch.float64)
    rule, x = DirectFeedbackAlignment(net, cross_entropy, points=["3"]), X_.double()
    (packet,) = rule.packets(x, Y)
    h, t = packet.outputs[0], packet.teaching[0]
    wanted = torch.autograd.grad(h, net[3].weight, spectral_part(t, h.detach(), "phase"))[0]
    with stopping(net, ("3",)) as keeper:
        keeper.step(1)
        assert_close(grads(rule, x)["3.weight"], wanted)


def test_gates_change_no_value_and_close_takes_them_off():
    net = small().eval()
    before, names, hooks = net(X_), list(net.state_dict()), len(net[3]._forward_hooks)
    keeper = stopping(net)
    keeper.step(1)
    assert torch.equal(net(X_), before)
    assert list(net.state_dict()) == names
    keeper.close()
    keeper.close()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert hooks == 0


def test_hooks_do_not_pile_up():
    net = small()
    with stopping(net):
        for _ in range(5):
            net(X_)
        assert len(net[3]._forward_hooks) == 2


def test_several_layers_and_nested_blocks_are_gated():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()), nn.Flatten(), nn.Linear(32, 4))
    with stopping(net, ("0", "0.0"), refine=(), stop_amplitude=0, stop_phase=0) as keeper:
        keeper.step(0)
        found = grads(Backpropagation(net, cross_entropy))
    assert found["0.0.weight"] is None
    assert found["2.weight"] is not None


def test_refinement_trains_one_part_after_the_other():
    net = small()
    net[0].bias.requires_grad_(False)  # frozen by the user: stays so
    keeper = stopping(net, refine=[("3", 3), ("4", 2), ("8", 1)])
    rule = Backpropagation(net, cross_entropy)
    rule.learn(X_, Y, keeper.optimizer)
    assert len(keeper.optimizer.state) == 9
    before = {name: value.clone() for name, value in net.named_parameters()}
    parts = []
    for part in keeper.refinement():
        trained = {name for name, p in net.named_parameters() if p.requires_grad}
        assert trained == {name for name in before if name.split(".")[0] in part.modules}
        rule.learn(X_, Y, part.optimizer)
        parts.append((part.modules, part.epochs))
    assert parts == [(("3", "4", "8"), 3), (("4", "8"), 2), (("8",), 1)]
    now = dict(net.named_parameters())
    assert torch.equal(now["0.weight"], before["0.weight"])
    assert not torch.equal(now["3.weight"], before["3.weight"])
    assert [name for name, p in now.items() if not p.requires_grad] == ["0.bias"]
    assert all(p.grad is None for p in now.values())
    remembered = {id(p) for p in keeper.optimizer.state}  # momentum of what was re-initialised is gone
    assert remembered == {id(now[name]) for name in ("0.weight", "1.weight", "1.bias")}


def test_refinement_that_is_broken_off_leaves_everything_trainable():
    net = small()
    parts = stopping(net).refinement()
    next(parts)
    assert not net[0].weight.requires_grad
    parts.close()
    assert all(p.requires_grad for p in net.parameters())


def test_reinitialisation_draws_from_the_generator_alone():
    def reset(seed):
        net = small()
        state = torch.random.get_rng_state()
        list(stopping(net, generator=torch.Generator().manual_seed(seed)).refinement())
        assert torch.equal(torch.random.get_rng_state(), state)
        return net[8].weight.detach()

    assert torch.equal(reset(0), reset(0))
    assert not torch.equal(reset(0), reset(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": ()}, "at least one name"),
        ({"layers": "3"}, "must be a list"),
        ({"layers": ("layer3",)}, "names 'layer3'.*it has '0', '1'"),
        ({"layers": ("",)}, "names ''"),
        ({"stop_amplitude": -1}, "stop_amplitude is an epoch"),
        ({"stop_phase": None}, "needs both"),
        ({"refine": [("9", 1)]}, "refine names '9'"),
        ({"refine": [("8", -1)]}, "-1 epochs"),
        ({"refine": [("7", 1)]}, "no parameters"),
        ({"refine_rate": 0.0}, "refine_rate must be positive"),
    ],
)
def test_wrong_use_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        stopping(small(), **options)


def test_what_cannot_be_reset_or_gated_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"x": self.scale * x}

    net = nn.Sequential(nn.Conv2d(1, 1, 3), Scale())
    with pytest.raises(ValueError, match=r"1 \(Scale\) has parameters and no reset_parameters"):
        stopping(net, ("0",), refine=[("1", 1)])
    keeper = stopping(net, ("1",), refine=())
    with pytest.raises(TypeError, match="'1' returns a dict"):
        net(X_)
    with pytest.raises(ValueError, match="counts from 0"):
        keeper.step(-1)
