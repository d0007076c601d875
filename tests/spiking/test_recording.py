import io
import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from neuropil.spiking.network.plots import plot_crossover, plot_raster, plot_scaling, plot_states
from neuropil.spiking.network.recording import DENSE_BYTES, Recording


def recording(spikes=((3, 0), (4, 1), (4, 0), (9, 2)), *, start=0, steps=10, n=3, dt=0.5, **more):
    times, neurons = np.array([t for t, _ in spikes], np.int64), np.array([i for _, i in spikes], np.int32)
    return Recording(dt, start, steps, {"E": n}, {"E": times}, {"E": neurons}, **more)


def poisson(rate, *, n=400, ms=500.0, dt=0.1, name="E", seed=0):
    rng, steps = np.random.default_rng(seed), round(ms / dt)
    count = rng.poisson(rate * n * ms / 1000)
    times = np.sort(rng.integers(steps, size=count))
    return Recording(dt, 0, steps, {name: n}, {name: times}, {name: rng.integers(n, size=count).astype(np.int32)})


def test_rates_count_spikes_over_neurons_and_time():
    run = recording()
    assert run.duration_ms == 5 and run.rates().tolist() == [400, 200, 200]
    assert run.rate() == pytest.approx(4 / 3 / 0.005)
    assert run.rate("E", neurons=slice(1, None)) == pytest.approx(200)
    assert run.rate(neurons=np.array([0])) == pytest.approx(400)
    # from step 4 on: 3 of the spikes in 3 ms
    assert run.rate(since_ms=2.0) == pytest.approx(1000 / 3)
    later = recording(((103, 0), (104, 1), (104, 0), (109, 2)), start=100)
    assert later.rate(since_ms=2.0) == run.rate(since_ms=2.0)


def test_bins_are_named_by_their_middles_and_hold_every_spike():
    times, rate = recording(start=2, steps=9).binned_rate(bin_ms=1.0)
    assert times.tolist() == [1.5, 2.5, 3.5, 4.5]  # the ninth step is left out
    np.testing.assert_allclose(rate, [1 / 3e-3, 2 / 3e-3, 0, 1 / 3e-3])
    run = poisson(20.0)
    plain, smooth = run.binned_rate(bin_ms=1.0)[1], run.binned_rate(bin_ms=1.0, smooth_ms=5.0)[1]
    assert plain.mean() == pytest.approx(run.rate()) and smooth.mean() == pytest.approx(run.rate())
    assert smooth.std() < 0.4 * plain.std()


def test_views_of_the_same_spikes_agree():
    run = poisson(20.0, n=7)
    times, neurons = run.raster()
    trains = run.spike_trains()
    for i, train in enumerate(trains):
        np.testing.assert_array_equal(train, times[neurons == i])
    dense = run.to_dense()
    assert dense.shape == (run.steps, 7) and dense.dtype == torch.bool
    pairs = set(zip(run.times["E"].tolist(), run.neurons["E"].tolist(), strict=True))
    assert {(t, i) for t, i in dense.nonzero().tolist()} == pairs
    assert run.counts(window_ms=10.0).sum(axis=0).tolist() == np.bincount(neurons, minlength=7).tolist()


def test_irregularity_averages_over_those_that_fired_enough():
    clock = [(t, 0) for t in range(0, 100, 10)]
    uneven = [(t, 1) for t in (0, 10, 40)]
    run = recording(sorted([*clock, *uneven, (50, 2), (60, 2)]), steps=100)
    each = run.isi_cvs()
    assert each[:2].tolist() == [0, 0.5] and np.isnan(each[2])
    assert run.isi_cv() == 0.25 and run.isi_cv(min_spikes=4) == 0 and run.isi_cv(since_ms=10.0) == 0
    assert np.isnan(recording().isi_cv())
    assert poisson(50.0, ms=4000.0).isi_cv() == pytest.approx(1.0, abs=0.02)


def test_populations_go_by_name_unless_there_is_one():
    empty = {"times": {"E": np.empty(0, np.int64)}, "neurons": {"E": np.empty(0, np.int32)}}
    two = Recording(
        0.1,
        0,
        10,
        {"E": 2, "I": 4},
        empty["times"] | {"I": np.array([7])},
        empty["neurons"] | {"I": np.array([3], np.int32)},
    )
    assert two.rate("E") == 0 and two.rate("I") == pytest.approx(250) and len(two.spike_trains("I")) == 4
    with pytest.raises(ValueError, match=r"more than one population, name one: \['E', 'I'\]"):
        two.rate()
    unheard = Recording(0.1, 0, 10, {}, {}, {})
    for call in (unheard.rate, lambda: plot_states({"a": unheard}, window_ms=1.0)):
        with pytest.raises(ValueError, match="No spikes were recorded"):
            call()
    with pytest.raises(ValueError, match=r"No population named 'X'; the recording has \['E', 'I'\]"):
        two.raster("X")


