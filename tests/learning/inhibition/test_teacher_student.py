import numpy as np
import pytest
from scipy.integrate import solve_ivp

from neuropil.learning.inhibition import plot_teacher_student, teacher_student
from neuropil.learning.inhibition.kernels import EXACT, LINEAR, NOTEBOOK, PAPER
from neuropil.learning.inhibition.teacher_student import _Network

SIZES = (3, 4, 2)
SHORT = {"sizes": SIZES, "epochs": 2, "burn_in": 1, "epoch_seconds": 0.5}


def phi(u, scale):
    return scale * np.logaddexp(0, u - 3)


def slope(u, scale):
    return scale / (1 + np.exp(3 - u))


def flow(network, x, target, rule, form):
    """Right-hand side of everything that moves, from the equations, with numpy alone."""
    shapes = [part.shape for part in (*network.weights, *network.biases, *network.u_e, *network.u_i, *network.feedback)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def pack(parts):
        return np.concatenate([np.ravel(part) for part in parts])

    def velocity(_, state):
        cuts = np.split(state, np.cumsum(sizes))
        w1, w2, b1, b2, e1, e2, i1, i2, q1, q2 = (c.reshape(s) for c, s in zip(cuts, shapes, strict=False))
        z = cuts[-1]
        error = target - phi(e2, 5)
        c = 30 * error + 15 * z
        j2 = np.diag(slope(e2, 5))
        j1 = j2 @ w2.T * slope(e1, 5)
        q1_to, q2_to = j1 * slope(i1, 1), j2 * slope(i2, 1)
        q1_to, q2_to = 7.5 * q1_to / np.linalg.norm(q1_to), 7.5 * q2_to / np.linalg.norm(q2_to)
        moves = []
        for w, b, e, i, q, before in ((w1, b1, e1, i1, q1, x), (w2, b2, e2, i2, q2, phi(e1, 5))):
            u_hat = i
            if rule == LINEAR:
                scale = 5 if form == NOTEBOOK else 1
                u_0 = 3 + np.log(np.expm1(0.5 / scale))
                delta = 1 / slope(u_0, scale)
                u_hat = u_0 - 0.5 * delta + delta * (i if form == NOTEBOOK else phi(i, 1))
            change = (phi(e, 5) - u_hat) * slope(phi(e, 5) if form == NOTEBOOK else e, 5) / 60
            moves.append(
                (
                    np.outer(before, change),
                    change,
                    (-e + before @ w + b - phi(i, 1)) / 0.02,
                    (-i + phi(e, 5) - c @ q) / 0.005,
                )
            )
        (dw1, db1, de1, di1), (dw2, db2, de2, di2) = moves
        dq1, dq2 = (q1_to - q1) / 30, (q2_to - q2) / 30
        return pack([dw1, dw2, db1, db2, de1, de2, di1, di2, dq1, dq2, (error - 0.5 * z) / 0.1])

    start = pack([*network.weights, *network.biases, *network.u_e, *network.u_i, *network.feedback, network.integral])
    return velocity, start


@pytest.mark.parametrize(("rule", "form"), [(EXACT, PAPER), (LINEAR, PAPER), (EXACT, NOTEBOOK), (LINEAR, NOTEBOOK)])
def test_the_kernel_integrates_the_equations(rule, form):
    network = _Network(SIZES, np.random.default_rng(0))
    x, target = np.array([0.3, -0.2, 0.5]), np.array([1.0, 0.5])
    velocity, start = flow(network, x, target, rule, form)
    exact = solve_ivp(velocity, (0, 0.1), start, rtol=1e-9, atol=1e-11, method="LSODA").y[:, -1]
    gaps = []
    for dt in (1e-4, 5e-5):
        moved = network.copy()
        steps = round(0.1 / dt)
        moved.run(
            np.tile(x, (steps, 1)),
            np.tile(target, (steps, 1)),
            dt,
            control=True,
            learn=True,
            follow=True,
            rule=rule,
            form=form,
        )
        ours = np.concatenate(
            [
                np.ravel(p)
                for p in (*moved.weights, *moved.biases, *moved.u_e, *moved.u_i, *moved.feedback, moved.integral)
            ]
        )
        gaps.append(np.abs(ours - exact).max())
    assert gaps[0] < 0.05
    assert gaps[1] < 0.6 * gaps[0]  # first order in dt
    assert np.abs(ours[:20] - exact[:20]).max() < 1e-4  # weights


def test_only_what_is_told_to_move_moves():
    network = _Network(SIZES, np.random.default_rng(0))
    before = network.copy()
    trace, energy = network.run(np.zeros((50, 3)), np.zeros((50, 2)), 1e-4)
    assert energy == 0
    assert trace.shape == (50, 2)
    for name in ("weights", "biases", "feedback"):
        for one, other in zip(getattr(network, name), getattr(before, name), strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(network.u_e[0], before.u_e[0])


def test_feedback_starts_at_its_norm():
    network = _Network(SIZES, np.random.default_rng(0))
    assert [np.linalg.norm(q) for q in network.feedback] == pytest.approx([7.5, 7.5])


def test_a_student_comes_closer_to_its_teacher():
    run = teacher_student(epochs=4, evaluate_every=2)
    assert run.table["epoch"].tolist() == [0, 1, 2, 4]
    assert run.table["mse"].iloc[-1] < 0.7 * run.table["mse"].iloc[0]
    assert run.target.shape == run.before.shape == run.after.shape == (50_000, 2)
    error = [((output - run.target) ** 2).sum(1).mean() for output in (run.before, run.after)]
    assert error[0] == pytest.approx(run.table["mse"].iloc[0])
    assert error[1] < error[0]
    assert len(plot_teacher_student({"exact": [run]}).axes) == 3


def test_the_same_seed_gives_the_same_run():
    one, other = (teacher_student(seed=3, **SHORT) for _ in range(2))
    assert one.table.equals(other.table)
    assert not one.table.equals(teacher_student(seed=4, **SHORT).table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "hebb"}, "exact or linear"),
        ({"form": "poster"}, "paper or notebook"),
        ({"dt": 0.0}, "positive"),
        ({"epochs": 0}, "positive"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        teacher_student(**{**SHORT, **options})


def test_a_step_that_is_too_large_is_named():
    with pytest.raises(FloatingPointError, match="diverged in epoch"):
        teacher_student(**{**SHORT, "dt": 0.05, "epoch_seconds": 20.0})
    with pytest.raises(ValueError, match="no runs"):
        plot_teacher_student({})
