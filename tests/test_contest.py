"""`neuropil compare`: rules by name, on named nets and on the user's own."""

import json

import numpy as np
import pytest
from torch import nn

from neuropil.cli import main
from neuropil.contest import Contest, own_object, run_contest
from neuropil.data import load
from neuropil.learning import compare, mlp
from neuropil.learning.league import league, plot_league
from neuropil.learning.rules import contender

SMALL = {"epochs": 1, "seeds": 2, "rates": [1e-2], "train": 120, "test": 60, "align": 50}

OWN = """
import torch
from torch import nn
from neuropil.data import load


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.stem(x))


def make(data):
    return Net(data.classes)


def data(seed):
    return load("digits", seed=seed).subset(100, 50, seed=seed)


def number():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return tmp_path


def test_rules_are_compared_on_one_net_with_everything_that_was_measured(tmp_path):
    table, folder = run_contest(Contest(["bp", "dfa", "inhibition"], "mlp:12", **SMALL), tmp_path)
    assert set(table["rule"]) == {"bp", "dfa", "inhibition"}
    assert table["accuracy"].is_monotonic_decreasing
    assert (table[["milliseconds", "megabytes", "rate", "seeds"]] > 0).all(axis=None)
    assert np.isfinite(table[["accuracy", "low", "high", "angle"]]).all(axis=None)
    angles = table.set_index("rule")["angle"]
    assert angles["bp"] < 1 < angles["dfa"]
    assert {file.name for file in folder.iterdir()} == {"table.csv", "league.json", "league.svg"}
    assert [row["rule"] for row in json.loads((folder / "league.json").read_text())] == list(table["rule"])


def test_images_go_to_convolutions_as_images(tmp_path):
    table, _ = run_contest(Contest(["bp", "fa"], "conv", **SMALL), tmp_path)
    assert len(table) == 2


def test_a_net_and_data_of_the_user_are_found_in_the_working_directory(own, capsys):
    words = "compare bp dfa --net own_nets:make --data own_nets:data --points stem --epochs 1 --seeds 1 --json"
    assert main([*words.split(), "--rates", "0.01,0.02", "--output", str(own / "runs")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["rule"] for row in answer["league"]} == {"bp", "dfa"}
    assert answer["folder"].startswith(str(own / "runs" / "compare"))


def test_the_terminal_shows_one_line_a_rule(tmp_path, capsys):
    words = "compare bp shallow --net mlp:8 --epochs 1 --seeds 2 --rates 0.01 --train 100 --test 50 --output"
    assert main([*words.split(), str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "accuracy (%)" in out
    assert "shallow" in out
    assert "table and figure:" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("dfaa", "Did you mean 'dfa'?"),
        ("bp backpropagation", "A rule is named twice"),
        ("bp --rates x", "--rates needs numbers"),
        ("bp --net mlp:a-b", "hidden sizes are whole numbers"),
        ("bp --net nothing", "'nothing' is no module:function"),
        ("bp --net nowhere:make", "No module named 'nowhere'"),
        ("bp --net own_nets:none", "own_nets has no function 'none'"),
        ("bp --net own_nets:number", "returns a int, not a torch.nn.Module"),
        ("bp --data own_nets:number", "returns a int, not a neuropil.data.Dataset"),
        ("ep --net conv", "equilibrium-propagation trains a circuit of its own"),
        ("dfa --net own_nets:make", "dfa: Net is no Sequential: say where to cut"),
        ("np --net conv", "np: Batch norm '1' makes every sample's loss depend"),
        ("bp --rates 1e30", "diverges at every rate"),
    ],
)
def test_what_cannot_be_compared_is_said_before_training(own, words, complaint, capsys):
    extra = ["--epochs", "1", "--train", "100", "--test", "50", "--output", str(own)]
    if "1e30" in words:
        extra += ["--rates", "1e30,1e31", "--net", "mlp:8-8-8", "--batch-size", "10"]
    assert main(["compare", *words.split(), *extra]) == 2
    assert complaint in capsys.readouterr().err


def test_own_objects_are_callable():
    assert own_object("torch.nn:Linear") is nn.Linear
    with pytest.raises(ValueError, match="is no module:function"):
        own_object("torch")


def test_the_league_leaves_open_what_was_not_measured(tmp_path):
    data = load("digits").flat().subset(100, 50)
    rules = {name: contender(name, data, lambda g: mlp(64, 8, 10, generator=g)) for name in ("bp", "fa")}
    table = compare(rules, data, epochs=1, seeds=1)
    summary = league(table)
    assert summary[["angle", "milliseconds", "megabytes"]].isna().all(axis=None)
    assert len(plot_league(table).axes) == 3
