import io

import pytest
from rich.console import Console

from neuropil.atlas import Claim, Library, Result
from neuropil.atlas.display import Bars, Display, claims_table, one_line

CLAIMS = [
    Claim.checked("the rule holds [really]", holds=True, measured=-0.4123, interval=(-0.71, -0.1), unit="points"),
    Claim.checked("the other one does", holds=False, measured=0.30000000000000004, paper="43", note="Too few [steps]."),
    Claim.checked("exact to rounding", holds=None, measured=1.1e-16, interval=(None, None), note="One seed."),
]


def printed(what, width=80, **options):
    stream = io.StringIO()
    Console(file=stream, width=width, **options).print(what)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_everything_in_words(width):
    text = printed(claims_table(CLAIMS, width), width)
    assert {len(line) for line in text.splitlines()} == {width}
    assert {line[-1] for line in text.splitlines()} == set("╮│┤╯")  # nothing is cut off
    words = ["holds", "does not hold", "undecided", "[really]", "43", "0.3 "]
    assert all(word in text for word in words)
    assert "\x1b" not in text
    assert "e-1" not in text


def test_a_number_has_its_unit_and_its_interval():
    text = printed(claims_table(CLAIMS), 120).replace("\u2212", "-").replace("\u202f", " ")
    assert "-0.412 points" in text
    assert "[-0.710, -0.100]" in text


def test_colours_are_there_on_a_terminal_and_gone_with_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in printed(claims_table(CLAIMS), force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(claims_table(CLAIMS), force_terminal=True, color_system="standard")


def test_the_end_of_a_run_gives_reasons_and_places(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    display = Display(Library.own().papers["disinhibition"], Console(file=out, width=200), Console(file=err, width=200))
    display.start()
    display.stop()
    result = Result("good", "On good", "smoke", 0, "interrupted", claims=CLAIMS, folder=tmp_path)
    display.finish(result)
    assert "Rossbroich & Zenke 2023" in out.getvalue()
    assert "the other one does: does not hold. Too few [steps]." in out.getvalue()
    assert "exact to rounding: undecided. One seed." in out.getvalue()
    assert f"--resume {tmp_path}" in out.getvalue()
    assert "interrupted" in err.getvalue()


def test_a_result_in_one_line():
    result = Result("good", "On good", "smoke", 0, "failed", claims=CLAIMS, error="RuntimeError: gone", seconds=61.0)
    line = one_line(result).plain
    assert "\n" not in line
    assert all(word in line for word in ("good", "failed", "1 holds, 1 does not hold, 1 undecided", "gone"))


def test_bars_show_nested_loops_and_vanish():
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=80))
    bars.start()
    for _ in bars.track(range(2), "seed [a]"):
        assert list(bars.track((i for i in "ab"), "epoch")) == ["a", "b"]
    bars.stop()
    assert "seed [a]" in stream.getvalue()
    assert not bars._bars.tasks
