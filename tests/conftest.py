"""Shapes in signatures are checked while the tests run; every worker computes on one thread."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

import tests.typechecker  # noqa: F401 - the import hook looks for it by name


def checked_modules() -> list[str]:
    """Modules whose signatures are checked: all but data, which checks its own arguments, and what numba compiles."""
    root = Path(__file__).parent.parent / "src"
    chapters = ("neurons", "learning", "spiking", "probes", "structure")
    files = [
        *root.glob("neuropil/*.py"),
        *(file for name in chapters for file in root.glob(f"neuropil/{name}/**/*.py")),
    ]
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return [name for name in names if not name.endswith(("__init__", ".draws", ".cli")) and ".kernels" not in name]


jaxtyping.install_import_hook(checked_modules(), "tests.typechecker.check")
torch.set_num_threads(1)
settings.register_profile(
    "neuropil", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("neuropil")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    """The library draws from generators only: no test of it may move the global state unseen."""
    before = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(before)
