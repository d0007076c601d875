import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.learning.plasticity import BCM, STDP, Hebb, HebbMultiplicative, Oja

RULES = [
    HebbMultiplicative(0.1),
    Hebb(0.2),
    Oja(0.3),
    BCM(0.1, tau=4.0),
    STDP(0.3, 0.2, 2.0, 1.5, w_max=1.2),
    STDP(0.3, 0.2, 2.0, 1.5, w_max=1.2, pairing="all"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def spikes(generator, *shape, probability=0.4):
    return (torch.rand(*shape, generator=generator) < probability).double()


def run(rule, w, pre, post, **options):
    """The weights after a series of calls; pre is (steps, ..., pre), post (steps, ..., post)."""
    traces = None
    for x, y in zip(pre, post, strict=True):
        w, traces = rule(w, x, y, traces, **options)
    return w


def one(value):
    return torch.full((1, 1), value, dtype=torch.float64)


def test_multiplicative_growth_compounds():
    ones = torch.ones(500, 1, dtype=torch.float64)
    assert_close(run(HebbMultiplicative(0.1), one(2.0), ones, ones), one(2.0 * 1.1**500))


def test_hebb_adds_the_outer_product(generator):
    w, pre, post = (torch.randn(*shape, generator=generator) for shape in ((3, 4), (3,), (4,)))
    changed, _ = Hebb(0.5)(w, pre, post)
    assert_close(changed, w + 0.5 * torch.outer(pre, post))


def test_oja_is_the_fading_average_of_the_input_when_the_neuron_fires(generator):
    pre, post = spikes(generator, 200, 5), spikes(generator, 200, 1)
    fired = pre[post[:, 0] > 0]
    fading = 0.1 * 0.9 ** torch.arange(len(fired) - 1, -1, -1, dtype=torch.float64)
    wanted = 0.9 ** len(fired) * 0.7 + fading @ fired
    assert_close(run(Oja(0.1), torch.full((5, 1), 0.7, dtype=torch.float64), pre, post)[:, 0], wanted)


def test_oja_finds_the_probability_that_i_fires_given_that_j_does(generator):
    chances = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    post = spikes(generator, 6_000, 1)
    # Where j is silent, i fires with the complementary probability: the joint or marginal rate would be another number.
    given_j = torch.where(post > 0, chances, 1 - chances)
    pre = (torch.rand(6_000, 3, generator=generator) < given_j).double()
    w = run(Oja(0.004), torch.full((3, 1), 0.3, dtype=torch.float64), pre, post)
    assert_close(w[:, 0], chances, atol=0.07, rtol=0)


def test_oja_at_equilibrium_does_not_move_on_average():
    w = torch.tensor([[0.25]], dtype=torch.float64)
    on, off, post = one(1.0)[0], one(0.0)[0], one(1.0)[0]
    changes = [Oja(0.05)(w, x, post)[0] - w for x in (on, off, off, off)]
    assert_close(sum(changes), torch.zeros_like(w))


def test_oja_of_a_linear_neuron_is_the_first_principal_component(generator):
    axis = torch.tensor([0.8, 0.6], dtype=torch.float64)
    x = torch.randn(4000, 2, generator=generator, dtype=torch.float64) * 0.3
    x += 2 * torch.randn(4000, 1, generator=generator, dtype=torch.float64) * axis
    w = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    for sample in x:
        w, _ = Oja(0.005)(w, sample, sample @ w)
    assert_close(w.norm(), torch.tensor(1.0, dtype=torch.float64), atol=0.03, rtol=0)
    assert float((w[:, 0] @ axis).abs() / w.norm()) > 0.998


@given(seed=st.integers(0, 1000), first=st.floats(0, 3), eta=st.floats(0, 1))
def test_oja_stays_within_its_bound(seed, first, eta):
    generator = torch.Generator().manual_seed(seed)
    w = torch.full((4, 3), first, dtype=torch.float64)
    w = run(Oja(eta), w, spikes(generator, 30, 4), spikes(generator, 30, 3))
    assert float(w.min()) >= -1e-12
    assert float(w.max()) <= max(1.0, first) + 1e-12


def stdp_change(rule, pre_at, post_at, steps=16):
    """Weight change of one synapse by spikes emitted at given times; calls join x(t) and y(t+1)."""
    x, y = torch.zeros(steps, 1, dtype=torch.float64), torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[pre_at] = 1
    y[post_at] = 1
    return float(run(rule, one(5.0), x, y[1:])) - 5.0


@pytest.mark.parametrize("pairing", ["nearest", "all"])
@pytest.mark.parametrize("distance", range(-6, 7))
def test_a_single_pair_gives_the_window(pairing, distance):
    rule = STDP(0.3, 0.2, 2.0, 3.0, pairing=pairing)
    wanted = 0.0
    if distance:
        amplitude, tau = (0.3, 2.0) if distance > 0 else (-0.2, 3.0)
        wanted = amplitude * math.exp(-abs(distance) / tau)
    assert stdp_change(rule, [7], [7 + distance]) == pytest.approx(wanted, abs=1e-12)


def test_pairings_differ_in_which_spikes_they_join():
    one_two = STDP(0.3, 0.2, 2.0, 3.0), STDP(0.3, 0.2, 2.0, 3.0, pairing="all")
    before, after = [3, 5], [4, 7]
    near, far = (math.exp(-distance / 2.0) for distance in (2, 4))
    causal = [stdp_change(rule, before, [7]) for rule in one_two]
    assert causal == pytest.approx([0.3 * near, 0.3 * (near + far)])
    near, far = (math.exp(-distance / 3.0) for distance in (2, 5))
    acausal = [stdp_change(rule, [9], after) for rule in one_two]
    assert acausal == pytest.approx([-0.2 * near, -0.2 * (near + far)])


def test_neurons_that_fire_at_every_step_gain_the_difference():
    ones = torch.ones(50, 1, dtype=torch.float64)
    even = run(STDP(0.1, 0.1), one(1.0), ones, ones)
    # Only the two first posts have no spike before them that the synapse could lose by.
    assert_close(even, one(1.0 + 2 * 0.1 * math.exp(-1)))
    tilted = run(STDP(0.1, 0.04), one(1.0), ones, ones)
    assert_close(tilted, one(1.0 + (50 * 0.1 - 48 * 0.04) * math.exp(-1)))


def test_stdp_is_clipped_where_it_changes_and_nowhere_else():
    ones, w = torch.ones(100, 2, dtype=torch.float64), torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    post = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(100, 2)
    up = run(STDP(0.5, 0.0, w_max=2.0), w, ones[:, :1], post)
    assert_close(up, torch.tensor([[2.0, 9.0]], dtype=torch.float64))
    down = run(STDP(0.0, 0.5, w_max=2.0), w, ones[:, :1], post)
    assert_close(down, torch.tensor([[0.0, 9.0]], dtype=torch.float64))


def test_after_a_rest_spikes_make_no_pairs():
    rule, zero, spike = STDP(0.5, 0.5, 5.0, 5.0), one(0.0)[0], one(1.0)[0]
    w, traces = rule(one(1.0), spike, zero)
    assert float(rule(w, zero, spike, traces)[0]) > 1.2
    assert float(rule(w, zero, spike, rule.rest(traces))[0]) == 1.0


def test_the_threshold_of_bcm_slides_to_the_squared_activity():
    rule, y, traces = BCM(0.0, tau=5.0), torch.tensor([3.0, 0.5], dtype=torch.float64), None
    for step in range(1, 40):
        _, traces = rule(torch.ones(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64), y, traces)
        assert_close(traces.post, y**2 * (1 - 0.8**step))


def test_bcm_depresses_below_the_threshold_and_potentiates_above():
    rule, x = BCM(0.1), torch.ones(1, dtype=torch.float64)
    traces = rule.start(x, x)._replace(post=torch.ones(1, dtype=torch.float64))
    changes = [float(rule(one(1.0), x, torch.full_like(x, y), traces)[0]) - 1 for y in (0.0, 0.5, 1.0, 1.5)]
    assert changes == pytest.approx([0.0, 0.1 * 0.5 * -0.5, 0.0, 0.1 * 1.5 * 0.5])


def test_bcm_comes_to_answer_one_of_two_patterns_with_the_inverse_of_its_frequency():
    # At rest y (y - theta) = 0 for both patterns, with theta the mean of y^2: one answer is 0, the other 1 / 0.5 = 2.
    patterns, rule, traces = torch.eye(2, dtype=torch.float64), BCM(0.01, tau=40.0), None
    w = torch.tensor([[0.5], [0.6]], dtype=torch.float64)
    for step in range(6000):
        w, traces = rule(w, patterns[step % 2], patterns[step % 2] @ w, traces)
    assert_close(w[:, 0], torch.tensor([0.0, 2.0], dtype=torch.float64), atol=0.05, rtol=0)


@every_rule
def test_synapses_onto_a_neuron_that_never_fired_and_absent_ones_stay(rule, generator):
    w = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 3, generator=generator) < 0.5
    pre, post = spikes(generator, 20, 4), spikes(generator, 20, 3)
    post[:, 1] = 0
    changed = run(rule, w, pre, post, mask=mask)
    assert torch.equal(changed[:, 1], w[:, 1])
    assert torch.equal(changed[~mask], w[~mask])
    assert not torch.equal(changed[:, 0], w[:, 0])
    assert_close(torch.where(mask, run(rule, w, pre, post), w), changed)


@every_rule
def test_synapses_from_sources_that_never_fired_share_their_weight(rule, generator):
    w = torch.full((5, 3), 0.4, dtype=torch.float64)
    pre = spikes(generator, 20, 5)
    pre[:, 2:] = 0
    changed = run(rule, w, pre, spikes(generator, 20, 3))
    assert torch.equal(changed[2:], changed[2:3].expand(3, 3))


@every_rule
def test_a_batch_is_its_members(rule, generator):
    w = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    pre, post = spikes(generator, 12, 2, 3, 4), spikes(generator, 12, 2, 3, 5)
    together = run(rule, w, pre, post)
    for a in range(2):
        for b in range(3):
            assert_close(together[a, b], run(rule, w[a, b], pre[:, a, b], post[:, a, b]))


@every_rule
def test_a_list_of_synapses_is_a_batch_of_single_ones(rule, generator):
    w, pre, post = torch.rand(4, 3, generator=generator).double(), spikes(generator, 9, 4), spikes(generator, 9, 3)
    rows, columns = torch.tensor([0, 3, 3, 1]), torch.tensor([2, 0, 2, 2])
    listed = run(rule, w[rows, columns, None, None], pre[:, rows, None], post[:, columns, None])
    assert_close(listed[:, 0, 0], run(rule, w, pre, post)[rows, columns])


@every_rule
def test_weights_keep_their_type_and_arguments_are_left_alone(rule, generator):
    for dtype in (torch.float32, torch.float64):
        w = torch.rand(6, 4, generator=generator).to(dtype).T
        pre, post = spikes(generator, 4).to(dtype), torch.ones(6, dtype=dtype)
        before = w.clone()
        changed, traces = rule(w, pre, post)
        rule(changed, pre, post, traces)
        assert changed.dtype == traces.pre.dtype == dtype
        assert torch.equal(w, before)
        assert_close(changed, rule(w.contiguous(), pre, post)[0])


@every_rule
def test_nothing_happens_where_nothing_fires_and_huge_weights_stay_finite(rule):
    quiet, w = torch.zeros(3, 2, dtype=torch.float64), torch.full((2, 2), 1e300, dtype=torch.float64)
    assert torch.equal(run(rule, w, quiet, quiet), w)
    assert torch.isfinite(run(rule, w, quiet + 1, quiet + 1)).all()
    assert run(rule, w[:0], quiet[:, :0], quiet).shape == (0, 2)


def test_shapes_and_words_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match="pre"):
        Hebb()(torch.ones(3, 2), torch.ones(4), torch.ones(2))
    with pytest.raises(Exception, match="pairing"):
        STDP(pairing="some")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HebbMultiplicative(-0.1), "beta"),
        (lambda: Hebb(math.nan), "eta"),
        (lambda: Oja(-1.0), "eta"),
        (lambda: Oja(1.1), "at most 1"),
        (lambda: BCM(-0.1), "eta"),
        (lambda: BCM(0.1, tau=0.5), "tau"),
        (lambda: STDP(a_plus=-1.0), "a_plus"),
        (lambda: STDP(a_minus=math.inf), "a_minus"),
        (lambda: STDP(tau_plus=0.0), "tau_plus"),
        (lambda: STDP(tau_minus=-1.0), "tau_minus"),
        (lambda: STDP(w_max=0.0), "w_max"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
