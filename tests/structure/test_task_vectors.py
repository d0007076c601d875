"""Task vectors: the algebra of weights, exact; then ties, buffers, files, and the rules that choose a factor."""

import math
from copy import deepcopy

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.testing import assert_close

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.weightspace.scale import KeepControl, MaxMean, choose_scale
from neuropil.structure.weightspace.vectors import TaskVector, analogy, sum_of


def net_of(seed, *sizes):
    return mlp(*(sizes or (4, 5, 3)), generator=torch.Generator().manual_seed(seed))


def vector_of(seed, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,)}
    return TaskVector({k: scale * torch.randn(*s, generator=generator, dtype=dtype) for k, s in shapes.items()})


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other):
    for name in one:
        assert_close(one[name], other[name])


def test_a_net_plus_its_vector_is_the_tuned_net():
    pre, tuned = net_of(0).double(), net_of(1).double()
    vector = TaskVector.between(pre, tuned)
    close(vector.apply_to(pre).state_dict(), tuned.state_dict())
    close((-vector).apply_to(tuned).state_dict(), pre.state_dict())
    assert same(vector.apply_to(pre, 0.0).state_dict(), pre.state_dict())


def test_edits_are_made_on_a_copy_that_keeps_modes_and_drops_gradients():
    pre, tuned = net_of(0), net_of(1)
    pre[0].eval()
    pre[0].weight.grad = torch.ones_like(pre[0].weight)
    before = deepcopy(pre.state_dict())
    edited = TaskVector.between(pre, tuned).apply_to(pre)
    assert same(pre.state_dict(), before)
    assert [module.training for module in edited.modules()] == [module.training for module in pre.modules()]
    assert edited[0].weight.grad is None
    assert edited[0].weight.requires_grad


@given(st.integers(0, 50), st.floats(-3, 3), st.floats(-3, 3))
def test_vectors_are_a_vector_space(seed, x, y):
    u, v = vector_of(seed), vector_of(seed + 1000)
    close(u + v, v + u)
    close((u + v) * x, u * x + v * x)
    close(u * (x + y), u * x + y * u)
    close(u - v, -(v - u))
    close((u * 2.0) / 2.0, u)
    assert (u * x).norm() == pytest.approx(abs(x) * u.norm())
    assert abs(u.dot(v)) <= u.norm() * v.norm()


def test_in_a_linear_model_edits_add_in_the_outputs():
    """For f(x) = W x + b, f at theta + s u + t v is f + s f_u + t f_v: the exact case of what tuned nets do roughly."""
    pre, first, second = (net_of(seed, 6, 3).double() for seed in range(3))
    u, v = TaskVector.between(pre, first), TaskVector.between(pre, second)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = sum_of([u, v]).apply_to(pre, 0.3)
    assert_close(both(x), pre(x) + 0.3 * (first(x) - pre(x)) + 0.3 * (second(x) - pre(x)))


def test_an_analogy_completes_the_parallelogram():
    a, b, c = (vector_of(seed) for seed in range(3))
    close(analogy(a, b, c), c + b - a)
    close(analogy(a, a, c), c)
    close(analogy(a, b, a), b)


def test_cosines_of_the_same_opposite_and_orthogonal():
    u = vector_of(0)
    assert u.cosine(u * 3.0) == pytest.approx(1.0)
    assert u.cosine(u * -0.1) == pytest.approx(-1.0)
    e1, e2 = TaskVector({"w": torch.tensor([1.0, 0.0])}), TaskVector({"w": torch.tensor([0.0, 1.0])})
    assert e1.cosine(e2) == 0.0
    tiny, huge = u * 1e-150, u * 1e100
    assert tiny.cosine(tiny) == pytest.approx(1.0)
    assert huge.cosine(huge) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no direction"):
        u.cosine(u * 0.0)


