"""Learning in continuous time: a dis-inhibitory student follows a teacher that sees the same signals.

A hidden and an output stage of E/I pairs (phiE = 5 log(1 + exp(u - 3)), phiI = log(1 + exp(u - 3))); the prediction is
the output stage's rate y = phiE(uE_2), the target a second random network's, open loop. Everything moves at once, with
d_l = c q_l, and J the Jacobian of y:

    tauE duE_l/dt = -uE_l + W_l r_{l-1} + b_l - phiI(uI_l)          tauI duI_l/dt = -uI_l + phiE(uE_l) - d_l
    c = k_p e + k_i z,   tauC dz/dt = e - leak z,   e = y* - y
    tauQ dq_l/dt  = -q_l + norm J_l diag(phiI'(uI_l)) / |J_l diag(phiI'(uI_l))|
    tauW dW_l/dt  = (rE_l - u_hat_l) phiE'(uE_l) x r_{l-1}          (biases: r = 1)

with u_hat = uI (exact) or the tangent of phiI^-1 at a rate of 0.5 applied to rI (linear). The authors' notebook for
Fig. 4 differs in two places, kept here as form="notebook": it takes phiE' at rE instead of uE, and its linear rule
applies the tangent of phiE^-1 to uI.

The loop is stiff (k_p = 30): Euler steps of 0.1 ms are stable, 0.25 ms were not on every seed.
"""

from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import pandas as pd

from neuropil.parallel import Track

__all__ = ["TeacherStudent", "teacher_student"]

TAU_E, TAU_I, TAU_C, TAU_W, TAU_Q = 0.02, 0.005, 0.1, 60.0, 30.0
SCALE_E, SCALE_I, SHIFT = 5.0, 1.0, 3.0
K_P, K_I, LEAK, NORM = 30.0, 15.0, 0.5, 7.5
TANGENT_AT = 0.5
EXACT, LINEAR = 0, 1
PAPER, NOTEBOOK = 0, 1


@dataclass(frozen=True)
class TeacherStudent:
    """What one run of `teacher_student` measured.

    Attributes:
        table: one row an evaluated epoch (0 = before learning): epoch, mse (open loop: time mean of the squared error,
            summed over outputs), energy (H: time mean of the squared dis-inhibition under control, summed over stages
            and units; NaN at epochs without a pass under control).
        times: seconds within the last evaluation.
        target: the teacher's outputs, (times, outputs).
        before: the student's open-loop outputs before learning, (times, outputs).
        after: and after it, against the same target.
    """

    table: pd.DataFrame
    times: np.ndarray
    target: np.ndarray
    before: np.ndarray
    after: np.ndarray


@numba.njit(cache=True, inline="always")
def _phi(u, scale):
    v = u - SHIFT
    return scale * (v + np.log1p(np.exp(-v)) if v > 0 else np.log1p(np.exp(v)))


@numba.njit(cache=True, inline="always")
def _slope(u, scale):
    return scale / (1.0 + np.exp(SHIFT - u))


@numba.njit(cache=True)
def _jacobian(weights, u_e, u_i, q):
    """Normalised feedback weights at the present potentials, written into q = (q_1, q_2)."""
    (_, w_2), (q_1, q_2) = weights, q
    (e_1, e_2), (i_1, i_2) = u_e, u_i
    outputs, hidden = w_2.shape
    sum_1 = sum_2 = 0.0
    for o in range(outputs):
        top = _slope(e_2[o], SCALE_E)
        for k in range(outputs):
            q_2[o, k] = top * _slope(i_2[o], SCALE_I) if k == o else 0.0
        sum_2 += q_2[o, o] ** 2
        for h in range(hidden):
            q_1[o, h] = top * w_2[o, h] * _slope(e_1[h], SCALE_E) * _slope(i_1[h], SCALE_I)
            sum_1 += q_1[o, h] ** 2
    scale_1, scale_2 = NORM / max(np.sqrt(sum_1), 1e-12), NORM / max(np.sqrt(sum_2), 1e-12)
    for o in range(outputs):
        for h in range(hidden):
            q_1[o, h] *= scale_1
        for k in range(outputs):
            q_2[o, k] *= scale_2


