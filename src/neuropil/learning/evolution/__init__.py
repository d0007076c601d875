"""Learning to learn: evolution shapes nets that acquire a task within their life, by plasticity and reward alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
