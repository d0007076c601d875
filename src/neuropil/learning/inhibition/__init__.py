"""Dis-inhibitory circuits: their neurons, their loops, and the learning rule that needs no other error signal."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
