from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.feedback import DirectFeedbackAlignment, FeedbackAlignment
from neuropil.learning.spectrum import PhaseAmplitudeStopping, spectral_parts

RULES = [Backpropagation, FeedbackAlignment, DirectFeedbackAlignment]
STOPS = {"phase": (0, None, 1), "amplitude": (None, 0, 0)}


def conv_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        ).double()


def taught_through(rule, layer, name):
    """Whether a parameter learns through the output of a module. Direct feedback reaches every stage at its own end."""
    at, place = int(layer), int(name[0])
    stage = 3 if rule is DirectFeedbackAlignment and at >= 3 else 0
    return stage <= place <= at


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 4, 4, generator=generator).double(), torch.randint(3, (6,), generator=generator)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def stopping(net, layers=("2",), **options):
    chosen: dict[str, Any] = {"stop_amplitude": 2, "stop_phase": 4} | options
    return PhaseAmplitudeStopping(net, sgd(net), layers, **chosen)


def make(rule, net):
    options = {} if rule is Backpropagation else {"generator": torch.Generator().manual_seed(3)}
    return rule(net, cross_entropy, **options)


def gradients(rule, x, y):
    rule.net.zero_grad()
    rule.backward(x, y)
    return {name: p.grad.clone() for name, p in rule.net.named_parameters() if p.grad is not None}


def test_the_epochs_open_and_close_the_gates():
    def course(**options):
        net = conv_net()
        with stopping(net, **options) as stop:
            found = []
            for epoch in range(7):
                stage = stop.step(epoch)
                gate = stop.gates["2"]
                found.append((stage, gate.stop_amplitude, gate.stop_phase))
            return found

    everything, phase, amplitude = ("all", False, False), ("phase", True, False), ("amplitude", False, True)
    refined = [("refine", False, False), ("confident", False, False), ("confident", False, False)]
    plan = [("8", 1)]
    assert course(refine=plan) == [everything] * 2 + [phase] * 2 + refined
    assert course(refine=plan, stop_amplitude=4, stop_phase=2) == [everything] * 2 + [amplitude] * 2 + refined
    assert course(refine=plan, stop_amplitude=4) == [everything] * 4 + refined
    assert course() == [everything] * 2 + [phase] * 2 + [("stopped", True, True)] * 3
    assert course(stop_phase=None) == [everything] * 2 + [phase] * 5
    assert course(stop_amplitude=None, stop_phase=None) == [everything] * 7


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", ["2", "3", "4"])
def test_gates_change_no_value_and_no_gradient_above_them(rule, layer):
    (x, y), net = batch(), conv_net()
    plain = gradients(make(rule, net), x, y)
    gated = conv_net()
    with stopping(gated, [layer], stop_amplitude=0, stop_phase=None) as stop:
        stop.step(0)
        changed = gradients(make(rule, gated), x, y)
        assert torch.equal(gated.eval()(x), net.eval()(x))
    for name, gradient in plain.items():
        same = torch.allclose(changed[name], gradient, rtol=1e-9, atol=1e-12)
        if name != "0.bias":  # in front of a batch norm: always without effect
            assert same != taught_through(rule, layer, name), name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("layer", ["1", "2", "4"])
def test_inside_any_rule_the_layers_below_get_the_part_of_the_gradient(rule, stop, layer):
    (x, y), net, by_hand = batch(), conv_net(), conv_net()
    stop_amplitude, stop_phase, kept = STOPS[stop]
    with stopping(net, [layer], stop_amplitude=stop_amplitude, stop_phase=stop_phase) as stopper:
        stopper.step(0)
        found = gradients(make(rule, net), x, y)

    def project(_, __, output):
        h = output.detach().clone()
        if output.requires_grad:
            output.register_hook(lambda g: spectral_parts(h, g)[kept])
        return output.clone()  # an activation in place follows

    by_hand[int(layer)].register_forward_hook(project, prepend=True)
    assert_close(found, gradients(make(rule, by_hand), x, y))


def test_a_gate_on_a_rerouted_layer_splits_the_error_that_is_sent_below():
    (x, y), net = batch(), conv_net()
    rule = make(FeedbackAlignment, net)
    with stopping(net, ["3"], stop_amplitude=0, stop_phase=None) as stop:
        stop.step(0)
        at_layer = gradients(rule, x, y)
    behind = conv_net()
    behind[3] = nn.Sequential(behind[3], nn.Identity())
    with stopping(behind, ["3"], stop_amplitude=0, stop_phase=None) as stop:
        stop.step(0)
        reference = gradients(make(FeedbackAlignment, behind), x, y)
    for name, gradient in at_layer.items():
        assert_close(gradient, reference[name.replace("3.", "3.0.") if name.startswith("3.") else name])


