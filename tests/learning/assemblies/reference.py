"""Projection written out neuron by neuron, on a graph that is given: what every storage must reproduce."""

import math


def hebb(w, x, y, beta=0.1, **_):
    return w * (1 + beta) if x and y else w


def oja(w, x, y, eta=0.2, **_):
    return w + eta * (x - w) if y else w


def stdp(w, x, y, before=0, a_plus=0.2, a_minus=0.08):
    """The last pair only, one step apart: `before`, whether j fired one step before i."""
    return max(w + math.exp(-1) * (a_plus * x * y - a_minus * before * x), 0.0)


def project(stimulus, recurrent, k, steps, change, initial_weight):
    """Winners at every step, and the weights: [row][column], None where there is no synapse."""
    n = len(recurrent)
    weights = [
        [[initial_weight if there else None for there in row] for row in graph] for graph in (stimulus, recurrent)
    ]
    all_stimulus = set(range(len(stimulus)))
    fired, history = set(), []
    for step in range(steps):
        firing = [all_stimulus, fired if step else set()]
        inputs = [
            sum(w[i][j] for w, on in zip(weights, firing, strict=True) for i in sorted(on) if w[i][j] is not None)
            for j in range(n)
        ]
        best = sorted(range(n), key=lambda j: (-round(inputs[j], 9), j))[:k]
        # Synapses from the area to itself are closed in the first step, but its neurons' spikes count as past ones.
        past = history[-2] if len(history) > 1 else set()
        for w, on, is_open in zip(weights, firing, (True, step > 0), strict=True):
            for i in range(len(w)) if is_open else ():
                for j in range(n):
                    if w[i][j] is not None:
                        w[i][j] = change(w[i][j], int(i in on), int(j in best), before=int(j in past))
        fired = set(best)
        history.append(fired)
    return [sorted(winners) for winners in history], weights
