"""The unit graph: which parameter axes form one unit, in any module."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
