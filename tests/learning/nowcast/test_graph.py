"""The neural graph: counts in closed form, a round trip, what joins what, and refusals by name."""

import numpy as np
import pytest
import torch
from torch import nn

from neuropil.learning.networks import mlp, small_conv
from neuropil.learning.nowcast import EDGE_TYPES, NODE_KINDS, neural_graph, weight_table, weight_vector
from neuropil.learning.nowcast.positions import laplacian_positions
from tests.learning.nets import CASES, case


def edges(graph, kind):
    return graph.edge_index[:, graph.edge_type == EDGE_TYPES[kind]]


def test_an_mlp_in_closed_form():
    net = mlp(3, 4, 2)
    graph = neural_graph(net)
    assert graph.nodes == 3 + 4 + 1 + 2 + 1  # a constant a bias
    assert graph.weights == 3 * 4 + 4 + 4 * 2 + 2
    assert graph.edge_index.shape[1] == graph.weights + graph.nodes  # a loop a node
    kinds = {name: int((graph.node_kind == number).sum()) for name, number in NODE_KINDS.items()}
    assert kinds == {"input": 3, "hidden": 4, "output": 2, "constant": 2, "head": 0}
    # Weight (target, source) of the first layer lies on the edge from source to target.
    held = graph.edge_weights[:, 0]
    for target in range(4):
        for source in range(3):
            (edge,) = torch.nonzero(held == target * 3 + source)[:, 0]
            assert graph.edge_index[:, edge].tolist() == [source, 3 + target]


@pytest.mark.parametrize("name", [*CASES, "projected transformer"])
def test_every_weight_stands_on_one_edge_and_comes_back(name):
    net = case(name)[0]
    graph = neural_graph(net)
    held = graph.edge_weights[graph.edge_weights >= 0]
    assert torch.equal(held.sort().values, torch.arange(graph.weights))
    values = weight_vector(net)[:, None].repeat(1, 2)
    on_edges = graph.on_edges(values)
    assert torch.equal(graph.on_weights(on_edges), values)
    loops = graph.edge_type == EDGE_TYPES["self"]
    assert int(loops.sum()) == graph.nodes
    assert bool((on_edges[loops][:, 0] == 2).all())
    position = graph.param_slices.get("position", slice(0, 0))  # a parameter of no layer: only its use tells its kind
    table = weight_table(net).weight_type
    table[position] = EDGE_TYPES["position"]
    assert torch.equal(graph.weight_type, table)


def test_a_kernel_lies_on_one_edge():
    graph = neural_graph(small_conv((2, 4, 4), 3, (5,)))
    assert graph.features == 9
    convolution = graph.edge_weights[graph.edge_type == EDGE_TYPES["convolution"]]
    assert convolution.shape == (10, 9)
    # Entry (out 3, in 1) of the kernel's (5, 2, 3, 3).
    where = (edges(graph, "convolution") == torch.tensor([[1], [2 + 3]])).all(0)
    assert convolution[where].flatten().tolist() == list(range((3 * 2 + 1) * 9, (3 * 2 + 2) * 9))
    # Each channel of 2x2 places drives the readout by four parallel edges.
    assert edges(graph, "linear").shape[1] == 5 * 4 * 3
    assert edges(graph, "norm").shape[1] == 5


def test_large_kernels_lie_on_parallel_edges():
    graph = neural_graph(nn.Conv2d(1, 2, 5, bias=False), features=9)
    convolution = graph.edge_weights[graph.edge_type == EDGE_TYPES["convolution"]]
    assert convolution.shape == (2 * 3, 9)
    assert int((convolution >= 0).sum()) == 50


