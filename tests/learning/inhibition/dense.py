"""An independent solution of the circuit, sample by sample, from its equations: numpy and scipy only."""

import numpy as np
from scipy.optimize import root
from scipy.special import expit, softmax


def phi(u):
    return np.logaddexp(0.0, u)


def slope(u):
    return expit(u)


def inverse(r):
    return r + np.log(-np.expm1(-r))


def solve(residual, start):
    solution = root(residual, start, tol=1e-13, method="hybr", options={"maxfev": 100_000})
    assert np.abs(residual(solution.x)).max() < 1e-10, solution.message
    return solution.x


def stack(potentials):
    return np.concatenate(potentials)


def unstack(vector, sizes):
    return np.split(vector, np.cumsum(sizes)[:-1])


def drives_of(weights, biases, x, potentials):
    rates = [x, *[phi(u) for u in potentials[:-1]]]
    return [w @ r + b for w, b, r in zip(weights, biases, rates, strict=True)]


def gradients(
    weights, biases, w_out, x, y, *, rule="exact", loss="cross_entropy", gain=0.6, norm=1.0, nudge=None, r0=None
):
    """Gradient of one sample, as minus the weight change; r0: rates where the linear rule's tangent touches."""
    sizes = [len(b) for b in biases]

    def open_residual(vector):
        potentials = unstack(vector, sizes)
        drives = drives_of(weights, biases, x, potentials)
        return stack([u + phi(phi(u)) - a for u, a in zip(potentials, drives, strict=True)])

    rest = unstack(solve(open_residual, np.zeros(sum(sizes))), sizes)
    jacobian, feedback = w_out * slope(rest[-1]), []
    for level in range(len(sizes) - 1, -1, -1):
        q = jacobian * slope(phi(rest[level]))
        feedback.insert(0, norm * q / np.linalg.norm(q))
        if level:
            jacobian = jacobian @ weights[level] * slope(rest[level - 1])

    def raw_error(o):
        return y - softmax(o) if loss == "cross_entropy" else y - o

    offset = 0.0
    if nudge is not None:
        o = w_out @ phi(rest[-1])
        offset = raw_error(o + nudge * raw_error(o))

    def error(o):
        return raw_error(o) - offset

    def closed_residual(vector):
        *potentials, c = unstack(vector, [*sizes, len(y)])
        drives = drives_of(weights, biases, x, potentials)
        neurons = [u + phi(phi(u) - c @ q) - a for u, q, a in zip(potentials, feedback, drives, strict=True)]
        return stack([*neurons, c - gain * error(w_out @ phi(potentials[-1]) + c)])

    *potentials, c = unstack(solve(closed_residual, stack([*rest, np.zeros(len(y))])), [*sizes, len(y)])
    rates = [x, *[phi(u) for u in potentials]]
    result = []
    for level, u in enumerate(potentials):
        u_i = phi(u) - c @ feedback[level]
        u_hat = u_i
        if rule == "linear":
            u_0 = inverse(r0[level])
            delta = 1 / slope(u_0)
            u_hat = u_0 - r0[level] * delta + delta * phi(u_i)
        change = (phi(u) - u_hat) * slope(u)
        result += [-np.outer(change, rates[level]), -change]
    return [*result, -np.outer(c, rates[-1])], [phi(phi(u)) for u in rest]
