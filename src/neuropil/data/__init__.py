"""Data sets: embedded in a package, at hand in $NEUROPIL_DATA, or downloaded once with a checksum.

    data = load("mnist")
    data.x_train, data.y_train, data.x_test, data.y_test

Names and readers load on first use (scientific-python SPEC 1): listing the catalogue needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
