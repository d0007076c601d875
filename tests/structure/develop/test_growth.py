"""Growth: against a plain reference, known graphs, limits, gradients."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neuropil.structure.develop.gates import GateTask
from neuropil.structure.develop.growing import diameters, hop_distances
from neuropil.structure.develop.networks import direct_networks, direct_size
from neuropil.structure.develop.program import DevelopmentalProgram
from tests.structure.develop import reference

# Grows the graph that the published XOR genome is known to grow: nodes and edges (self loop among them) cycle by cycle.
# The genome itself is another: found by random search, rounded.
KNOWN = [-0.7, -1.3, 0.9, 0.7, -0.6, -4.0, -3.3, -4.1, -1.2, -0.9, 3.6, 3.2, 3.3, 4.7]
KNOWN_GRAPHS = [(1, 1), (2, 2), (3, 4), (4, 7), (4, 7)]

KINDS = {
    "plain": {},
    "thinking": {"thinking_extra": 3},
    "directed": {"directed": True},
    "binary": {"binary": True, "thinking_extra": 1},
    "additive": {"additive": True, "learn_seed": False},
    "pairs": {"growth": "pair"},
    "pruned": {"prune": 0.3},
    "pruned, directed": {"prune": 0.4, "directed": True, "thinking_extra": 1},
}


GROWING = 2  # a seed whose program grows


def program(seed: int = 0, scale: float = 3.0, **options) -> DevelopmentalProgram:
    """With large numbers, so that nodes differ and some divide."""
    made = DevelopmentalProgram(3, 4, generator=torch.Generator().manual_seed(seed), **options)
    made.load_genome(scale * made.genome.detach())
    return made


def deciding(own: DevelopmentalProgram, number: float) -> DevelopmentalProgram:
    """The same program, whose nodes all decide alike."""
    parameters = dict(own.named_parameters())
    with torch.no_grad():
        parameters["growth.2.weight"].zero_()
        parameters["growth.2.bias"].fill_(number)
    return own


@pytest.mark.parametrize("kind", KINDS)
def test_growth_equals_the_plain_reference(kind):
    sizes = set()
    for seed in range(12):
        own = program(seed, **KINDS[kind])
        cycles = 3 if kind == "pairs" else 4
        graph, embeddings = reference.grow(own, cycles)
        grown = own.grow(cycles)
        assert_close(grown.weights.detach().numpy(), reference.array(graph), rtol=0, atol=1e-10)
        assert_close(grown.embeddings.detach().numpy(), embeddings, rtol=0, atol=1e-10)
        assert grown.edge_count == graph.number_of_edges()
        assert grown.diameter == reference.diameter(graph)
        sizes.add(grown.nodes)
    assert len(sizes) > 2  # some divide, some do not


@pytest.mark.parametrize("kind", KINDS)
def test_a_population_grows_as_its_members_do(kind):
    own = program(**KINDS[kind])
    genomes = 3 * (2 * torch.rand(9, own.genome_size, generator=torch.Generator().manual_seed(1)).double() - 1)
    networks = own.develop(genomes, 3)
    for genome, network in zip(genomes, networks, strict=True):
        own.load_genome(genome)
        alone = own.grow(3)
        assert torch.equal(alone.edges, network.edges)
        assert_close(alone.weights.detach(), network.weights, rtol=0, atol=1e-12)
        assert_close(alone.embeddings.detach(), network.embeddings, rtol=0, atol=1e-12)
    assert networks.edge_counts.tolist() == [network.edge_count for network in networks]


def test_the_known_graph_grows():
    own = DevelopmentalProgram(1, 1)
    assert own.genome_size == 14
    own.load_genome(torch.tensor(KNOWN))
    grown = own.grow(4)
    assert [(state.nodes, state.edge_count) for state in grown.history] == KNOWN_GRAPHS
    assert own.grow(4, loop=False).nodes == 2
    # complete, with equal weights: any two nodes without the loop are copies of each other
    off = grown.weights[~torch.eye(4, dtype=torch.bool)]
    assert float(off.detach().std()) < 1e-6
    assert float(grown.weights.detach().sum()) == pytest.approx(13, abs=0.01)
    assert abs(float(grown.embeddings.detach().sum())) == pytest.approx(4, abs=0.03)
    assert float(GateTask().leads(grown.batch()).detach().abs().max()) < 1e-12


def test_nothing_divides_or_all_do():
    own = DevelopmentalProgram(2, 3)
    still, edge, doubled = (deciding(own, number).grow(5) for number in (-1, 0, 1))  # exactly 0 does not divide
    assert still.nodes == edge.nodes == 1
    assert float(still.weights.detach()) == 1
    assert [state.nodes for state in doubled.history] == [1, 2, 4, 8, 16, 32]
    # a clone joins its parent and the parent's neighbours: e -> 1 + 3 (e - 1) + n new edges, the loop counts once more
    edges = [1]
    for n in (1, 2, 4, 8, 16):
        edges.append(edges[-1] + 2 * (edges[-1] - 1) + n)
    assert [state.edge_count for state in doubled.history] == edges


def test_explosions_are_refused_or_stopped():
    own = deciding(DevelopmentalProgram(2, 3), 1)
    assert own.grow(3, max_nodes=8).nodes == 8
    with pytest.raises(ValueError, match=r"Network 0 would grow from 4 nodes beyond max_nodes=7 in cycle 3"):
        own.grow(3, max_nodes=7)
    loud, quiet = (deciding(own, number).genome.detach().clone() for number in (1, -1))
    networks = own.develop(torch.stack([loud, quiet]), 4, max_nodes=7, beyond="stop")
    assert networks.sizes.tolist() == [4, 1]
    assert networks.exceeded.tolist() == [True, False]


def test_the_genome_is_laid_out_as_documented():
    own = DevelopmentalProgram(2, 3)
    assert [name for name, _ in own.named_parameters()] == [
        "seed",
        *(
            f"{part}.{layer}.{kind}"
            for part in ("growth", "transform", "weight")
            for layer in (0, 2)
            for kind in ("weight", "bias")
        ),
    ]
    assert own.genome_size == 2 + (6 + 3 + 3 + 1) + (6 + 3 + 6 + 2) + (12 + 3 + 3 + 1)
    assert DevelopmentalProgram(2, 3, binary=True).genome_size == own.genome_size - 19
    assert DevelopmentalProgram(2, 3, learn_seed=False).genome_size == own.genome_size - 2
    assert DevelopmentalProgram(2, 3, growth="pair").genome_size == own.genome_size + 6
    vector = torch.arange(float(own.genome_size)).double()
    own.load_genome(vector)
    assert torch.equal(own.genome.detach(), vector)
    assert own.seed.tolist() == [0, 1]


def test_a_loss_reaches_the_genome_through_growth_and_play():
    own = program(GROWING, scale=2.0, thinking_extra=1)
    assert own.grow(3).nodes >= 4
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.5, -0.5], [0.2, 0.1], [-0.3, 0.4]], dtype=torch.float64)

    def loss() -> torch.Tensor:
        values, _ = own.grow(3).policy(2, 2, extra=1)(x)
        return (values - y).square().mean()

    loss().backward()
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    reached = {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}
    assert reached == {name for name in gradients if not name.startswith("growth")}
    before = own.genome.detach()
    measured = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in own.parameters()]
    )
    for index in range(own.genome_size):  # by finite differences, where no division changes
        ends = []
        for step in (1e-6, -1e-6):
            moved = before.clone()
            moved[index] += step
            own.load_genome(moved)
            ends.append(float(loss().detach()))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(measured[index]), rel=1e-4, abs=1e-8)
    own.load_genome(before)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.02)
    first = float(loss().detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.5 * first


def test_gradients_reach_a_population_of_genomes():
    own = program()
    genomes = own.genome.detach().expand(3, -1).clone()
    genomes[1] *= 0.5
    genomes.requires_grad_()
    networks = own.develop(genomes, 3)
    networks.graphs.weights[0].sum().backward()
    assert genomes.grad is not None
    assert bool(genomes.grad[0].any())
    assert not bool(genomes.grad[1:].any())


def test_draws_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = (DevelopmentalProgram(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.genome, same.genome)
    assert not torch.equal(one.genome, other.genome)
    assert float(one.genome.detach().abs().max()) <= 1
    deciding(one, -1)
    drawn = [float(one.grow(2, generator=torch.Generator().manual_seed(seed)).weights.detach()) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_single_precision_follows_the_genome():
    own = DevelopmentalProgram(2, 3, dtype=torch.float32)
    grown = own.grow(3)
    assert grown.weights.dtype == grown.embeddings.dtype == torch.float32
    assert DevelopmentalProgram(2, 3).grow(2).weights.dtype == torch.float64


def test_huge_genomes_stay_finite_and_zero_ones_stand_still():
    own = DevelopmentalProgram(2, 3)
    own.load_genome(1e150 * own.genome.detach())
    grown = own.grow(4)
    assert bool(torch.isfinite(grown.weights).all())
    assert bool(torch.isfinite(grown.embeddings).all())
    own.load_genome(torch.zeros(own.genome_size))
    assert own.grow(4).nodes == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"embedding": 0}, "embedding and hidden"),
        ({"thinking_extra": -1}, "thinking_extra"),
        ({"prune": 1.0}, "prune must lie"),
        ({"binary": True, "prune": 0.3}, "binary"),
    ],
)
def test_bad_programs_are_named(bad, words):
    with pytest.raises(ValueError, match=words):
        DevelopmentalProgram(**bad)


def test_bad_genomes_and_cycles_are_named():
    own = DevelopmentalProgram(2, 3)
    size = own.genome_size
    with pytest.raises(ValueError, match=f"has {size} numbers, got 3"):
        own.load_genome(torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        own.load_genome(torch.full((size,), torch.nan))
    with pytest.raises(ValueError, match=f"has {size} numbers, got {size + 1}"):
        own.develop(torch.zeros(2, size + 1), 2)
    with pytest.raises(ValueError, match="cycles must be at least 0"):
        own.grow(-1)
    assert own.grow(0).nodes == 1
    assert len(own.develop(torch.zeros(0, size).double(), 2)) == 0


def test_distances_and_diameters_are_those_of_networkx():
    generator = torch.Generator().manual_seed(0)
    graphs = [nx.path_graph(7), nx.cycle_graph(6), nx.complete_graph(5), nx.star_graph(4), nx.empty_graph(1)]
    graphs += [nx.gnp_random_graph(9, 0.2, seed=seed) for seed in range(8)]
    sizes = torch.tensor([len(graph) for graph in graphs])
    edges = torch.zeros(len(graphs), 12, 12, dtype=torch.bool)
    for index, graph in enumerate(graphs):
        # one direction each, drawn: distances go both ways
        for i, j in graph.edges:
            a, b = (i, j) if bool(torch.rand((), generator=generator) < 0.5) else (j, i)
            edges[index, a, b] = True
    distances = hop_distances(edges, sizes)
    for index, graph in enumerate(graphs):
        expected = -np.ones((12, 12), dtype=int)
        for source, lengths in nx.all_pairs_shortest_path_length(graph):
            for target, length in lengths.items():
                expected[source, target] = length
        assert (distances[index].numpy() == expected).all()
    assert diameters(edges, sizes).tolist() == [reference.diameter(graph) for graph in graphs]
    assert not all(nx.is_connected(graph) for graph in graphs)


def test_a_grown_network_becomes_a_networkx_graph():
    for directed in (False, True):
        grown = program(1, directed=directed).grow(3)
        graph = grown.to_networkx()
        assert graph.is_directed() == directed
        assert (len(graph), graph.number_of_edges()) == (grown.nodes, grown.edge_count)
        assert_close(torch.from_numpy(reference.array(graph)), grown.weights.detach())
        assert graph.nodes[0]["embedding"] == grown.embeddings[0].detach().tolist()


def test_the_direct_encoding_writes_every_weight():
    vectors = torch.arange(2 * direct_size(3)).double().reshape(2, -1)
    networks = direct_networks(vectors, 3)
    assert networks[1].weights.tolist() == [[6, 7, 8], [7, 9, 10], [8, 10, 11]]
    assert networks[0].edge_count == direct_size(3) == 6
    whole = direct_networks(torch.arange(9).double()[None], 3, directed=True)[0]
    assert whole.weights.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert whole.edge_count == direct_size(3, directed=True) == 9
    with pytest.raises(ValueError, match="have 6 numbers, 4 nodes want 10"):
        direct_networks(vectors, 4)


def test_without_pruning_the_seed_is_joined_to_every_node():
    """By induction: a child of the seed is joined to it, a child of another node inherits that node's edge to it."""
    for options in ({}, {"directed": True}, {"binary": True, "thinking_extra": 2}):
        own = program(**options)
        genomes = 3 * (2 * torch.rand(60, own.genome_size, generator=torch.Generator().manual_seed(3)).double() - 1)
        networks = own.develop(genomes, 5)
        assert int(networks.sizes.max()) > 8
        for network in networks:
            assert bool(network.edges[0].all())
            assert network.diameter <= 2