def whole(start, stop, interval=3):
    """Steps start..stop of one deterministic run; the value at a step is the step."""
    spikes = [(t, t % 3) for t in range(20) if t % 4 != 1 and start <= t < stop]
    samples = torch.arange(start, stop, dtype=torch.float64)
    values = {"v": samples[samples % interval == 0, None], "g": samples[:, None, None]}
    return recording(spikes, start=start, steps=stop - start, values=values, intervals={"v": interval, "g": 1})


@pytest.mark.parametrize("cut", range(1, 20))
def test_runs_that_follow_each_other_are_one_run(cut):
    joined, at_once = whole(0, cut).concatenate(whole(cut, 20)), whole(0, 20)
    assert (joined.start, joined.steps) == (0, 20)
    for part in ("times", "neurons", "values"):
        for name, array in getattr(at_once, part).items():
            np.testing.assert_array_equal(getattr(joined, part)[name], array)
    times, values = joined.trace("v")
    np.testing.assert_array_equal(times, values[:, 0].numpy() * 0.5)


def test_runs_that_do_not_follow_are_refused():
    with pytest.raises(ValueError, match="must start where this one ended, step 5: 6"):
        whole(0, 5).concatenate(whole(6, 20))
    with pytest.raises(ValueError, match="one sizes"):
        recording().concatenate(recording((), start=10, n=4))
    with pytest.raises(ValueError, match="one intervals"):
        whole(0, 5).concatenate(whole(5, 20, interval=4))


