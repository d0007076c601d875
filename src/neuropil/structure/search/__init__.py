"""Architecture search: declare a space, run any strategy under one budget, estimate cheaply, report as one should."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
