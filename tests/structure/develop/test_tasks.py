"""Tasks and evolution: known scores, graphs of known statistics, optima of known place."""

import builtins
import pickle

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from neuropil.structure.develop.environments import EnvironmentTask
from neuropil.structure.develop.evolve import evolve, random_search
from neuropil.structure.develop.gates import GateTask
from neuropil.structure.develop.growing import Graphs
from neuropil.structure.develop.networks import Networks, direct_networks, direct_size
from neuropil.structure.develop.plots import plot_fitness, plot_growth
from neuropil.structure.develop.program import DevelopmentalProgram
from neuropil.structure.develop.small_world import (
    SmallWorldTask,
    clustering,
    path_length,
    random_graphs,
    small_world,
)


def of(graphs: list[nx.Graph]) -> Networks:
    """Graphs of networkx as a population."""
    sizes = torch.tensor([len(graph) for graph in graphs])
    n = int(sizes.max())
    edges = torch.zeros(len(graphs), n, n, dtype=torch.bool)
    for index, graph in enumerate(graphs):
        edges[index, : len(graph), : len(graph)] = torch.from_numpy(nx.to_numpy_array(graph) > 0)
    return Networks(Graphs(edges.double(), edges, torch.zeros(len(graphs), n, 1).double(), sizes))


def wired(weights: dict[tuple[int, int], float], nodes: int = 4) -> Networks:
    """One directed network by hand."""
    matrix = torch.zeros(1, nodes, nodes).double()
    for (i, j), weight in weights.items():
        matrix[0, i, j] = weight
    edges = torch.ones(1, nodes, nodes, dtype=torch.bool)
    return Networks(Graphs(matrix, edges, torch.zeros(1, nodes, 1).double(), torch.tensor([nodes])), directed=True)


def test_an_or_gate_by_hand_is_solved_and_its_mirror_is_not():
    gate = GateTask("or")
    solved, mirrored = wired({(0, 3): 1, (1, 3): 1}), wired({(0, 2): 1, (1, 2): 1})
    assert gate(solved).tolist() == [4]
    assert gate.right(solved).tolist() == [[True] * 4]
    lead = np.tanh([1, 1, 2])
    assert_close(gate.leads(solved)[0, 1:].numpy(), lead)
    assert float(gate(mirrored)) == pytest.approx(1 - lead.sum() / 0.05)
    assert gate.right(mirrored).tolist() == [[True, False, False, False]]


def test_a_tie_is_no_answer():
    gate = GateTask("xor")
    copies = direct_networks(torch.full((1, direct_size(4)), 0.9994).double(), 4)
    assert gate.right(copies).sum() == 1
    assert float(gate(copies)) == pytest.approx(1, abs=1e-10)


def test_small_networks_score_what_they_lack():
    own = DevelopmentalProgram(1, 1)
    still = own.develop(torch.zeros(2, 14).double(), 3)
    assert GateTask()(still).tolist() == [-3, -3]
    assert SmallWorldTask(50)(still).tolist() == [-49, -49]
    assert EnvironmentTask("CartPole-v1", 1, floor=-7)(still).tolist() == [-12, -12]
    big = direct_networks(torch.zeros(1, direct_size(4)).double(), 4)
    assert GateTask()(big).tolist() == [1]


def test_a_margin_caps_the_score():
    wide, narrow = GateTask("or", margin=0.5), GateTask("or", margin=1e-3)
    weak = wired({(0, 3): 0.1, (1, 3): 0.1})
    assert float(narrow(weak)) == 4
    assert float(wide(weak)) == pytest.approx(1 + np.tanh([0.1, 0.1, 0.2]).sum() / 0.5)


def test_unknown_gates_and_margins_are_named():
    with pytest.raises(ValueError, match="silence"):
        GateTask("nand")
    with pytest.raises(ValueError, match="margin"):
        GateTask(margin=0)


def test_clustering_and_path_length_are_those_of_networkx():
    graphs = [nx.complete_graph(6), nx.star_graph(5), nx.path_graph(4), nx.watts_strogatz_graph(12, 4, 0.2, seed=1)]
    graphs += [nx.erdos_renyi_graph(10, 0.4, seed=seed) for seed in range(4)]
    graphs = [graph for graph in graphs if nx.is_connected(graph)]
    looped = [graph.copy() for graph in graphs]
    for graph in looped:
        graph.add_edge(0, 0)
    for population in (of(graphs), of(looped)):
        edges, sizes = population.graphs.edges, population.sizes
        assert_close(clustering(edges, sizes).numpy(), np.array([nx.average_clustering(graph) for graph in graphs]))
        lengths = np.array([nx.average_shortest_path_length(graph) for graph in graphs])
        assert_close(path_length(edges, sizes).numpy(), lengths)
    apart = of([nx.Graph([(0, 1), (2, 3)])])
    assert path_length(apart.graphs.edges, apart.sizes).tolist() == [torch.inf]


