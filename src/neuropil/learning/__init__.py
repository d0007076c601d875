"""Learning rules that train any network by `rule.backward(x, y)`, and what is needed to compare them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
