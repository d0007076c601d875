"""The time loop of the event-driven simulator: a program of operations, compiled for the network that it runs.

A network becomes tuples of structures (named tuples of arrays and numbers), one tuple for each phase of a step:

    before      state of presynaptic neurons, on one thread
    arrive      spikes of earlier steps reach receptors
    advance     neurons integrate, fire, and enter who fired into a ring
    record      who fired is copied out, on one thread while the others go on
    weights     plastic weights see the arrivals and the spikes of this step
    after       traces take the spikes in, monitors read

numba specialises the loop on the types of the structures, so that what a network does not have costs nothing, and keeps
the compiled loop on disk. `EXECUTE` says which function carries out which structure: a new operation is a structure and
a function. Threads each own a range of every population: a thread integrates its neurons and delivers to them alone, so
that sums run over sources in ascending order whatever the number of threads, and results do not depend on it.
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload

from .barrier import wait

__all__ = ["EXECUTE", "Program", "Spikes", "at", "cut", "operation", "phase", "run", "scaled"]

EXECUTE: dict[type, Callable] = {}
"""The compiled function (structure, step, row, part) of each structure; row counts the steps of this call."""


class Spikes(NamedTuple):
    """Who fired in the last steps: ring (R, n) holds at row k mod R the neurons of each part from its bound on."""

    ring: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray


class Program(NamedTuple):
    """The phases of a step, each a tuple of groups of structures; see `phase`."""

    before: tuple
    arrive: tuple
    advance: tuple
    record: tuple
    weights: tuple
    after: tuple


def operation(structure: type) -> Callable[[Callable], Callable]:
    """Decorate the function that carries out a structure."""

    def register(function: Callable) -> Callable:
        EXECUTE[structure] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        return EXECUTE[structure]

    return register


def at(parameter, i):
    """The parameter of neuron i: a number for all, or one of an array."""
    return parameter[i] if isinstance(parameter, np.ndarray) else parameter


@overload(at)
def _at(parameter, i):
    if isinstance(parameter, types.Array):
        return lambda parameter, i: parameter[i]
    return lambda parameter, i: parameter


def cut(parameter, lo, hi):
    """The parameter of neurons lo, ..., hi - 1: the same number, a slice of the array, or None."""
    return parameter[lo:hi] if isinstance(parameter, np.ndarray) else parameter


@overload(cut)
def _cut(parameter, lo, hi):
    if isinstance(parameter, types.Array):
        return lambda parameter, lo, hi: parameter[lo:hi]
    return lambda parameter, lo, hi: parameter


def scaled(value, factor, i):
    """The value times the factor of i, or the value where there is no factor."""
    return value if factor is None else value * factor[i]


@overload(scaled)
def _scaled(value, factor, i):
    if factor == types.none:
        return lambda value, factor, i: value
    return lambda value, factor, i: value * factor[i]


def execute(structure, k, row, part):
    """Carry out one operation."""
    EXECUTE[type(structure)](structure, k, row, part)


@overload(execute)
def _execute(structure, k, row, part):
    function = EXECUTE[structure.instance_class]

    def call(structure, k, row, part):
        function(structure, k, row, part)

    return call


def execute_all(groups, k, row, part):
    """Carry out groups of structures in order."""
    for group in groups:
        for structure in group:
            execute(structure, k, row, part)


@overload(execute_all)
def _execute_all(groups, k, row, part):
    if len(groups) == 0:
        return lambda groups, k, row, part: None

    def several(groups, k, row, part):
        for structure in groups[0]:
            execute(structure, k, row, part)
        execute_all(groups[1:], k, row, part)

    return several


def phase(structures: Iterable) -> tuple:
    """Structures as the loop takes them: those that follow each other and are of one type, in groups of their own."""
    return tuple(tuple(group) for _, group in groupby(structures, key=numba.typeof))


@numba.njit(cache=True, nogil=True)
def run(program, start, steps, part, parts, barrier):
    """Steps start, ..., start + steps - 1 of a program, as the part-th of `parts` threads."""
    for row in range(steps):
        k = start + row
        if len(program.before) > 0:
            if part == 0:
                execute_all(program.before, k, row, 0)
            wait(barrier, parts)
        execute_all(program.arrive, k, row, part)
        execute_all(program.advance, k, row, part)
        wait(barrier, parts)
        if part == 0:
            execute_all(program.record, k, row, 0)
        if len(program.weights) > 0:
            execute_all(program.weights, k, row, part)
            wait(barrier, parts)
        if len(program.after) > 0:
            execute_all(program.after, k, row, part)
            wait(barrier, parts)
