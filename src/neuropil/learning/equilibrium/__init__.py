"""Equilibrium propagation: networks that come to rest, nudged towards their targets."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
