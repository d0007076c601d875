import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import root

from neuropil.spiking.astrocytes import LinearAstrocyte, LinearAstrocyteState, LiRinzelAstrocyte, LiRinzelState

LIKE = torch.zeros((), dtype=torch.float64)


def full(*values):
    return torch.tensor(values, dtype=torch.float64)


def run(cell, drives, dt, state=None):
    state = cell.init_state(drives.shape[1:], LIKE) if state is None else state
    outputs = []
    for drive in drives:
        output, state = cell.step(drive, state, dt)
        outputs.append(output)
    return torch.stack(outputs), state


def test_the_liquids_astrocyte_to_the_letter(generator):
    cell = LinearAstrocyte(tau=100.0, weight=0.015, bias=0.15)
    spikes = torch.randint(-20, 21, (50, 3), generator=generator).double()
    levels, _ = run(cell, spikes, 1.0)
    a = full(0.15, 0.15, 0.15)
    for x, level in zip(spikes, levels, strict=True):
        a = a + (0.015 * x + 0.15 - a) / 100.0
        torch.testing.assert_close(level, a, rtol=1e-14, atol=0)


def test_without_activity_it_returns_to_its_bias():
    state = LinearAstrocyteState(full(3.0, -1.0))
    _, state = run(LinearAstrocyte(tau=100.0, weight=1.0, bias=0.15), torch.zeros(4000, 2).double(), 1.0, state)
    torch.testing.assert_close(state.a, full(0.15, 0.15))


def test_exact_steps_follow_the_solution_and_euler_converges_to_it():
    start, x, w, b, tau = full(2.0), 3.0, 0.2, 0.1, 50.0
    solution = w * x + b + (2.0 - w * x - b) * math.exp(-80.0 / tau)
    errors = {}
    for integration in ("exact", "euler"):
        for dt in (4.0, 2.0, 1.0):
            cell = LinearAstrocyte(tau, w, b, integration=integration)
            levels, _ = run(cell, torch.full((round(80 / dt), 1), x).double(), dt, LinearAstrocyteState(start))
            errors[integration, dt] = abs(levels[-1].item() - solution)
        assert integration == "euler" or max(errors.values()) < 1e-14
    assert errors["euler", 4.0] / errors["euler", 2.0] == pytest.approx(2, rel=0.05)
    assert errors["euler", 2.0] / errors["euler", 1.0] == pytest.approx(2, rel=0.05)


def test_clips_hold_and_are_counted_and_bar_the_gradient():
    cell = LinearAstrocyte(tau=2.0, weight=1.0, bias=0.0, clip=(0.0, math.inf))
    drives = full(-1.0, -1.0, 4.0, -10.0)[:, None].repeat(1, 2)
    drives[:, 1] = 1.0
    drives.requires_grad_()
    levels, state = run(cell, drives, 1.0)
    assert levels[:, 0].tolist() == [0, 0, 2, 0]
    assert state.clipped is not None and state.clipped.tolist() == [3, 0]
    (gradient,) = torch.autograd.grad(levels[-1].sum(), drives)
    assert gradient.T.tolist() == [[0, 0, 0, 0], [0.0625, 0.125, 0.25, 0.5]]
    assert LinearAstrocyte(tau=2.0, weight=1.0).init_state(3, LIKE).clipped is None


def test_domains_may_differ_and_share_a_batch(generator):
    weight = torch.rand(4, generator=generator).double()
    cell = LinearAstrocyte(tau=10.0, weight=weight, bias=weight / 2, integration="exact")
    drives = torch.rand(6, 5, 4, generator=generator).double()
    levels, state = run(cell, drives, 1.0)
    assert levels.shape == (6, 5, 4) and state.a.shape == (5, 4)
    one = LinearAstrocyte(tau=10.0, weight=weight[2].item(), bias=weight[2].item() / 2, integration="exact")
    torch.testing.assert_close(run(one, drives[:, :, 2], 1.0)[0], levels[:, :, 2])


