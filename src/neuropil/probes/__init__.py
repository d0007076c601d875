"""Look inside any torch model while it runs and while it trains: taps, streaming statistics, curvature."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
