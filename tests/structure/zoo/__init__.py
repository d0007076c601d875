"""Models on which units are found, cut and permuted: small, with random weights that hide no wrong rule."""

from importlib.util import find_spec

from tests.structure.zoo.attention import CASES as ATTENTION
from tests.structure.zoo.case import Case
from tests.structure.zoo.convolutional import CASES as CONVOLUTIONAL
from tests.structure.zoo.convolutional import resnet18
from tests.structure.zoo.hugging_face import CASES as FAMILIES
from tests.structure.zoo.odd import CASES as ODD

__all__ = ["HOUSE", "HUGGING_FACE", "ZOO", "Case", "case", "resnet18"]

HOUSE = (*CONVOLUTIONAL, *ATTENTION, *ODD)
HUGGING_FACE = FAMILIES if find_spec("transformers") else ()
ZOO = (*HOUSE, *HUGGING_FACE)


def case(name: str) -> Case:
    """Find a case by its name."""
    return {one.name: one for one in ZOO}[name]
