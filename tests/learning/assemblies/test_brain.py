import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.assemblies import Brain, project, recall, simulate
from neuropil.learning.plasticity import BCM, STDP, Hebb, HebbMultiplicative, Oja
from tests.learning.assemblies import reference


def brain(rule=None, *, storage="sparse", seed=0, n=60, k=6, p=0.3, stimulus=6, dtype=torch.float64, **options):
    made = Brain(p, torch.Generator().manual_seed(seed), storage=storage, dtype=dtype)
    made.add_stimulus("x", stimulus)
    made.add_area("A", n, k, rule, **options)
    return made


@pytest.mark.parametrize("storage", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("rule", "change", "initial_weight"),
    [
        (HebbMultiplicative(0.1), reference.hebb, 1.0),
        (Oja(0.2), reference.oja, 0.3),
        (Oja(0.2), reference.oja, 1.0),
        (STDP(0.2, 0.08), reference.stdp, 1.0),
    ],
)
def test_projection_is_the_one_written_out_neuron_by_neuron(storage, rule, change, initial_weight):
    if isinstance(rule, STDP):
        # The reference knows pairs at a distance of one step only: so does a trace that fades at once.
        rule = STDP(0.2 * 2.718281828459045**39, 0.08 * 2.718281828459045**39, 1 / 40, 1 / 40)
    for seed in range(3):
        ours = brain(rule, storage=storage, seed=seed, initial_weight=initial_weight)
        graphs = [(ours.weights(src, "A") > 0).tolist() for src in ("x", "A")]
        wanted, weights = reference.project(*graphs, 6, 12, change, initial_weight)
        assert project(ours, "x", "A", 12).winners.tolist() == wanted
        for src, matrix in zip(("x", "A"), weights, strict=True):
            wanted_weights = torch.tensor([[w or 0.0 for w in row] for row in matrix], dtype=torch.float64)
            assert_close(ours.weights(src, "A"), wanted_weights)


RULES = [
    (HebbMultiplicative(0.05), 1.0),
    (Hebb(0.1), 1.0),
    (Oja(0.1), 0.3),
    (Oja(0.1), 1.0),
    (BCM(0.1), 1.0),
    (STDP(0.2, 0.05, 2.0, 3.0, w_max=4.0), 1.0),
    (STDP(0.2, 0.1, pairing="all"), 0.7),
]


