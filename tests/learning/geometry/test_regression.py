import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.geometry import (
    EUCLIDEAN,
    NegativeEntropy,
    PNorm,
    RegressionTask,
    interpolate,
    plot_changes,
    plot_distances,
    plot_log_weights,
    row_space_residual,
)

RATES = {EUCLIDEAN: 0.03, PNorm(3.0): 0.002, NegativeEntropy(): 0.2}


def task(samples=8, features=120, seed=0):
    return RegressionTask.draw(samples, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("potential", RATES, ids=lambda potential: potential.name)
def test_the_change_lies_in_the_span_of_the_inputs_in_its_own_geometry_only(potential):
    problem = task()
    end = interpolate(problem, potential, RATES[potential])
    assert end.loss < 1e-3
    for tested in RATES:
        residual = row_space_residual(tested.grad(end.weights) - tested.grad(problem.w), problem.x)
        assert residual < 1e-8 if tested == potential else residual > 0.1


def test_the_2_norm_finds_the_nearest_solution():
    problem = task()
    end = interpolate(problem, EUCLIDEAN, 0.03, epochs=3000, tries=1)
    nearest = problem.w + torch.linalg.pinv(problem.x) @ (problem.y - problem.x @ problem.w)
    assert_close(end.weights, nearest, atol=1e-4, rtol=0)


def test_the_solution_is_of_least_divergence_from_the_start():
    problem, entropy = task(), NegativeEntropy()
    end = interpolate(problem, entropy, 0.2, epochs=2000, tries=1)
    least = float(entropy.bregman(end.weights, problem.w))
    _, _, basis = torch.linalg.svd(problem.x)
    for direction in basis[len(problem.y) :][:10]:  # along which the labels do not change
        for size in (1e-3, -1e-3):
            assert float(entropy.bregman(end.weights + size * direction, problem.w)) > least - 1e-9


def test_tries_lengthen_until_the_loss_is_small_and_divergence_ends_them():
    problem = task()
    slow = interpolate(problem, EUCLIDEAN, 1e-3, epochs=10, tries=3)
    assert slow.steps == 30
    assert slow.loss > 1e-3
    assert interpolate(problem, EUCLIDEAN, 0.03).steps == 100
    wild = interpolate(problem, EUCLIDEAN, 100.0)
    assert (wild.loss, wild.steps) == (float("inf"), 100)


def test_a_task_is_what_it_says():
    problem = task(50, 400)
    assert set(problem.y.tolist()) == {-1.0, 1.0}
    assert problem.x.shape == (50, 400)
    assert float(problem.x.var()) == pytest.approx(1 + 1 / 12, rel=0.05)
    assert float(problem.w.std()) == pytest.approx(400**-0.5, rel=0.15)
    assert torch.equal(problem.x, task(50, 400).x)
    assert problem.to("cpu").x.device.type == "cpu"


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="epochs and tries"):
        interpolate(task(), EUCLIDEAN, 0.1, epochs=0)
    with pytest.raises(ValueError, match="Nothing changed"):
        row_space_residual(torch.zeros(5), torch.ones(2, 5))


def test_figures_show_a_panel_a_potential():
    names = [potential.name for potential in RATES]
    rows = [
        {"trained": own, "tested": name, "features": features, "seed": seed, "cdf_distance": 0.1 + 0.01 * seed}
        for own in names
        for name in names
        for features in (100, 200)
        for seed in range(2)
    ]
    table = pd.DataFrame(rows)
    assert len(plot_distances(table, {100: 0.05, 200: 0.03}, title="N = D^0.5").axes) == 3
    assert len(plot_distances(table.query("seed == 0")).axes) == 3
    values = np.random.default_rng(0).normal(size=100)
    assert len(plot_changes({own: dict.fromkeys(names, values) for own in names}).axes) == 3
    assert len(plot_log_weights(values, dict.fromkeys(names, np.append(values, 0.0))).axes) == 3
