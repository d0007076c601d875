"""The atlas: studies found by name, run, measured, recorded and shown.

    result = run_study("disinhibition", scale="smoke")
    result.claims, result.folder

Names load on first use (scientific-python SPEC 1): listing the studies needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
