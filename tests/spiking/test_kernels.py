"""The fused kernels give the reference's bits and gradients."""

import itertools
import math
import multiprocessing
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.spiking.kernels.dispatch import run, run_leaky
from neuropil.spiking.neurons import ALIFNeuron, CubaLIFNeuron, IFNeuron, LIFNeuron
from neuropil.spiking.surrogate import SURROGATES, Atan, Smooth, Surrogate

MODELS = {
    "lif": (LIFNeuron, {"tau": 3.0, "v_rest": 0.1, "v_reset": -0.2}),
    "per neuron": (LIFNeuron, {"tau": torch.linspace(1.5, 9, 7), "v_threshold": torch.linspace(0.6, 1.2, 7)}),
    "cuba": (CubaLIFNeuron, {"tau": 3.0, "tau_synapse": 2.0, "gain": 0.7}),
    "alif": (ALIFNeuron, {"tau": 3.0, "tau_adaptation": 8.0, "strength": 0.9}),
}


def gradients(neuron, backend, dtype, checkpoint=False):
    """Outputs of a sequence and the gradients to current and initial state, for random gradients of all outputs."""
    generator = torch.Generator().manual_seed(4)
    current = (2.0 * torch.randn(13, 3, 7, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    rest = neuron.init_state((3, 7), current)
    v = (0.4 * torch.randn(3, 7, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    spikes, state, potential = run(
        neuron, current, rest._replace(v=v), backend=backend, return_potential=True, checkpoint=checkpoint
    )
    outputs = [spikes, potential, *(x for x in state if x is not None)]
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)).sum() for x in outputs)
    return outputs, torch.autograd.grad(loss, [current, v])


@pytest.mark.parametrize(
    ("name", "reset", "detach"), list(itertools.product(MODELS, ("hard", "soft", "none"), (True, False)))
)
def test_kernels_equal_the_reference(name, reset, detach):
    kind, options = MODELS[name]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        cast = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        neuron = kind(**cast, reset=reset, detach_reset=detach)
        ours, expected = gradients(neuron, "numba", dtype), gradients(neuron, "torch", dtype)
        assert 0 < expected[0][0].sum() < expected[0][0].numel()
        for one, other in zip(ours[0], expected[0], strict=True):
            assert torch.equal(one, other)
        for one, other in zip(ours[1], expected[1], strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_has_its_derivative_in_the_kernel(surrogate):
    neuron = LIFNeuron(tau=3.0, surrogate=surrogate)
    ours, expected = gradients(neuron, "numba", torch.float64), gradients(neuron, "torch", torch.float64)
    for one, other in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_potentials_change_no_bit(name):
    kind, options = MODELS[name]
    cast = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    kept = gradients(kind(**cast), "numba", torch.float64)
    again = gradients(kind(**cast), "numba", torch.float64, checkpoint=True)
    assert all(
        torch.equal(one, other) for one, other in zip(kept[0] + list(kept[1]), again[0] + list(again[1]), strict=True)
    )


def test_parameters_have_gradients():
    results = []
    for backend in ("numba", "torch"):
        decay = torch.full((7,), 0.6, dtype=torch.float64, requires_grad=True)
        threshold = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        neuron = LIFNeuron(decay=decay, v_threshold=threshold, reset="soft")
        current = torch.randn(20, 2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        spikes, _, _ = run(neuron, current, None, backend=backend)
        results.append(torch.autograd.grad((spikes * current).sum(), [decay, threshold]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_sequences_of_no_step_one_step_and_odd_layout(backend):
    neuron = LIFNeuron(tau=2.0)
    for steps in (0, 1):
        spikes, state, _ = run(neuron, torch.ones(steps, 2, 3), None, backend=backend)
        assert spikes.shape == (steps, 2, 3)
        assert state.v.shape == (2, 3)
    current = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    one, _, _ = run(neuron, current, None, backend=backend)
    other, _, _ = run(neuron, current.contiguous(), None, backend="torch")
    assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_currents_that_are_not_finite_are_refused(backend):
    current = torch.ones(4, 2, 3)
    current[2, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(LIFNeuron(tau=2.0), current, None, backend=backend)


def test_a_second_derivative_is_refused_in_words():
    current = torch.ones(4, 2, 3, requires_grad=True)
    spikes, _, _ = run(LIFNeuron(tau=2.0), current, None, backend="numba")
    (gradient,) = torch.autograd.grad(spikes.sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="torch"):
        torch.autograd.grad(gradient.sum(), current)


@dataclass(frozen=True)
class Own(Surrogate):
    """A surrogate that no kernel knows, and that is not even."""

    def value(self, x):
        return x.atan() + 0.1 * x.sin()

    def derivative(self, x):
        return 1 / (1 + x * x) + 0.1 * x.cos()


@st.composite
def cases(draw):
    """A neuron of any kind, with parameters that are numbers or are trained, one for all or one each."""
    reset = draw(st.sampled_from(["hard", "soft", "amount", "none"]))
    options = {
        "reset": "soft" if reset == "amount" else reset,
        "reset_amount": 0.7 if reset == "amount" else None,
        "surrogate": draw(st.sampled_from([*SURROGATES, Own()])),
        "detach_reset": draw(st.booleans()),
        "v_rest": draw(st.sampled_from([0.0, 0.1])),
        "v_reset": draw(st.sampled_from([None, -0.2])),
    }
    return {
        "kind": draw(st.sampled_from([LIFNeuron, CubaLIFNeuron, ALIFNeuron])),
        "size": draw(st.sampled_from([None, (), (5,), (2, 1), (2, 5)])),
        "dtype": draw(st.sampled_from([torch.float64, torch.float32])),
        "steps": draw(st.integers(1, 11)),
        "checkpoint": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "polarity": draw(st.booleans()),
        "options": options,
    }


def everything(case, backend):
    """All outputs of a case, and the gradients of all that has one, for random gradients of all outputs."""
    generator = torch.Generator().manual_seed(case["seed"])
    x = (2 * torch.randn(case["steps"], 2, 5, generator=generator)).to(case["dtype"]).requires_grad_()

    def leaf(value):
        size = case["size"]
        return value if size is None else torch.full(size, value, dtype=x.dtype, requires_grad=True)

    parameters = {"tau": leaf(3.0), "v_threshold": leaf(0.8)}
    if case["kind"] is CubaLIFNeuron:
        parameters["tau_synapse"] = leaf(2.0)
    if case["kind"] is ALIFNeuron:
        parameters |= {"decay_adaptation": leaf(0.6), "strength": leaf(0.4)}
    polarity = torch.tensor([1, -1, 1, -1, 1]).to(x) if case["polarity"] else None
    neuron = case["kind"](**parameters, polarity=polarity, **case["options"])
    rest = neuron.init_state((2, 5), x)
    start = [None if part is None else torch.randn(2, 5, generator=generator).to(x).requires_grad_() for part in rest]
    spikes, after, h = run(
        neuron,
        x,
        type(rest)(*start),
        backend=backend,
        checkpoint=case["checkpoint"] and backend == "numba",
        return_potential=True,
    )
    outputs = [spikes, h, *(part for part in after if part is not None)]
    loss = sum((output * torch.randn(output.shape, generator=generator).to(x)).sum() for output in outputs)
    roots = [x, *start, *(value for value in parameters.values())]
    return outputs, torch.autograd.grad(loss, [root for root in roots if isinstance(root, torch.Tensor)])


@given(cases())
def test_any_neuron_has_the_bits_and_gradients_of_the_reference(case):
    (ours, our_gradients), (theirs, their_gradients) = everything(case, "numba"), everything(case, "torch")
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    tolerance = 1e-12 if case["dtype"] is torch.float64 else 1e-5
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert_close(one, other, rtol=tolerance, atol=tolerance * max(1.0, other.abs().max().item()))


def test_the_gradient_of_two_steps_is_the_closed_form():
    x, slope = torch.tensor([1.2, 0.3], dtype=torch.float64), Atan().derivative
    current = x[:, None].clone().requires_grad_()
    spikes, _, _ = run(LIFNeuron(decay=0.5), current, None, backend="numba")
    spikes[1].sum().backward()
    # The first step fires, so its potential goes on only by the slope of the reset: dv/dh = 1 - s - h s'.
    last = slope(x[1] - 1)
    assert spikes.flatten().tolist() == [1.0, 0.0]
    assert_close(current.grad, torch.stack((last * 0.5 * -1.2 * slope(x[0] - 1), last))[:, None])


@pytest.mark.parametrize(
    ("model", "extra"),
    [(LIFNeuron, {}), (CubaLIFNeuron, {"decay_synapse": 0.4}), (ALIFNeuron, {"decay_adaptation": 0.7})],
)
def test_the_smooth_reference_passes_a_check_by_finite_differences(model, extra):
    current = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    decay = torch.tensor([0.6, 0.8], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def outputs(current, decay, threshold):
        neuron = model(decay=decay, v_threshold=threshold, surrogate=Smooth(Atan()), **extra)
        spikes, state, potential = run(neuron, current, None, return_potential=True)
        return spikes, potential, state.v

    assert torch.autograd.gradcheck(outputs, (current, decay, threshold))
    assert torch.autograd.gradgradcheck(lambda x: outputs(x, decay, threshold)[2], current)


@pytest.mark.parametrize("cut", [1, 6, 12])
def test_chunks_that_hand_on_their_state_have_the_gradients_of_the_whole(cut):
    neuron = ALIFNeuron(tau=4.0, tau_adaptation=6.0, reset="soft")
    x = torch.randn(13, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs() * 3
    whole, parts = x.clone().requires_grad_(), x.clone().requires_grad_()
    (run(neuron, whole, None, backend="numba")[0] * x).sum().backward()
    first, state, _ = run(neuron, parts[:cut], None, backend="numba")
    second, _, _ = run(neuron, parts[cut:], state, backend="numba")
    (torch.cat((first, second)) * x).sum().backward()
    assert torch.equal(whole.grad, parts.grad)


def kept_bytes(*, checkpoint, steps):
    """Bytes that a pass keeps for its gradient, other than the current itself, and the gradient."""
    current, seen = torch.ones(steps, 4, 32, requires_grad=True), {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikes, _, _ = run(LIFNeuron(tau=3.0), current, None, backend="numba", checkpoint=checkpoint)
    seen.pop(current.untyped_storage().data_ptr(), None)
    spikes.sum().backward()
    return sum(seen.values()), current.grad


def test_checkpoints_keep_the_root_of_the_steps():
    row = 4 * 32 * 4
    for steps in (100, 400):
        (plain, gradient), (few, same) = (kept_bytes(checkpoint=c, steps=steps) for c in (False, True))
        assert plain >= steps * row
        assert few <= (math.isqrt(steps) + 2) * row
        assert torch.equal(gradient, same)


def test_a_rectifier_has_its_slope_in_the_kernel():
    def rectifier(h):
        return 0.5 * (1 + torch.tanh(3 * (h - 0.5)) / math.tanh(1.5))

    found = []
    for backend in ("numba", "torch"):
        current = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
        spikes, _, _ = run(LIFNeuron(tau=2.0, rectifier=rectifier, gain=1.0), current, None, backend=backend)
        found.append((spikes, *torch.autograd.grad(spikes[3:].sum(), current)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].sum() > 0
    assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("neuron", "reason"),
    [
        (LIFNeuron(2.0, refractory=3.0), "refractory"),
        (LIFNeuron(2.0, normalizer=torch.tanh), "normalizer"),
        (LIFNeuron(2.0, surrogate=Smooth(Atan())), "Smooth replaces the step"),
        (LIFNeuron(2.0, rectifier=lambda h: h + 0.1), "moves potentials across the threshold"),
        (LIFNeuron(2.0, rectifier=lambda h: h, v_threshold=torch.ones(3, requires_grad=True)), "a rectifier together"),
        (LIFNeuron(torch.full((3,), 2.0, dtype=torch.float64)), "a parameter is torch.float64"),
        (ALIFNeuron(2.0, tau_adaptation=2.0, rectifier=lambda h: h), "not one that adapts"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_by_name_and_done_by_the_loop(neuron, reason):
    current = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match=reason):
        run(neuron, current, None, backend="numba")
    assert torch.equal(run(neuron, current, None)[0], run(neuron, current, None, backend="torch")[0])


def test_half_types_go_to_the_loop():
    current = torch.ones(4, 2, 3, dtype=torch.bfloat16)
    assert run(LIFNeuron(2.0, gain=1.0), current, None)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"current is torch\.bfloat16"):
        run(LIFNeuron(2.0), current, None, backend="numba")


def test_wrong_arguments_are_named():
    current = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match=r"tau of shape \(4,\) does not broadcast to neurons of shape \(2, 3\)"):
        run(LIFNeuron(torch.full((4,), 2.0)), current, None)
    with pytest.raises(ValueError, match=r"v_threshold of shape \(1, 2, 3\) does not broadcast"):
        run(LIFNeuron(2.0, v_threshold=torch.ones(1, 2, 3)), current, None)
    with pytest.raises(ValueError, match=r"state.v must be of shape \(2, 3\) like the neurons, got \(3,\)"):
        run(LIFNeuron(2.0), current, LIFNeuron(2.0).init_state((3,), current))
    with pytest.raises(TypeError, match="current must be floating"):
        run(LIFNeuron(2.0), torch.ones(4, 2, 3, dtype=torch.long), None)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_overflow_is_told_from_bad_input_with_its_step(backend):
    current = torch.full((6, 2, 3), 2e38)
    with pytest.raises(FloatingPointError, match="overflowed at step 1"):
        run(IFNeuron(v_threshold=math.inf), current, None, backend=backend)
    adapted = ALIFNeuron(2.0, tau_adaptation=2.0)
    state = adapted.init_state((2, 3), current)
    for name in ("v", "adaptation"):
        with pytest.raises(ValueError, match=rf"state\.{name} holds NaN"):
            run(adapted, current / 1e38, state._replace(**{name: state.v / 0}), backend=backend)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0), (1, 1, 1), (3, 2), (3, 2, 2, 2)])
def test_shapes_down_to_nothing(backend, shape):
    current = torch.ones(shape, requires_grad=True)
    spikes, state, h = run(LIFNeuron(2.0), current, None, backend=backend, return_potential=True)
    assert spikes.shape == h.shape == shape
    assert state.v.shape == shape[1:]
    (spikes.sum() + h.sum()).backward()
    assert current.grad.shape == shape


def wide(threads):
    """Spikes, potentials and gradients of a layer wide enough for two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        current = (3 * torch.rand(20, 3, 4001, generator=torch.Generator().manual_seed(0))).requires_grad_()
        threshold = torch.ones(4001, requires_grad=True)
        neuron = ALIFNeuron(3.0, v_threshold=threshold, tau_adaptation=5.0)
        spikes, state, _ = run(neuron, current, None, backend="numba")
        return [spikes, state.v, *torch.autograd.grad((spikes * current.detach()).sum(), [current, threshold])]
    finally:
        torch.set_num_threads(before)


def fork_sum():
    """Spikes of a layer on two threads of the kernels; torch's own threads, which no fork survives, stay out of it."""
    current = 3 * torch.rand(20, 3, 4001, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    spikes, _, _ = run(LIFNeuron(3.0), current, None, backend="numba")
    torch.set_num_threads(1)
    return spikes.sum().item()


def _in_a_child(results):
    results.put(fork_sum())


def test_threads_change_no_bit():
    for one, other in zip(wide(1), wide(2), strict=True):
        assert torch.equal(one, other)


def test_threads_survive_a_fork():
    wanted = fork_sum()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_in_a_child, args=(results,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert results.get() == wanted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [None, (), (3,), (2, 3)])
def test_leaky_sums_are_the_loop_s(dtype, size):
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(9, 2, 3, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    start = torch.randn(2, 3, generator=generator, dtype=dtype).requires_grad_()
    a, k = (v if size is None else torch.full(size, v, dtype=dtype, requires_grad=True) for v in (0.8, 0.3))
    ours, last = run_leaky(x, start, a, k)
    y, sums = start, []
    for current in x:
        y = a * y + k * current
        sums.append(y)
    theirs = torch.stack(sums)
    assert torch.equal(ours, theirs)
    assert torch.equal(last, ours[-1])
    roots = [x, start, *(value for value in (a, k) if isinstance(value, torch.Tensor))]
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    gradients = (torch.autograd.grad((sums * weights).sum(), roots) for sums in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_leaky_sums_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match="current holds NaN"):
        run_leaky(torch.full((2, 3), math.nan), torch.zeros(3), 0.5, 1.0)
    with pytest.raises(FloatingPointError, match="overflowed"):
        run_leaky(torch.full((9, 3), 2e38), torch.zeros(3), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"decay of shape \(4,\) does not broadcast"):
        run_leaky(torch.ones(2, 3), torch.zeros(3), torch.full((4,), 0.5), 1.0)
