"""Dis-inhibitory circuits: their neurons, their loops, and the learning rule that needs no other error signal."""

from neuropil.learning.inhibition.activation import Softplus
from neuropil.learning.inhibition.control import ControlRecord, DisinhibitoryControl, control_energy
from neuropil.learning.inhibition.controllers import Controller, LeakyPI, Proportional
from neuropil.learning.inhibition.loop import ClosedLoop, close_loop, trajectory
from neuropil.learning.inhibition.network import CircuitState, DisinhibitoryNetwork

__all__ = [
    "CircuitState",
    "ClosedLoop",
    "ControlRecord",
    "Controller",
    "DisinhibitoryControl",
    "DisinhibitoryNetwork",
    "LeakyPI",
    "Proportional",
    "Softplus",
    "close_loop",
    "control_energy",
    "trajectory",
]
