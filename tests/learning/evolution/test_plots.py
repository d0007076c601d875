"""Curves over generations and over a life: a line a seed, one for the mean, the control in grey."""

import numpy as np
import pandas as pd

from neuropil.learning.evolution import plot_generations, plot_lives
from neuropil.plotting import GREY


def test_generations_have_a_line_a_seed_and_a_mean():
    rows = [
        {"seed": seed, "generation": generation, "late": 0.5 + generation / 100 + seed / 10, "frozen": 0.5}
        for seed in range(3)
        for generation in (0, 20)
    ]
    (ax,) = plot_generations(pd.DataFrame(rows), {"late": "plastic", "frozen": "control"}, title="pairs").axes
    labelled = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(labelled) == ["plastic", "control"]
    assert np.allclose(labelled["plastic"].get_ydata(), [0.6, 0.8])
    assert labelled["control"].get_color() == GREY
    assert len(ax.lines) == 2 * (3 + 1) + 1
    assert ax.get_title() == "pairs"


def test_lives_are_drawn_over_trials():
    curves = {"evolved": np.array([[0.5, 0.9], [0.5, 0.7]]), "control": np.full((2, 2), 0.5)}
    (ax,) = plot_lives(np.array([5.0, 15.0]), curves).axes
    (line,) = [line for line in ax.lines if line.get_label() == "evolved"]
    assert np.allclose(line.get_xydata(), [[5, 0.5], [15, 0.8]])
    assert ax.get_xlabel() == "trial of the life"
