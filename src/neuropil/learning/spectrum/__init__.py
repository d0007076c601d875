"""Phase and amplitude of features: learning signals that are stopped in one of them, for labels that may be wrong."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
