import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from torch.testing import assert_close

from neuropil.learning.contrastive import RestrictedBoltzmann, all_states, bars_and_stripes, kl_divergence


def machine(visible=4, hidden=3, bias=True, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    net = RestrictedBoltzmann(visible, hidden, visible_bias=bias, scale=scale, generator=generator).double()
    with torch.no_grad():
        net.hidden_bias.copy_(torch.randn(hidden, generator=generator))
        if bias:
            net.visible_bias.copy_(torch.randn(visible, generator=generator))
    return net


def joint(net):
    """P(v, h) by brute force, (2^visible, 2^hidden), from the energy written out."""
    v = all_states(net.n_visible, dtype=torch.float64)
    h = all_states(net.n_hidden, dtype=torch.float64)
    c = torch.zeros(net.n_visible) if net.visible_bias is None else net.visible_bias
    energy = -(v @ net.weight.T @ h.T) - (h @ net.hidden_bias)[None, :] - (v @ c.double())[:, None]
    return v, h, energy.detach()


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 1), (2, 6)])
@pytest.mark.parametrize("bias", [False, True])
def test_everything_exact_agrees_with_brute_force(shape, bias):
    net = machine(*shape, bias=bias)
    v, h, energy = joint(net)
    assert_close(net.energy(v, h[-1:].expand(len(v), -1)), energy[:, -1])
    assert_close(net.free_energy(v), -(-energy).logsumexp(1))
    assert_close(net.log_partition(), (-energy).flatten().logsumexp(0))
    p = (-energy).flatten().softmax(0).view(energy.shape)
    assert_close(net.log_likelihood(v).exp(), p.sum(1))
    assert_close(net(v), (p / p.sum(1, keepdim=True)) @ h)
    assert_close(net.visible_drive(h).sigmoid(), (p / p.sum(0)).T @ v)


def test_states_are_enumerated_in_chunks_and_the_partition_has_a_gradient():
    assert all_states(2).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert torch.equal(all_states(6, first=10, count=5), all_states(6)[10:15])
    net = machine(15, 18, scale=0.2)  # two chunks
    swapped = RestrictedBoltzmann(18, 15, visible_bias=True).double()
    with torch.no_grad():
        swapped.weight.copy_(net.weight.T)
        swapped.hidden_bias.copy_(net.visible_bias)
        swapped.visible_bias.copy_(net.hidden_bias)
    assert_close(net.log_partition(), swapped.log_partition())
    net.log_partition().backward()
    assert net.weight.grad.abs().max() > 0


def test_log_likelihood_has_the_contrastive_gradient():
    net = machine()
    data = all_states(4, dtype=torch.float64)[[3, 5, 9]]
    net.log_likelihood(data).mean().backward()
    v, h, energy = joint(net)
    p = (-energy).flatten().softmax(0).view(energy.shape)
    positive = net(data).T @ data / len(data)
    assert_close(net.weight.grad, (positive - h.T @ p.T @ v).detach())


def test_scikit_learn_agrees():
    data = bars_and_stripes(3).numpy()
    theirs = BernoulliRBM(5, n_iter=3, batch_size=4, random_state=0).fit(data)
    ours = RestrictedBoltzmann(9, 5, visible_bias=True).double()
    with torch.no_grad():
        ours.weight.copy_(torch.from_numpy(theirs.components_))
        ours.hidden_bias.copy_(torch.from_numpy(theirs.intercept_hidden_))
        ours.visible_bias.copy_(torch.from_numpy(theirs.intercept_visible_))
        assert_close(ours(torch.from_numpy(data).double()), torch.from_numpy(theirs.transform(data)).double())


def frequencies(v):
    numbers = (v.long() << torch.arange(v.shape[1])).sum(1)
    return torch.bincount(numbers, minlength=2 ** v.shape[1]).double() / len(v)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)])
