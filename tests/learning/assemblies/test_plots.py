import pandas as pd
import pytest

from neuropil.learning.assemblies import plot_steps, plot_support


def test_support_is_drawn_by_arm_and_seed():
    rows = [(arm, seed, step, step * seed) for arm in "ab" for seed in (1, 2) for step in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "step", "support"])
    (ax,) = plot_support(table, arms=["b"]).axes
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[1, 2, 3], [2, 4, 6], [1.5, 3, 4.5]]
    assert len(plot_support(table).axes[0].get_legend().get_texts()) == 2
    with pytest.raises(ValueError, match="'c'; the table has"):
        plot_support(table, arms=["c"])


def test_cells_hold_the_mean_steps():
    table = pd.DataFrame({"k": [5, 5, 9], "p": [0.1, 0.1, 0.2], "steps": [4, 6, 9]}).astype({"steps": float})
    table = pd.concat([table, pd.DataFrame({"k": [5, 9], "p": [0.2, 0.1], "steps": [1.0, 2.0]})])
    (ax,) = plot_steps(table, title="steps").axes
    assert sorted(text.get_text() for text in ax.texts) == ["1.0", "2.0", "5.0", "9.0"]
