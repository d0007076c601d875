"""Recurrent layers and cells: a unit is a row of every gate, a column of what the state is read with, and its state.

Of a masked unit of an LSTM or GRU every gate is at 1/2 and the candidate at 0, so that its state decays to 0, or stays
there: removing it is exact. One layer of torch has one number of units for all of its layers and directions, so that
units of the same place in these are one.
"""

import math
from collections.abc import Sequence

import numpy as np

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import PRODUCTS, Call, Reader, Value, rule

__all__ = ["cell", "recurrent"]

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
PRODUCTS.update(GATES, {f"{name}_cell" for name in GATES})


@rule(*GATES)
def recurrent(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Run over a sequence, with any number of layers and directions."""
    x: Value = call["input"] if "input" in call.arguments else call["data"]
    given = call["hx"]
    states: Sequence[Value] = given if isinstance(given, list | tuple) else (given,)
    params: Sequence[Value] = call["params"]
    directions = 2 if call["bidirectional"] else 1
    each = len(params) // (call["num_layers"] * directions)
    if each not in (2, 4):
        reader.refuse(call, f"{call.name} projects its state", [value for value in call.values() if value.labelled])
        return tuple(Value.free(shape) for shape in call.shapes)
    for axis in x.axes[:-1]:
        reader.freeze(axis, call, "runs over these")
    units = params[1].shape[1]
    unit = reader.labels.fresh(units) if units > 1 else None
    features, steps = x.axes[-1], math.prod(x.shape[:-1])
    for layer in range(call["num_layers"]):
        for k in range(directions):
            place = (layer * directions + k) * each
            _read(reader, call, params[place : place + each], features, unit, steps)
        features = None if unit is None else np.tile(unit, directions)
    _carried(reader, call, states, unit)
    made = [Value(call.shape, (*(None for _ in x.axes[:-1]), features))]
    made += [Value(shape, (*(None for _ in shape[:-1]), unit)) for shape in call.shapes[1:]]
    return tuple(made)


@rule(*(f"{name}_cell" for name in GATES))
def cell(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Take one step."""
    x: Value = call["input"]
    given = call["hx"]
    states: Sequence[Value] = given if isinstance(given, list | tuple) else (given,)
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if isinstance(call.get(name), Value)]
    units = weights[1].shape[1]
    unit = reader.labels.fresh(units) if units > 1 else None
    _read(reader, call, weights, x.axes[-1], unit, math.prod(x.shape[:-1]))
    _carried(reader, call, states, unit)
    return tuple(Value(shape, (*x.axes[:-1], unit)) for shape in call.shapes)


def _read(reader: Reader, call: Call, weights: Sequence[Value], features: Axis, unit: Axis, steps: int) -> None:
    """Unite the rows of all gates with the units, and the columns with what they read."""
    w_ih, w_hh, *biases = weights
    rows = None if unit is None else np.tile(unit, w_hh.shape[0] // w_hh.shape[1])
    for value in (w_ih, w_hh, *biases):
        if rows is not None:
            reader.unite(value.axes[0], rows, call)
        else:
            reader.freeze(value.axes[0], call, "has one unit")
    for value, axis in ((w_ih, features), (w_hh, unit)):
        if value.shape[1] > 1:
            reader.unite(value.axes[1], axis, call)
        reader.contracts(value, 1)
        reader.multiplies(call, steps, *zip(value.shape, value.axes, strict=True))


def _carried(reader: Reader, call: Call, states: Sequence[Value], unit: Axis) -> None:
    """Unite the states before the first step with the units; zeros take their number."""
    for state in states:
        axes = (*(None for _ in state.shape[:-1]), unit)
        if state.uniform:
            reader.fit(state, axes)
        elif unit is not None:
            reader.unite(state.axes[-1], unit, call)
