import threading
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.spiking.network.connectivity import (
    SparseConnectivity,
    edge_order,
    event_matvec,
    event_product,
    synapse_values,
)

BACKENDS: list[Any] = ["numba", "torch"]


def random_matrix(seed, n_pre=40, n_post=30, edges=400):
    """Edges in any order, some of them parallel."""
    rng = np.random.default_rng(seed)
    return SparseConnectivity.from_edges(
        rng.integers(n_pre, size=edges), rng.integers(n_post, size=edges), n_pre, n_post
    )


def random_weight(connectivity, seed, dtype=torch.float64):
    """Weights of many magnitudes, so that another order of a sum shows in its last bits."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randn(connectivity.nnz, dtype=dtype, generator=generator)
    return sign * torch.exp(4 * torch.randn(connectivity.nnz, dtype=dtype, generator=generator))


def looped(spikes, connectivity, weight):
    """The product as a loop of numpy scalars, sources ascending."""
    weight = np.broadcast_to(np.asarray(weight, spikes.numpy().dtype), connectivity.nnz)
    out = np.zeros(connectivity.n_post, weight.dtype)
    for i, s in enumerate(spikes.numpy()):
        for q in range(connectivity.indptr[i], connectivity.indptr[i + 1]):
            out[connectivity.indices[q]] += s * weight[q]
    return out


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.integers(0, 60))
def test_columns_are_the_same_synapses(seed, n_pre, n_post, edges):
    matrix = random_matrix(seed, n_pre, n_post, edges)
    weight, sources = np.arange(matrix.nnz), matrix.sources()
    by_columns = np.lexsort((weight, sources, matrix.indices))
    assert np.array_equal(matrix.perm_csc, by_columns)
    assert np.array_equal(matrix.csc_rows, sources[by_columns])
    assert np.array_equal(np.diff(matrix.csc_indptr), np.bincount(matrix.indices, minlength=n_post))
    assert (matrix.perm_csc.dtype, matrix.csc_rows.dtype, matrix.csc_indptr.dtype) == (np.int32, np.int32, np.int64)
    assert matrix.incoming is matrix.incoming  # found once


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 20), st.integers(1, 7))
def test_a_split_cuts_every_row_at_the_bounds(seed, n_pre, n_post, parts):
    matrix = random_matrix(seed, n_pre, n_post, 50 if n_pre and n_post else 0)
    offsets = matrix.split(np.arange(parts + 1) * matrix.n_post // parts)
    assert offsets.shape == (n_pre, parts + 1)
    for i in range(n_pre):
        row = matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]
        wanted = [matrix.indptr[i] + np.sum(row < r * n_post // parts) for r in range(parts + 1)]
        assert offsets[i].tolist() == wanted
    assert np.array_equal(offsets[:, 0], matrix.indptr[:-1])
    assert np.array_equal(offsets[:, -1], matrix.indptr[1:])


def test_edges_in_any_order_and_parallel_ones():
    pre, post = torch.tensor([2, 0, 2, 0, 2]), torch.tensor([1, 3, 0, 3, 1])
    matrix = SparseConnectivity.from_edges(pre, post, 3, 4)
    assert matrix.indptr.tolist() == [0, 2, 2, 5]
    assert matrix.indices.tolist() == [3, 3, 0, 1, 1]
    assert matrix.sources().tolist() == [0, 0, 2, 2, 2]
    assert matrix.nnz == 5
    assert matrix.density == 5 / 12
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[edge_order(pre, post)]
    assert matrix.to_dense(weight).tolist() == [[0, 0, 0, 10], [0, 0, 0, 0], [4, 17, 0, 0]]
    assert matrix.to_dense(0.5).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0.5, 1, 0, 0]]


def test_the_ways_in_and_out_agree():
    rng = np.random.default_rng(0)
    dense = torch.from_numpy(rng.standard_normal((7, 5)) * (rng.random((7, 5)) < 0.4))
    matrix = SparseConnectivity.from_dense(dense)
    weight = dense[dense != 0]
    assert_close(matrix.to_dense(weight), dense, rtol=0, atol=0)
    for form in ("csr", "csc", "coo", "lil"):
        sparse = scipy.sparse.csr_matrix(dense.numpy()).asformat(form)
        other = SparseConnectivity.from_scipy(sparse)
        assert np.array_equal(other.indptr, matrix.indptr)
        assert np.array_equal(other.indices, matrix.indices)
        assert np.array_equal(sparse.tocsr().sorted_indices().data, weight)
    masked = SparseConnectivity.from_dense(dense.numpy() != 0)
    assert np.array_equal(masked.indices, matrix.indices)
    spikes = torch.from_numpy(rng.standard_normal(7))
    assert_close(spikes @ matrix.to_torch_csr(weight), spikes @ dense)
    assert_close(matrix.to_torch_csr(weight, transposed=True) @ spikes, spikes @ dense)
    assert_close(matrix.to_torch_csr(2.0).to_dense(), 2.0 * (dense != 0))
    grad = torch.autograd.functional.jacobian(matrix.to_dense, weight)
    assert torch.equal(grad.sum((0, 1)), torch.ones(matrix.nnz, dtype=weight.dtype))


def test_tensors_share_memory_with_the_arrays():
    matrix = random_matrix(0)
    rows = matrix.to("cpu")
    assert rows.indptr.data_ptr() == matrix.indptr.ctypes.data
    assert rows.indices.data_ptr() == matrix.indices.ctypes.data
    assert matrix.to(torch.device("cpu")) is rows
    assert (rows.indptr.dtype, rows.indices.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("n_pre, n_post", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_matrices(n_pre, n_post):
    matrix = SparseConnectivity.from_edges(np.empty(0, int), np.empty(0, int), n_pre, n_post)
    assert (matrix.nnz, matrix.density) == (0, 0.0)
    assert matrix.to_dense(1.0).shape == (n_pre, n_post)
    assert matrix.csc_indptr.tolist() == [0] * (n_post + 1)
    for backend in BACKENDS:
        for fired in (torch.empty(0, dtype=torch.int64), torch.arange(n_pre)):
            assert event_matvec(fired, matrix, torch.empty(0), backend=backend).tolist() == [0] * n_post
        assert event_product(torch.ones(2, n_pre), matrix, 1.0, backend=backend).tolist() == [[0.0] * n_post] * 2
        assert event_product(torch.ones(0, n_pre), matrix, 1.0, backend=backend).shape == (0, n_post)


@pytest.mark.parametrize(
    "indptr, indices, words",
    [
        ([0, 2], [1, 0], "row 0 must ascend within 0 to 2"),
        ([0, 1], [3], "row 0 must ascend within 0 to 2"),
        ([0, 1], [-1], "row 0 must ascend"),
        ([0, 1], [2**32], "row 0 must ascend"),
        ([0, 2], [1], r"rise from 0 to the number of synapses, 1; it goes from 0 to 2"),
        ([1, 1], [1], "rise from 0"),
        ([0, 0, 1], [1], r"shape \(3,\); 1 sources need \(2,\)"),
    ],
)
def test_bad_matrices_are_refused(indptr, indices, words):
    with pytest.raises(ValueError, match=words):
        SparseConnectivity(1, 3, np.array(indptr), np.array(indices))


def test_other_refusals():
    with pytest.raises(ValueError, match="rise from 0"):
        SparseConnectivity(3, 3, np.array([0, 2, 1, 3]), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="n_post must be between 0 and"):
        SparseConnectivity(1, 2**31, np.zeros(2, int), np.empty(0, int))
    with pytest.raises(ValueError, match="cut it into several"):  # a view of one number: no memory
        SparseConnectivity(1, 1, np.array([0, 2**31]), np.broadcast_to(np.int32(0), 2**31))
    with pytest.raises(ValueError, match="pre must lie within 0 to 2, got 0 to 3"):
        SparseConnectivity.from_edges(np.array([0, 3]), np.array([0, 0]), 3, 3)
    with pytest.raises(ValueError, match="one length, got 2 and 1"):
        SparseConnectivity.from_edges(np.array([0, 1]), np.array([0]), 3, 3)
    with pytest.raises(ValueError, match="two dimensions"):
        SparseConnectivity.from_dense(torch.ones(3))
    with pytest.raises(TypeError, match="sparse matrix of scipy, got list"):
        SparseConnectivity.from_scipy([1])
    with pytest.raises(ValueError, match="bounds must ascend"):
        random_matrix(0).split(np.array([3, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_events_add_up_in_the_order_of_a_loop(dtype, one_for_all):
    for seed in range(5):
        matrix = random_matrix(seed, edges=2000)
        weight = 0.1 if one_for_all else random_weight(matrix, seed, dtype)
        spikes = torch.from_numpy(np.random.default_rng(seed).random(40) < 0.5).to(dtype)
        fired = spikes.nonzero().flatten()
        wanted = looped(spikes, matrix, weight)
        for backend in BACKENDS:
            events = event_matvec(fired, matrix, weight, dtype=dtype, backend=backend)
            assert events.dtype == dtype
            assert np.array_equal(events.numpy(), wanted)
            assert np.array_equal(event_product(spikes, matrix, weight, backend=backend).numpy(), wanted)
        reverse = torch.zeros(30, dtype=dtype)
        if isinstance(weight, torch.Tensor):  # the test would see another order
            kept = torch.from_numpy(np.isin(matrix.sources(), fired.numpy()))
            reverse.index_add_(0, torch.from_numpy(matrix.indices.copy())[kept].flip(0), weight[kept].flip(0))
            assert not np.array_equal(reverse.numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_index_add_is_sequential(dtype):
    # The order of torch's sum on the CPU, which the torch backend rests on, far beyond one vector or one chunk.
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200_000, dtype=dtype, generator=generator) * 10 ** torch.randn(200_000, generator=generator)
    index = torch.randint(3, (200_000,), dtype=torch.int32, generator=generator)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        summed = torch.zeros(3, dtype=dtype).index_add(0, index, values)
        for j in range(3):
            assert summed[j] == np.add.accumulate(values[index == j].numpy())[-1]
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_spikes_in_batches(dtype):
    matrix = random_matrix(3)
    weight = random_weight(matrix, 3, dtype)
    spikes = torch.randn(2, 3, 40, dtype=dtype, generator=torch.Generator().manual_seed(1))
    spikes = torch.where(spikes > 0, spikes, 0.0)
    for backend in BACKENDS:
        product = event_product(spikes, matrix, weight, backend=backend)
        for b in range(2):
            for c in range(3):
                assert np.array_equal(product[b, c].numpy(), looped(spikes[b, c], matrix, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_product(backend):
    matrix = random_matrix(1, 6, 5, 14)
    generator = torch.Generator().manual_seed(2)
    spikes = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(14, dtype=torch.float64, generator=generator)
    spikes[0, :3] = 0.0
    spikes, weight = spikes.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: event_product(s, matrix, w, backend=backend), (spikes, weight))
    assert torch.autograd.gradcheck(lambda s: event_product(s, matrix, 0.3, backend=backend), (spikes,))
    upstream = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    ours = torch.autograd.grad(event_product(spikes, matrix, weight, backend=backend), (spikes, weight), upstream)
    dense = torch.autograd.grad(spikes @ matrix.to_dense(weight), (spikes, weight), upstream)
    assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    # Expanded gradients, as those of a sum, and weights with strides are read as they are.
    torch.autograd.grad(event_product(spikes, matrix, weight[None, :].t()[:, 0], backend=backend).sum(), spikes)
    shared = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (one,) = torch.autograd.grad(event_product(spikes, matrix, shared.expand(14), backend=backend).sum(), shared)
    assert_close(one, event_product(spikes.detach(), matrix, 1.0, backend=backend).sum())


def test_gradients_of_events():
    matrix = random_matrix(1, 6, 5, 14)
    weight = torch.randn(14, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    fired = torch.tensor([1, 4])
    assert torch.autograd.gradcheck(lambda w: event_matvec(fired, matrix, w), (weight,))
    (gradient,) = torch.autograd.grad(event_matvec(fired, matrix, weight).sum(), weight)
    assert np.array_equal(gradient.numpy(), np.isin(matrix.sources(), [1, 4]))
    with pytest.raises(ValueError, match="event_product has them"):
        event_matvec(fired, matrix, weight, backend="numba")
    with torch.no_grad():
        event_matvec(fired, matrix, weight, backend="numba")


def test_products_that_do_not_fit_are_refused():
    matrix = random_matrix(0)
    for fired in ([3, 1], [2, 2], [-1], [40]):
        with pytest.raises(ValueError, match="spikers must ascend within 0 to 39"):
            event_matvec(torch.tensor(fired), matrix, 1.0)
    for product in (event_matvec, event_product):
        with pytest.raises(ValueError, match=r"weight must be a number or have shape \(400,\).*got \(3,\)"):
            product(torch.tensor([1]) if product is event_matvec else torch.ones(40), matrix, torch.ones(3))
    with pytest.raises(ValueError, match="expand"):
        event_product(torch.ones(40), matrix, torch.ones(1))
    with pytest.raises(ValueError, match="end in the 40 sources"):
        event_product(torch.ones(39), matrix, 1.0)
    with pytest.raises(TypeError, match=r"torch.float32 and torch.float64"):
        event_product(torch.ones(40), matrix, torch.ones(400, dtype=torch.float64))
    half = event_product(torch.ones(40, dtype=torch.float16), matrix, 1.0)  # torch, which has the type
    assert half.tolist() == np.bincount(matrix.indices, minlength=30).tolist()
    with pytest.raises(ValueError, match=r"float32 and float64 on the CPU, got torch\.float16 on cpu"):
        event_product(torch.ones(40, dtype=torch.float16), matrix, 1.0, backend="numba")
    with pytest.raises(ValueError, match=r"got torch\.float32 on meta"):
        event_product(torch.ones(40, device="meta"), matrix, 1.0, backend="numba")


def test_values_of_synapses(generator):
    values = synapse_values(lambda nnz, g: torch.rand(nnz, generator=g), 7, "weight", torch.float64, generator)
    again = synapse_values(torch.rand(7, generator=generator.manual_seed(0)), 7, "weight", torch.float64)
    assert isinstance(values, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert values.dtype == torch.float64
    assert torch.equal(values, again)
    assert synapse_values(2, 7, "weight", torch.float32) == 2.0
    for bad, words in (
        (float("nan"), "delay must be finite, got nan"),
        (torch.tensor([1.0, float("inf")]), "delay must be finite, but 1 of 2 values are not"),
        (torch.ones(3), r"delay must be a number or of shape \(2,\), one a synapse, got \(3,\)"),
        (lambda nnz, g: torch.ones(nnz + 1), r"delay must be a number or of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            synapse_values(bad, 2, "delay", torch.float32)
    word: Any = "fast"
    with pytest.raises(TypeError, match=r"delay must be a number.* got str"):
        synapse_values(lambda nnz, g: word, 2, "delay", torch.float32)


def test_products_in_threads_do_not_meet():
    matrix = random_matrix(5, edges=3000)
    weight, results = random_weight(matrix, 5), {}
    fired = torch.arange(40)

    def work(number):
        results[number] = [event_matvec(fired, matrix, weight * (number + 1)) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        alone = event_matvec(fired, matrix, weight * (number + 1))
        assert all(torch.equal(result, alone) for result in results[number])