@numba.njit(cache=True)
def _run(  # noqa: PLR0912 - one loop that numba compiles
    signal, targets, dt, weights, biases, u_e, u_i, feedback, integral, control_on, learn, follow, rule, form
):
    """Advance the network over the signal, (steps, inputs), in place; outputs before each step, and H.

    `control_on`: the loop is closed; `learn`: weights and biases move; `follow`: feedback weights move.
    """
    steps, outputs = signal.shape[0], targets.shape[1]
    trace = np.empty((steps, outputs))
    target_q = (np.empty_like(feedback[0]), np.empty_like(feedback[1]))
    control, energy = np.zeros(outputs), 0.0
    at = TANGENT_AT
    scale = SCALE_E if form == NOTEBOOK else SCALE_I
    u_0 = SHIFT + np.log(np.expm1(at / scale))
    delta = 1.0 / _slope(u_0, scale)
    theta = u_0 - at * delta
    rates = (np.empty(u_e[0].size), np.empty(u_e[1].size))
    for t in range(steps):
        for o in range(outputs):
            trace[t, o] = _phi(u_e[1][o], SCALE_E)
            if control_on:
                error = targets[t, o] - trace[t, o]
                control[o] = K_P * error + K_I * integral[o]
                integral[o] += dt / TAU_C * (error - LEAK * integral[o])
        if follow:
            _jacobian(weights, u_e, u_i, target_q)
        before = signal[t]
        for level in range(2):
            w, b, e, i, q = weights[level], biases[level], u_e[level], u_i[level], feedback[level]
            rate = rates[level]
            for n in range(e.size):
                drive = b[n]
                for k in range(before.size):
                    drive += w[n, k] * before[k]
                lifted = 0.0
                if control_on:
                    for o in range(outputs):
                        lifted += control[o] * q[o, n]
                    energy += lifted * lifted
                r_e, r_i = _phi(e[n], SCALE_E), _phi(i[n], SCALE_I)
                rate[n] = r_e
                if learn:
                    if rule == EXACT:
                        u_hat = i[n]
                    elif form == PAPER:
                        u_hat = theta + delta * r_i
                    else:
                        u_hat = theta + delta * i[n]
                    change = dt / TAU_W * (r_e - u_hat) * _slope(r_e if form == NOTEBOOK else e[n], SCALE_E)
                    b[n] += change
                    for k in range(before.size):
                        w[n, k] += change * before[k]
                e[n] += dt / TAU_E * (drive - r_i - e[n])
                i[n] += dt / TAU_I * (r_e - lifted - i[n])
            before = rate
        if follow:
            for level in range(2):
                feedback[level][:] += dt / TAU_Q * (target_q[level] - feedback[level])
    return trace, energy / steps


class _Network:
    """Weights, potentials and feedback of one two-stage network; `run` moves them."""

    def __init__(self, sizes: tuple[int, int, int], rng: np.random.Generator):
        pairs = list(pairwise(sizes))
        self.weights = tuple(rng.normal(scale=2 / np.sqrt(fan_in), size=(n, fan_in)) for fan_in, n in pairs)
        self.biases = tuple(rng.normal(scale=2 / np.sqrt(n), size=n) for _, n in pairs)
        self.u_e = tuple(np.zeros(n) for _, n in pairs)
        self.u_i = tuple(np.zeros(n) for _, n in pairs)
        self.feedback = tuple(np.zeros((sizes[-1], n)) for _, n in pairs)
        self.integral = np.zeros(sizes[-1])
        _jacobian(self.weights, self.u_e, self.u_i, self.feedback)

    def copy(self) -> "_Network":
        twin = object.__new__(_Network)
        for name, value in vars(self).items():
            setattr(twin, name, tuple(part.copy() for part in value) if isinstance(value, tuple) else value.copy())
        return twin

    def run(
        self,
        signal: np.ndarray,
        targets: np.ndarray,
        dt: float,
        *,
        control: bool = False,
        learn: bool = False,
        follow: bool = False,
        rule: int = EXACT,
        form: int = PAPER,
    ) -> tuple[np.ndarray, float]:
        moving = (self.weights, self.biases, self.u_e, self.u_i, self.feedback, self.integral)
        return _run(signal, targets, dt, *moving, control, learn, follow, rule, form)


