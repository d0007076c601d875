import io

import pytest

from neuropil.atlas.progress import Lines, Silence, length


def lines(loops, every, step):
    """What is written while nested loops run, if each step takes `step` seconds."""
    time = iter(range(0, 10**6, step))
    stream = io.StringIO()
    shown = Lines(stream, every=every, clock=lambda: float(next(time)))
    loops(shown)
    return stream.getvalue().splitlines()


def nested(shown):
    for _ in shown.track(range(2), "seed"):
        for _ in shown.track((i for i in range(3)), "epoch"):
            pass


def test_a_line_says_where_all_loops_stand():
    assert lines(nested, every=1, step=1)[:2] == ["seed 0/2, epoch 1", "seed 0/2, epoch 2"]


def test_lines_are_sparse():
    assert len(lines(nested, every=3, step=1)) < len(lines(nested, every=1, step=1))
    assert lines(nested, every=1000, step=1) == []


def test_a_loop_that_is_left_early_is_forgotten():
    def loops(shown):
        for _ in shown.track(range(9), "left"):
            break
        list(shown.track(range(1), "next", total=1))

    assert lines(loops, every=1, step=1) == ["next 1/1"]


@pytest.mark.parametrize("shown", [Silence(), Lines(io.StringIO())])
def test_items_pass_through(shown):
    assert list(shown.track(iter("abc"), "letter")) == ["a", "b", "c"]


def test_length_is_known_where_the_items_know_it():
    assert (length([1, 2]), length(range(3)), length(i for i in range(3))) == (2, 3, None)
