"""Channels that are computed only for the inputs that need them: heads that predict masks, their cost, their speed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