def test_exact_samples_and_the_gibbs_chain_follow_the_model(shape, generator):
    net, count = machine(*shape), 20_000
    p = net.log_likelihood(all_states(shape[0], dtype=torch.float64)).exp().detach()
    spread = (p * (1 - p) / count).sqrt()
    v, h = net.sample_exact(count, generator=generator)
    assert ((frequencies(v) - p).abs() < 4.5 * spread).all()
    assert ((h.mean(0) - (net(v).mean(0))).abs() < 0.02).all()
    start = torch.zeros(count, shape[0], dtype=torch.float64)
    assert ((frequencies(net.sample(start, 30, generator=generator)) - p).abs() < 4.5 * spread + 1e-3).all()
    assert not start.any()


def test_clamped_units_stay(generator):
    net = machine()
    v = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 50, dtype=torch.float64)
    clamped = torch.tensor([True, True, False, False])
    after = net.sample(v, 3, clamped=clamped, generator=generator)
    assert torch.equal(after[:, :2], v[:, :2])
    assert not torch.equal(after[:, 2:], v[:, 2:])
    assert torch.equal(net.sample(v, 0), v)


def test_classify_finds_the_label_that_the_weights_favour(generator):
    net = RestrictedBoltzmann(4, 2, scale=0.0, generator=generator)
    with torch.no_grad():  # hidden unit i ties input i to label i
        net.weight.copy_(torch.tensor([[20.0, 0, 10, -10], [0, 20.0, -10, 10]]))
        net.hidden_bias.fill_(-15)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(3, 1)
    scores = net.classify(x, 2, generator=generator)
    assert scores.argmax(1).tolist() == [0, 1] * 3
    assert scores.min() >= 0
    assert scores.max() <= 1


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_bars_and_stripes_are_all_there_once(n):
    patterns = bars_and_stripes(n)
    assert patterns.shape == (2 ** (n + 1) - 2, n * n)
    assert len(patterns.unique(dim=0)) == len(patterns)
    images = patterns.view(-1, n, n)
    assert all((i == i[:1]).all() or (i == i[:, :1]).all() for i in images)


def test_divergence_is_zero_for_a_perfect_model_and_counts_repeats():
    uniform = RestrictedBoltzmann(3, 2, scale=0.0)
    assert kl_divergence(all_states(3), uniform) == pytest.approx(0, abs=1e-12)
    assert kl_divergence(all_states(3)[:1], uniform) == pytest.approx(torch.tensor(8.0).log())
    data = all_states(3)[[0, 0, 0, 1]]
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert kl_divergence(data, uniform) == pytest.approx(float(torch.tensor(8.0).log() - entropy))
    patterns = bars_and_stripes(3)
    assert kl_divergence(patterns, RestrictedBoltzmann(9, 12, scale=0.0)) == pytest.approx(3.599, abs=1e-3)


def test_huge_weights_stay_finite():
    net = machine(scale=1e4)
    v = all_states(4, dtype=torch.float64)
    assert float(net.log_likelihood(v).detach().exp().sum()) == pytest.approx(1)
    assert net.sample(v, 3).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RestrictedBoltzmann(0, 3), "n_visible and n_hidden must be at least 1"),
        (lambda: RestrictedBoltzmann(2, 3, scale=-1.0), "scale must not be negative"),
        (lambda: RestrictedBoltzmann(21, 22).log_partition(), "enumeration needs at most 20"),
        (lambda: machine().sample(torch.zeros(1, 4), -1), "steps must not be negative"),
        (lambda: machine().free_energy(torch.zeros(1, 5)), "v has 5 units"),
        (lambda: machine().classify(torch.zeros(1, 4), 1), "4 inputs and 1 labels do not make 4"),
        (lambda: machine().classify(torch.zeros(1, 3), 1, samples=0), "samples must be at least 1"),
        (lambda: machine().sample_exact(0), "count must be at least 1"),
        (lambda: bars_and_stripes(0), "n must be at least 1"),
        (lambda: all_states(0), "units must be 1 to 62"),
        (lambda: all_states(2, first=3, count=2), "asked for 3 to 4"),
    ],
)
def test_what_cannot_be_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
