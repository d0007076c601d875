"""Surgery: remove, reorder and copy units, in parameters, buffers, gradients and optimizer state."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