def test_random_graphs_have_the_edges_that_were_asked_for():
    graphs = random_graphs(12, 20, 40)
    assert graphs.shape == (40, 12, 12)
    assert (graphs.flatten(1).sum(1) == 40).all()
    assert torch.equal(graphs, graphs.mT)
    assert not graphs.diagonal(dim1=1, dim2=2).any()
    assert len({tuple(graph.flatten().tolist()) for graph in graphs}) == 40
    every = graphs.double().mean(0)[~torch.eye(12, dtype=torch.bool)]
    assert float(every.mean()) == pytest.approx(20 / 66)
    assert torch.equal(random_graphs(5, 10, 2)[0], ~torch.eye(5, dtype=torch.bool))
    assert len(random_graphs(30, 29, 1)) <= 1  # a tree by chance: seldom
    with pytest.raises(ValueError, match="4 nodes have 0 to 6 edges, got 7"):
        random_graphs(4, 7, 1)


def test_a_small_world_stands_out_and_a_random_graph_does_not():
    lattice = nx.connected_watts_strogatz_graph(60, 8, 0.1, seed=0)
    chance = nx.gnm_random_graph(60, 240, seed=0)
    assert nx.is_connected(chance)
    assert small_world(of([lattice])[0]) > 2
    assert 0.7 < small_world(of([chance])[0]) < 1.3
    assert small_world(of([nx.complete_graph(7)])[0]) == pytest.approx(1)
    assert small_world(of([nx.path_graph(9)])[0]) == 0  # no random graph has a triangle, or none is connected
    assert small_world(of([nx.empty_graph(3)])[0]) == 0
    task = SmallWorldTask(10, seed=1)
    both = task(of([lattice, chance]))
    assert torch.equal(both, task(of([lattice, chance])))
    assert both[0] > both[1]


def cart_networks() -> Networks:
    own = DevelopmentalProgram(3, 3)
    genomes = 3 * (2 * torch.rand(40, own.genome_size, generator=torch.Generator().manual_seed(5)).double() - 1)
    networks = own.develop(genomes, 4)
    return networks.select(networks.sizes >= 6)


def test_episodes_side_by_side_are_those_played_one_by_one():
    import gymnasium

    networks = cart_networks()
    task = EnvironmentTask("CartPole-v1", 2, seed=4, extra=1, chunk=3)
    assert task.minimum == 6
    returns = task.returns(networks)
    assert len(set(returns.flatten().tolist())) > 2
    env = gymnasium.make("CartPole-v1")
    for index in range(4):
        policy = networks[index].policy(4, 2, extra=1)
        for episode in range(2):
            observation, state, total, over = env.reset(seed=4 + episode)[0], None, 0.0, False
            while not over:
                values, state = policy(torch.from_numpy(observation).double()[None], state)
                observation, reward, terminated, truncated, _ = env.step(int(values.argmax()))
                total, over = total + float(reward), terminated or truncated
            assert float(returns[index, episode]) == total
    assert_close(task(networks), returns.mean(1))
    assert torch.equal(pickle.loads(pickle.dumps(task)).returns(networks), returns)
    assert not torch.equal(task.returns(networks, seed=77), returns)


def test_continuous_actions_and_discrete_observations():
    networks = direct_networks(torch.ones(2, direct_size(4)).double(), 4)
    pendulum = EnvironmentTask("Pendulum-v1", 1, max_episode_steps=5)
    assert pendulum.minimum == 4
    assert (pendulum(networks) < 0).all()
    lake = EnvironmentTask("FrozenLake-v1", 2)
    assert lake.minimum == 16 + 4
    scores = lake(direct_networks(torch.ones(1, direct_size(20)).double(), 20))
    assert 0 <= float(scores) <= 1