@pytest.mark.parametrize(("rule", "initial_weight"), RULES, ids=str)
@pytest.mark.parametrize("normalise_every", [None, 3])
def test_sparse_and_dense_storage_give_the_same_numbers(rule, initial_weight, normalise_every):
    brains = [
        brain(
            rule, storage=storage, n=200, k=15, p=0.15, initial_weight=initial_weight, normalise_every=normalise_every
        )
        for storage in ("sparse", "dense")
    ]
    winners = []
    for each in brains:
        each.add_stimulus("y", 20)
        each.add_area("B", 80, 8, rule, initial_weight=initial_weight)
        parts = [project(each, "x", "A", 8).winners, project(each, "A", "B", 5).winners]
        parts += [simulate(each, {"A": ["A", "B", "y"], "B": ["A"]}, 6)[dst].winners for dst in ("A", "B")]
        parts.append(recall(each, "A", parts[0][-1][:5], 3))
        parts.append(project(each, "y", "A", 6).winners)
        winners.append(parts)
    for first, second in zip(*winners, strict=True):
        assert torch.equal(first, second)
    for pair in (("x", "A"), ("A", "A"), ("y", "A"), ("A", "B"), ("B", "A"), ("B", "B")):
        assert_close(brains[0].weights(*pair), brains[1].weights(*pair), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_absent_synapses_stay_absent_and_the_cap_is_k(storage):
    ours = brain(Hebb(1.0), storage=storage, n=100, k=10, stimulus=10)
    graph = ours.weights("A", "A") > 0
    trace = project(ours, "x", "A", 15)
    assert trace.winners.shape == (15, 10)
    assert all(len(set(fired)) == 10 for fired in trace.winners.tolist())
    assert torch.equal(ours.weights("A", "A") > 0, graph)
    assert float(ours.weights("A", "A").max()) > 2


def test_rules_meet_the_same_graph():
    graphs = [brain(rule).weights("A", "A") for rule in (HebbMultiplicative(0.0), Oja(0.5), STDP())]
    assert torch.equal(graphs[0], graphs[1])
    assert torch.equal(graphs[0], graphs[2])
    assert not torch.equal(graphs[0], brain(seed=1).weights("A", "A"))
    late = brain()
    late.weights("A", "A")  # asked for in another order
    assert torch.equal(late.weights("x", "A"), brain().weights("x", "A"))
    assert not torch.equal(late.weights("x", "A"), late.weights("A", "A")[:6])


def test_areas_of_a_step_see_the_activity_before_it():
    ours = brain(HebbMultiplicative(0.0), n=60, k=6)
    ours.add_area("B", 50, 5, HebbMultiplicative(0.0))
    project(ours, "x", "A", 1)
    old = ours.area("A").winners
    fired = ours.step({"A": ["A"], "B": ["A"]})
    wanted = ours.weights("A", "B")[old].sum(0)
    assert set(fired["B"].tolist()) == set(wanted.sort(descending=True, stable=True).indices[:5].tolist())
    assert not torch.equal(fired["A"], old)


def test_closed_synapses_do_not_change_and_held_areas_keep_firing():
    ours = brain(Oja(0.5), n=60, k=6)
    ours.add_area("B", 50, 5)
    project(ours, "x", "A", 4)
    before, held = ours.weights("A", "A"), ours.area("A").winners
    simulate(ours, {"A": ["x"]}, 3)
    assert torch.equal(ours.weights("A", "A"), before)
    held = ours.area("A").winners
    project(ours, "A", "B", 3)
    assert ours.area("A").winners is held
    assert torch.equal(ours.weights("A", "A"), before)


def test_normalising_restores_the_sum_of_the_incoming_weights():
    for storage in ("sparse", "dense"):
        ours = brain(HebbMultiplicative(0.2), storage=storage, normalise_every=1, initial_weight=0.5)
        sums = [ours.weights(src, "A").sum(0) for src in ("x", "A")]
        project(ours, "x", "A", 7)
        after = [ours.weights(src, "A").sum(0) for src in ("x", "A")]
        assert_close(after[0] + after[1], sums[0] + sums[1])
        assert not torch.allclose(after[0], sums[0])


def test_reset_forgets_activity_and_spikes_but_no_weights():
    ours = brain(STDP(0.5, 0.5, 5.0, 5.0))
    project(ours, "x", "A", 4)
    before = ours.weights("A", "A")
    assert float(ours.connect("A", "A").traces.post.max()) > 0
    ours.reset()
    assert ours.area("A").winners is None
    assert float(ours.connect("A", "A").traces.post.max()) == 0
    assert torch.equal(ours.weights("A", "A"), before)


def test_connections_can_have_a_probability_of_their_own():
    ours = brain(p=0.1, n=300, k=10, stimulus=200)
    ours.connect("x", "A", p=0.5)
    assert float((ours.weights("x", "A") > 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((ours.weights("A", "A") > 0).double().mean()) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match=r"connected to 'A' already, at p = 0\.5"):
        ours.connect("x", "A", p=0.2)
    assert ours.connect("x", "A", p=0.5) is ours.connect("x", "A")


def test_single_precision_serves_as_well():
    trace = project(brain(dtype=torch.float32), "x", "A", 8)
    assert torch.equal(trace.winners, project(brain(), "x", "A", 8).winners)


@pytest.mark.parametrize(("n", "k", "p"), [(1, 1, 1.0), (6, 6, 1.0), (40, 1, 0.2), (30, 30, 0.1)])
def test_the_smallest_and_the_fullest_areas(n, k, p):
    for storage in ("sparse", "dense"):
        trace = project(brain(n=n, k=k, p=p, stimulus=1, storage=storage), "x", "A", 7)
        assert trace.winners.shape == (7, k)


def test_weights_that_outgrow_their_type_are_reported():
    ours = brain(HebbMultiplicative(1e200))
    with pytest.raises(FloatingPointError, match="'A' are not finite after 2 steps"):
        project(ours, "x", "A", 5)


def test_memory_is_that_of_the_neurons_that_fired():
    small, large = (brain(n=n, k=20, p=0.1, stimulus=20) for n in (2_000, 20_000))
    for each in (small, large):
        project(each, "x", "A", 10)
    assert large.dense_bytes == (20 + 20_000) * 20_000 * 8
    # Nine more vectors and counters of n numbers at most, and not n^2.
    assert large.stored_bytes - small.stored_bytes < 18_000 * 8 * 16


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda b: b.add_area("C", 5, 6), "k 6 and n 5"),
        (lambda b: b.add_area("A", 5, 2), "'A' already"),
        (lambda b: b.add_stimulus("A", 5), "'A' already"),
        (lambda b: b.add_stimulus("z", 0), "size 0"),
        (lambda b: b.add_area("C", 5, 2, initial_weight=0.0), "initial_weight"),
        (lambda b: b.add_area("C", 5, 2, STDP(w_max=0.5)), "w_max"),
        (lambda b: b.add_area("C", 5, 2, normalise_every=0), "normalise_every"),
        (lambda b: b.connect("x", "A", p=1.5), r"\(0, 1\]"),
        (lambda b: b.connect("x", "C"), "named 'C'"),
        (lambda b: b.connect("A", "x"), "receives nothing"),
        (lambda b: b.step({"A": ["A"]}), "silent"),
        (lambda b: b.step({}), "at least one source"),
        (lambda b: b.step({"A": []}), "at least one source"),
        (lambda b: b.activate("A", torch.tensor([0, 60])), "60 neurons"),
        (lambda b: b.activate("A", torch.tensor([1, 1])), "none twice"),
        (lambda b: b.activate("A", torch.empty(0, dtype=torch.int64)), "got 0"),
        (lambda b: b.reset("B"), "named 'B'"),
        (lambda b: Brain(0.0, torch.Generator()), r"\(0, 1\], got 0"),
    ],
)
def test_what_cannot_be_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act(brain())


def test_a_storage_that_there_is_not_is_named():
    with pytest.raises(Exception, match="storage"):
        Brain(0.1, torch.Generator(), storage="disk")


def test_a_dense_matrix_beyond_memory_is_refused():
    ours = brain(storage="dense", n=100_000, k=300)
    with pytest.raises(ValueError, match=r'90\.0 GB: use storage="sparse"'):
        ours.connect("A", "A")
