"""Learning from noisy labels: stop the amplitude and the phase of features at different times."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
