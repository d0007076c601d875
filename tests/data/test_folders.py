from pathlib import Path

import pytest

from neuropil.data import locate
from neuropil.data.folders import cache_folder


def test_shared_folder_comes_before_the_cache(tiny, monkeypatch, tmp_path):
    assert locate("tiny") is None
    cached = tiny.write(cache_folder() / "tiny")
    assert locate("tiny") == cached
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path / "shared"))
    assert locate("tiny") == cached
    shared = tiny.write(tmp_path / "shared" / "tiny")
    assert locate("tiny") == shared


def test_an_incomplete_folder_is_not_at_hand(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    shared = tiny.write(tmp_path / "tiny")
    (shared / "t10k-labels-idx1-ubyte.gz").unlink()
    assert locate("tiny") is None


def test_embedded_sets_have_no_folder():
    assert locate("digits") is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        locate("MNIST")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_none(empty, monkeypatch):
    monkeypatch.setenv("NEUROPIL_CACHE", empty)
    monkeypatch.setenv("NEUROPIL_DATA", empty)
    assert cache_folder().name == "neuropil"
    assert cache_folder().is_absolute()


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("NEUROPIL_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