def test_state_and_type_follow_the_input():
    cells: list[Any] = [LinearAstrocyte(tau=10.0, weight=0.1, bias=0.2), LiRinzelAstrocyte()]
    for cell in cells:
        like = torch.zeros(2, dtype=torch.float32)
        output, state = cell.step(torch.ones(2), cell.init_state(2, like), 1.0)
        assert output.dtype == torch.float32 and all(x is None or x.dtype == torch.float32 for x in state)


def slopes(cell, ip3, calcium, h):
    found = cell.derivatives(LIKE, LiRinzelState(full(calcium), full(h), full(ip3)))
    return [float(found.calcium), float(found.h)]


@pytest.mark.parametrize("ip3", [0.0, 0.16, 0.3, 0.5, 1.0])
def test_fixed_points_are_roots_of_all_equations(ip3):
    cell = LiRinzelAstrocyte()
    calcium, h = cell.fixed_point(ip3)
    found = root(lambda x: slopes(cell, ip3, *x), (0.8 * calcium, 0.9 * h), tol=1e-13)
    assert found.success and found.x == pytest.approx([calcium, h], rel=1e-9)
    at_rest = cell.init_state(2, LIKE)
    moved = cell.derivatives(torch.zeros(2).double(), at_rest)
    assert max(float(x.abs().max()) for x in moved) < 1e-12 and at_rest.ip3.tolist() == [0.16, 0.16]
    assert at_rest.calcium[0] == pytest.approx(0.072, abs=5e-4)


def test_oscillations_begin_and_end_where_the_literature_says():
    """Eigenvalues cross the imaginary axis at 0.355 and 0.637 uM of IP3 (Shuai & Jung, Biophys. J. 83, 2002)."""
    cell = LiRinzelAstrocyte()

    def growth(ip3):
        def field(x):
            return torch.stack(cell.derivatives(LIKE, LiRinzelState(x[0], x[1], full(ip3)[0]))[:2])

        matrix = torch.autograd.functional.jacobian(field, full(*cell.fixed_point(ip3)))
        return torch.linalg.eigvals(matrix).real.max().item()

    assert growth(0.353) < 0 < growth(0.357) and growth(0.639) < 0 < growth(0.635)
    assert all(growth(p) < 0 for p in (0.1, 0.3, 0.7, 1.0)) and all(growth(p) > 0 for p in (0.4, 0.5, 0.6))


def held(cell, ip3, seconds, dt=20.0):
    """Calcium of cells whose drive holds IP3 where it starts, (steps, cells)."""
    p = torch.tensor(ip3, dtype=torch.float64)
    drive = (p - cell.ip3_rest) / (cell.tau_ip3 * cell.r_ip3)
    state = LiRinzelState(torch.full_like(p, 0.2), torch.full_like(p, 0.5), p)
    return run(cell, drive.expand(round(1000 * seconds / dt), len(p)), dt, state)


def test_the_path_is_that_of_scipy_and_oscillates_in_the_window_only():
    cell, levels, dt = LiRinzelAstrocyte(output="calcium"), [0.16, 0.3, 0.4, 0.5, 0.6, 1.0], 40.0
    calcium, state = held(cell, levels, 100.0, dt)
    torch.testing.assert_close(state.ip3, full(*levels))
    late = calcium[-1000:]  # 40 s
    swing = (late.max(dim=0).values - late.min(dim=0).values).tolist()
    assert max(swing[i] for i in (0, 1, 5)) < 1e-3 and min(swing[2:5]) > 0.2
    at_half = late[:, 3]
    assert at_half.min().item() == pytest.approx(0.108, abs=2e-3)
    assert at_half.max().item() == pytest.approx(0.445, abs=2e-3)
    for column in range(2, 5):
        c = late[:, column]
        up = torch.nonzero((c[1:] >= c.mean()) & (c[:-1] < c.mean()))[:, 0]
        assert 10.9 < float(up.diff().double().mean()) * dt / 1000 < 12.9  # period, s
    exact = solve_ivp(
        lambda _, y: slopes(cell, 0.5, *y), (0, 30), (0.2, 0.5), method="LSODA", rtol=1e-9, atol=1e-11, t_eval=[10, 30]
    )
    times = [round(1000 * t / dt) - 1 for t in (10, 30)]
    np.testing.assert_allclose(calcium[times, 3], exact.y[0], atol=2e-7)


