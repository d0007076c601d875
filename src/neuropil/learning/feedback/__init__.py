"""Feedback that is not the transpose of the forward weights, and what it is measured against."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
