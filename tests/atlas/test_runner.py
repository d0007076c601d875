import json
import platform
import signal
import time
from pathlib import Path

import filelock
import pytest
import torch

from neuropil.atlas import Result, run_study
from neuropil.atlas.folders import new_folder
from tests.atlas.shelf import BODIES, shelve, start

FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # a disk that takes six kilobytes a file
"""


@pytest.fixture
def shelf(tmp_path):
    """Runs a study of the shelf at smoke scale."""
    library = shelve(tmp_path, **BODIES)

    def run(slug, **options):
        return run_study(slug, **{"scale": "smoke", "output": tmp_path / "runs", "library": library, **options})

    return run


def wait_for(pattern, folder, process):
    """The file that a study makes, as soon as it is there."""
    for _ in range(600):
        if found := list(folder.glob(pattern)):
            return found[0]
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {folder}")


def test_a_run_is_a_folder(shelf):
    result = shelf("good", seed=4)
    assert (result.status, result.scale, result.seed, result.error) == ("complete", "smoke", 4, None)
    assert Result.read(result.folder) == result
    assert result.settings["sizes"] == [4, 2]
    assert result.folder.parent.name == "good"
    assert ":" not in result.folder.name
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment == result.environment
    assert environment["torch"].startswith(torch.__version__.partition("+")[0])


def test_nothing_personal_is_in_the_result(shelf, tmp_path):
    text = (shelf("good").folder / "result.json").read_text()
    for personal in (platform.node(), str(Path.cwd()), str(Path.home()), str(tmp_path)):
        assert personal not in text


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    assert len({new_folder(tmp_path, "good") for _ in range(5)}) == 5


def test_a_study_runs_on_one_thread_and_the_callers_threads_come_back(tmp_path):
    library = shelve(tmp_path, threads='run.claim("t", holds=torch.get_num_threads() == 1)')
    torch.set_num_threads(2)
    try:
        result = run_study("threads", scale="smoke", output=tmp_path, library=library)
        assert result.claims[0].holds is True
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_jobs_device_and_settings_reach_the_study(tmp_path):
    library = shelve(tmp_path, asks='run.claim(f"{run.jobs} {run.device} {settings.steps}", holds=True)')
    options = {"scale": "smoke", "output": tmp_path, "library": library, "jobs": 3, "settings": {"steps": "9"}}
    result = run_study("asks", **options)
    assert result.claims[0].text == "3 cpu 9"
    assert result.settings["steps"] == 9


def test_a_study_that_fails_keeps_what_it_has(shelf):
    result = shelf("boom")
    assert (result.status, result.error) == ("failed", "RuntimeError: the loss is gone")
    assert [claim.text for claim in Result.read(result.folder).claims] == ["before"]
    assert "RuntimeError" in (result.folder / "traceback.txt").read_text()


def test_sys_exit_in_a_study_is_a_failure(tmp_path):
    library = shelve(tmp_path, leaves="import sys; sys.exit(0)")
    result = run_study("leaves", scale="smoke", output=tmp_path, library=library)
    assert (result.status, result.error) == ("failed", "SystemExit: 0")


def test_only_complete_runs_are_recorded(shelf, tmp_path):
    shelf("good", record=tmp_path / "results")
    shelf("boom", record=tmp_path / "results")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["good.json"]


@pytest.mark.parametrize(
    ("slug", "options", "message"),
    [
        ("goood", {}, "did you mean good"),
        ("good", {"scale": "smok"}, "did you mean smoke"),
        ("good", {"seed": -1}, "seed must be 0 or more"),
        ("good", {"jobs": 0}, "jobs at least 1"),
        ("good", {"device": "abacus"}, "device 'abacus' cannot be used"),
        ("good", {"settings": {"step": 1}}, "the settings are steps, rate"),
        ("good", {"resume": "latest"}, "nothing to resume"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(shelf, tmp_path, slug, options, message):
    with pytest.raises(ValueError, match=message):
        shelf(slug, **options)
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_no_folder_is_named(shelf, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot make the folder .*file"):
        shelf("good", output=tmp_path / "file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_has_and_is_gone_on_with(shelf, tmp_path, number):
    process = start(tmp_path, "run", "slow", "--scale", "smoke")
    folder = wait_for("runs/slow/*/ready", tmp_path, process).parent
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {folder.relative_to(tmp_path)}" in out
    broken_off = Result.read(folder)
    assert broken_off.status == "interrupted"
    assert [claim.text for claim in broken_off.claims] == ["first"]

    (folder / "hurry").touch()
    resumed = shelf("slow", resume="latest")
    assert (resumed.status, resumed.folder, resumed.started) == ("complete", folder, broken_off.started)
    assert [claim.text for claim in resumed.claims] == ["first", "last"]
    assert (folder / "counted").read_text() == "x", "the checkpoint was computed again"


def test_a_killed_run_can_be_resumed_too(shelf, tmp_path):
    process = start(tmp_path, "run", "slow", "--scale", "smoke")
    folder = wait_for("runs/slow/*/ready", tmp_path, process).parent
    process.kill()
    process.communicate()
    assert Result.read(folder).status == "running"
    (folder / "hurry").touch()
    assert shelf("slow", resume=folder).status == "complete"


def test_resume_takes_the_latest_run_that_fits(shelf, tmp_path):
    older = shelf("boom", seed=1).folder
    newer = shelf("boom", seed=2).folder
    assert shelf("boom", seed=1, resume="latest").folder == older
    with pytest.raises(ValueError, match=rf"Cannot resume {newer}: its seed is 2, not 3"):
        shelf("boom", seed=3, resume="latest")
    with pytest.raises(ValueError, match="its steps is 2, not 5"):
        shelf("boom", seed=2, settings={"steps": 5}, resume=newer)
    with pytest.raises(ValueError, match="its slug is boom, not slow"):
        shelf("slow", seed=2, resume=newer)


def test_a_complete_run_is_not_resumed(shelf):
    folder = shelf("good").folder
    with pytest.raises(ValueError, match="it is complete"):
        shelf("good", resume=folder)
    with pytest.raises(ValueError, match="nothing to resume"):
        shelf("good", resume="latest")


def test_one_folder_takes_one_run_at_a_time(shelf, tmp_path):
    process = start(tmp_path, "run", "slow", "--scale", "smoke")
    folder = wait_for("runs/slow/*/ready", tmp_path, process).parent
    with pytest.raises(ValueError, match=f"Another run is going on in {folder}"):
        shelf("slow", resume="latest")
    second = start(tmp_path, "run", "slow", "--scale", "smoke", "--resume")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert err.startswith("neuropil: Another run is going on in ")
    (folder / "hurry").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_lock_is_released_when_a_study_fails(shelf):
    folder = shelf("boom").folder
    with filelock.FileLock(folder / ".lock", timeout=0):
        pass


@pytest.mark.parametrize(
    "body",
    [
        'for i in range(999): run.claim(f"claim {i}", holds=True)',
        'run.claim("claim 0", holds=True); run.save("net", {"w": torch.zeros(10_000)})',
        'run.claim("claim 0", holds=True); run.metrics("m", pd.DataFrame({"x": range(10_000)}))',
    ],
)
def test_a_full_disk_gives_one_line_and_leaves_the_last_result_whole(tmp_path, body):
    shelve(tmp_path, writes=body)
    process = start(tmp_path, "run", "writes", "--scale", "smoke", "--no-report", before=FULL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err.startswith("failed: Cannot write runs/writes/")
    assert len(err.splitlines()) == 1
    result = Result.read(next(tmp_path.glob("runs/writes/*")))
    assert result.claims[0].text == "claim 0"
    assert not list(tmp_path.glob("runs/writes/*/.*.json.*")), "a temporary file was left"
