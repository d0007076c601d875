"""Comparisons of strategies, the checklist, the pictures."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from neuropil.structure.search.comparison import compare
from neuropil.structure.search.correlation import rank_table
from neuropil.structure.search.landscapes import nk_landscape
from neuropil.structure.search.plots import plot_correlations, plot_regret
from neuropil.structure.search.practice import checklist
from neuropil.structure.search.searching import search
from neuropil.structure.search.strategies import LocalSearch, RandomSearch

SPACE, VALUE = nk_landscape(7, 1, seed=0)
BEST = max(map(VALUE, SPACE.all()))


@pytest.fixture(scope="module")
def comparison():
    return compare({"drawn": RandomSearch(), "local": LocalSearch()}, SPACE, VALUE, 30, 12, optimum=BEST)


def test_a_comparison_holds_the_searches(comparison):
    for name, strategy in (("drawn", RandomSearch()), ("local", LocalSearch())):
        for seed in range(12):
            alone = search(SPACE, VALUE, 30, strategy, seed).trace
            rows = comparison.traces.query("strategy == @name and seed == @seed")
            assert rows["architecture"].tolist() == alone["architecture"].tolist()
            assert comparison.best(name)[seed].tolist() == alone["best"].tolist()
    assert comparison.strategies == ["drawn", "local"]
    assert comparison.baseline == "drawn"
    assert np.allclose(comparison.regret("local"), BEST - comparison.best("local"))
    assert (comparison.regret("local") >= 0).all()


def test_queries_to_a_value(comparison):
    value = sorted(map(VALUE, SPACE.all()))[-3]
    found = comparison.queries_to(value, "local")
    for seed, queries in enumerate(found):
        best = comparison.best("local")[seed]
        assert (queries == 31 and best[-1] < value) or (
            best[queries - 1] >= value and (best[: queries - 1] < value).all()
        )
    first = comparison.sooner(value, "local")
    other = comparison.queries_to(value, "drawn")
    assert first.p == mannwhitneyu(found, other, alternative="less").pvalue
    assert (first.median, first.baseline) == (np.median(found), np.median(other))
    assert first.reached == np.mean(found <= 30)
    assert comparison.sooner(value, "drawn", than="local").p == pytest.approx(1 - first.p, abs=0.05)
    assert comparison.queries_to(2.0, "local").tolist() == [31] * 12


def test_processes_change_nothing(comparison):
    two = compare({"local": LocalSearch()}, SPACE, VALUE, 30, [3, 5], jobs=2)
    for at, seed in enumerate((3, 5)):
        assert two.best("local")[at].tolist() == comparison.best("local")[seed].tolist()


def test_an_exhausted_run_keeps_its_last_value(monkeypatch):
    monkeypatch.setattr("neuropil.structure.search.searching.PATIENCE", 100)
    space, value = nk_landscape(2, 0)
    result = compare({"a": RandomSearch()}, space, value, 9, 2)
    assert result.best("a").shape == (2, 9)
    assert np.isfinite(result.best("a")).all()
    assert result.runs["exhausted"].all()
    assert result.regret("a")[:, -1].tolist() == [0, 0]  # to the best that was found


def test_the_checklist_says_what_is_missing(comparison):
    found = checklist(comparison, same_training=True, test_once=True, hardware="one core", code="neuropil")
    assert found.missing == []
    bare = checklist(compare({"local": LocalSearch()}, SPACE, VALUE, 5, 2))
    assert bare.missing == [item.what for item in found.items if item.what not in _shown(bare)]
    table = bare.table().set_index("practice")["done"]
    assert table["random search as a baseline"] == "no"
    assert table["several seeds, with their spread"] == "no"
    assert table["regret to a known optimum"] == "no"
    assert table["the test part used once, after the search"] == "not stated"
    assert checklist(comparison, test_once=False).items[7].done is False


def _shown(report):
    return [item.what for item in report.items if item.done]


def test_pictures(comparison):
    ax = plot_regret(comparison).axes[0]
    assert [line.get_label() for line in ax.lines] == ["drawn", "local"]
    assert np.allclose(ax.lines[1].get_ydata(), comparison.regret("local").mean(0))
    rng = np.random.default_rng(0)
    y = rng.normal(size=20)
    table = rank_table({"a": y, "b": rng.normal(size=20)}, y, resamples=20)
    ax = plot_correlations(table, ceiling=0.5).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.patches[0].get_width() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: compare({}, SPACE, VALUE, 5, 2), "Strategies"),
        (lambda c: compare({"a": RandomSearch()}, SPACE, VALUE, 5, 0), "seeds"),
        (lambda c: compare({"a": RandomSearch()}, SPACE, VALUE, 5, [1, 1]), "different seeds"),
        (lambda c: c.best("other"), "strategy must be"),
        (lambda c: compare({"l": LocalSearch()}, SPACE, VALUE, 5, 2).sooner(0.5, "l"), "no random search"),
    ],
)
def test_bad_input_is_named(comparison, call, message):
    with pytest.raises(ValueError, match=message):
        call(comparison)
