"""Layers that learn from their inputs alone, and networks that adapt to a shifted, unlabelled stream by doing so."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
