import signal
import time

import filelock
import pytest

from neuropil.atlas import Result, run_many
from tests.atlas.shelf import BODIES, shelve, start


@pytest.fixture
def shelf(tmp_path):
    """Runs studies of the shelf at smoke scale."""
    library = shelve(tmp_path, **BODIES, jobs='run.claim(f"{run.jobs} process", holds=True)')

    def run(*slugs, **options):
        return run_many(slugs, **{"scale": "smoke", "output": tmp_path / "runs", "library": library, **options})

    return run


def test_a_study_that_takes_its_process_down_leaves_the_others_whole(shelf):
    seen = []
    results = shelf("gone", "good", "boom", "bad", "jobs", jobs=2, done=lambda result: seen.append(result.slug))
    assert [result.slug for result in results] == ["gone", "good", "boom", "bad", "jobs"]
    assert [result.status for result in results] == ["failed", "complete", "failed", "complete", "complete"]
    assert sorted(seen) == sorted(result.slug for result in results)
    gone, good, boom, _, jobs = results
    assert gone.error.startswith("Its process died")
    assert [claim.text for claim in gone.claims] == ["before"], "what it had measured is kept"
    assert Result.read(gone.folder) == gone
    assert Result.read(good.folder) == good
    assert boom.error == "RuntimeError: the loss is gone"
    assert jobs.claims[0].text == "1 process"


def test_a_study_that_cannot_be_imported_fails_alone(shelf, tmp_path):
    (tmp_path / "studies/learning/bad.py").write_text("import nothing_like_it")
    bad, good = shelf("bad", "good")
    assert (bad.status, good.status) == ("failed", "complete")
    assert "nothing_like_it" in bad.error
    assert Result.read(bad.folder).status == "failed"


def test_complete_runs_are_recorded(shelf, tmp_path):
    shelf("good", "boom", record=tmp_path / "results")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["good.json"]


@pytest.mark.parametrize(
    ("slugs", "options", "message"),
    [
        (["good", "goood"], {}, "did you mean good"),
        (["good"], {"jobs": 0}, "jobs must be at least 1"),
        (["good"], {"scale": "smok"}, "did you mean smoke"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_runs(shelf, tmp_path, slugs, options, message):
    with pytest.raises(ValueError, match=message):
        shelf(*slugs, **options)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_many_stops_the_children_and_keeps_what_is_done(tmp_path, number):
    shelve(tmp_path, **BODIES)
    process = start(tmp_path, "run", "good", "slow", "bad", "--scale", "smoke", "--jobs", "1")
    for _ in range(600):
        if list(tmp_path.glob("runs/slow/*/ready")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert Result.read(next(tmp_path.glob("runs/good/*"))).status == "complete"
    slow = Result.read(next(tmp_path.glob("runs/slow/*")))
    assert (slow.status, [claim.text for claim in slow.claims]) == ("interrupted", ["first"])
    assert not list(tmp_path.glob("runs/bad/*")), "the last one had not begun"
    assert [line.split()[:2] for line in out.splitlines()] == [
        *[["good", "complete"], ["slow", "interrupted"], ["bad", "interrupted"]]
    ]
    with filelock.FileLock(slow.folder / ".lock", timeout=0):
        pass  # its process has left the folder


def test_a_scheduler_runs_the_studies_on_its_workers(shelf):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", host="127.0.0.1", **options) as cluster:
        good, boom = shelf("good", "boom", scheduler=cluster.scheduler_address)
    assert (good.status, boom.status) == ("complete", "failed")
    assert Result.read(good.folder) == good


def test_a_missing_dask_is_named_with_its_extra(shelf, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ImportError, match=r"neuropil\[cluster\]"):
        shelf("good", scheduler="tcp://127.0.0.1:1")
