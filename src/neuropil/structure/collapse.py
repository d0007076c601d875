"""Will pruning at the start empty a whole layer, and from which sparsity on?

With scores s of weights at a random start, m^l = E[(s^l)^2] is a layer's mean squared score. For s = w dL/dw it follows
the gradient, m^l ~ chi^(L - l) (`chaos`): off the edge of chaos the scores of one end of the net are exponentially
smaller than those of the other, and one threshold for all empties a layer long before the rest is sparse. The critical
sparsity is the smallest at which that happens. Off the edge it is at most

    s_cr <= (1 + log(kappa L N^2) / kappa) / L,     kappa = |log chi| / 8

for depth L and width N, which says something only where kappa L is well above log(kappa L N^2): at chi = 0.78 and
N = 200 that takes over 500 layers. At the edge there is no such bound.

Source: Hayou, Ton, Doucet & Teh, ICLR 2021 (arXiv 2002.08797), theorem 1.
"""

import math
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from neuropil.neurons.ranges import require, require_positive
from neuropil.structure.allocation import allocate

__all__ = ["critical_sparsity", "layer_collapse", "sbp_bound"]


def layer_collapse(scores: Mapping[str, Tensor], density: float = 1.0) -> pd.DataFrame:
    """Which layers a common threshold on the scores would empty.

    Args:
        scores: by name of the parameter, in the order of the layers; bigger is kept.
        density: fraction of all scored weights that is kept, in (0, 1].

    Returns:
        One row a layer: "layer", "weights" (their number), "mean_square_score", "kept" (fraction of its weights above
        the common threshold at this density), "empty_at" (sparsity of all at which none of its weights is left).

    Raises:
        ValueError: if there are no scores, one is NaN, or the density is out of range.
    """
    values = _flat(scores)
    require("density", density, 0.0, 1.0, ends=(False, True))
    masks = allocate(dict(scores), density)
    ordered, _ = torch.cat(list(values.values())).sort()
    rows = []
    for name, score in values.items():
        gone = torch.searchsorted(ordered, score.max().reshape(1), right=True)
        rows.append(
            {
                "layer": name,
                "weights": len(score),
                "mean_square_score": float(score.square().mean()),
                "kept": float(masks[name].double().mean()),
                "empty_at": int(gone) / len(ordered),
            }
        )
    return pd.DataFrame(rows)


def critical_sparsity(scores: Mapping[str, Tensor]) -> float:
    """The smallest sparsity at which a common threshold leaves some layer without a weight, in (0, 1].

    It is the smallest fraction, over layers, of all weights that score no more than the layer's best.

    Raises:
        ValueError: if there are no scores, or one is NaN.
    """
    values = _flat(scores)
    ordered, _ = torch.cat(list(values.values())).sort()
    weakest = torch.stack([score.max() for score in values.values()]).min()
    return int(torch.searchsorted(ordered, weakest.reshape(1), right=True)) / len(ordered)


def sbp_bound(chi: float, depth: int, width: int) -> float:
    """Upper bound of the critical sparsity of w dL/dw scores in a net off the edge of chaos.

    Args:
        chi: from `mean_field`.
        depth: number of layers, L.
        width: units of every layer, N.

    Returns:
        The bound, in [0, 1]. 1 says nothing: chi is 1, or the net is too shallow for the theorem.

    Raises:
        ValueError: if an argument is not positive and finite.

    Source: Hayou et al., ICLR 2021, theorem 1.
    """
    require_positive(chi=chi, depth=depth, width=width)
    kappa = abs(math.log(chi)) / 8
    inside = kappa * depth * width**2
    if inside <= 1:  # the logarithm is for large kappa L N^2
        return 1.0
    return min(1.0, (1 + math.log(inside) / kappa) / depth)


def _flat(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores in float64 as vectors, checked."""
    if not scores:
        raise ValueError("scores is empty: there is no layer to look at.")
    values = {name: score.detach().reshape(-1).to(torch.float64) for name, score in scores.items()}
    for name, score in values.items():
        if not len(score) or bool(score.isnan().any()):
            raise ValueError(f"scores[{name!r}] {'is empty' if not len(score) else 'has NaN among them'}.")
    return values
