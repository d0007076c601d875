"""Large sparse networks with delays, plasticity and astrocytes: simulated event by event, differentiable when small."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
