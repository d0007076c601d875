import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.equilibrium import (
    EquilibriumPropagation,
    error_cosine,
    jacobian_asymmetry,
    jacobian_symmetry,
    recurrent_matrix,
)
from tests.learning.equilibrium.nets import dense, gradients, maps


def written_out(net, x):
    """Jhat of every sample, by autograd through the drives."""
    rest = net.settle(x)
    matrices = []
    for sample in range(len(x)):
        parts = [rest.activity[group][sample] for group in net.groups]
        sizes = [part.numel() for part in parts]

        def send(v, sizes=sizes, sample=sample):
            pieces = [piece.view(1, *net.shapes[g]) for g, piece in zip(net.groups, v.split(sizes), strict=True)]
            drives = net.drives(dict(zip(net.groups, pieces, strict=True)), net.external(x[sample : sample + 1]))
            return torch.cat([drives[group].flatten() for group in net.groups]) - v

        matrices.append(torch.autograd.functional.jacobian(send, torch.cat([part.flatten() for part in parts])))
    return torch.stack(matrices).detach()


def asymmetry(matrices):
    return ((matrices - matrices.mT).square().sum((1, 2)) / (2 * matrices.shape[-1])).mean()


def test_the_closed_form_is_the_asymmetry_of_the_jacobian_and_knows_its_gradient():
    for case in (
        dense(),
        dense(connections="loop"),
        dense(connections={"l1": ["in", "l1"], "out": ["l1"], "l2": ["l1"]}),
    ):
        net = case.net
        loss = jacobian_asymmetry(net)
        assert_close(loss.detach(), asymmetry(written_out(net, case.x[:1])))
        w = recurrent_matrix(net).detach()
        loss.backward()
        wanted = 2 * (w - w.T) / net.units
        places = dict(zip(net.groups, torch.arange(net.units).split([8, 6, 4]), strict=True))
        for pre, post in net.wiring:
            kernel = net.connection(pre, post)
            if pre == "in":
                assert kernel.weight.grad is None
            else:
                assert_close(kernel.weight.grad, wanted[places[post]][:, places[pre]])
        assert net.readout.weight.grad is None


def test_noise_measures_the_closed_form():
    net, x, _ = dense(batch=20)
    draws = torch.stack(
        [jacobian_asymmetry(net, x, 5, torch.Generator().manual_seed(seed)).detach() for seed in range(20)]
    )
    error = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - float(jacobian_asymmetry(net).detach())) < 3 * error
    assert error < 0.1 * float(draws.mean())


def test_noise_measures_nets_whose_jacobian_depends_on_the_state():
    net, x, _ = maps(batch=2)
    matrices = written_out(net, x)
    draws = torch.stack(
        [jacobian_asymmetry(net, x, 10, torch.Generator().manual_seed(seed)).detach() for seed in range(12)]
    )
    assert abs(float(draws.mean() - asymmetry(matrices))) < 3 * float(draws.std()) / len(draws) ** 0.5
    symmetric, antisymmetric = ((matrices + s * matrices.mT).flatten(1).norm(dim=1) for s in (1, -1))
    assert jacobian_symmetry(net, x) == pytest.approx(float((symmetric / (symmetric + antisymmetric)).mean()))
    assert not torch.allclose(matrices[0], matrices[1])


@pytest.mark.parametrize("make", [dense, maps])
def test_symmetric_nets_have_no_asymmetry(make):
    net, x, _ = make(angle=0.0)
    assert float(jacobian_asymmetry(net, x, 3).detach().abs()) < 1e-12
    assert jacobian_symmetry(net, x) == pytest.approx(1)


def test_antisymmetric_nets_are_symmetric_by_their_diagonal_alone():
    net, x, _ = dense(angle=180.0)
    w = recurrent_matrix(net).detach()
    assert_close(w, -w.T)
    diagonal, rest = net.units**0.5, float(w.norm())
    assert jacobian_symmetry(net, x) == pytest.approx(diagonal / (diagonal + rest))


@pytest.mark.parametrize("make", [dense, maps])
def test_the_loss_reaches_the_kernels_between_groups_alone(make):
    net, x, y = make()
    plain, extra = (
        gradients(EquilibriumPropagation(net, cross_entropy, points=0, homeostasis=weight), x, y) for weight in (0, 2.0)
    )
    for name, gradient in extra.items():
        moved = float((gradient - plain[name]).abs().max())
        between = name.endswith("weight") and "in-" not in name and "readout" not in name
        assert (moved > 1e-3) if between else (moved < 1e-9), name
    if net.linear:
        w = recurrent_matrix(net).detach()
        wanted = 2.0 * 2 * (w - w.T) / net.units
        name = "connections.l2-l1.weight"
        assert_close(extra[name] - plain[name], wanted[:8, 8:14])


def test_homeostasis_alone_aligns_the_error_vectors():
    net, x, y = dense(scale=1.0, batch=30)
    rule = EquilibriumPropagation(net, cross_entropy, points=0)
    before, start = error_cosine(rule, x, y), float(jacobian_asymmetry(net).detach())
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        jacobian_asymmetry(net).backward()
        optimizer.step()
    assert float(jacobian_asymmetry(net).detach()) < 1e-3 * start
    assert error_cosine(rule, x, y) > max(0.99, before)


def test_the_noise_comes_from_the_generator():
    net, x, y = maps()

    def once(seed):
        rule = EquilibriumPropagation(
            net, cross_entropy, homeostasis=1.0, generator=torch.Generator().manual_seed(seed), noise_samples=1
        )
        return gradients(rule, x, y)

    before = torch.random.get_rng_state()
    assert_close(once(0), once(0))
    assert not torch.allclose(once(0)["connections.l1-out.weight"], once(1)["connections.l1-out.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jacobian_asymmetry(maps().net), "pass samples"),
        (lambda: jacobian_asymmetry(dense().net, samples=3), "pass x"),
        (lambda: jacobian_asymmetry(dense().net, dense().x, 0), "samples must be at least 1"),
        (lambda: recurrent_matrix(maps().net), "Only dense networks"),
        (lambda: jacobian_symmetry(dense(5, 900, 100).net, dense().x), "1000 units is too large"),
    ],
)
def test_what_cannot_be_measured_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