def test_files_bring_everything_back_and_hold_no_pickle(tmp_path):
    run, path = whole(4, 17), tmp_path / "run.npz"
    run.save(path)
    back = Recording.load(path)
    for name in ("dt", "start", "steps", "sizes", "intervals"):
        assert getattr(back, name) == getattr(run, name)
    for part in ("times", "neurons", "values"):
        for name, array in getattr(run, part).items():
            found = getattr(back, part)[name]
            assert found.dtype == array.dtype and type(found) is type(array)
            np.testing.assert_array_equal(found, array)
    with np.load(path, allow_pickle=False) as file:
        assert all(array.dtype != object for array in file.values())
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.npz"
    recording().save(path)
    broken = recording(values={"v": torch.zeros(10, dtype=torch.bfloat16)}, intervals={"v": 1})
    with pytest.raises(TypeError, match="BFloat16"):
        broken.save(path)
    assert Recording.load(path).rate() == recording().rate() and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"ends in \.npz, got 'run.txt'"):
        recording().save(tmp_path / "run.txt")


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(FileNotFoundError):
        Recording.load(path)
    recording().save(path)
    whole_file = path.read_bytes()
    for content in (b"", b"no zip", whole_file[: len(whole_file) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no recording, or broken"):
            Recording.load(path)
    np.savez(path, about=np.array(["x"], object), allow_pickle=True)
    with pytest.raises(ValueError, match="is no recording, or broken"):
        Recording.load(path)


def test_dense_matrices_have_a_limit():
    with pytest.raises(ValueError, match=r"2048 MiB, more than 1024: use counts\(\) or raster\(\)"):
        recording((), steps=2, n=DENSE_BYTES).to_dense()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"dt": 0.0}, ValueError, "dt must be finite and positive"),
        ({"start": -1}, ValueError, "start and steps must be at least 0"),
        ({"steps": 9}, ValueError, r"times\['E'\] must lie in 0..8, got 3 to 9"),
        ({"start": 4}, ValueError, r"must lie in 4..13, got 3 to 9"),
        ({"n": 2}, ValueError, r"neurons\['E'\] must lie in 0..1, got 0 to 2"),
        ({"n": 0}, ValueError, r"sizes\['E'\] must be at least 1"),
        ({"spikes": ((4, 0), (3, 1))}, ValueError, "must be in order"),
        ({"values": {"v": torch.zeros(3)}}, ValueError, "differ in keys"),
        ({"values": {"v": torch.zeros(3)}, "intervals": {"v": 3}}, ValueError, r"must have 4 samples .* got \(3,\)"),
        ({"values": {"v": torch.zeros(3)}, "intervals": {"v": 0}}, ValueError, "must be at least 1 step, got 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        recording(**change)


def test_types_and_names_of_spikes_are_checked():
    times, neurons = np.array([1]), np.array([0], np.int32)
    with pytest.raises(TypeError, match=r"times\['E'\] must be an array of int64, got int32"):
        Recording(0.1, 0, 5, {"E": 1}, {"E": neurons}, {"E": neurons})
    with pytest.raises(ValueError, match="must name the same populations"):
        Recording(0.1, 0, 5, {"E": 1}, {"E": times}, {"I": neurons})
    with pytest.raises(ValueError, match="lists of one length"):
        Recording(0.1, 0, 5, {"E": 1}, {"E": times}, {"E": neurons[:0]})


def test_times_that_are_no_steps_are_refused():
    run = recording()
    for call, words in (
        (lambda: run.binned_rate(bin_ms=0.7), "bin_ms must be a multiple of dt=0.5 ms, 1 or more times, got 0.7"),
        (lambda: run.counts(window_ms=0.0), "window_ms must be a multiple"),
        (lambda: run.counts(window_ms=6.0), "window_ms=6 is longer than the recording, 5 ms"),
        (lambda: run.rate(since_ms=5.0), "since_ms=5 leaves nothing of a recording of 5 ms"),
        (lambda: run.rate(since_ms=-1.0), "since_ms must be a multiple"),
        (lambda: run.rate(neurons=slice(3, None)), "neurons selects nobody"),
        (lambda: run.binned_rate(bin_ms=1.0, smooth_ms=0.0), "smooth_ms must be finite and positive"),
        (lambda: run.trace("v"), "Nothing was recorded as 'v'; there is nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert len(poisson(5.0, ms=100.0, dt=0.1).binned_rate(bin_ms=0.3)[1]) == 333  # 0.3 / 0.1 is not 3 in binary


def svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue().decode()


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts that cover each other."""
    figure.draw_without_rendering()
    texts = [t for ax in figure.axes for t in (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label) if t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    return [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


def test_states_show_raster_rate_and_theory():
    runs = {"SR": poisson(300.0), "AI": poisson(38.0), "SI": poisson(6.0)}
    figure = plot_states(runs, window_ms=200.0, neurons_shown=50, theory={"AI": 38.0})
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert len(visible) == 6 and [ax.get_title() for ax in visible if ax.get_title()] == list(runs)
    ticks = visible[1].get_lines()[0]
    times, neurons = runs["AI"].raster()
    assert np.size(ticks.get_xdata()) == 3 * ((times >= 300) & (neurons < 50)).sum() and not ticks.get_rasterized()
    mean = runs["AI"].rate(since_ms=300.0)
    assert visible[3].texts[0].get_text() == f"{mean:.1f} Hz, theory 38.0 Hz"
    assert [np.unique(line.get_ydata()) for line in visible[3].get_lines()] == [38.0] and not visible[2].get_lines()
    assert all(ax.get_xlim() == (300, 500) for ax in visible)
    assert overlaps(figure) == [] and len(svg(figure)) < 500_000


def test_a_crowd_of_spikes_becomes_an_image():
    figure = plot_states({"SR": poisson(330.0)}, window_ms=400.0, neurons_shown=400)
    assert figure.axes[0].get_lines()[0].get_rasterized() and len(svg(figure)) < 500_000
    (ax,) = plot_raster(poisson(10.0, name="I"), "I", window_ms=100.0, title="I").axes
    assert ax.get_xlim() == (400, 500) and ax.get_title() == "I" and not ax.get_lines()[0].get_rasterized()


def test_costs_are_drawn_with_their_power_law_and_their_crossing():
    sizes = [1000, 2000, 4000]
    (ax,) = plot_scaling(sizes, {"a": [1.0, 2.2, 4.84]}, {"a": np.log2(2.2)}).axes
    points, line, proportion = ax.get_lines()
    drawn, measured, even = (np.asarray(found.get_ydata(), float) for found in (line, points, proportion))
    np.testing.assert_allclose(drawn, measured)
    np.testing.assert_allclose(np.diff(np.log2(even)), 1)
    (ax,) = plot_crossover([1, 10, 100], {"events": [0.1, 1.0, 10.0], "matrix": [5.0] * 3, "slow": [50.0] * 3}).axes
    assert [text.get_text() for text in ax.texts] == ["50 Hz"]


def test_figures_refuse_what_they_cannot_show():
    run = poisson(5.0)
    for call, words in (
        (lambda: plot_states({}, window_ms=1.0), "no recordings"),
        (lambda: plot_states({"a": run}, window_ms=900.0), "at most the recording's 500 ms, got 900"),
        (lambda: plot_states({"a": run}, window_ms=9.0, theory={"b": 1.0}), r"theory names \['b'\]"),
        (lambda: plot_raster(run, neurons_shown=0), "neurons_shown must be at least 1"),
        (lambda: plot_scaling([1, 2], {"a": [1.0]}, {"a": 1.0}), r"seconds\['a'\] must be 2 numbers"),
        (lambda: plot_scaling([1, 2], {"a": [1.0, 0.0]}, {"a": 1.0}), "must be finite and positive"),
        (lambda: plot_crossover([2.0, 1.0], {"a": [1.0, 1.0]}), "rates must ascend"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
