"""Assemblies of neurons: areas, random synapses, k winners, and the operations that form assemblies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