def teacher_student(
    rule: str = "exact",
    form: str = "paper",
    *,
    sizes: tuple[int, int, int] = (30, 20, 2),
    epochs: int = 60,
    burn_in: int = 4,
    epoch_seconds: float = 5.0,
    dt: float = 1e-4,
    evaluate_every: int = 1,
    seed: int = 0,
    track: Track | None = None,
) -> TeacherStudent:
    """Let a dis-inhibitory student learn a teacher's outputs while both run on.

    Args:
        rule: "exact" or "linear".
        form: "paper", or "notebook" with the two slips of the authors' notebook.
        sizes: number of input signals, hidden pairs and output pairs.
        epochs: of learning; time runs on across them.
        burn_in: epochs before, in which only the feedback weights move.
        epoch_seconds: length of an epoch.
        dt: Euler step, seconds.
        evaluate_every: epochs between two open-loop evaluations; the last epoch is always evaluated.
        seed: of signals, teacher and student.
        track: shows progress, as in `compare`.

    Raises:
        ValueError: if rule or form is unknown, or a number is out of range.
        FloatingPointError: if the student diverges, with the epoch.

    Source: Rossbroich & Zenke 2023, Fig. 4.
    """
    codes = {"exact": EXACT, "linear": LINEAR}, {"paper": PAPER, "notebook": NOTEBOOK}
    if rule not in codes[0] or form not in codes[1]:
        raise ValueError(f"rule is exact or linear, form paper or notebook; got {rule!r} and {form!r}.")
    if not (dt > 0 and epoch_seconds >= dt and epochs >= 1 and burn_in >= 0 and evaluate_every >= 1):
        raise ValueError("dt, epoch_seconds, epochs and evaluate_every must be positive, burn_in not negative.")
    signals, teaching, learning = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(3))
    teacher, student = _Network(sizes, teaching), _Network(sizes, learning)
    amplitude, frequency = signals.uniform(0.1, 1, sizes[0]), signals.uniform(0.1, 2, sizes[0])
    phase = signals.uniform(0, np.pi, sizes[0])
    steps = round(epoch_seconds / dt)
    silence = np.zeros((steps, sizes[-1]))

    def epoch_signal(epoch: int) -> np.ndarray:
        times = (epoch * steps + np.arange(steps))[:, None] * dt
        return amplitude * np.sin(2 * np.pi * frequency * times + phase)

    for epoch in range(burn_in):
        signal = epoch_signal(epoch)
        teacher.run(signal, silence, dt)
        student.run(signal, silence, dt, follow=True)

    rows, before, first_target = [], silence, silence
    after, first_signal, novice = silence, silence, student.copy()
    for epoch in track(range(epochs), f"teacher-student, {rule} rule") if track else range(epochs):
        signal = epoch_signal(burn_in + epoch)
        target, _ = teacher.run(signal, silence, dt)
        if epoch == 0:
            first_signal, first_target = signal, target
            before, _ = novice.run(signal, silence, dt)
            rows.append({"epoch": 0, "mse": _mse(before, target), "energy": np.nan})
        _, energy = student.run(
            signal, target, dt, control=True, learn=True, follow=True, rule=codes[0][rule], form=codes[1][form]
        )
        if (epoch + 1) % evaluate_every and epoch + 1 < epochs:
            continue
        output, _ = student.copy().run(signal, silence, dt)
        if not np.isfinite(output).all():
            raise FloatingPointError(f"The student diverged in epoch {epoch + 1}: take a smaller dt than {dt:g} s.")
        rows.append({"epoch": epoch + 1, "mse": _mse(output, target), "energy": energy})
    after, _ = student.copy().run(first_signal, silence, dt)
    return TeacherStudent(pd.DataFrame(rows), np.arange(steps) * dt, first_target, before, after)


def _mse(output: np.ndarray, target: np.ndarray) -> float:
    return float(((output - target) ** 2).sum(axis=1).mean())
