"""Pictures of growth and of its evolution."""

from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, canvas, panels
from neuropil.structure.develop.networks import GrownNetwork

__all__ = ["plot_fitness", "plot_growth"]


def plot_growth(
    network: GrownNetwork, observations: int = 0, actions: int = 0, axes: Sequence[Axes] | None = None
) -> Figure:
    """Draw a network from its seed on, one panel a cycle; nodes stay where the grown network has them.

    A ring is a self loop, grey edges are positive, pink ones negative, thick ones strong.

    Args:
        network: as `DevelopmentalProgram.grow` returns it, with its history.
        observations: how many first nodes are drawn as inputs, in the last panel.
        actions: how many last nodes as outputs.
        axes: one for each state in the history; None makes a figure.

    Raises:
        ValueError: if there is no history, or the axes are not as many.
    """
    if not network.history:
        raise ValueError("The network has no history: grow it by DevelopmentalProgram.grow.")
    count = len(network.history)
    if axes is None:
        figure, axes = panels(count, size=(2.0, 2.1))
    else:
        figure, _ = canvas(axes[0])
    if len(axes) != count:
        raise ValueError(f"The history has {count} states, got {len(axes)} axes.")
    places = _places(network)
    for cycle, (state, ax) in enumerate(zip(network.history, axes, strict=True)):
        colours = [COLOURS[0]] * state.nodes
        if cycle == count - 1 and observations + actions <= state.nodes:
            colours[:observations] = [COLOURS[2]] * observations
            colours[state.nodes - actions :] = [COLOURS[1]] * actions
        _draw(state, places, colours, ax)
        ax.set_title(f"cycle {cycle}" if cycle else "seed", fontsize=9)
        counts = ((state.nodes, "node"), (state.edge_count, "edge"))
        ax.set_xlabel(", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts), fontsize=7)
    return figure


def _places(network: GrownNetwork) -> dict[int, np.ndarray]:
    """A circle for a few nodes; else by hops, where those are defined."""
    graph = network.to_networkx().to_undirected()
    circle = nx.circular_layout(graph)
    if len(graph) <= 12 or not nx.is_connected(graph):
        return circle
    return nx.kamada_kawai_layout(graph, pos=circle, weight=None)


def _draw(state: GrownNetwork, places: Mapping[int, np.ndarray], colours: Sequence[str], ax: Axes) -> None:
    graph = state.to_networkx()
    ends = [edge for edge in graph.edges if edge[0] != edge[1]]
    strength = np.array([abs(graph.edges[edge]["weight"]) for edge in ends])
    crowded = 1 + len(ends) / 100
    widths = (0.3 + 1.2 * strength) / min(crowded, 5)
    at = {node: places[node] for node in graph.nodes}
    tints = [GREY if graph.edges[edge]["weight"] >= 0 else COLOURS[3] for edge in ends]
    options = {"arrows": False, "ax": ax, "width": list(widths), "edge_color": tints, "alpha": crowded**-0.5}
    nx.draw_networkx_edges(graph, at, edgelist=ends, **options)
    size = 28 if len(places) <= 32 else 9
    loops = [node for node in graph.nodes if graph.has_edge(node, node)]
    nx.draw_networkx_nodes(graph, at, loops, node_size=4 * size, node_color="none", edgecolors=GREY, ax=ax)
    nx.draw_networkx_nodes(graph, at, node_size=size, node_color=list(colours), linewidths=0, ax=ax)
    ax.set_xlim(-1.25, 1.25)
    ax.set_ylim(-1.25, 1.25)
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])


def plot_fitness(
    histories: Mapping[str, Sequence[pd.DataFrame]],
    ax: Axes | None = None,
    *,
    column: str = "best",
    goal: float | None = None,
    title: str = "",
    across: str = "evaluations",
) -> Figure:
    """Fitness in the course of searches: thin lines for seeds, a thick one for their mean.

    Args:
        histories: of `Evolution`, by the search's name, one for each seed.
        ax: where to draw; None makes a figure.
        column: of the histories: "best", "winner" or "mean".
        goal: a dotted line.
        title: of the panel.
        across: column on the x axis, logarithmic.
    """
    figure, ax = canvas(ax)
    every = sorted({place for seeds in histories.values() for history in seeds for place in history[across]})
    for colour, (label, seeds) in zip(COLOURS, histories.items(), strict=False):
        # A search that stopped at its target stays there.
        lines = [history.set_index(across)[column].reindex(every).ffill() for history in seeds]
        for line in lines:
            ax.plot(every, line, color=colour, lw=0.6, alpha=0.4)
        ax.plot(every, pd.concat(lines, axis=1).mean(axis=1), color=colour, lw=1.6, label=label)
    ax.set_xscale("log")
    if goal is not None:
        ax.axhline(goal, color="black", lw=0.5, ls=":")
    ax.set_xlabel(across)
    ax.set_ylabel("fitness")
    ax.set_title(title)
    ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncol=2)
    return figure
