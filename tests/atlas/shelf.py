"""Tiny studies in a folder of the test's own, and the command line on them in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from neuropil.atlas import Library

HEAD = '''"""Does {slug} hold?"""
import os, time
from dataclasses import dataclass
from typing import Literal
import pandas as pd, torch

@dataclass(frozen=True)
class Settings:
    steps: int = 2
    rate: float | None = None
    sizes: tuple[int, ...] = (4, 2)
    rule: Literal["exact", "linear"] = "exact"
    fast: bool = True

SCALES = {{"smoke": Settings(), "default": Settings(3), "paper": Settings(50)}}

def run(settings, run):
    {body}
'''
PAPER = """[{slug}]
title = "On {slug}"
authors = ["Ada Byron", "Mark van Rossum"]
year = 2020
link = "https://example.org/{slug}"
chapter = "learning"
summary = "What {slug} is about."
reading = "full"
"""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from pathlib import Path
from neuropil.atlas.library import Library
from neuropil.cli import main
root = Path(sys.argv[1])
sys.exit(main(sys.argv[2:], Library(root / "studies", root / "papers.toml")))
"""

BODIES = {
    "good": 'run.claim("it holds", holds=True, measured=1.0, interval=(0.5, 1.5), unit="points")',
    "bad": 'run.claim("it holds", holds=False, measured=1.0, note="It was too small.")',
    "open": 'run.claim("it holds", holds=None)',
    "boom": 'run.claim("before", holds=True); raise RuntimeError("the loss is gone\\nand more")',
    "gone": 'run.claim("before", holds=True); os._exit(7)',
    "slow": """run.claim("first", holds=True)
    counted = run.checkpoint("count", lambda: [open(run.folder / "counted", "a").write("x")])
    (run.folder / "ready").touch()
    for _ in run.track(range(600), "step"):
        if (run.folder / "hurry").exists():
            break
        time.sleep(0.05)
    run.claim("last", holds=True, measured=counted[0])""",
}


def shelve(root: Path, **bodies: str) -> Library:
    """Put studies on the shelf: by name, the body of their `run`."""
    chapter = root / "studies" / "learning"
    chapter.mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        slug = name.replace("_", "-")
        (chapter / f"{name}.py").write_text(HEAD.format(slug=slug, body=body))
        with (root / "papers.toml").open("a") as papers:
            papers.write(PAPER.format(slug=slug))
    return Library(root / "studies", root / "papers.toml")


def start(root: Path, *words: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start `neuropil WORDS...` in `root`, after the line `before`, with changes to the environment."""
    return subprocess.Popen(
        [sys.executable, "-c", before + COMMAND, str(root), *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
