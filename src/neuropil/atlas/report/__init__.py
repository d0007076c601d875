"""The report: what runs measured, as one HTML page that needs no network, no script and no other file.

Names load on first use (scientific-python SPEC 1): who only prints numbers needs no template engine.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
