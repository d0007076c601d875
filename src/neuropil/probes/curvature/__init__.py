"""Curvature of any network's loss: products, spectra, Fisher information, Kronecker factors, tangent kernel."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
