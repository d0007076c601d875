import re

import pytest

from neuropil.atlas import Library
from neuropil.atlas.library import unknown
from tests.atlas.shelf import BODIES, shelve


def test_studies_are_found_by_name_and_not_imported(tmp_path):
    library = shelve(tmp_path, feedback_gate="raise SystemExit", good=BODIES["good"])
    (tmp_path / "studies/learning/broken.py").write_text("this is no Python")
    (tmp_path / "studies/learning/__init__.py").touch()
    assert list(library.studies) == ["broken", "feedback-gate", "good"]
    assert library.chapters == ["learning"]


def test_a_study_is_loaded_with_its_paper(tmp_path):
    study = shelve(tmp_path, good=BODIES["good"]).load("good")
    assert (study.question, study.paper.title, study.paper.citation) == (
        *("Does good hold?", "On good"),
        "Byron & van Rossum 2020",
    )
    assert study.settings("paper").steps == 50


def test_the_packages_own_papers_are_whole():
    paper = Library.own().papers["disinhibition"]
    assert paper.citation == "Rossbroich & Zenke 2023"
    assert "\n" not in paper.summary


def test_an_unknown_study_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown study 'god': did you mean good\?"):
        shelve(tmp_path, good="pass").find("god")


def test_all_names_are_given_where_none_is_near_and_they_are_few():
    assert unknown("scale", "zz", ["smoke", "paper"]) == "Unknown scale 'zz': there are smoke, paper."
    assert "150, see the list" in unknown("study", "zz", [f"study-{i}" for i in range(150)])


def test_the_same_name_in_two_chapters_is_refused(tmp_path):
    library = shelve(tmp_path, good="pass")
    (tmp_path / "studies/brain").mkdir()
    (tmp_path / "studies/brain/good.py").touch()
    with pytest.raises(ValueError, match="Two studies are named good"):
        _ = library.studies


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "no docstring"),
        ('"""Q?"""', "needs SCALES with smoke, default, paper"),
        ('"""Q?"""\nSCALES = {"smoke": 1}', "needs SCALES with smoke, default, paper"),
        ('"""Q?"""\nSCALES = {"smoke": 1, "default": 2, "paper": 3}', "'smoke'] must be a frozen dataclass"),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path, source, message):
    library = shelve(tmp_path, good="pass")
    (tmp_path / "studies/learning/good.py").write_text(source)
    with pytest.raises(ValueError, match=f"study good.*{re.escape(message)}"):
        library.load("good")


def test_a_study_that_cannot_be_imported_says_why(tmp_path):
    library = shelve(tmp_path, good="pass")
    (tmp_path / "studies/learning/good.py").write_text("import mne_is_not_here")
    with pytest.raises(ImportError, match=r"good cannot be imported: ModuleNotFoundError: .*mne_is_not_here"):
        library.load("good")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("year = 2020", "year = '2020'", r"year of \[good\] must be a whole number"),
        ("year = 2020", "", r"\[good\] lacks \['year'\]"),
        ("year = 2020", "year = 2020\nvenue = 'x'", r"should not have \['venue'\]"),
        ('reading = "full"', 'reading = "half"', "reading of .* full or reconstruction"),
        ('["Ada Byron", "Mark van Rossum"]', '"Ada Byron"', "authors of .* list of names"),
        ("[good]", "[good", "not valid TOML"),
    ],
)
def test_a_broken_entry_is_named(tmp_path, old, new, message):
    library = shelve(tmp_path, good="pass")
    library.papers_file.write_text(library.papers_file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"papers\.toml.*{message}"):
        _ = library.papers


def test_a_study_without_a_paper_is_named(tmp_path):
    library = shelve(tmp_path, good="pass")
    library.papers_file.write_text("")
    with pytest.raises(ValueError, match=r"papers\.toml has no entry \[good\]"):
        library.load("good")