def test_grouped_convolutions_stay_within_their_group():
    graph = neural_graph(nn.Conv2d(4, 6, 1, groups=2, bias=False))
    source, target = edges(graph, "convolution")
    assert torch.equal(source // 2, (target - 4) // 3)


def test_a_residual_joins_the_channels_one_to_one():
    graph = neural_graph(case("residual")[0])
    source, target = edges(graph, "residual")
    assert len(source) == 2 * 8
    assert len(set(source.tolist())) == len(set(target.tolist())) == 16


def test_queries_and_keys_meet_within_a_head_only():
    graph = neural_graph(nn.TransformerEncoderLayer(8, 2, 16).self_attn)
    source, target = edges(graph, "head")
    heads = torch.nonzero(graph.node_kind == NODE_KINDS["head"])[:, 0].tolist()
    assert len(heads) == 2
    groups = [set(source[target == head].tolist()) for head in heads]
    assert [len(group) for group in groups] == [4, 4]
    assert not groups[0] & groups[1]
    assert set(edges(graph, "query")[1].tolist()) == groups[0] | groups[1]
    assert set(edges(graph, "key")[0].tolist()) == groups[0] | groups[1]


def test_queries_and_keys_of_separate_layers_meet():
    graph = neural_graph(case("projected transformer")[0])
    places = graph.param_slices
    ends = {}
    for name in ("query", "key", "value"):
        span = places[f"blocks.0.attention.{name}.weight"]
        inside = (graph.edge_weights[:, 0] >= span.start) & (graph.edge_weights[:, 0] < span.stop)
        ends[name] = set(graph.edge_index[1, inside].tolist())
    joined = {(source, target) for source, target in edges(graph, "residual").T.tolist()}
    assert {source for source, target in joined if target in ends["key"]} == ends["query"]
    assert {source for source, target in joined if target in ends["value"]} == ends["key"]


def test_tied_embeddings_appear_once_and_join_their_ends():
    free, tied = (neural_graph(case(name)[0]) for name in ("transformer", "tied transformer"))
    assert free.weights - tied.weights == 11 * 8
    assert edges(tied, "residual").shape[1] > edges(free, "residual").shape[1]
    assert tied.node_word.max() == 11


def test_what_it_does_not_know_it_names():
    with pytest.raises(TypeError, match="'1' \\(LSTM\\)"):
        neural_graph(nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 3)))

    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(TypeError, match="cannot trace Dynamic"):
        neural_graph(Dynamic())

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(TypeError, match=r"'spare\.weight'"):
        neural_graph(Unused())
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        neural_graph(nn.ReLU())
    with pytest.raises(ValueError, match="features"):
        neural_graph(mlp(2, 2), features=0)


@pytest.mark.parametrize("nodes", [12, 700])
def test_positions_are_eigenvectors_of_the_laplacian(nodes):
    ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    found = laplacian_positions(ring, nodes, 2).double().numpy()
    adjacency = np.zeros((nodes, nodes))
    adjacency[ring[0], ring[1]] = adjacency[ring[1], ring[0]] = 0.5
    value = 1 - np.cos(2 * np.pi / nodes)  # of a ring, in closed form
    np.testing.assert_allclose((np.eye(nodes) - adjacency) @ found, value * found, atol=1e-6)
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-5)


def test_positions_of_few_or_lonely_nodes_are_zero_where_there_are_none():
    assert laplacian_positions(torch.zeros(2, 0, dtype=torch.int64), 1, 3).tolist() == [[0, 0, 0]]
    assert laplacian_positions(torch.tensor([[0], [1]]), 2, 3)[:, 1:].abs().sum() == 0


def test_flipping_changes_signs_only(generator):
    graph = neural_graph(mlp(3, 4, 2))
    flips = [graph.flipped(generator).node_pos for _ in range(4)]
    assert all(torch.equal(flip.abs(), graph.node_pos.abs()) for flip in flips)
    assert any(not torch.equal(flip, graph.node_pos) for flip in flips)


class Words(nn.Module):
    """Words and positions, attention called by keywords, a head tied to an embedding as wide as it is long."""

    def __init__(self, names: bool):
        super().__init__()
        self.names = names
        self.word, self.place = nn.Embedding(6, 6), nn.Embedding(4, 6)
        self.attention, self.other = nn.MultiheadAttention(6, 2), nn.Linear(6, 6)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.word.weight

    def forward(self, x):
        h = self.word(x) + self.place(torch.arange(x.shape[1]))
        memory = self.other(h)
        if self.names:
            attended = self.attention(key=memory, value=memory, query=h)[0]
        else:
            attended = self.attention(h, memory, memory)[0]
        return self.head(attended)


def test_attention_by_keywords_is_that_by_position():
    by_name, by_place = (neural_graph(Words(names)) for names in (True, False))
    assert torch.equal(by_name.edge_index, by_place.edge_index)
    assert torch.equal(by_name.edge_weights, by_place.edge_weights)


def test_a_square_tied_embedding_ends_at_its_words_and_positions_are_no_words():
    graph = neural_graph(Words(False))
    outputs = graph.node_kind == NODE_KINDS["output"]
    assert not outputs.any()  # the words are inputs already
    word, place = edges(graph, "word"), edges(graph, "position")
    assert word.shape[1] == 36
    assert place.shape[1] == 24
    assert set(graph.node_word[word[0]].tolist()) == {1, 2, 3, 4, 5, 6}
    assert set(graph.node_word[place[0]].tolist()) == {0}
    # what attention says meets the channels of the embedding, through which it reaches the words
    joined = edges(graph, "residual")
    assert set(word[1].tolist()) <= set(joined.flatten().tolist())


def test_nets_of_several_inputs_are_traced():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x, y):
            return self.first(x) + self.second(y)

    graph = neural_graph(Two())
    assert int((graph.node_kind == NODE_KINDS["input"]).sum()) == 5


def test_functions_of_parameters_alone_are_refused_by_name():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x + (self.a + self.b)

    with pytest.raises(TypeError, match="does not know the function 'add' of parameters alone"):
        neural_graph(Sum())
