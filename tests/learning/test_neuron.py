import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.networks import mlp
from neuropil.learning.neuron import GATES, DeltaRule, McCullochPitts, signed_distance
from neuropil.learning.online import decision_boundary, fit_online, perceptron_bound

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TABLES = {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "nand": [1, 1, 1, 0], "nor": [1, 0, 0, 0], "xor": [0, 1, 1, 0]}


def target(name):
    return torch.tensor(TABLES[name], dtype=torch.float)[:, None]


@pytest.mark.parametrize("name", ["and", "or", "nand", "nor"])
def test_gates_have_their_truth_tables(name):
    assert [y for _, (y,) in McCullochPitts.gate(name).truth_table()] == TABLES[name]


def test_not_is_a_gate_of_one_input_and_xor_takes_two_layers():
    assert McCullochPitts.gate("not").truth_table() == [((0,), (1.0,)), ((1,), (0.0,))]
    hidden = McCullochPitts([GATES["or"][0], GATES["nand"][0]], [GATES["or"][1], GATES["nand"][1]])
    net = nn.Sequential(hidden, McCullochPitts.gate("and"))
    assert_close(net(CORNERS), target("xor"))


@pytest.mark.parametrize(("kind", "slope"), [("identity", 1.0), ("logistic", 2.0), ("tanh", 0.5)])
def test_the_delta_rule_is_the_gradient_of_half_the_summed_squared_error(kind, slope, generator):
    neuron = McCullochPitts(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator), kind, slope)
    x, d = torch.randn(7, 4, generator=generator), torch.rand(7, 3, generator=generator)
    loss = 0.5 * (neuron(x) - d).square().sum()
    expected = torch.autograd.grad(loss, list(neuron.parameters()))
    assert_close(DeltaRule(neuron).backward(x, d), loss.detach())
    assert_close([p.grad for p in neuron.parameters()], list(expected))
    # the textbook's own form
    v = neuron.drive(x).detach()
    y = neuron(x).detach()
    slopes = {"identity": torch.ones_like(v), "logistic": slope * y * (1 - y), "tanh": slope * (1 - y * y)}[kind]
    delta = (d - y) * slopes
    assert_close(neuron.weight.grad, -delta.T @ x)
    assert_close(neuron.bias.grad, -delta.sum(0))


def test_the_perceptron_rule_drops_the_derivative(generator):
    neuron = McCullochPitts(torch.randn(2, 4, generator=generator), 0.0 * torch.ones(2))
    x, d = torch.randn(7, 4, generator=generator), torch.randint(2, (7, 2), generator=generator).float()
    DeltaRule(neuron, mode="perceptron").backward(x, d)
    assert_close(neuron.weight.grad, -(d - neuron(x).detach()).T @ x)


@pytest.mark.parametrize("net", [nn.Linear(2, 1), nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.Sigmoid())])
def test_torch_layers_are_neurons_too(net):
    rule = DeltaRule(net)
    rule.backward(CORNERS, target("or"))
    loss = 0.5 * (net(CORNERS) - target("or")).square().sum()
    expected = torch.autograd.grad(loss, list(net.parameters()))
    assert_close([p.grad for p in net.parameters()], list(expected))


@pytest.mark.parametrize(
    ("gate", "mistakes", "weights", "clean"), [("and", 11, [2.0, 1.0, -3.0], 6), ("or", 5, [1.0, 1.0, -1.0], 4)]
)
def test_perceptrons_make_the_mistakes_of_the_hand_calculation(gate, mistakes, weights, clean):
    neuron = McCullochPitts([0.0, 0.0])
    history = fit_online(DeltaRule(neuron, mode="perceptron"), CORNERS, target(gate), lr=1.0, shuffle=False)
    assert history.converged
    assert int(history.mistakes.sum()) == mistakes
    assert len(history.mistakes) == clean
    assert history.weights[-1].tolist() == weights
    assert_close(history.weights[0], torch.zeros(3))


def test_perceptrons_on_xor_never_stop_and_say_so():
    neuron = McCullochPitts([0.0, 0.0])
    history = fit_online(DeltaRule(neuron, mode="perceptron"), CORNERS, target("xor"), lr=1.0, epochs=30)
    assert not history.converged
    assert len(history.mistakes) == 30
    assert (history.mistakes > 0).all()


def test_the_bound_has_the_margins_of_the_gates():
    assert perceptron_bound(CORNERS, target("and")[:, 0] > 0) == pytest.approx(3 / 0.242536**2, rel=1e-4)
    assert perceptron_bound(CORNERS, target("or")[:, 0] > 0) == pytest.approx(27, rel=1e-6)
    assert perceptron_bound(CORNERS, target("xor")[:, 0] > 0) == float("inf")
    separable = [
        table
        for table in itertools.product([False, True], repeat=4)
        if np.isfinite(perceptron_bound(CORNERS, torch.tensor(table)))
    ]
    assert len(separable) == 14


