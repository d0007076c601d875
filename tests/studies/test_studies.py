"""Every study of the package: in step with its paper and its recorded result, and whole at smoke scale."""

from pathlib import Path

import pytest

from neuropil.atlas import Library, Result, run_study

LIBRARY = Library.own()
RECORDED = sorted((Path(__file__).parents[2] / "results").glob("*.json"))
every_study = pytest.mark.parametrize("slug", LIBRARY.studies)


def test_studies_and_papers_are_in_step():
    assert set(LIBRARY.studies) == set(LIBRARY.papers)


@every_study
def test_a_study_is_in_the_chapter_of_its_paper(slug):
    assert LIBRARY.find(slug).parent.name == LIBRARY.paper(slug).chapter


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_a_recorded_result_is_whole_and_has_a_study(file):
    result = Result.read(file)
    assert (result.slug, result.scale, result.status) == (file.stem, "default", "complete")
    assert result.title == LIBRARY.paper(file.stem).title
    assert result.claims


@every_study
def test_a_study_keeps_to_the_protocol(slug):
    study = LIBRARY.load(slug)
    assert study.question.endswith("?")
    for scale in study.scales:
        study.settings(scale)


@every_study
def test_the_claims_of_a_study_hold_at_smoke_scale(slug, tmp_path):
    result = run_study(slug, scale="smoke", output=tmp_path)
    assert result.status == "complete", result.error
    assert result.claims
    assert not [f"{claim.text} ({claim.note})" for claim in result.claims if claim.holds is not True]
