"""Plastic neural circuits for brains and machines.

Published systems as reusable components, and their claims as experiments that anyone can run. Subpackages load on
first use (scientific-python SPEC 1), so that importing `neuropil` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "atlas",
        "data",
        "learning",
        "losses",
        "neurons",
        "parallel",
        "plotting",
        "probes",
        "spiking",
        "statistics",
        "structure",
    ],
)
