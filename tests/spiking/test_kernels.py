"""The fused kernels give the reference's bits and gradients."""

import itertools

import pytest
import torch

from neuropil.spiking.kernels.dispatch import run
from neuropil.spiking.neurons import ALIFNeuron, CubaLIFNeuron, LIFNeuron
from neuropil.spiking.surrogate import SURROGATES

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
