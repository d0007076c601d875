"""Grow networks from a genome: developmental programs, the policies they make, and the evolution of both."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
