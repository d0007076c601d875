import pytest
import torch

from neuropil.learning.assemblies import (
    Brain,
    associate,
    merge,
    overlap,
    project,
    recall,
    reciprocal_project,
    simulate,
)
from neuropil.learning.assemblies.trace import trace_of
from neuropil.learning.plasticity import HebbMultiplicative


def brain(*areas, beta=0.05, stimuli=("x", "y"), n=500, k=25, seed=0):
    made = Brain(0.1, torch.Generator().manual_seed(seed))
    for name in stimuli:
        made.add_stimulus(name, k)
    for name in areas:
        made.add_area(name, n, k, HebbMultiplicative(beta))
    return made


def sets(*rows):
    return [torch.tensor(row) for row in rows]


def test_a_trace_counts_what_fired_since_it_began():
    trace = trace_of(sets([0, 1], [1, 2], [1, 2], [0, 3]), torch.tensor([1, 9]))
    assert trace.new_winners.tolist() == [2, 1, 0, 1]
    assert trace.support.tolist() == [2, 3, 3, 4]
    assert trace.overlap.tolist() == [0.5, 0.5, 1.0, 0.0]
    assert trace_of(sets([0]), None).overlap.isnan().all()


def test_convergence_is_the_first_step_before_five_quiet_ones():
    def steps(new, **options):
        trace = trace_of(sets([0]), None)._replace(new_winners=torch.tensor(new))
        return trace.steps_to_convergence(**options), trace.converged(**options)

    assert steps([5, 3, 1, 0, 0, 0, 0, 0]) == (3, True)
    assert steps([5, 3, 0, 0, 0, 0, 1, 0]) == (8, False)
    assert steps([5, 0, 0, 1, 0, 0], quiet=2) == (1, True)
    assert steps([5, 0, 1, 0, 1, 0, 1]) == (7, False)
    with pytest.raises(ValueError, match="quiet"):
        steps([1], quiet=0)


def test_plasticity_makes_an_assembly_that_completes_itself():
    for beta in (0.0, 0.1):
        ours = brain("A", beta=beta)
        trace = project(ours, "x", "A", 25)
        full = trace.winners[-1]
        recalled = overlap(recall(ours, "A", full[::2], 3)[-1], full)
        assert trace.converged() == (beta > 0)
        assert recalled > 0.9 if beta else recalled < 0.5


def test_the_same_stimulus_finds_its_assembly_again_and_another_does_not():
    ours = brain("A", beta=0.05, n=2000)
    first, other = (project(ours, name, "A", 25).winners[-1] for name in ("x", "y"))
    again = project(ours, "x", "A", 5, plastic=False).winners[-1]
    assert overlap(first, again) > 0.9
    assert overlap(first, other) < 0.3


def test_what_is_only_looked_at_does_not_change():
    ours = brain("A")
    full = project(ours, "x", "A", 10).winners[-1]
    weights, steps = ours.weights("A", "A"), ours.area("A").steps
    recall(ours, "A", full[:9], 4)
    project(ours, "x", "A", 4, plastic=False)
    assert torch.equal(ours.weights("A", "A"), weights)
    assert ours.area("A").steps == steps
    recall(ours, "A", full[:9], 4, plastic=True)
    assert not torch.equal(ours.weights("A", "A"), weights)


def test_association_draws_assemblies_together():
    plastic, fixed = (associate(brain("C", beta=beta), "x", "y", "C", 20, alone=20) for beta in (0.05, 0.0))
    assert plastic.after - plastic.before > 0.2
    assert abs(fixed.after - fixed.before) < 0.1
    assert plastic.trace.winners.shape == (20, 25)


def test_association_works_from_areas_too():
    ours = brain("A", "B", "C")
    project(ours, "x", "A", 20)
    project(ours, "y", "B", 20)
    rise = associate(ours, "A", "B", "C", 20, alone=20)
    assert rise.after - rise.before > 0.2


def test_merging_ties_one_assembly_to_both_parents():
    ours = brain("A", "B", "C", beta=0.1)
    parents = {area: project(ours, src, area, 20).winners[-1] for src, area in (("x", "A"), ("y", "B"))}
    traces = merge(ours, "A", "B", "C", 25, stimuli={"A": ["x"], "B": ["y"]})
    assert set(traces) == {"A", "B", "C"}
    assert traces["C"].converged()
    merged = traces["C"].winners[-1]
    # One parent alone calls the merged assembly, and the merged assembly alone calls each parent.
    assert overlap(simulate(ours, {"C": ["A"]}, 1, plastic=False)["C"].winners[-1], merged) > 0.6
    for area in parents:
        fired = traces[area].winners[-1]
        ours.activate("C", merged)
        assert overlap(simulate(ours, {area: ["C"]}, 1, plastic=False)[area].winners[-1], fired) > 0.6


def test_a_reciprocal_projection_answers_both_ways():
    ours = brain("A", "B", beta=0.1)
    project(ours, "x", "A", 20)
    traces = reciprocal_project(ours, "A", "B", 25, stimuli={"A": ["x"]})
    assert traces["B"].converged()
    fired = {area: traces[area].winners[-1] for area in "AB"}
    back = simulate(ours, {"A": ["B"]}, 1, plastic=False)["A"].winners[-1]
    assert overlap(back, fired["A"]) > 0.8


def test_an_area_waits_until_its_source_fires():
    ours = brain("A", "B")
    traces = simulate(ours, {"A": ["x"], "B": ["A"]}, 3)
    assert len(traces["A"].winners) == 3
    assert len(traces["B"].winners) == 2


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda b: project(b, "B", "A", 3), "'B' is silent"),
        (lambda b: project(b, "A", "A", 3), "in any case"),
        (lambda b: project(b, "x", "A", 0), "steps"),
        (lambda b: project(b, "x", "y", 3), "receives nothing"),
        (lambda b: simulate(b, {"A": ["B"], "B": ["A"]}, 3), "A, B are silent"),
        (lambda b: merge(b, "A", "B", "C", 3), "'A' is silent"),
        (lambda b: merge(b, "A", "B", "A", 3), "three areas"),
        (lambda b: reciprocal_project(b, "A", "B", 3), "'A' is silent"),
        (lambda b: associate(b, "A", "y", "C", 3), "silent"),
    ],
)
def test_what_cannot_be_done_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act(brain("A", "B", "C", n=50, k=5))