@pytest.mark.parametrize("rule", RULES)
def test_both_stopped_leaves_the_layers_below_without_a_gradient(rule):
    (x, y), net = batch(), conv_net()
    with stopping(net, ["4"]) as stop:
        assert stop.step(9) == "stopped"
        found = gradients(make(rule, net), x, y)
    below = {name for name, _ in net.named_parameters() if taught_through(rule, "4", name)}
    assert set(found) == {name for name, _ in net.named_parameters()} - below


def test_closing_leaves_the_network_as_it_was():
    (x, y), net = batch(), conv_net()
    names = list(net.state_dict())
    before = gradients(make(FeedbackAlignment, net), x, y)
    stop = stopping(net, ["2", "3"])
    stop.step(9)
    net(x)
    assert list(net.state_dict()) == names
    stop.close()
    stop.close()
    after = gradients(make(FeedbackAlignment, net), x, y)
    assert_close(after, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_several_layers_and_nested_names():
    net = nn.Sequential(conv_net()[:5], nn.Flatten(), nn.Linear(64, 3).double())
    with stopping(net, ["0.2", "0.4"], stop_amplitude=0) as stop:
        stop.step(0)
        assert set(stop.gates) == {"0.2", "0.4"}
        assert all(gate.stop_amplitude for gate in stop.gates.values())


def refined(net, train, plan=(("68", 2), ("8", 1)), seed=0, **options):
    plan = [(tuple(names), epochs) for names, epochs in plan]
    stop = stopping(net, refine=plan, generator=torch.Generator().manual_seed(seed), **options)
    assert stop.step(4) == "refine"
    stop.refine(train)
    stop.close()
    return stop


def test_the_refinement_trains_only_what_it_re_initialised():
    (x, y), net = batch(), conv_net()
    net[0].bias.requires_grad_(False)
    rule = make(Backpropagation, net)
    optimizer = sgd(net)
    rule.learn(x, y, optimizer)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    calls = []

    def train(adam):
        calls.append([name for name, p in net.named_parameters() if p.requires_grad])
        assert adam.defaults["lr"] == 1e-4
        rule.learn(x, y, adam)

    before = torch.random.get_rng_state()
    stop = PhaseAmplitudeStopping(
        net,
        optimizer,
        ["4"],
        stop_amplitude=0,
        stop_phase=0,
        refine=[(("6", "8"), 2), ("8", 1)],
        generator=torch.Generator().manual_seed(0),
    )
    assert stop.step(0) == "refine"
    stop.refine(train)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert calls == [["6.weight", "6.bias", "8.weight", "8.bias"]] * 2 + [["8.weight", "8.bias"]]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, start[name]) == (name[0] in "013"), name
        assert parameter.requires_grad == (name != "0.bias")
        assert parameter.grad is None
    # Momentum of what was re-initialised belongs to weights that are gone.
    assert not set(net[6:].parameters()) & set(optimizer.state)
    assert net[3].weight in optimizer.state


def test_new_weights_come_from_the_generator():
    def weights(seed):
        net = conv_net()
        refined(net, lambda adam: None, seed=seed)
        return net.state_dict()["8.weight"]

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert bool((weights(0).abs() <= 8**-0.5).all())  # torch's own initialisation of 8 inputs


def test_an_error_in_the_training_leaves_everything_trainable():
    net = conv_net()

    def fail(adam):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        refined(net, fail)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_amplitude_stopped_early_still_learns():
    (x, y), net = batch(), conv_net()
    rule, optimizer = make(Backpropagation, net), sgd(net)
    with PhaseAmplitudeStopping(net, optimizer, ["4"], stop_amplitude=5, stop_phase=None) as stop:
        losses = []
        for epoch in range(30):
            stop.step(epoch)
            losses.append(float(rule.learn(x, y, optimizer)))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["nowhere"]}, r"No module is named 'nowhere'; there are \['0', "),
        ({"layers": []}, "at least one name"),
        ({"layers": "layer3"}, "list of at least one name"),
        ({"stop_amplitude": -1}, "stop_amplitude must be an epoch"),
        ({"stop_phase": -3}, "stop_phase must be an epoch"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"refine": [("8", 0)]}, "at least one epoch, got 0"),
        ({"refine": [("5", 2)]}, r"no weights to refine in \['5'\]"),
        ({"refine": [("8", 2)], "stop_phase": None}, "give both epochs"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        stopping(conv_net(), **options)


def test_modules_that_cannot_be_reset_or_gated_are_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x, self.gain

    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), Scale()))
    with pytest.raises(TypeError, match=r"'0\.1' \(Scale\) has no reset_parameters"):
        stopping(net, ["0"], refine=[("0", 1)])
    with stopping(net, ["0"]), pytest.raises(TypeError, match=r"output of '0' must be a tensor .* got tuple"):
        net(torch.ones(1, 3))
