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

import numpy as np
import pandas as pd

from neuropil.learning.inhibition.kernels import (
    EXACT,
    LINEAR,
    NOTEBOOK,
    PAPER,
    SCALE_E,
    SCALE_I,
    feedback_weights,
    look,
    run_network,
)
from neuropil.parallel import Track

__all__ = ["TeacherStudent", "teacher_student"]


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


def _slopes(potentials: tuple[np.ndarray, ...], scale: float) -> tuple[np.ndarray, ...]:
    rates, slopes = (tuple(np.empty_like(u) for u in potentials) for _ in range(2))
    look(potentials, scale, rates, slopes)
    return slopes


class _Network:
    """Weights, potentials and feedback of one two-stage network; `run` moves them."""

    def __init__(self, sizes: tuple[int, int, int], rng: np.random.Generator):
        pairs = list(pairwise(sizes))
        drawn = [rng.normal(scale=2 / np.sqrt(fan_in), size=(n, fan_in)) for fan_in, n in pairs]
        self.weights = tuple(np.ascontiguousarray(weight.T) for weight in drawn)
        self.biases = tuple(rng.normal(scale=2 / np.sqrt(n), size=n) for _, n in pairs)
        self.u_e = tuple(np.zeros(n) for _, n in pairs)
        self.u_i = tuple(np.zeros(n) for _, n in pairs)
        self.feedback = tuple(np.zeros((sizes[-1], n)) for _, n in pairs)
        self.integral = np.zeros(sizes[-1])
        feedback_weights(self.weights[1], _slopes(self.u_e, SCALE_E), _slopes(self.u_i, SCALE_I), self.feedback)

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
        return run_network(signal, targets, dt, *moving, control, learn, follow, rule, form)


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
        evaluate_every: epochs between two open-loop evaluations; the first and the last epoch are always evaluated.
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
        if (epoch + 1) % evaluate_every and epoch not in (0, epochs - 1):
            continue
        output, _ = student.copy().run(signal, silence, dt)
        if not np.isfinite(output).all():
            raise FloatingPointError(f"The student diverged in epoch {epoch + 1}: take a smaller dt than {dt:g} s.")
        rows.append({"epoch": epoch + 1, "mse": _mse(output, target), "energy": energy})
    after, _ = student.copy().run(first_signal, silence, dt)
    return TeacherStudent(pd.DataFrame(rows), np.arange(steps) * dt, first_target, before, after)


def _mse(output: np.ndarray, target: np.ndarray) -> float:
    return float(((output - target) ** 2).sum(axis=1).mean())
