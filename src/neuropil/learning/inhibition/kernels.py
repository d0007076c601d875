"""The time loop of `teacher_student`, whose docstring has the equations, compiled by numba."""

import numba
import numpy as np

__all__ = ["EXACT", "LINEAR", "NOTEBOOK", "PAPER", "SCALE_E", "SCALE_I", "feedback_weights", "look", "run_network"]

TAU_E, TAU_I, TAU_C, TAU_W, TAU_Q = 0.02, 0.005, 0.1, 60.0, 30.0
SCALE_E, SCALE_I, SHIFT = 5.0, 1.0, 3.0
K_P, K_I, LEAK, NORM = 30.0, 15.0, 0.5, 7.5
TANGENT_AT = 0.5
SILENT = 1e-150  # norm of a Jacobian that is zero: its feedback is zero too, not 0/0
EXACT, LINEAR = 0, 1
PAPER, NOTEBOOK = 0, 1


@numba.njit(cache=True, inline="always")
def _rate_and_slope(u, scale):
    """Softplus and its derivative, from one exponential."""
    v = u - SHIFT
    small = np.exp(-abs(v))
    rate = scale * (max(v, 0.0) + np.log1p(small))
    return rate, scale * (1.0 if v > 0 else small) / (1.0 + small)


@numba.njit(cache=True)
def tangent(scale):
    """Intercept and slope of the line that touches the inverse softplus at the rate TANGENT_AT."""
    u_0 = SHIFT + np.log(np.expm1(TANGENT_AT / scale))
    delta = 1.0 / _rate_and_slope(u_0, scale)[1]
    return u_0 - TANGENT_AT * delta, delta


@numba.njit(cache=True)
def feedback_weights(w_2, slopes_e, slopes_i, feedback):
    """Normalised feedback weights at the present slopes, written into feedback = (q_1, q_2)."""
    q_1, q_2 = feedback
    hidden, outputs = w_2.shape
    sum_1 = sum_2 = 0.0
    for o in range(outputs):
        top = slopes_e[1][o]
        for k in range(outputs):
            q_2[o, k] = top * slopes_i[1][o] if k == o else 0.0
        sum_2 += q_2[o, o] ** 2
        for h in range(hidden):
            q_1[o, h] = top * w_2[h, o] * slopes_e[0][h] * slopes_i[0][h]
            sum_1 += q_1[o, h] ** 2
    q_1 *= NORM / max(np.sqrt(sum_1), SILENT)
    q_2 *= NORM / max(np.sqrt(sum_2), SILENT)


@numba.njit(cache=True)
def look(u, scale, rates, slopes):
    """Rates and slopes of both stages at their potentials, written in place."""
    for level in range(2):
        for n in range(u[level].size):
            rates[level][n], slopes[level][n] = _rate_and_slope(u[level][n], scale)


@numba.njit(cache=True)
def run_network(  # noqa: PLR0912 - one loop that numba compiles
    signal, targets, dt, weights, biases, u_e, u_i, feedback, integral, control_on, learn, follow, rule, form
):
    """Advance the network over the signal, (steps, inputs), in place; weights are (inputs, neurons).

    `control_on`: the loop is closed; `learn`: weights and biases move; `follow`: feedback weights move.

    Returns:
        The outputs before each step, (steps, outputs), and H.
    """
    steps, outputs = signal.shape[0], targets.shape[1]
    trace = np.empty((steps, outputs))
    towards = (np.empty_like(feedback[0]), np.empty_like(feedback[1]))
    control, energy = np.zeros(outputs), 0.0
    theta, delta = tangent(SCALE_E if form == NOTEBOOK else SCALE_I)
    rates_e, slopes_e = (np.empty_like(u_e[0]), np.empty_like(u_e[1])), (np.empty_like(u_e[0]), np.empty_like(u_e[1]))
    drives, changes = (np.empty_like(u_e[0]), np.empty_like(u_e[1])), (np.empty_like(u_e[0]), np.empty_like(u_e[1]))
    rates_i, slopes_i = (np.empty_like(u_i[0]), np.empty_like(u_i[1])), (np.empty_like(u_i[0]), np.empty_like(u_i[1]))
    for t in range(steps):
        look(u_e, SCALE_E, rates_e, slopes_e)
        look(u_i, SCALE_I, rates_i, slopes_i)
        trace[t] = rates_e[1]
        if control_on:
            for o in range(outputs):
                error = targets[t, o] - trace[t, o]
                control[o] = K_P * error + K_I * integral[o]
                integral[o] += dt / TAU_C * (error - LEAK * integral[o])
        if follow:
            feedback_weights(weights[1], slopes_e, slopes_i, towards)
        before = signal[t]
        for level in range(2):
            w, b, e, i, q = weights[level], biases[level], u_e[level], u_i[level], feedback[level]
            drive, change = drives[level], changes[level]
            drive[:] = b
            for k in range(before.size):  # inputs outside, neurons inside: no sum waits for itself
                for n in range(e.size):
                    drive[n] += before[k] * w[k, n]
            for n in range(e.size):
                lifted = 0.0
                if control_on:
                    for o in range(outputs):
                        lifted += control[o] * q[o, n]
                    energy += lifted * lifted
                r_e, r_i = rates_e[level][n], rates_i[level][n]
                if learn:
                    u_hat = i[n]
                    if rule == LINEAR:
                        u_hat = theta + delta * (i[n] if form == NOTEBOOK else r_i)
                    slope = _rate_and_slope(r_e, SCALE_E)[1] if form == NOTEBOOK else slopes_e[level][n]
                    change[n] = dt / TAU_W * (r_e - u_hat) * slope
                e[n] += dt / TAU_E * (drive[n] - r_i - e[n])
                i[n] += dt / TAU_I * (r_e - lifted - i[n])
            if learn:
                b += change
                for k in range(before.size):
                    for n in range(e.size):
                        w[k, n] += before[k] * change[n]
            before = rates_e[level]
        if follow:
            for level in range(2):
                feedback[level][:] += dt / TAU_Q * (towards[level] - feedback[level])
    return trace, energy / steps
