from .tracing import Example as Example
from .tracing import trace_units as trace_units
from .unit_graph import UnitGraph as UnitGraph
from .units import Member as Member
from .units import UnitGroup as UnitGroup
from .units import unit_scores as unit_scores

__all__ = ["Example", "Member", "UnitGraph", "UnitGroup", "trace_units", "unit_scores"]
