import json
import subprocess
import sys
from pathlib import Path

import pytest

import neuropil
from neuropil.atlas import Result
from neuropil.cli import main
from tests.atlas.shelf import BODIES, shelve, start


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls `neuropil WORDS...` in a folder with a shelf of studies; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    library = shelve(tmp_path, **BODIES, loud='print("noise"); run.claim("it holds", holds=True)')

    def run(*words):
        code = main(words, library)
        return code, *capsys.readouterr()

    return run


def test_list(call):
    code, out, err = call("list")
    assert (code, err) == (0, "")
    assert "good" in out
    assert "Byron & van Rossum 2020" in out


def test_list_as_json(call):
    entries = json.loads(call("list", "--json", "--chapter", "learning")[1])
    assert {entry["slug"] for entry in entries} == {*BODIES, "loud"}
    assert entries[0]["authors"] == ["Ada Byron", "Mark van Rossum"]


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--version"], ["--help"], ["data", "list"]])
def test_the_quick_commands_import_nothing_heavy(words):
    code = f"import sys; from neuropil.cli import main; code = main({words}); " + (
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'numba', 'sklearn'} & set(sys.modules); "
        "sys.exit(code or str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_imports_nothing_heavy():
    code = "import neuropil, sys; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(call):
    assert call("--version") == (0, f"neuropil {neuropil.__version__}\n", "")


def test_without_a_word_it_helps(call):
    code, out, _ = call()
    assert code == 0
    assert all(command in out for command in ("list", "show", "run", "report", "data"))


def test_show_without_and_with_a_recorded_result(call):
    _, out, _ = call("show", "good")
    assert all(text in out for text in ("On good", "Ada Byron, Mark van Rossum", "Does good hold?", "sizes", "4, 2"))
    assert "Nothing is recorded" in out
    call("run", "good", "--record", "results", "--no-report")
    _, out, _ = call("show", "good")
    assert "Recorded at scale default, seed 0" in out
    assert "it holds" in out
    shown = json.loads(call("show", "good", "--json")[1])
    assert shown["scales"]["paper"]["steps"] == 50
    assert shown["result"]["claims"][0]["holds"] is True
    assert json.loads(call("show", "good", "--json", "--results", "elsewhere")[1])["result"] is None


def test_run_prints_header_claims_and_report(call, tmp_path):
    code, out, err = call("run", "good", "--scale", "smoke")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("On good")
    assert "it holds" in out
    folder = next(tmp_path.glob("runs/good/*"))
    assert f"figures and report: {folder.relative_to(tmp_path)}/report.html" in out
    assert "Byron" in (folder / "report.html").read_text()


def test_no_report(call, tmp_path):
    _, out, _ = call("run", "good", "--scale", "smoke", "--no-report", "--output", "mine")
    folder = next(tmp_path.glob("mine/good/*"))
    assert f"folder: {folder.relative_to(tmp_path)}" in out
    assert not (folder / "report.html").exists()


def test_a_run_survives_a_report_that_fails(call, monkeypatch):
    def write(*_, **__):
        raise ValueError("no ink")

    monkeypatch.setattr("neuropil.atlas.report.write", write)
    code, out, err = call("run", "good", "--scale", "smoke")
    assert (code, err) == (0, "neuropil: no report: no ink\n")
    assert "folder: runs/good/" in out


def test_run_as_json_prints_one_document_whatever_the_study_prints(call):
    code, out, err = call("run", "loud", "--scale", "smoke", "--json")
    document = json.loads(out)
    assert (code, document["status"]) == (0, "complete")
    assert Result.read(Path(document["folder"])).slug == "loud"
    assert "noise" in err


def test_a_terminal_that_knows_only_ascii_gets_question_marks(tmp_path):
    shelve(tmp_path, bad=BODIES["bad"])
    process = start(tmp_path, "run", "bad", "--scale", "smoke", "--no-report", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "does not hold" in out


def test_several_studies_give_a_line_each_or_a_list(call):
    code, out, _ = call("run", "good", "bad", "--scale", "smoke")
    assert code == 0
    assert sorted(line.split()[0] for line in out.splitlines()) == ["bad", "good"]
    code, out, _ = call("run", "good", "bad", "--scale", "smoke", "--json")
    assert [(entry["slug"], entry["report"]) for entry in json.loads(out)] == [("good", None), ("bad", None)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["good", "--strict"], 0),
        (["bad"], 0),
        (["bad", "--strict"], 1),
        (["open", "--strict"], 0),
        (["boom"], 3),
        (["boom", "--strict"], 3),
    ],
)
def test_exit_codes_of_a_run(call, words, code):
    assert call("run", *words, "--scale", "smoke")[0] == code


