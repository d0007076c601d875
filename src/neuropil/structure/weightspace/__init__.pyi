from .activation_matching import match_activations as match_activations
from .interpolation import Barrier as Barrier
from .interpolation import interpolate as interpolate
from .interpolation import loss_barrier as loss_barrier
from .interpolation import on_the_line as on_the_line
from .interpolation import reset_norm_ as reset_norm_
from .matching import alignment as alignment
from .matching import match_weights as match_weights
from .merging import match_many as match_many
from .merging import merge_many as merge_many
from .permutations import Permutation as Permutation
from .scale import KeepControl as KeepControl
from .scale import MaxMean as MaxMean
from .scale import ScaleSearch as ScaleSearch
from .scale import choose_scale as choose_scale
from .straight_through import match_straight_through as match_straight_through
from .vectors import TaskVector as TaskVector
from .vectors import analogy as analogy
from .vectors import sum_of as sum_of

__all__ = [
    "Barrier",
    "KeepControl",
    "MaxMean",
    "Permutation",
    "ScaleSearch",
    "TaskVector",
    "alignment",
    "analogy",
    "choose_scale",
    "interpolate",
    "loss_barrier",
    "match_activations",
    "match_many",
    "match_straight_through",
    "match_weights",
    "merge_many",
    "on_the_line",
    "reset_norm_",
    "sum_of",
]
