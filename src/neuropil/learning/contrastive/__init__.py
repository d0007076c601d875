"""Learning by contrast: networks that compare a phase shaped by data with one that is not."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
