from . import curvature as curvature
from .edits import add as add
from .edits import clamp as clamp
from .edits import patch as patch
from .edits import scale as scale
from .edits import zero as zero
from .recording import Recording as Recording
from .reducers.activity import ActivityCounter as ActivityCounter
from .reducers.base import Reducer as Reducer
from .reducers.correlation import CrossCorrelation as CrossCorrelation
from .reducers.histogram import Histogram as Histogram
from .reducers.moments import Moments as Moments
from .reducers.quantile import Quantile as Quantile
from .reducers.record import Record as Record
from .reducers.topk import TopK as TopK
from .similarity import Agreement as Agreement
from .similarity import JensenShannon as JensenShannon
from .similarity import LinearCKA as LinearCKA
from .similarity import stream_pair as stream_pair
from .sites import Context as Context
from .sites import Site as Site
from .streams import stream as stream
from .taps import record as record
from .taps import tap as tap
from .taps import two_pass as two_pass

__all__ = [
    "ActivityCounter",
    "Agreement",
    "Context",
    "CrossCorrelation",
    "Histogram",
    "JensenShannon",
    "LinearCKA",
    "Moments",
    "Quantile",
    "Record",
    "Recording",
    "Reducer",
    "Site",
    "TopK",
    "add",
    "clamp",
    "curvature",
    "patch",
    "record",
    "scale",
    "stream",
    "stream_pair",
    "tap",
    "two_pass",
    "zero",
]
