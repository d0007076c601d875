"""The loss landscape as a tool: are two nets connected, are they alike, and should one train hotter or colder?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
