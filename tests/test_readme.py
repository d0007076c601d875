"""The README says what is true."""

import re
from pathlib import Path

import pytest

from neuropil.atlas import Result
from neuropil.atlas.markdown import updated

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs():
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert 0 < float(names["loss"]) < 2.3
    assert names["report"].macs_after <= 0.5 * names["report"].macs_before


def test_the_python_of_structure_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/structure.md").read_text(encoding="utf-8"), re.DOTALL
    ):
        exec(block, names)
    assert names["handle"].masks.density() < 0.2
    assert names["barrier"].barrier < 1e-4


@pytest.mark.parametrize("file", ["README.md", "docs/claims.md"])
def test_claims_are_the_recorded_ones(file):
    results = sorted((Result.read(file) for file in ROOT.glob("results/*.json")), key=lambda result: result.slug)
    text = (ROOT / file).read_text(encoding="utf-8")
    assert results
    assert updated(text, results) == text


def test_its_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_a_text_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="needs marks of claims or summary"):
        updated("nothing", [])
    with pytest.raises(ValueError, match="needs the mark <!-- end of claims -->"):
        updated("<!-- claims: written by `make readme` -->", [])
