"""The batched training against one cell at a time; the shipped table against a new training."""

import random
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from neuropil.structure.search.benchmarks import TabularBenchmark, main, nb_digits, read_benchmark, write_nb_digits
from neuropil.structure.search.cell_spaces import nasbench201_space
from neuropil.structure.search.digits_cells import (
    DigitsTraining,
    GatedLinear,
    batch_indices,
    digits_cell,
    digits_space,
    digits_split,
    train_cells,
)
from neuropil.structure.search.spaces import Space

SHORT = DigitsTraining(looks=(2, 6), batch_size=16)
CODES = [(2, 3, 4, 1), (4, 4, 4, 4), (1, 0, 2, 3), (0, 2, 1, 4), (0, 0, 0, 0)]


def alone(code, seed, training):
    """The plain training of one module."""
    data, whole = digits_split()
    net = digits_cell(code, seed, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=training.rate)
    for batch in batch_indices(len(data.x_train), seed, training.looks[-1], training.batch_size):
        optimizer.zero_grad()
        cross_entropy(net(data.x_train[batch]), data.y_train[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = net(whole.x_test)
    loss = float(cross_entropy(net(data.x_test), data.y_test).detach())
    accuracy = float((logits.argmax(1) == whole.y_test).double().mean())
    return loss, float(cross_entropy(logits, whole.y_test)), accuracy


@pytest.mark.parametrize("seed", [0, 1])
def test_side_by_side_is_one_by_one(seed):
    table = train_cells(CODES, seed, SHORT)
    for code, (_, row) in zip(CODES, table.iterrows(), strict=True):
        loss, test_loss, test_accuracy = alone(code, seed, SHORT)
        assert row["validation loss 6"] == pytest.approx(loss, abs=1e-9)
        assert row["test loss"] == pytest.approx(test_loss, abs=1e-9)
        assert row["test accuracy"] == pytest.approx(test_accuracy, abs=1e-12)
    assert table["validation loss 2"].notna().all()
    assert table["architecture"].tolist() == CODES


def test_codes_of_one_network_train_to_the_same_numbers():
    space = digits_space()
    pairs = [(0, 1, 1, 0), (0, 2, 1, 3), (0, 0, 1, 1), (3, 2, 4, 0)]
    assert all(space.canonical(code) != code for code in pairs)
    table = train_cells([*pairs, *map(space.canonical, pairs)], 0, SHORT).drop(columns="architecture").to_numpy()
    assert np.allclose(table[:4].astype(float), table[4:].astype(float), atol=1e-12)


def test_cells_differ_by_structure_alone():
    first, second = digits_cell((2, 2, 2, 2)), digits_cell((4, 4, 4, 4))
    assert torch.equal(first.stem.weight, second.stem.weight)
    assert torch.equal(
        first.get_parameter("cell.operations.0->1.0.weight"), second.cell.operations["0->1"].value.weight
    )
    assert not torch.equal(first.stem.weight, digits_cell((2, 2, 2, 2), 1).stem.weight)
    x = torch.randn(3, 64)
    h = first.stem(x)
    gate = second.cell.operations["0->1"]
    assert isinstance(gate, GatedLinear)
    assert torch.allclose(gate(h), (h @ gate.value.weight.T) * torch.sigmoid(h @ gate.gate.weight.T), atol=1e-6)


def test_the_parts_of_the_data_are_apart():
    data, whole = digits_split()
    assert [len(part) for part in (data.x_train, data.x_test, whole.x_test)] == [987, 450, 360]
    rows = torch.cat([data.x_train, data.x_test, whole.x_test])
    assert len(rows.unique(dim=0)) == len(rows)


def test_twenty_rows_of_the_shipped_table_are_rebuilt():
    benchmark = nb_digits(seeds=[1])
    codes = random.Random(0).sample(sorted(benchmark.architectures), 20)
    table = train_cells(codes, 1)
    assert [f"validation loss {length}" for length in benchmark.lengths] == list(table)[2:6]
    for code, (_, row) in zip(codes, table.iterrows(), strict=True):
        for length in benchmark.lengths:
            assert benchmark.value(code, length) == pytest.approx(-row[f"validation loss {length}"], abs=1e-3)
        assert benchmark.test_value(code) == pytest.approx(-row["test loss"], abs=1e-3)


def test_the_shipped_table_is_whole_and_small():
    file = files("neuropil.structure.search") / "tables" / "nb_digits.csv"
    assert len(file.read_bytes()) < 200_000
    benchmark = nb_digits()
    assert set(benchmark.architectures) == set(digits_space().all())
    assert (len(benchmark), benchmark.seeds, benchmark.lengths) == (480, [0, 1, 2], [4, 12, 36, 108])
    assert benchmark.value((0, 1, 1, 0)) == benchmark.value((0, 0, 0, 0))
    values = [benchmark.value(code) for code in benchmark.architectures]
    assert values == sorted(values, reverse=True)
    assert benchmark.optimum == values[0]
    assert benchmark.top(0.01) == values[4]
    assert sum(value >= benchmark.top(0.5) for value in values) >= 240
    assert benchmark.spread == pytest.approx(np.subtract(*np.quantile(values, [0.75, 0.25])))
    assert benchmark.test_optimum >= benchmark.test_value(benchmark.architectures[0])
    assert 0 < benchmark.agreement() < 1
    assert np.isnan(nb_digits(seeds=[2]).agreement())
    mean = np.mean([nb_digits(seeds=[seed]).value((1, 2, 3, 4)) for seed in range(3)])
    assert benchmark.value((1, 2, 3, 4)) == pytest.approx(mean)


def test_the_generator_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("neuropil.structure.search.digits_cells.DigitsTraining", DigitsTraining)
    space = digits_space()
    monkeypatch.setattr(type(space), "all", lambda self: iter(CODES[:3]))
    write_nb_digits(tmp_path / "t.csv", seeds=2, training=SHORT)
    table = read_benchmark(str(tmp_path / "t.csv"), space)
    assert (len(table), table.lengths, table.seeds) == (3, [2, 6], [0, 1])
    expected = train_cells(CODES[:3], 0, SHORT)["validation loss 6"].tolist()
    only = read_benchmark(tmp_path / "t.csv", space, seeds=[0])
    assert [-only.value(code) for code in CODES[:3]] == pytest.approx(expected, abs=6e-5)
    assert list(tmp_path.iterdir()) == [tmp_path / "t.csv"]
    with pytest.raises(SystemExit):
        main([])


def test_a_table_of_another_benchmark(tmp_path):
    space = nasbench201_space()
    row = dict.fromkeys(space.names, "none") | {"seed": 0, "validation loss 12": 2.0}
    rows = [row, row | {"0->3": "nor_conv_3x3", "validation loss 12": 1.0}]
    pd.DataFrame(rows).to_csv(tmp_path / "nb201.csv", index=False)
    table = read_benchmark(tmp_path / "nb201.csv", space)
    assert table.optimum == -1.0
    assert table.value((0,) * 6) == -2.0
    with pytest.raises(ValueError, match="no test loss"):
        table.test_value((0,) * 6)
    with pytest.raises(ValueError, match="no test loss"):
        _ = table.test_optimum
    with pytest.raises(ValueError, match="no architecture"):
        table.value((1,) * 6)
    pd.DataFrame([row | {"0->1": "sep_conv"}]).to_csv(tmp_path / "nb201.csv", index=False)
    with pytest.raises(ValueError, match="sep_conv"):
        read_benchmark(tmp_path / "nb201.csv", space)
    pd.DataFrame([row]).drop(columns="0->1").to_csv(tmp_path / "nb201.csv", index=False)
    with pytest.raises(ValueError, match=r"lacks the columns \['0->1'\]"):
        read_benchmark(tmp_path / "nb201.csv", space)


TWO = Space({"a": (0, 1)})


def frame(*rows):
    return pd.DataFrame(rows, columns=["architecture", "seed", "validation loss 1"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0)).drop(columns="seed")), "lacks"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0)).drop(columns="validation loss 1")), "with a length"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0)), seeds=[1]), "seeds"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0)), seeds=[]), "seeds"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, np.nan))), "NaN"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0), ((0,), 0, 2.0))), "second row"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0), ((0,), 1, 2.0), ((1,), 0, 1.0))), "lacks a row"),
        (lambda: TabularBenchmark(TWO, frame(((2,), 0, 1.0))), "options 0 to 1"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0))).value((0,), 3), "lengths"),
        (lambda: TabularBenchmark(TWO, frame(((0,), 0, 1.0))).top(0.0), "share"),
        (lambda: train_cells([], 0), "empty"),
        (lambda: train_cells([(0, 0, 0, 9)], 0), "options 0 to 4"),
        (lambda: DigitsTraining(looks=(3, 2)), "ascending"),
        (lambda: DigitsTraining(looks=()), "ascending"),
        (lambda: DigitsTraining(rate=0.0), "rate"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_diverged_cell_is_named():
    with pytest.raises(FloatingPointError, match=r"\(2, 2, 2, 2\)"):
        train_cells([(0, 0, 0, 0), (2, 2, 2, 2)], 0, DigitsTraining(looks=(8,), rate=1e200))