def test_norms_are_summed_in_float64():
    # 1 + 2^25 ones of float32: the sum of squares would stand still at 2^24 if it were summed one by one.
    vector = TaskVector({"w": torch.full((3,), 1e25)})  # its square overflows float32
    assert vector.norm() == pytest.approx(math.sqrt(3) * 1e25)


def test_halves_are_subtracted_in_float32():
    pre = {"w": torch.tensor([1.0, 3.0], dtype=torch.float16)}
    tuned = {"w": torch.tensor([1.0009765625, 3.001953125], dtype=torch.float16)}
    vector = TaskVector.between(pre, tuned)
    assert vector["w"].dtype == torch.float32
    assert vector["w"].tolist() == [0.0009765625, 0.001953125]
    edited = vector.apply_to(pre)
    assert edited["w"].dtype == torch.float16
    assert torch.equal(edited["w"], tuned["w"])


def test_running_statistics_count_unless_buffers_are_left_out_and_counts_of_batches_never():
    pre, tuned = (small_conv((1, 4, 4), 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    tuned[1].running_mean += 1.0
    tuned[1].num_batches_tracked += 5
    whole, weights = TaskVector.between(pre, tuned), TaskVector.between(pre, tuned, buffers=False)
    assert set(whole) - set(weights) == {f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}
    assert whole.apply_to(pre)[1].running_mean.tolist() == [1.0] * 8
    assert weights.apply_to(pre)[1].running_mean.tolist() == [0.0] * 8
    assert int(whole.apply_to(pre)[1].num_batches_tracked) == 0
    with pytest.raises(TypeError, match="buffers=False needs two modules"):
        TaskVector.between(pre.state_dict(), tuned.state_dict(), buffers=False)


def test_heads_of_other_sizes_stay_out_by_include():
    pre, tuned = net_of(0, 4, 5, 3), net_of(1, 4, 5, 7)
    with pytest.raises(ValueError, match=r"2\.weight \(3, 5\) and \(7, 5\)"):
        TaskVector.between(pre, tuned)
    by_name = TaskVector.between(pre, tuned, ["0.weight", "0.bias"])
    by_rule = TaskVector.between(pre, tuned, lambda name: name.startswith("0."))
    assert same(by_name, by_rule)
    edited = by_name.apply_to(pre)
    assert_close(edited[0].weight.data, tuned[0].weight.data)
    assert torch.equal(edited[2].weight, pre[2].weight)
    with pytest.raises(ValueError, match="include has names that neither"):
        TaskVector.between(pre, tuned, ["body"])
    with pytest.raises(ValueError, match="at least one tensor"):
        TaskVector.between(pre, tuned, [])


def tied(seed):
    net = net_of(seed, 4, 4, 4)
    net[2].weight = net[0].weight
    return net


def test_tied_weights_are_one_coordinate_and_edited_once():
    pre, tuned = tied(0), tied(1)
    vector = TaskVector.between(pre, tuned)
    assert list(vector) == ["0.weight", "0.bias", "2.bias"]
    edited = vector.apply_to(pre)
    assert edited[0].weight is edited[2].weight
    assert_close(edited[0].weight.data, tuned[0].weight.data)
    state = vector.apply_to(pre.state_dict())
    assert_close(state["2.weight"], tuned[0].weight.data)
    assert torch.equal(state["0.weight"], state["2.weight"])


def test_names_that_are_tied_in_the_target_must_agree():
    whole = TaskVector.between(net_of(0, 4, 4, 4), net_of(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"2\.weight and 0\.weight are one tensor"):
        whole.apply_to(tied(0))
    agreeing = TaskVector({"0.weight": torch.ones(4, 4), "2.weight": torch.ones(4, 4)})
    pre = tied(0)
    assert_close(agreeing.apply_to(pre)[0].weight.data, pre[0].weight.data + 1)  # not + 2


def test_equal_views_are_not_taken_for_one_tensor():
    base = torch.arange(4.0)
    pre, tuned = {"u": base[:2], "v": base[2:]}, {"u": base[:2] + 1, "v": base[2:] + 2}
    assert list(TaskVector.between(pre, tuned)) == ["u", "v"]


def test_non_contiguous_weights_make_a_vector_that_can_be_kept(tmp_path):
    pre, tuned = {"w": torch.zeros(3, 4).T}, {"w": torch.arange(12.0).view(3, 4).T}
    vector = TaskVector.between(pre, tuned)
    vector.save(tmp_path / "v.safetensors")
    assert same(TaskVector.load(tmp_path / "v.safetensors"), vector)


def test_a_random_vector_has_the_same_length_tensor_by_tensor(generator):
    vector = TaskVector({**vector_of(5), "zero": torch.zeros(4)})
    random = vector.random_like(generator)
    for name in vector:
        assert_close(random[name].norm(), vector[name].norm())
    assert abs(random.cosine(vector)) < 0.9  # drawn anew, not a copy
    again = vector.random_like(torch.Generator().manual_seed(0))
    assert same(again, random)


def test_files_hold_the_vector_to_the_bit_and_nothing_else_is_taken_for_one(tmp_path):
    vector = vector_of(0)
    file = tmp_path / "task.safetensors"
    vector.save(file)
    (vector * 2.0).save(file)  # replaces it
    assert same(TaskVector.load(file), vector * 2.0)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no task vector"):
        TaskVector.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("pre", "tuned", "message"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(2)}, "1 entries are in tuned only: v"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, 1)}, r"w \(2,\) and \(2, 1\)"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.nan])}, "tuned is not finite at 1 entries: w"),
        ({"n": torch.ones(2).long()}, {"n": torch.ones(2).long()}, "at least one tensor"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(pre, tuned, message):
    with pytest.raises(ValueError, match=message):
        TaskVector.between(pre, tuned)


def test_bad_operations_are_refused():
    u = vector_of(0)
    other = TaskVector({"a": torch.ones(3, 4)})
    with pytest.raises(ValueError, match="in The first vector only: b"):
        u + other
    with pytest.raises(ValueError, match="divided by 0"):
        u / 0.0
    with pytest.raises(ValueError, match="factor must be finite"):
        u * math.nan
    with pytest.raises(TypeError):
        u + 1.0
    with pytest.raises(ValueError, match="vectors is empty"):
        sum_of([])
    with pytest.raises(ValueError, match="lacks 2 entries of the vector: a, b"):
        u.apply_to(net_of(0))
    with pytest.raises(ValueError, match="only floating-point"):
        TaskVector({"n": torch.ones(2).long()})
    with pytest.raises(FloatingPointError, match="overflow"):
        TaskVector({"w": torch.full((1,), 1e6)}).apply_to({"w": torch.ones(1, dtype=torch.float16)})


def test_vectors_are_equal_by_identity_and_say_what_they_are():
    u, v = vector_of(0), vector_of(0)
    assert u == u  # noqa: PLR0124 - its own equality
    assert u != v
    assert len({u, v}) == 2
    assert repr(TaskVector({"w": torch.tensor([3.0, 4.0])})) == "TaskVector(1 tensors, 2 numbers, norm 5)"


# Choosing the factor.


PRE, STEP = {"w": torch.zeros(1, dtype=torch.float64)}, TaskVector({"w": torch.ones(1, dtype=torch.float64)})


def searched(curves, rule, grid=tuple(i / 10 for i in range(11))):
    def evaluate(state):
        return {task: curve(float(state["w"])) for task, curve in curves.items()}

    return choose_scale(PRE, STEP, evaluate, grid, rule)


def test_the_mean_of_normalised_accuracies_decides():
    curves = {"a": lambda s: 0.5 + 0.4 * s, "b": lambda s: 0.8 - 0.4 * s}
    found = searched(curves, MaxMean({"a": 0.9, "b": 0.5}))  # a weighs 1/0.9, b 1/0.5: b is worth more
    assert found.scale == 0.0
    assert searched(curves, MaxMean({"a": 0.5, "b": 0.9})).scale == 1.0
    assert found.chosen["score"] == pytest.approx((0.5 / 0.9 + 0.8 / 0.5) / 2)


def test_ties_go_to_the_shorter_edit():
    flat = {"a": lambda s: 0.5}
    assert searched(flat, MaxMean()).scale == 0.0
    assert searched(flat, MaxMean(), grid=(-1.0, 0.5, -0.5)).scale == 0.0
    plateau = {"a": lambda s: min(s, 0.4)}
    assert searched(plateau, None).scale == 0.4


def test_control_is_kept_where_targets_are_forgotten():
    curves = {"target": lambda s: 1 - s, "control": lambda s: 1 - 0.1 * s}
    found = searched(curves, KeepControl(0.95, ["control"]))
    assert found.scale == 0.5  # 1 - 0.05, at the threshold itself
    assert found.table["allowed"].tolist() == [True] * 6 + [False] * 5


def test_targets_that_are_not_monotone_are_searched_whole():
    curves = {"t": lambda s: {0.3: 0.1}.get(round(s, 1), 0.5), "c": lambda s: 0.0 if 0.1 < s < 0.25 else 1.0}
    found = searched(curves, KeepControl(0.95, ["c"]))
    assert found.scale == 0.3


def test_zero_always_qualifies_and_is_measured_even_if_the_grid_lacks_it():
    curves = {"target": lambda s: 1 - s, "control": lambda s: 1.0 if s == 0 else 0.0}
    found = searched(curves, KeepControl(), grid=(0.5, 1.0))
    assert found.scale == 0.0
    assert found.table["scale"].tolist() == [0.0, 0.5, 1.0]


def test_several_controls_count_by_their_mean():
    curves = {"t": lambda s: 1 - s, "c": lambda s: 1 - 0.2 * s, "d": lambda s: 1.0}
    assert searched(curves, KeepControl(0.95, ("c", "d"))).scale == 0.5


def test_a_net_is_evaluated_in_evaluation_mode_at_every_factor_and_left_alone():
    pre, tuned = net_of(0).train(), net_of(1)
    before = deepcopy(pre.state_dict())
    vector = TaskVector.between(pre, tuned)
    seen = []

    def evaluate(net):
        assert not net.training
        seen.append(net[0].weight.clone())
        return {"a": 0.5}

    choose_scale(pre, vector, evaluate, (0.0, 0.5, 1.0))
    assert same(pre.state_dict(), before)
    assert torch.equal(seen[0], pre[0].weight)
    assert_close(seen[1], (pre[0].weight + tuned[0].weight).data / 2)
    assert_close(seen[2], tuned[0].weight.data)


def test_bad_searches_are_named():
    with pytest.raises(ValueError, match="grid is empty"):
        searched({"a": float}, None, grid=())
    with pytest.raises(ValueError, match="grid must be finite"):
        searched({"a": float}, None, grid=(math.inf,))
    with pytest.raises(FloatingPointError, match=r"scale 0\.5"):
        searched({"a": lambda s: math.nan if s else 0.0}, None, grid=(0.5,))
    with pytest.raises(ValueError, match=r"references are of \['b'\], measured were \['a'\]"):
        searched({"a": float}, MaxMean({"b": 1.0}))
    with pytest.raises(ValueError, match="at least one target"):
        searched({"control": float}, KeepControl())
    with pytest.raises(ValueError, match="wanted the controls"):
        searched({"a": float}, KeepControl())
    with pytest.raises(ValueError, match="fraction must be"):
        KeepControl(0.0)
    with pytest.raises(ValueError, match="control must name"):
        KeepControl(0.9, ())
    with pytest.raises(ValueError, match="the reference of a"):
        MaxMean({"a": 0.0})


def test_a_rule_of_ones_own_may_choose():
    class Largest:
        def judge(self, table: pd.DataFrame):
            return table["scale"].to_numpy(), table["scale"].to_numpy() < 0.75

    assert searched({"a": lambda s: 0.5}, Largest()).scale == 0.7
