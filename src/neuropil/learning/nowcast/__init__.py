"""Nowcasting: a learned model looks at the last states of a network's weights and says where they are going."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