def test_the_mistakes_of_random_separable_data_stay_below_the_bound(generator):
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    positive = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) > 0.2
    neuron = McCullochPitts(torch.zeros(1, 3, dtype=torch.float64))
    rule = DeltaRule(neuron, mode="perceptron")
    history = fit_online(rule, x, positive.double()[:, None], lr=0.3, epochs=5000, generator=generator)
    assert history.converged
    assert history.mistakes.sum() <= perceptron_bound(x, positive)


def test_orders_come_from_the_generator_and_an_error_can_end_learning():
    def trained(**options):
        return fit_online(
            DeltaRule(McCullochPitts([0.1, 0.2], 0.0, "logistic")), CORNERS, target("or"), lr=1, **options
        )

    assert_close(trained(epochs=5).weights, trained(epochs=5).weights)
    other = trained(epochs=5, generator=torch.Generator().manual_seed(4)).weights
    assert not torch.equal(trained(epochs=5).weights[1], other[1])
    assert trained(epochs=400, tol=0.2).error[-1] <= 0.2
    assert trained(epochs=400, tol=0.2).error[-2] > 0.2


def test_distances_and_boundaries_are_those_of_the_line():
    neuron = McCullochPitts([[3.0, 4.0]], [-5.0], "logistic")
    assert_close(signed_distance(neuron, torch.tensor([[0.0, 0.0], [3.0, 4.0]])), torch.tensor([[-1.0], [4.0]]))
    boundary = decision_boundary(neuron, (0, 2, -1, 1), resolution=3)
    assert boundary.output.shape == (3, 3)
    assert boundary.output[2, 1] == pytest.approx(float(neuron(torch.tensor([1.0, 1.0]))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs_keep_the_gradient_finite(dtype):
    neuron = McCullochPitts(torch.zeros(1, 2, dtype=dtype), 0.0, "logistic")
    x = torch.tensor([[0.0, 0.0], [1e30, -1e30], [1.0, 1.0]], dtype=dtype)[:, [1, 0]]
    DeltaRule(neuron).backward(x, torch.tensor([[0.1], [0.9], [0.5]], dtype=dtype))
    assert neuron.weight.grad.isfinite().all()
    assert neuron.weight.grad.dtype == dtype
    DeltaRule(neuron).backward(x[:1], torch.tensor([[0.1]], dtype=dtype))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: McCullochPitts([1.0], [1.0, 2.0]), ValueError, r"weights have shape \(1, 1\), bias \(2,\)"),
        (lambda: McCullochPitts([float("nan")]), ValueError, "must be finite"),
        (lambda: McCullochPitts([1.0], activation="relu"), ValueError, "must be one of step, .* got 'relu'"),
        (lambda: McCullochPitts([1.0], slope=0.0), ValueError, "slope must be positive"),
        (lambda: McCullochPitts.gate("xor"), ValueError, "No single neuron is a 'xor' gate"),
        (lambda: McCullochPitts(torch.ones(1, 17)).truth_table(), ValueError, r"2\^17 rows"),
        (lambda: DeltaRule(mlp(2, 3, 1)), TypeError, "2 modules with parameters. For deeper nets use Backpropagation"),
        (lambda: DeltaRule(nn.ReLU()), TypeError, "0 modules with parameters"),
        (lambda: DeltaRule(nn.Linear(1, 1), mode="x"), ValueError, "mode must be"),
        (lambda: DeltaRule(McCullochPitts([1.0])), ValueError, "no derivative"),
        (lambda: DeltaRule(nn.Linear(1, 1), nn.functional.mse_loss), ValueError, "pass none"),
        (lambda: DeltaRule(nn.Linear(2, 1)).backward(CORNERS, target("or")[:, 0]), ValueError, r"y has shape \(4,\)"),
        (
            lambda: DeltaRule(McCullochPitts([1.0, 1.0]), mode="perceptron").backward(CORNERS, 2 * target("or") - 1),
            ValueError,
            "y holds -1 to 1, the neurons give 0 to 1",
        ),
        (lambda: fit_online(DeltaRule(nn.Linear(2, 1)), CORNERS, target("or"), lr=0.0), ValueError, "lr must be"),
        (
            lambda: fit_online(DeltaRule(nn.Linear(2, 1)), CORNERS, target("or")[:2], lr=0.1),
            ValueError,
            "samples, y 2",
        ),
        (lambda: signed_distance(McCullochPitts([0.0]), torch.ones(1, 1)), ValueError, "no boundary"),
        (lambda: decision_boundary(nn.Linear(2, 1), (1, 0, 0, 1)), ValueError, "bounds must rise"),
        (lambda: perceptron_bound(CORNERS, torch.ones(3)), ValueError, "4 samples, positive 3"),
    ],
)
def test_wrong_use_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_divergence_is_named_with_its_epoch():
    with pytest.raises(FloatingPointError, match=r"the error is (nan|inf) in epoch"):
        fit_online(DeltaRule(nn.Linear(2, 1)), 1e20 * CORNERS, target("or"), lr=10.0)