def test_steps_converge_with_their_order():
    def end(integration, dt):
        return held(LiRinzelAstrocyte(output="calcium", integration=integration), [0.5], 4.0, dt)[0][-1].item()

    exact = end("rk4", 10.0)
    for integration, steps, factor in (("rk4", (100.0, 50.0), 16), ("euler", (40.0, 20.0), 2)):
        first, second = (abs(end(integration, dt) - exact) for dt in steps)
        assert first / second == pytest.approx(factor, rel=0.25)


def test_calcium_is_conserved_and_never_negative(generator):
    """Without a pump the store empties until both sides are even: C_0 = c + c_1 c_ER, and c_ER = c."""
    leaky = LiRinzelAstrocyte(output="calcium", v_ER=1e-12)
    calcium, _ = run(leaky, torch.zeros(800, 1).double(), 200.0, LiRinzelAstrocyte().init_state(1, LIKE))
    torch.testing.assert_close(leaky.stored_calcium(calcium[-1]), calcium[-1], rtol=1e-6, atol=0)
    assert calcium[-1].item() == pytest.approx(2.0 / 1.185, rel=1e-6)
    cell = LiRinzelAstrocyte(output="calcium")
    bursts = (torch.rand(500, 8, generator=generator) < 0.02).double()
    for value, state in ((0.0, 0.0), (1.0, 1.0)):
        start = LiRinzelState(full(*[value] * 8), full(*[state] * 8), full(*[value] * 8))
        path, last = run(cell, bursts, 20.0, start)
        assert bool((path > 0).all() & (path < 2.0 / 1.185).all())
        assert bool((last.h > 0).all() & (last.h < 1).all() & (last.ip3 >= 0.16 * (1 - 1e-6)).all())
        assert bool((cell.stored_calcium(path) > path).all())


def test_activity_raises_ip3_and_releases_transmitter():
    cell = LiRinzelAstrocyte()
    quiet, _ = run(cell, torch.zeros(300, 1).double(), 50.0)
    assert quiet.sum() == 0
    # 10 spikes a second, each counting for 1 ms: IP3 settles at 0.16 + 7 * 7.2 * 0.01
    released, state = run(cell, torch.full((1200, 1), 0.01).double(), 50.0)
    assert state.ip3.item() == pytest.approx(0.16 + 7 * 7.2 * 0.01, rel=1e-3)
    assert set(released.unique().tolist()) == {0.0, 1.0}
    calcium, _ = run(LiRinzelAstrocyte(output="calcium"), torch.full((1200, 1), 0.01).double(), 50.0)
    torch.testing.assert_close(released, (calcium > 0.196).double())


def test_gradients_pass_through_time():
    cell = LiRinzelAstrocyte(output="calcium")
    drives = torch.full((4, 2), 0.02, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: run(cell, x, 50.0)[0], (drives,))


def test_bad_arguments_are_named():
    cell = LinearAstrocyte(tau=2.0, weight=1.0)
    for call, words in (
        (lambda: LinearAstrocyte(tau=0.0, weight=1.0), "tau must be finite and above 0, got 0"),
        (lambda: LinearAstrocyte(tau=1.0, weight=math.nan), "weight must be finite"),
        (lambda: LinearAstrocyte(tau=1.0, weight=1.0, clip=(1.0, 0.0)), "clip must be a lower and an upper bound"),
        (lambda: cell.step(full(1.0), cell.init_state(1, LIKE), 3.0), "must not exceed tau=2 ms, got dt=3"),
        (lambda: cell.step(full(1.0), cell.init_state(1, LIKE), 0.0), "dt must be finite and above 0"),
        (lambda: LiRinzelAstrocyte(K_ER=-0.1), "K_ER must be finite and above 0, got -0.1"),
        (lambda: LiRinzelAstrocyte().fixed_point(-1.0), "ip3 must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
