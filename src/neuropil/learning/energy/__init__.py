"""Learning by relaxing an energy: predictive coding, inference learning, and the implicit step they come close to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
