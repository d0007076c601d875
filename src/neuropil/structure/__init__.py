"""Prune, grow, merge and search networks: units, scores, schedules, masks and surgery for any torch module."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
