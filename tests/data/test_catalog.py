import subprocess
import sys

from neuropil import data
from neuropil.data import catalogue
from neuropil.data.folders import cache_folder


def test_says_where_each_set_comes_from(tiny, monkeypatch, tmp_path):
    where = {info.name: info.where for info in catalogue()}
    embedded = dict.fromkeys(["breast-cancer", "digits", "iris"], "embedded")
    assert where == embedded | dict.fromkeys(["fashion-mnist", "mnist", "tiny"], "download")
    tiny.write(cache_folder() / "tiny")
    assert catalogue()[-1].where == "cache"
    tiny.write(tmp_path / "tiny")
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    assert catalogue()[-1].where == "$NEUROPIL_DATA"


def test_every_entry_is_complete():
    for info in catalogue():
        assert info.title and info.description and info.licence and info.citation
        assert info.samples > 0
        assert (info.bytes == 0) == (info.where == "embedded")


def test_public_names_are_there():
    names = [
        "CORRUPTIONS",
        "DataError",
        "Dataset",
        "DatasetInfo",
        "catalogue",
        "corrupt",
        "fetch",
        "is_at_hand",
        "load",
        "locate",
    ]
    assert sorted(data.__all__) == names
    assert all(getattr(data, name) for name in names)


def test_the_catalogue_needs_neither_torch_nor_scikit_learn():
    code = (
        "import sys, neuropil.data; neuropil.data.catalogue(); "
        "sys.exit(str([m for m in ('torch', 'sklearn', 'requests') if m in sys.modules] or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
