"""Weights as points of a space: differences that are tasks, lines between nets, what lies between two minima."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
