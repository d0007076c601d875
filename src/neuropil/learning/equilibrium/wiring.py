"""Who hears whom among groups of units."""

from collections.abc import Mapping, Sequence

__all__ = ["comes_before", "find_wiring", "group_names"]

Wiring = list[tuple[str, str]]


def group_names(count: int) -> list[str]:
    """Names of so many groups: "l1", "l2", ..., the last one "out"."""
    return [*(f"l{index}" for index in range(1, count)), "out"]


def comes_before(pre: str, post: str, names: Sequence[str]) -> bool:
    """Whether a connection leads forward: from the input, or from an earlier group."""
    return pre == "in" or list(names).index(pre) < list(names).index(post)


def find_wiring(names: Sequence[str], connections: str | Mapping[str, Sequence[str]]) -> Wiring:
    """The connections as (pre, post), those that lead forward first.

    Args:
        names: of the groups, in order.
        connections: "chain", "loop", or for each group the groups that it hears, "in" among them.

    Raises:
        ValueError: if the name is unknown, a group is, or no path leads from the input to a group.
    """
    forward = list(zip(["in", *names[:-1]], names, strict=True))
    if connections == "chain":
        return [*forward, *((post, pre) for pre, post in forward[1:])]
    if connections == "loop":
        if len(names) < 2:
            raise ValueError('connections="loop" needs two groups at least: a single one has nothing to close.')
        return [*forward, (names[-1], names[0])]
    if isinstance(connections, str):
        raise ValueError(f'connections must be "chain", "loop" or a dict by group, got {connections!r}.')
    return _given(names, connections)


def _given(names: Sequence[str], connections: Mapping[str, Sequence[str]]) -> Wiring:
    wiring: Wiring = []
    for post, heard in connections.items():
        if post not in names:
            raise ValueError(f"connections names the group {post!r}; there are {list(names)}.")
        if isinstance(heard, str):
            raise ValueError(f"connections[{post!r}] must be a list of groups, got {heard!r}.")
        for pre in heard:
            if pre != "in" and pre not in names:
                raise ValueError(f"connections[{post!r}] names {pre!r}; there are {['in', *names]}.")
            if (pre, post) in wiring:
                raise ValueError(f"connections[{post!r}] names {pre!r} twice.")
            wiring.append((pre, post))
    reached = {"in"}
    while any(pre in reached and post not in reached for pre, post in wiring):
        reached |= {post for pre, post in wiring if pre in reached}
    cut_off = [name for name in names if name not in reached]
    if cut_off:
        raise ValueError(f"No path leads from the input to {', '.join(map(repr, cut_off))}: see connections.")
    return sorted(wiring, key=lambda pair: not comes_before(*pair, names))
