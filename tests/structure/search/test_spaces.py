"""Spaces: codes, edits, canonical forms against independent counts, encodings."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.structure.search.cell_spaces import CellSpace, GraphSpace, nasbench101_space, nasbench201_space
from neuropil.structure.search.cells import Cell, Zero
from neuropil.structure.search.digits_cells import digits_space
from neuropil.structure.search.spaces import Product, Space, chain_space

SPACES = {
    "choices": Space({"width": (8, 16, 32), "norm": (True, False)}),
    "valid": Space({"a": range(4), "b": range(4)}, valid=lambda code: code[0] <= code[1]),
    "chain": chain_space((1, 2, 3), {"width": (8, 16), "kernel": (1, 3, 5)}),
    "cell": digits_space(),
    "graph": nasbench101_space(5),
    "product": Product({"chain": chain_space((0, 1), {"width": (8, 16)}), "cell": digits_space()}),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@every_space
def test_samples_and_edits_are_valid_codes_that_differ_in_one_decision(space, generator):
    for _ in range(30):
        code = space.check(space.sample(generator))
        mutated = space.check(space.mutate(code, generator))
        assert sum(a != b for a, b in zip(code, mutated, strict=True)) == 1
        neighbours = space.neighbours(code)
        assert mutated in neighbours
        assert len(set(neighbours)) == len(neighbours)
        assert all(space.valid(neighbour) for neighbour in neighbours)


@every_space
def test_a_canonical_form_is_valid_and_its_own(space, generator):
    for _ in range(50):
        canonical = space.canonical(space.sample(generator))
        assert space.valid(canonical)
        assert space.canonical(canonical) == canonical


@every_space
def test_code_is_the_inverse_of_describe(space, generator):
    code = space.sample(generator)
    assert space.code(space.describe(code)) == code


@every_space
def test_encodings_are_equal_for_codes_of_the_same_network(space, generator):
    for _ in range(20):
        code = space.sample(generator)
        assert torch.equal(space.encode(code), space.encode(space.canonical(code)))
        assert space.encode(code).sum() == len(space.names)


def test_samples_are_uniform_over_the_valid_codes(generator):
    space = SPACES["valid"]
    drawn = [space.sample(generator) for _ in range(5000)]
    counts = [drawn.count(code) for code in itertools.product(range(4), repeat=2) if code[0] <= code[1]]
    assert sum(counts) == 5000
    # 10 valid codes, 500 each; five standard deviations of the binomial are 106.
    assert max(abs(count - 500) for count in counts) < 106


def test_mutation_draws_the_other_options_uniformly(generator):
    space = Space({"only": range(4)})
    drawn = [space.mutate((2,), generator)[0] for _ in range(3000)]
    assert 2 not in drawn
    assert max(abs(drawn.count(other) - 1000) for other in (0, 1, 3)) < 130


def test_a_chain_forgets_the_choices_of_absent_layers():
    space = SPACES["chain"]
    # One layer of 6 kinds, two of 36, three of 216.
    assert len(list(space.all())) == 6 + 36 + 216
    assert space.size == 3 * 6**3
    assert space.canonical((0, 1, 2, 1, 1, 1, 1)) == (0, 1, 2, 0, 0, 0, 0)


def test_the_graphs_are_those_of_the_benchmark():
    # NAS-Bench-101 has 1, 6, 84 and 2,441 networks of 2, 3, 4 and 5 nodes (of 423,624 up to 7).
    for nodes, unique in ((2, 1), (3, 1 + 6), (4, 1 + 6 + 84)):
        assert len(list(nasbench101_space(nodes).all())) == unique
    assert nasbench101_space().size == 2**21 * 3**5


def test_renaming_inner_nodes_changes_no_canonical_form(generator):
    space = GraphSpace(6, ("a", "b", "c"))
    found = 0
    for _ in range(200):
        code = space.sample(generator)
        described = space.describe(code)
        # Neighbouring inner nodes without an edge between them may change places.
        for k in (1, 2, 3):
            if described[f"{k}->{k + 1}"]:
                continue
            place = {k: k + 1, k + 1: k}
            swapped = {}
            for i, j in space.pairs:
                a, b = sorted((place.get(i, i), place.get(j, j)))
                swapped[f"{a}->{b}"] = described[f"{i}->{j}"]
            for node in range(1, 5):
                swapped[f"node {place.get(node, node)}"] = described[f"node {node}"]
            assert space.canonical(space.code(swapped)) == space.canonical(code)
            found += 1
    assert found > 100


def random_cell(space, code):
    """A cell with a map of its own on every edge: equal outputs are equal functions."""
    generator = torch.Generator().manual_seed(0)
    maps = {edge: torch.randn(3, 3, generator=generator, dtype=torch.float64) for edge in space.operations(code)}

    class Map(torch.nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.matrix = matrix

        def forward(self, x):
            return torch.tanh(x @ self.matrix) + self.matrix[0]  # moves even where it gets zeros

    return Cell(
        space, code, lambda edge, name: {"zero": Zero(), "skip": torch.nn.Identity(), "map": Map(maps[edge])}[name]
    )


def test_cells_have_one_canonical_form_exactly_if_they_are_one_function():
    space = CellSpace(((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)), ("zero", "skip", "map"))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs: dict[tuple, torch.Tensor] = {}
    for code in itertools.product(range(3), repeat=5):
        output = random_cell(space, code)(x)
        canonical = space.canonical(code)
        assert torch.allclose(output, outputs.setdefault(canonical, output), atol=1e-12)
    # The converse where there is one skip at most: two can make the same sum in two ways.
    skips = [c for c in outputs if c.count(1) <= 1]
    values = torch.stack([outputs[c] for c in skips]).flatten(1)
    apart = torch.cdist(values, values) + torch.eye(len(values))
    assert apart.min() > 1e-6


def test_path_encoding_of_edge_cells():
    space = nasbench201_space()
    # Paths of one, two and three edges with four operations that move: 4 + 16 + 64 sequences.
    only = space.code(
        {"0->1": "nor_conv_3x3", "1->3": "skip_connect"} | dict.fromkeys(("0->2", "1->2", "0->3", "2->3"), "none")
    )
    assert space.encode(only, "path").shape == (84,)
    assert space.encode(only, "path").sum() == 1
    everything = space.code(dict.fromkeys(space.names, "skip_connect"))
    assert space.encode(everything, "path").sum() == 3  # skip; skip skip, twice; skip skip skip
    assert space.encode(space.code(dict.fromkeys(space.names, "none")), "path").sum() == 0


def test_path_encoding_of_node_cells():
    space = GraphSpace(4, ("a", "b", "c"))
    chosen = {f"{i}->{j}": 0 for i, j in space.pairs} | {"node 1": "b", "node 2": "c"}
    chain = space.code(chosen | {"0->1": 1, "1->2": 1, "2->3": 1})
    assert space.encode(chain, "path").shape == (1 + 3 + 9,)
    assert space.encode(chain, "path").nonzero().flatten().tolist() == [1 + 3 + 1 + 3 * 2]
    both = space.code(chosen | {"0->1": 1, "1->3": 1, "0->2": 1, "2->3": 1, "0->3": 1})
    assert space.encode(both, "path").nonzero().flatten().tolist() == [0, 2, 3]


def test_known_sizes():
    assert nasbench201_space().size == 15_625
    assert digits_space().size == 625
    assert len(list(digits_space().all())) == 480


@given(st.integers(0, 624))
def test_digits_cells_with_a_cut_last_edge_depend_on_the_first_alone(number):
    space = digits_space()
    code = tuple((number // 5**at) % 5 for at in range(4))
    assert space.canonical((code[0], code[1], code[2], 0)) == (code[0], 0, 0, 0)


def test_the_same_seed_draws_the_same(generator):
    space = nasbench101_space()
    draws = [[space.sample(torch.Generator().manual_seed(seed)) for _ in range(3)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space({}), "no decisions"),
        (lambda: Space({"a": ()}), "no options for"),
        (lambda: chain_space((), {"a": (1,)}), "depths"),
        (lambda: chain_space((1, -1), {"a": (1,)}), "at least 0"),
        (lambda: Product({}), "no decisions"),
        (lambda: CellSpace((), ("zero",)), "edges must be"),
        (lambda: CellSpace(((1, 0),), ("zero",)), r"\(1, 0\)"),
        (lambda: CellSpace(((0, 1), (0, 1)), ("zero",)), "different pairs"),
        (lambda: CellSpace(((0, 1),), ("conv",)), "zero must be one of"),
        (lambda: CellSpace(((1, 2),), ("zero",)), "Nothing leads"),
        (lambda: GraphSpace(1, ("a",)), "nodes >= 2"),
        (lambda: digits_space().check((0, 0, 0)), "4 decisions"),
        (lambda: digits_space().check((0, 0, 0, 5)), "options 0 to 4, got 5"),
        (lambda: SPACES["valid"].check((3, 0)), "no valid network"),
        (lambda: digits_space().code({"0->1": "zero"}), "Decisions"),
        (lambda: digits_space().code(dict.fromkeys(digits_space().names, "conv")), "'conv'"),
        (lambda: SPACES["choices"].encode((0, 0), "path"), '"onehot"'),
        (lambda: digits_space().encode((0, 0, 0, 0), "learned"), "learned"),
        (lambda: nasbench101_space(3).encode((1, 1, 1, 0), "learned"), "learned"),
        (lambda: Space({"a": (1,)}).mutate((0,), torch.Generator()), "nothing to mutate"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_space_without_valid_codes_says_so(monkeypatch, generator):
    monkeypatch.setattr("neuropil.structure.search.spaces.TRIES", 20)
    with pytest.raises(ValueError, match="No valid architecture"):
        Space({"a": (0, 1)}, valid=lambda code: False).sample(generator)
    with pytest.raises(ValueError, match="No valid neighbour"):
        Space({"a": (0, 1)}, valid=lambda code: code == (0,)).mutate((0,), generator)
