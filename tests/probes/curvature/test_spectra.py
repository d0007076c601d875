import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.probes.curvature.hutchinson import diagonal, hessian_diagonal, trace
from neuropil.probes.curvature.lanczos import lanczos, top_eigenvalues
from neuropil.probes.curvature.operators import Hessian, Symmetric
from neuropil.probes.curvature.spectra import density, hessian_density, sharpness, spectral_radius

from .nets import full_hessian, smooth_net, task


def symmetric(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix of given eigenvalues."""
    draw = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(draw)[0]
    return rotation @ torch.diag(values.double()) @ rotation.T


def test_lanczos_to_the_end_gives_every_eigenvalue_and_an_orthonormal_basis():
    matrix = symmetric(torch.linspace(-3, 5, 40))
    found = lanczos(Symmetric.dense(matrix), 100)
    assert len(found.diagonal) == 40
    assert found.residual == 0
    assert_close(found.ritz()[0], torch.linspace(-3, 5, 40, dtype=torch.float64))
    assert_close(found.basis @ found.basis.T, torch.eye(40, dtype=torch.float64))


def test_the_lanczos_relation_holds():
    matrix = symmetric(torch.logspace(-3, 2, 60))
    found = lanczos(Symmetric.dense(matrix), 12, start=torch.ones(60, dtype=torch.float64))
    gap = matrix @ found.basis.T - found.basis.T @ found.tridiagonal()
    assert gap[:, :-1].abs().max() < 1e-12
    assert float(gap[:, -1].norm()) == pytest.approx(found.residual, rel=1e-9)


def test_no_ghosts_after_an_outlier_has_converged():
    # A far eigenvalue makes copies of itself without re-orthogonalisation, in float32 within some 20 steps.
    values = torch.cat([torch.linspace(0, 1, 199), torch.tensor([1000.0])])
    found = lanczos(Symmetric.dense(symmetric(values).float()), 80)
    assert int((found.ritz()[0] > 500).sum()) == 1


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_top_eigenvalues_agree_with_a_small_nets_full_hessian(which):
    net, batch = smooth_net(4, 5, 3), task()
    exact = torch.linalg.eigvalsh(full_hessian(net, batch, cross_entropy))
    order = {"largest": -exact, "smallest": exact, "magnitude": -exact.abs()}[which].argsort()[:3]
    found = top_eigenvalues(Hessian(net, batch, cross_entropy), 3, which=which, tol=1e-8)
    assert_close(found.values, exact[order])
    assert found.converged
    assert found.residuals.max() < 1e-8 * exact.abs().max()
    assert_close(found.vectors @ found.vectors.T, torch.eye(3, dtype=torch.float64))
    assert found.products < 2 * 43


def test_a_repeated_eigenvalue_is_found_as_often_as_it_occurs_once_the_space_is_exhausted():
    matrix = symmetric(torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 0.0]))
    assert_close(top_eigenvalues(matrix, 4).values, torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    identity = top_eigenvalues(torch.eye(500, dtype=torch.float64), 2)
    assert_close(identity.values, torch.ones(2, dtype=torch.float64))
    assert identity.products < 10


def test_zero_one_by_one_and_low_rank():
    zero = top_eigenvalues(torch.zeros(7, 7))
    assert float(zero.values[0]) == 0
    assert zero.converged
    assert float(top_eigenvalues(torch.full((1, 1), -4.0)).values[0]) == -4
    v = torch.arange(1, 201, dtype=torch.float64)
    found = top_eigenvalues(torch.outer(v, v), which="largest")
    assert float(found.values[0]) == pytest.approx(float(v @ v))
    assert found.products < 8
    # All else is 0, which the first vector does not see but in its own part.
    assert float(top_eigenvalues(-torch.outer(v, v)).values[0]) == pytest.approx(0, abs=1e-6)


def test_sharpness_and_spectral_radius_differ_where_the_loss_bends_down():
    net, batch = smooth_net(4, 5, 3), task()
    exact = torch.linalg.eigvalsh(full_hessian(net, batch, cross_entropy))
    down = lambda output, y: -cross_entropy(output, y)  # noqa: E731
    assert sharpness(net, batch, cross_entropy, tol=1e-6) == pytest.approx(float(exact[-1]), rel=1e-6)
    assert sharpness(net, batch, down, tol=1e-6) == pytest.approx(-float(exact[0]), rel=1e-5)
    assert spectral_radius(net, batch, down, tol=1e-6) == pytest.approx(float(exact[-1]), rel=1e-6)
    assert sharpness(net, batch, cross_entropy, kind="ggn") > 0


def test_too_few_iterations_warn_and_say_how_close():
    matrix = symmetric(torch.linspace(0, 1, 300))
    with pytest.warns(RuntimeWarning, match="not converged after 5 products"):
        found = top_eigenvalues(matrix, iters=5, tol=1e-6)
    assert not found.converged
    gap = (torch.linspace(0, 1, 300, dtype=torch.float64) - found.values[0]).abs().min()
    assert gap <= found.residuals[0]


def test_the_same_seed_gives_the_same_and_the_global_state_is_untouched():
    matrix = symmetric(torch.linspace(0, 1, 50))
    before = torch.random.get_rng_state()
    first, second = (top_eigenvalues(matrix, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    density(matrix, steps=5, probes=2)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(before, torch.random.get_rng_state())


def test_density_of_a_full_run_has_the_exact_moments_up_to_the_probes():
    values = torch.tensor([0.0, 1.0, 1.0, 4.0])
    found = density(symmetric(values), steps=4, probes=400)
    assert_close(found.weights.sum(1), torch.ones(400, dtype=torch.float64))
    assert found.moment(1) == pytest.approx(1.5, abs=0.15)
    at = found.cumulative(torch.tensor([-1.0, 0.5, 2.0, 5.0]))
    assert_close(at, torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64), atol=0.05, rtol=0)


def test_quadrature_is_exact_for_polynomials_of_degree_two_steps_minus_one():
    matrix = symmetric(torch.linspace(-1, 2, 30))
    probe = torch.Generator().manual_seed(5)
    vector = torch.randn(30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    vector /= vector.norm()
    found = density(matrix, steps=4, probes=1, generator=probe)
    for power in range(8):
        exact = float(vector @ torch.linalg.matrix_power(matrix, power) @ vector)
        assert found.moment(power) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    exact = float(vector @ torch.linalg.matrix_power(matrix, 8) @ vector)
    assert found.moment(8) != pytest.approx(exact, rel=1e-9)


def test_density_of_a_nets_hessian_against_its_exact_eigenvalues():
    net, batch = smooth_net(4, 5, 3), task()
    exact = torch.linalg.eigvalsh(full_hessian(net, batch, cross_entropy))
    found = density(full_hessian(net, batch, cross_entropy), steps=43, probes=200)
    grid = torch.linspace(float(exact[0]) - 0.1, float(exact[-1]) + 0.1, 60, dtype=torch.float64)
    counted = (exact[None] <= grid[:, None]).double().mean(1)
    # Away from the jumps of the exact count.
    clear = (grid[:, None] - exact).abs().min(1).values > 5e-3
    assert clear.sum() > 20
    assert (found.cumulative(grid) - counted)[clear].abs().max() < 0.08
    assert found.moment(1) * found.size == pytest.approx(float(exact.sum()), rel=0.2)
    seeds = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    ours = hessian_density(net, batch, cross_entropy, steps=20, probes=2, generator=seeds[0])
    dense = density(full_hessian(net, batch, cross_entropy), steps=20, probes=2, generator=seeds[1])
    assert_close(ours.moment(3), dense.moment(3))
    assert ours.size == 43


def test_a_smoothed_density_integrates_to_one():
    found = density(symmetric(torch.linspace(-1, 2, 50)), steps=20, probes=3)
    grid, height = found.smooth()
    assert float(torch.trapezoid(height, grid)) == pytest.approx(1, abs=1e-3)
    assert density(torch.zeros(5, 5), steps=3, probes=2).smooth()[1].isfinite().all()


def test_hutchinson_is_exact_on_a_diagonal_and_unbiased_elsewhere():
    values = torch.linspace(-1, 2, 6, dtype=torch.float64)
    assert_close(diagonal(Symmetric.dense(torch.diag(values)), 1), values)
    matrix = symmetric(values)
    found = diagonal(Symmetric.dense(matrix), 4000)
    assert_close(found, matrix.diagonal(), atol=0.1, rtol=0)
    estimate = trace(Symmetric.dense(matrix), 400)
    assert abs(estimate.value - float(values.sum())) < 4 * estimate.error
    assert trace(Symmetric.dense(matrix), 1).error == float("inf")


def test_hessian_diagonal_comes_by_name():
    net, batch = smooth_net(4, 2), (task()[0], task(classes=2)[1])
    exact = full_hessian(net, batch, cross_entropy).diagonal()
    found = hessian_diagonal(net, batch, cross_entropy, samples=600)
    assert found["0.weight"].shape == (2, 4)
    assert_close(torch.cat([found["0.weight"].flatten(), found["0.bias"]]), exact, atol=0.06, rtol=0)


def test_bad_input_is_named():
    matrix = torch.eye(4)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"got {k}"):
            top_eigenvalues(matrix, k)
    with pytest.raises(ValueError, match="tol"):
        top_eigenvalues(matrix, tol=0.0)
    with pytest.raises(ValueError, match="iters"):
        top_eigenvalues(matrix, iters=0)
    with pytest.raises(ValueError, match="start"):
        lanczos(Symmetric.dense(matrix), 2, start=torch.zeros(4))
    with pytest.raises(ValueError, match="probes"):
        density(matrix, probes=0)
    with pytest.raises(ValueError, match="samples"):
        diagonal(Symmetric.dense(matrix), 0)
    with pytest.raises(FloatingPointError, match="step 1"):
        top_eigenvalues(torch.full((3, 3), float("nan")))
