from .attention import SlimAttention as SlimAttention
from .containers import Attribute as Attribute
from .containers import discover as discover
from .deepening import deepen as deepen
from .masking import mask_units as mask_units
from .permuting import permute as permute
from .permuting import permuted as permuted
from .shrinking import Cut as Cut
from .shrinking import cut as cut
from .shrinking import load_pruned as load_pruned
from .shrinking import shrink as shrink
from .widening import widen as widen

__all__ = [
    "Attribute",
    "Cut",
    "SlimAttention",
    "cut",
    "deepen",
    "discover",
    "load_pruned",
    "mask_units",
    "permute",
    "permuted",
    "shrink",
    "widen",
]
