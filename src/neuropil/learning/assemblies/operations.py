"""The operations of the Assembly Calculus, each a pattern of who receives from whom.

    project              x -> A, then x -> A and A -> A                  an assembly for x in A
    reciprocal_project   A -> B, then also B -> B, B -> A and A -> A     an assembly in B that A's answers to
    associate            x -> A and y -> A together                      the two assemblies come to share neurons
    merge                A -> C and B -> C, with C -> A and C -> B       one assembly in C for two
    recall               A -> A from a part of an assembly               the whole of it

An area that is silent at the beginning is left out as a source until it fires.

Source: Papadimitriou, Vempala, Mitropolsky, Collins & Maass, PNAS 117 (2020).
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from neuropil.learning.assemblies.brain import Brain, Sources
from neuropil.learning.assemblies.cap import overlap
from neuropil.learning.assemblies.trace import Association, ProjectionTrace, trace_of

__all__ = ["associate", "merge", "project", "recall", "reciprocal_project", "simulate"]


def simulate(brain: Brain, sources: Sources, steps: int, *, plastic: bool = True) -> dict[str, ProjectionTrace]:
    """Repeat one pattern of sources.

    Args:
        brain: whose areas and synapses change.
        sources: for every area that chooses winners, the stimuli and areas that it receives from. Areas that are
            silent, but choose winners themselves, are left out until they fire.
        steps: at least 1.
        plastic: whether synapses change.

    Returns:
        The trace of every area in `sources`.

    Raises:
        ValueError: if steps is below 1, an area is left without a source that fires, or a name is unknown.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    earlier = {dst: brain.area(dst).winners for dst in sources}
    winners: dict[str, list[Tensor]] = {dst: [] for dst in sources}
    for _ in range(steps):
        silent = {dst for dst in sources if brain.area(dst).winners is None}
        opened = {dst: [src for src in names if src not in silent] for dst, names in sources.items()}
        # An area that waits for another silent one waits a step; if all wait, nothing can ever fire.
        receiving = {dst: names for dst, names in opened.items() if names}
        if not receiving:
            raise ValueError(f"Areas {', '.join(sorted(silent))} are silent, and nothing else projects to them.")
        fired = brain.step(receiving, plastic=plastic)
        for dst in sources:
            if dst in fired:
                winners[dst].append(fired[dst])
    return {dst: trace_of(fired, earlier[dst]) for dst, fired in winners.items() if fired}


def project(brain: Brain, src: str | Sequence[str], dst: str, steps: int, *, plastic: bool = True) -> ProjectionTrace:
    """Form an assembly: the source alone drives the area at first, then together with the area itself.

    Args:
        brain: whose area is driven.
        src: a stimulus, an area that fires, or several of them.
        dst: an area. Whatever fires there is silenced first.
        steps: at least 1.
        plastic: whether synapses change.

    Raises:
        ValueError: if a source is silent, a name unknown or steps below 1.
    """
    names = [src] if isinstance(src, str) else list(src)
    if dst in names:
        raise ValueError(f"{dst!r} projects to itself in any case: name the other sources only.")
    brain.reset(dst)
    return simulate(brain, {dst: [*names, dst]}, steps, plastic=plastic)[dst]


def reciprocal_project(
    brain: Brain, src: str, dst: str, steps: int, *, stimuli: Mapping[str, Sequence[str]] | None = None
) -> dict[str, ProjectionTrace]:
    """Form an assembly in an area, while it projects back and both areas project to themselves.

    Args:
        brain: whose areas are driven.
        src: an area that fires.
        dst: another area.
        steps: at least 1.
        stimuli: what else drives an area all the while, by area: usually the stimulus of `src`.

    Returns:
        The traces of both areas.

    Raises:
        ValueError: if the source is silent, a name unknown or steps below 1.
    """
    return _with_feedback(brain, [src], dst, steps, stimuli or {})


def merge(
    brain: Brain, first: str, second: str, dst: str, steps: int, *, stimuli: Mapping[str, Sequence[str]] | None = None
) -> dict[str, ProjectionTrace]:
    """Form one assembly for two, tied to both by synapses in both directions.

    Args:
        brain: whose areas are driven.
        first: an area that fires.
        second: another one.
        dst: a third area.
        steps: at least 1.
        stimuli: what else drives an area all the while, by area: usually those of `first` and `second`.

    Returns:
        The traces of the three areas.

    Raises:
        ValueError: if a source is silent, a name unknown or given twice, or steps below 1.
    """
    if len({first, second, dst}) < 3:
        raise ValueError(f"merge needs three areas, got {first!r}, {second!r} and {dst!r}.")
    return _with_feedback(brain, [first, second], dst, steps, stimuli or {})


def _with_feedback(
    brain: Brain, sources: list[str], dst: str, steps: int, stimuli: Mapping[str, Sequence[str]]
) -> dict[str, ProjectionTrace]:
    for name in sources:
        if brain.area(name).winners is None:
            raise ValueError(f"Area {name!r} is silent: it cannot project. Project something to it first.")
    brain.reset(dst)
    pattern = {name: [name, dst, *stimuli.get(name, ())] for name in sources}
    pattern[dst] = [*sources, dst, *stimuli.get(dst, ())]
    return simulate(brain, pattern, steps)


def associate(brain: Brain, first: str, second: str, dst: str, steps: int, *, alone: int = 50) -> Association:
    """Bring two assemblies of an area closer to each other by firing their sources together.

    Each source is projected alone, then both together, and then each again with plasticity off.

    Args:
        brain: whose area is driven.
        first: a stimulus, or an area that fires.
        second: likewise.
        dst: an area.
        steps: how long both fire together, at least 1.
        alone: how long each fires alone, at least 1.

    Raises:
        ValueError: if a source is silent, a name unknown, or a number of steps below 1.
    """
    a, b = (project(brain, src, dst, alone).winners[-1] for src in (first, second))
    trace = project(brain, [first, second], dst, steps)
    a_after, b_after = (project(brain, src, dst, alone, plastic=False).winners[-1] for src in (first, second))
    return Association(overlap(a, b), overlap(a_after, b_after), trace)


def recall(
    brain: Brain, area: str, neurons: Int[Tensor, " neurons"], steps: int, *, plastic: bool = False
) -> Int[Tensor, "steps k"]:
    """Complete a pattern: some neurons of an area fire, and the area then drives itself.

    Args:
        brain: whose area is driven.
        area: name.
        neurons: that fire at first.
        steps: at least 1.
        plastic: whether synapses change.

    Returns:
        The winners of every step.

    Raises:
        ValueError: if the neurons are none, repeated or out of range, the name unknown or steps below 1.
    """
    brain.reset(area)
    brain.activate(area, neurons)
    return simulate(brain, {area: [area]}, steps, plastic=plastic)[area].winners
