"""Spiking networks: differentiable layers whose time loop is one kernel, and an event-driven simulator."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
