"""One whole life, compiled by numba: the same equations as `lifetime.live` on a `PlasticRNN`, trial by trial.

Three savings over the plain form: the coupling W + A * P is built once a trial; a perturbation touches only its own row
of the eligibility, whose decay is one scalar; rates that are 0 are skipped.
"""

import numba
import numpy as np

__all__ = ["live_one"]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _couple(weight, alpha, p, coupling):
    """Write the coupling transposed: sources outside, so that the sum over them runs along memory."""
    n = weight.shape[0]
    for i in range(n):
        for j in range(n):
            coupling[j, i] = weight[i, j] + alpha[i, j] * p[i, j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _learn(p, trace, factor, clip):
    """P <- P - clip(factor E)."""
    n = p.shape[0]
    for i in range(n):
        for j in range(n):
            p[i, j] -= min(max(factor * trace[i, j], -clip), clip)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def live_one(  # noqa: PLR0912, PLR0915 - one loop that numba compiles
    weight,
    alpha,
    stimuli,
    targets,
    noise,
    first_step,
    shown,
    answering,
    rewarding,
    constants,
    burn_in,
    quiet_from,
    learning,
    recorded,
    losses,
    correct,
    activity,
):
    """Live the life of one genome; write loss and correctness of each trial, and the rates of the recorded trials.

    `shown`: which stimulus each step shows, -1 for none; `constants`: leak, keep, eta, clip, baseline_decay, stimulus,
    reward and response amplitudes, start of x, bias, right and wrong target; `recorded`: sorted numbers of the trials;
    `activity`: (recorded, steps, neurons); `noise`: (trials, steps, neurons).
    """
    leak, keep, eta, clip, decay, amplitude, gain, signal, start, bias, high, low = constants
    n, steps, inputs = weight.shape[0], shown.shape[0], 7
    first_output = n - 2
    zero = weight[0, 0] * 0
    x, y, drive = np.zeros(n, weight.dtype), np.zeros(n, weight.dtype), np.empty(n, weight.dtype)
    p, trace, coupling = np.zeros_like(weight), np.zeros_like(weight), np.empty_like(weight)
    baseline = np.zeros(4, weight.dtype)
    x[inputs:] = start
    y[inputs:] = start
    _couple(weight, alpha, p, coupling)
    next_record = 0
    for trial in range(stimuli.shape[0]):
        kept = zero + 1
        loss, total_0, total_1, answers, rewarded, response = zero, zero, zero, 0, False, 0
        goal_1 = high if targets[trial] == 1 else low
        goal_0 = low if targets[trial] == 1 else high
        kind = 2 * stimuli[trial, 0] + stimuli[trial, 1]
        recording = next_record < recorded.shape[0] and recorded[next_record] == trial
        for step in range(steps):
            for i in range(n):
                drive[i] = -x[i]
            for j in range(n):
                rate = y[j]
                if rate != 0:
                    for i in range(n):
                        drive[i] += rate * coupling[j, i]
            for i in range(n):
                x[i] += leak * drive[i]
            if step >= first_step and trial < quiet_from:
                for i in range(n):
                    delta = noise[trial, step, i]
                    if delta != 0:
                        x[i] += delta
                        scaled = delta / kept
                        for j in range(n):
                            trace[i, j] += scaled * y[j]
            kept *= keep
            for i in range(inputs, first_output):
                y[i] = np.tanh(x[i])
            if shown[step] >= 0:
                y[0] = amplitude if stimuli[trial, shown[step]] == 1 else -amplitude
                y[1] = -y[0]
            else:
                y[0] = y[1] = zero
            y[4] = bias
            y[first_output] = y[first_output + 1] = zero
            if answering[step]:
                y[first_output] = 1 / (1 + np.exp(-x[first_output]))
                y[first_output + 1] = 1 / (1 + np.exp(-x[first_output + 1]))
                total_0 += y[first_output]
                total_1 += y[first_output + 1]
                loss += (y[first_output] - goal_0) ** 2 + (y[first_output + 1] - goal_1) ** 2
                answers += 1
            y[2] = y[3] = y[5] = y[6] = zero
            if rewarding[step]:
                if not rewarded:
                    rewarded = True
                    loss /= answers
                    response = 1 if total_1 > total_0 else 0
                    usual = baseline[kind]
                    if learning and trial >= burn_in:
                        _learn(p, trace, kept * eta * usual * (loss - usual), clip)
                        _couple(weight, alpha, p, coupling)
                    baseline[kind] = decay * usual + (1 - decay) * loss
                y[2] = y[3] = gain * loss
                y[5 + response] = signal
            if recording:
                activity[next_record, step] = y
        trace *= kept
        losses[trial] = loss
        correct[trial] = response == targets[trial]
        next_record += recording
