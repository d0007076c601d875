"""Pictures of the study of pruning by Kronecker-factored curvature."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from neuropil.plotting import GREY, panels
from neuropil.studies.structure._columns import means, numbers
from neuropil.studies.structure._curvature_cuts import CUT

__all__ = ["deletions_figure", "pruning_figure"]


def deletions_figure(table: pd.DataFrame, scores: Sequence[str]) -> Figure:
    """Predicted against true rises, one seed, by layer."""
    layers = list(dict.fromkeys(table["layer"]))
    figure, axes = panels(len(layers))
    first = min(table["seed"].tolist())
    for ax, layer in zip(axes, layers, strict=True):
        true = numbers(table, "true", layer=layer, seed=first)
        for score in scores:
            ax.plot(true, numbers(table, score, layer=layer, seed=first), "o", ms=3, alpha=0.7, label=score)
        ends = float(true.min()), float(true.max())
        ax.plot(ends, ends, color=GREY, lw=1, label="equal")
        ax.set(title=f"hidden layer {layer}", xlabel="true rise of the loss")
    axes[0].set_ylabel("predicted rise")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def pruning_figure(table: pd.DataFrame) -> Figure:
    """Accuracy and radius against parameters, fewer to the right: after retraining, and right after a cut."""
    figure, (left, middle, right) = panels(3)
    kept, cut = table.query(f"stage != '{CUT}'"), table.query(f"stage == '{CUT}'")
    sizes = sorted(set(table["parameters"].tolist()))
    for ax, rows, value in ((left, kept, "accuracy"), (middle, cut, "accuracy"), (right, kept, "radius")):
        for arm in dict.fromkeys(table["arm"]):
            line = means(rows.query(f"arm == {arm!r}"), ["cut"], ["parameters", value])
            ax.plot(line["parameters"], line[value], "o-", ms=3, lw=1, label=arm)
        ax.set(xscale="log", xlabel="parameters", xlim=(1.2 * sizes[-1], sizes[0] / 1.2))
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
    left.set(title="after retraining", ylabel="accuracy, %")
    middle.set(title="right after the cut", ylabel="accuracy, %")
    right.set(title="after retraining", ylabel="spectral radius of the Hessian")
    left.legend(fontsize=7, frameon=False)
    return figure