def test_a_failed_run_says_why_in_one_line(call):
    code, out, err = call("run", "boom", "--scale", "smoke")
    assert (code, err) == (3, "failed: RuntimeError: the loss is gone\n")
    assert "before" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "goood"], "Unknown study 'goood': did you mean good?"),
        (["show", "goood"], "Unknown study 'goood': did you mean good?"),
        (["list", "--chapter", "lerning"], "Unknown chapter 'lerning': did you mean learning?"),
        (["run", "good", "--scale", "papr"], "Unknown scale 'papr': did you mean paper?"),
        (["run", "good", "--seed", "x"], "Invalid value for '--seed'"),
        (["run", "good", "--jobs", "0"], "jobs at least 1"),
        (["run", "good", "--device", "abacus"], "The device 'abacus' cannot be used"),
        (["run", "good", "--set", "step=1"], "the settings are steps, rate, sizes, rule, fast."),
        (["run", "good", "--set", "steps=x"], "Setting steps must be int, got 'x'."),
        (["run", "good", "--set", "steps"], "--set needs KEY=VALUE, got 'steps'."),
        (["run", "good", "--resume"], "nothing to resume"),
        (["run", "good", "--resume", "no/where"], "no/where is neither a run folder nor a result file"),
        (["run", "good", "--output", "papers.toml"], "Cannot make the folder papers.toml/good"),
        (["run", "good", "bad", "--output", "papers.toml"], "Cannot make the folder papers.toml"),
        (["run", "good", "--record", "papers.toml"], "Cannot make the folder papers.toml"),
        (["run", "good", "bad", "--resume"], "--resume and --set need exactly one study"),
        (["run"], "Name the studies to run, or give --all."),
        (["run", "good", "--all"], "Name the studies to run, or give --all."),
        (["run", "good", "--sale", "smoke"], "No such option: --sale"),
        (["rnu", "good"], "No such command 'rnu'"),
        (["report"], "Nothing is recorded in ./results"),
        (["report", "no/where"], "no/where"),
        (["data", "path", "mnits"], "mnits"),
        (["data", "path"], "Missing argument 'NAME'"),
    ],
)
def test_a_bad_argument_gets_one_clear_line_and_2(call, tmp_path, words, message):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith("neuropil: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_set_changes_the_settings(call):
    words = ["--set", "steps=7", "--set", "sizes=8,8", "--set", "rate=1e-2", "--json", "--scale", "smoke"]
    settings = json.loads(call("run", "good", *words)[1])["settings"]
    assert (settings["steps"], settings["sizes"], settings["rate"]) == (7, [8, 8], 0.01)


@pytest.mark.parametrize("place", ["first", "last", "folder"])
def test_resume_with_and_without_a_folder(call, tmp_path, place):
    call("run", "boom", "--scale", "smoke")
    folder = next(tmp_path.glob("runs/boom/*"))
    words = {"first": ["--resume", "boom"], "last": ["boom", "--resume"], "folder": ["boom", "--resume", str(folder)]}
    assert call("run", "--scale", "smoke", *words[place])[0] == 3
    assert len(list(tmp_path.glob("runs/boom/*"))) == 1


def test_run_all_records_and_report_reads(tmp_path):
    shelve(tmp_path, good=BODIES["good"], bad=BODIES["bad"])
    process = start(tmp_path, "run", "--all", "--jobs", "2", "--record", "results", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [entry["slug"] for entry in json.loads(out)] == ["bad", "good"]
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == ["bad.json", "good.json"]
    process = start(tmp_path, "report", "--output", "page.html")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "page.html\n"), err
    assert "On bad" in (tmp_path / "page.html").read_text()


def test_data(call, monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "cache"))
    assert "digits" in call("data", "list")[1]
    assert {"name", "title", "samples", "where", "licence"} <= set(json.loads(call("data", "list", "--json")[1])[0])
    code, _, err = call("data", "path", "digits")
    assert (code, "embedded" in err) == (2, True)
    folder = tmp_path / "mnist"
    monkeypatch.setattr("neuropil.data.folders.locate", lambda name: folder)
    assert call("data", "path", "mnist") == (0, f"{folder}\n", "")
    assert json.loads(call("data", "path", "mnist", "--json")[1]) == {"name": "mnist", "path": str(folder)}


def test_a_download_that_fails_is_3(call, monkeypatch):
    def fetch(name, **_):
        raise neuropil.data.DataError(f"{name} is nowhere\nto be had.")

    monkeypatch.setattr("neuropil.data.fetching.fetch", fetch)
    assert call("data", "fetch", "mnist") == (3, "", "neuropil: mnist is nowhere to be had.\n")
