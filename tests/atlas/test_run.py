import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from neuropil.atlas import Result, Run


@pytest.fixture
def run(tmp_path):
    return Run(Result("good", "On good", "smoke", 3), tmp_path)


def written(run):
    return json.loads((run.folder / "result.json").read_text())


def test_what_a_study_finds_in_it(run, tmp_path):
    assert (run.scale, run.seed, run.jobs, run.device, run.folder) == ("smoke", 3, 1, torch.device("cpu"), tmp_path)


def test_the_file_has_every_claim_as_soon_as_it_is_made(run):
    for count in (1, 2):
        run.claim(f"claim {count}", holds=np.bool_(False), measured=np.float64(0.5))
        assert len(written(run)["claims"]) == count
    assert written(run)["status"] == "running"


def test_the_same_claim_twice_is_refused(run):
    run.claim("c", holds=True)
    with pytest.raises(ValueError, match="'c' was made before"):
        run.claim("c", holds=True)


def test_a_table_is_stored_as_json_has_it(run):
    frame = pd.DataFrame({"n": [1, 2], "x": [np.nan, np.inf], "s": ["a", None], "b": [True, False]})
    run.table("t", frame)
    assert written(run)["tables"]["t"] == {
        "columns": ["n", "x", "s", "b"],
        "rows": [[1, None, "a", True], [2, None, None, False]],
    }


def test_an_index_of_its_own_becomes_columns(run):
    run.table("t", pd.DataFrame({"g": ["a", "a", "b"], "x": [1.0, 3.0, 5.0]}).groupby("g").mean())
    assert written(run)["tables"]["t"] == {"columns": ["g", "x"], "rows": [["a", 2.0], ["b", 5.0]]}


def test_a_large_table_is_sent_to_metrics(run):
    with pytest.raises(ValueError, match=r"2001 rows, at most 2000 .* metrics"):
        run.table("t", pd.DataFrame({"a": range(2001)}))


def test_metrics_take_a_frame_or_a_row(run):
    run.metrics("training", pd.DataFrame({"epoch": [0], "loss": [0.5]}))
    run.metrics("training", epoch=1, loss=0.25)
    assert pd.read_csv(run.folder / "metrics.csv").to_dict("list") == {
        "name": ["training", "training"],
        "epoch": [0, 1],
        "loss": [0.5, 0.25],
    }
    with pytest.raises(ValueError, match="either a DataFrame or"):
        run.metrics("training")


def test_a_figure_is_written_closed_and_always_the_same(run):
    contents = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 2], label="x")
        axes.legend()
        contents.append(run.figure("accuracy", figure).read_bytes())
        assert not plt.fignum_exists(figure.number)
    assert contents[0] == contents[1]
    assert b"<text" not in contents[0]
    assert written(run)["figures"] == ["accuracy.svg"]


@pytest.mark.parametrize("name", ["../x", "a b", "", "A", "x.svg", "-"])
def test_names_that_are_no_plain_file_names_are_refused(run, name):
    for call in (lambda: run.figure(name, plt.figure()), lambda: run.save(name, {}), lambda: run.checkpoint(name, int)):
        with pytest.raises(ValueError, match="must be small letters and digits"):
            call()
    plt.close("all")


def test_a_checkpoint_is_computed_once_and_is_the_same_either_way(run, tmp_path):
    def compute():
        calls.append(1)
        return {"pair": (1, 2), "x": np.float64(0.1)}

    calls = []
    first = run.checkpoint("c", compute)
    again = Run(Result("good", "On good", "smoke", 3), tmp_path).checkpoint("c", compute)
    assert first == again == {"pair": [1, 2], "x": 0.1}
    assert len(calls) == 1


def test_a_checkpoint_name_is_used_once(run):
    run.checkpoint("c", lambda: 1)
    with pytest.raises(ValueError, match="'c' was used before"):
        run.checkpoint("c", lambda: 2)


def test_a_state_is_replaced_and_loaded(run):
    assert run.load("net") is None
    for epoch in range(2):
        run.save("net", {"epoch": epoch, "w": torch.full((2,), float(epoch))})
    state = run.load("net")
    assert state["epoch"] == 1
    assert state["w"].tolist() == [1.0, 1.0]
    assert run.checkpoint("net", lambda: 5) == 5, "states and checkpoints do not share names"


def test_a_state_without_tensors_is_kept_too(run):
    run.save("s", {"epoch": 0})
    run.save("s", {"epoch": 1, "w": torch.ones(1)})
    run.save("s", {"epoch": 2})
    assert run.load("s") == {"epoch": 2}


def test_a_data_set_is_named_once(run):
    for _ in range(2):
        run.uses(SimpleNamespace(name="digits", source="scikit-learn", citation="Alpaydin & Kaynak 1998", x=1))
    run.uses(SimpleNamespace(name="drawn"))
    assert written(run)["data"] == [
        {"name": "digits", "source": "scikit-learn", "citation": "Alpaydin & Kaynak 1998"},
        {"name": "drawn", "source": "", "citation": ""},
    ]


def test_track_yields_the_items(run):
    assert list(run.track((i * i for i in range(3)), "square")) == [0, 1, 4]


def test_no_temporary_file_is_left(run):
    run.claim("c", holds=True)
    run.save("s", {"w": torch.ones(1)})
    names = {file.name for file in run.folder.rglob("*") if file.is_file()}
    assert names == {"result.json", "s.pt"}


def test_what_is_lacking_leaves_a_claim_undecided(run, monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    assert not run.lacks("digits", "digits are embedded")
    assert run.lacks("mnist", "it works on MNIST")
    (claim,) = run.result.claims
    assert claim.holds is None
    assert claim.note == "mnist is not on this machine: `neuropil data fetch mnist` gets it."