def test_bad_environment_tasks_are_named():
    with pytest.raises(ValueError, match="episodes and chunk"):
        EnvironmentTask("CartPole-v1", 0)
    with pytest.raises(ValueError, match="must be discrete or boxes"):
        EnvironmentTask("Blackjack-v1")
    with pytest.raises(ValueError, match="needs as many nodes"):
        EnvironmentTask("CartPole-v1").returns(direct_networks(torch.ones(1, 3).double(), 2))


def bowl(genomes: Tensor) -> Tensor:
    return -(genomes - 0.7).square().sum(1)


def test_evolution_finds_an_optimum_and_random_search_does_not():
    found = evolve(bowl, 6, 60, popsize=12, sigma=0.5, seed=1, least_std=1e-9)
    assert_close(found.best, torch.full((6,), 0.7).double(), rtol=0, atol=1e-2)
    assert_close(found.centroid, torch.full((6,), 0.7).double(), rtol=0, atol=2e-2)
    chance = random_search(bowl, 6, 60, popsize=12, seed=1)
    assert found.fitness > chance.fitness > -2
    for search in (found, chance):
        assert search.winners.shape == (60, 6)
        assert search.fitness == float(bowl(search.best[None])) == search.history["best"].iloc[-1]
        assert_close(bowl(search.winners), torch.tensor(search.history["winner"].tolist()).double())
        assert search.history["best"].is_monotonic_increasing
        assert search.history["evaluations"].iloc[-1] == 720


def test_a_search_is_its_seeds_and_asks_no_global_generator():
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    one, same, other = (evolve(bowl, 3, 4, popsize=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.best, same.best)
    assert torch.equal(one.centroid, same.centroid)
    assert not torch.equal(one.best, other.best)
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()  # noqa: NPY002


def test_searches_stop_at_their_target_and_start_where_they_are_told():
    start = torch.full((3,), 0.7).double()
    found = evolve(bowl, 3, 50, popsize=6, sigma=1e-3, start=start, target=-1e-2)
    assert len(found.history) == 1
    assert float((found.winners[0] - start).abs().max()) < 0.02
    single = evolve(bowl, 1, 30, popsize=6, sigma=0.5)
    assert single.best.shape == (1,)
    assert float(single.best) == pytest.approx(0.7, abs=0.05)


def test_bad_searches_are_named():
    with pytest.raises(ValueError, match="popsize 2, got 3, 5 and 1"):
        evolve(bowl, 3, 5, popsize=1)
    with pytest.raises(ValueError, match="sigma"):
        evolve(bowl, 3, 5, sigma=-1.0)
    with pytest.raises(ValueError, match="start has 2 numbers, size is 3"):
        evolve(bowl, 3, 5, start=torch.zeros(2))
    with pytest.raises(ValueError, match=r"fitness gave \(6, 3\) numbers for 6 genomes"):
        evolve(lambda genomes: genomes, 3, 5, popsize=6)
    with pytest.raises(FloatingPointError, match="NaN in generation 0"):
        evolve(lambda genomes: genomes[:, 0] * torch.nan, 3, 5, popsize=6)
    with pytest.raises(ValueError, match="bound"):
        random_search(bowl, 3, 5, bound=0.0)


@pytest.mark.parametrize(
    ("package", "call"),
    [("cma", lambda: evolve(bowl, 3, 5)), ("gymnasium", lambda: EnvironmentTask("CartPole-v1"))],
)
def test_a_missing_extra_is_named(package, call, monkeypatch):
    own = builtins.__import__

    def without(name, *rest, **options):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return own(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"neuropil\[evolution\]"):
        call()


def test_evolution_grows_an_or_gate():
    own = DevelopmentalProgram(3, 3)
    task = GateTask("or", extra=1)
    found = evolve(lambda genomes: task(own.develop(genomes, 3)), own.genome_size, 60, sigma=1.0, seed=0, target=4.0)
    assert found.fitness == 4
    own.load_genome(found.best)
    grown = own.grow(3)
    assert bool(task.right(grown.batch()).all())


def test_pictures_have_a_panel_for_each_cycle_and_a_line_for_each_seed():
    own = DevelopmentalProgram(1, 1)
    own.load_genome(3 * own.genome.detach())
    grown = own.grow(2)
    figure = plot_growth(grown, 1, 1)
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match="no history"):
        plot_growth(grown.history[0])
    found = [evolve(bowl, 3, 4, popsize=6, seed=seed) for seed in (1, 2)]
    figure = plot_fitness({"bowl": [one.history for one in found]}, goal=0.0)
    assert len(figure.axes[0].lines) == 4
