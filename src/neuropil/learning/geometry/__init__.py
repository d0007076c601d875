"""The geometry of plasticity: potentials, mirror descent under them, and what weights tell of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
