"""Phase diagrams: what is computed of a table, the rule of advice, and the loop that fills the table."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp
from neuropil.structure.criteria import Gradient
from neuropil.structure.landscape.diagram import PhaseDiagram
from neuropil.structure.landscape.phases import Gauges, phase_diagram
from neuropil.structure.masks import attach


def table(cells, seeds=3, spread=0.1):
    """Rows of {(temperature, density): (dense error, error, lmc, cka)}, seeds apart by multiples of `spread`."""
    labels = list(dict.fromkeys(temperature for temperature, _ in cells))
    rows = []
    for seed in range(seeds):
        for (temperature, density), (dense, error, lmc, cka) in cells.items():
            heat = len(labels) - 1 - labels.index(temperature)
            rows.append((seed, temperature, heat, density, dense, error + spread * seed, lmc, cka))
    columns = ["seed", "temperature", "heat", "density", "dense_error", "error", "lmc", "cka"]
    return pd.DataFrame(rows, columns=columns)


# Hot, warm and cold at a low and at a high load: colder helps at the low load, hotter at the high one.
CELLS = {
    ("hot", 0.5): (30.0, 20.0, 0.0, 0.5),
    ("hot", 0.1): (30.0, 25.0, -0.5, 0.6),
    ("warm", 0.5): (20.0, 15.0, 0.5, 0.95),
    ("warm", 0.1): (20.0, 30.0, -3.0, 0.6),
    ("cold", 0.5): (25.0, 12.0, 0.2, 1.0),
    ("cold", 0.1): (25.0, 35.0, -9.0, 0.9),
}


def test_axes_go_from_hot_to_cold_and_from_low_load_to_high():
    diagram = PhaseDiagram(table(CELLS).sample(frac=1, random_state=0))
    assert diagram.temperatures == ["hot", "warm", "cold"]
    assert diagram.densities == [0.5, 0.1]
    grid = diagram.grid("error")
    assert list(grid.index) == ["hot", "warm", "cold"]
    assert list(grid.columns) == [0.5, 0.1]
    assert grid.to_numpy() == pytest.approx(np.array([[20.0, 25.0], [15.0, 30.0], [12.0, 35.0]]) + 0.1)


def test_effects_are_paired_over_seeds_and_carry_their_sign():
    effects = PhaseDiagram(table(CELLS)).effects()
    found = {(row.density, row.hotter): (row.effect, row.hotter_helps) for row in effects.itertuples()}
    assert found == {
        (0.5, "hot"): (pytest.approx(5.0), False),
        (0.5, "warm"): (pytest.approx(3.0), False),
        (0.1, "hot"): (pytest.approx(-5.0), True),
        (0.1, "warm"): (pytest.approx(-5.0), True),
    }
    noisy = table(CELLS)
    noisy.loc[noisy["temperature"] == "hot", "error"] += [10, 10, -20, -20, 5, 5]
    effects = PhaseDiagram(noisy).effects()
    assert effects["hotter_helps"].tolist()[0] is None
    one = PhaseDiagram(table(CELLS, seeds=1)).effects()
    assert set(one["hotter_helps"]) == {None}


def test_regimes_follow_connectivity_first_and_similarity_second():
    regimes = PhaseDiagram(table(CELLS)).regimes(lmc_tol=1.0, cka_cut=0.9)
    found = {(row.temperature, row.density): row.regime for row in regimes.itertuples()}
    assert found == {
        ("hot", 0.5): "II-A",
        ("warm", 0.5): "II-B",
        ("cold", 0.5): "II-B",
        ("hot", 0.1): "II-A",
        ("warm", 0.1): "I",
        ("cold", 0.1): "I",
    }
    strict = PhaseDiagram(table(CELLS)).regimes(lmc_tol=0.1, cka_cut=0.99)
    assert strict.set_index(["temperature", "density"])["regime"]["hot", 0.1] == "I"


def test_advice_names_its_evidence_and_whether_it_was_confirmed():
    diagram = PhaseDiagram(table(CELLS))
    hotter = diagram.advice(0.1, "warm")
    assert (hotter.direction, hotter.regime, hotter.confirmed) == ("hotter", "I", True)
    assert hotter.slope == pytest.approx(-10.0)
    assert hotter.evidence == pytest.approx(
        {"lmc": -3.0, "cka": 0.6, "cka cut": 0.9, "error": 30.1, "error hotter": 25.1, "error colder": 35.1}
    )
    colder = diagram.advice(0.5, "hot")
    assert (colder.direction, colder.regime, colder.confirmed) == ("colder", "II-A", True)
    assert np.isnan(colder.evidence["error hotter"])
    assert colder.slope == pytest.approx(5.0)
    assert (diagram.advice(0.5, "cold").direction, diagram.advice(0.5, "cold").confirmed) == ("keep", True)
    assert diagram.advice(0.5, "warm").confirmed is False  # "keep", but colder is better still
    assert diagram.advice(0.1, "hot").confirmed is False  # colder is worse
    edge = {**CELLS, ("cold", 0.1): (25.0, 35.0, 0.0, 0.5)}
    assert PhaseDiagram(table(edge)).advice(0.1, "cold").confirmed is None  # nothing colder was measured


def test_nets_without_a_similarity_are_not_alike():
    cells = {**CELLS, ("cold", 0.5): (25.0, 12.0, 0.2, np.nan)}
    assert PhaseDiagram(table(cells)).advice(0.5, "cold").regime == "II-A"
    nowhere = PhaseDiagram(table({place: (*numbers[:3], np.nan) for place, numbers in CELLS.items()}))
    assert nowhere.grid("cka").isna().all().all()
    assert nowhere.grid("cka").shape == (3, 2)
    assert set(nowhere.regimes()["regime"]) == {"I", "II-A"}


def test_choices_by_each_measure():
    diagram = PhaseDiagram(table(CELLS, seeds=2))
    picked = {by: diagram.choices(by)["temperature"].tolist() for by in ("lmc", "cka", "dense_error", "error")}
    assert picked == {
        "lmc": ["warm", "hot"] * 2,
        "cka": ["cold", "cold"] * 2,
        "dense_error": ["warm", "warm"] * 2,
        "error": ["cold", "hot"] * 2,
    }
    assert diagram.choices("lmc")["error"].tolist() == pytest.approx([15.0, 25.0, 15.1, 25.1])
    with pytest.raises((ValueError, TypeError), match="by"):
        diagram.choices("loss")


def test_tables_with_holes_are_refused():
    whole = table(CELLS)
    with pytest.raises(ValueError, match=r"lacks \['lmc'\]"):
        PhaseDiagram(whole.drop(columns="lmc"))
    for broken in (whole.iloc[1:], pd.concat([whole, whole.iloc[:1]])):
        with pytest.raises(ValueError, match="Every seed needs every temperature"):
            PhaseDiagram(broken)
    with pytest.raises(ValueError, match="no rows"):
        PhaseDiagram(whole.iloc[:0])
    with pytest.raises(ValueError, match=r"no cell at density 0\.3"):
        PhaseDiagram(whole).advice(0.3, "hot")
    with pytest.raises(ValueError, match="lmc_tol must be"):
        PhaseDiagram(whole).regimes(lmc_tol=-1.0)


def test_diagrams_of_several_seeds_are_joined():
    whole = table(CELLS)
    parts = [PhaseDiagram(whole[whole["seed"] == seed]) for seed in range(3)]
    assert PhaseDiagram.joined(parts).effects().equals(PhaseDiagram(whole).effects())
    with pytest.raises(ValueError, match="empty"):
        PhaseDiagram.joined([])


@pytest.fixture
def bench():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    y = (x[:, 0] > 0).long()

    def step(net, seed, steps, masks=None):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        if masks is not None:
            attach(masks, net, optimizer)
        order = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randperm(60, generator=order)[:20]
            optimizer.zero_grad()
            cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
        return net

    def error(net):
        assert not net.training
        return 100 * float((net(x).argmax(1) != y).double().mean())

    gauges = Gauges(error, error, [x[:30], x[30:]], points=5)
    made = []

    def train(steps, seed):
        net = step(mlp(5, 8, 2, generator=torch.Generator().manual_seed(seed)), seed, steps)
        made.append((net, deepcopy(net.state_dict())))
        return net

    return train, lambda net, masks, seed: step(net, 100 + seed, 4, masks), gauges, made


def test_the_loop_fills_every_cell_and_changes_no_dense_net(bench):
    train, retrain, gauges, made = bench
    seen = []
    diagram = phase_diagram(
        train,
        [2, 20],
        [1.0, 0.5, 0.25],
        lambda net, masks, seed: seen.append((masks.density(), seed)) or retrain(net, masks, seed),
        gauges,
        seeds=(3, 4),
        retrain_seeds=(0, 1, 2),
        params=["0.weight"],
    )
    assert len(diagram.table) == 2 * 2 * 3
    assert len(seen) == 12 * 3
    assert {density for density, _ in seen} == {1.0, 0.5, 0.25}
    assert diagram.temperatures == [2, 20]
    for net, before in made:
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not diagram.table.isna().any().any()
    assert diagram.table["agreement"].between(0, 1).all()
    by_hand = diagram.table.query("seed == 3 and temperature == 20")["dense_error"].iloc[0]
    assert by_hand == gauges.test_error(train(20, 3).eval())


def test_retrainings_of_one_order_are_one_net(bench):
    train, retrain, gauges, _ = bench
    diagram = phase_diagram(train, [5], [0.5], lambda net, masks, seed: retrain(net, masks, 0), gauges)
    row = diagram.table.iloc[0]
    assert (row["lmc"], row["agreement"], row["error_spread"]) == (0.0, 1.0, 0.0)
    assert row["cka"] == pytest.approx(1.0)
    assert row["js"] == pytest.approx(0.0, abs=1e-9)


def test_bad_arguments_of_the_loop_are_named(bench):
    train, retrain, gauges, _ = bench
    with pytest.raises(ValueError, match="retrain_seeds must be two or more"):
        phase_diagram(train, [1], [0.5], retrain, gauges, retrain_seeds=(0,))
    with pytest.raises(ValueError, match="densities must have entries, each once"):
        phase_diagram(train, [1], [0.5, 0.5], retrain, gauges)
    with pytest.raises(ValueError, match="density must be"):
        phase_diagram(train, [1], [0.0], retrain, gauges)
    with pytest.raises(ValueError, match="Gradient needs gradient"):
        phase_diagram(train, [1], [0.5], retrain, gauges, criterion=Gradient())
    with pytest.raises(ValueError, match="outside its mask"):
        phase_diagram(train, [1], [0.5], lambda net, masks, seed: train(3, seed), gauges)
