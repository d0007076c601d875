import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.contrastive import (
    Alternating,
    Bernoulli,
    BoltzmannMachine,
    Chain,
    Geometric,
    RestrictedBoltzmann,
    bars_and_stripes,
    kl_divergence,
    train_boltzmann,
    with_labels,
)

DATA = bars_and_stripes(2).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def machine(bias=False, hidden=5):
    return RestrictedBoltzmann(4, hidden, visible_bias=bias, scale=0.5, generator=seeded()).double()


SCHEDULES = {
    "alternating": Alternating,
    "alternating, own steps": lambda: Alternating(steps=2),
    "bernoulli": lambda: Bernoulli(0.3, generator=seeded(5)),
    "geometric": lambda: Geometric(0.3, 0.6, generator=seeded(6)),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("update", ["end", "every_step"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_compiled_loop_is_the_rule_with_plain_gradient_steps(name, update, bias):
    phases, rate, steps = 60, 0.05, 3
    slow, fast = machine(bias), machine(bias)
    rule = BoltzmannMachine(slow, schedule=SCHEDULES[name](), steps=steps, update=update, generator=seeded(9))
    optimizer = torch.optim.SGD(slow.parameters(), lr=rate)
    cursor, calls = 0, phases // rule.schedule.contrast
    for _ in range(calls):
        positive_comes = _next_is_positive(rule)
        rule.learn(DATA[cursor : cursor + 1], None, optimizer)
        cursor = (cursor + positive_comes) % len(DATA)

    schedule, source, chain = SCHEDULES[name](), seeded(9), None
    for _ in range(2):  # in two parts, to go on from where it stood
        chain = train_boltzmann(
            fast,
            DATA,
            schedule,
            phases=phases // 2,
            rate=rate,
            generator=source,
            steps=steps,
            update=update,
            chain=chain,
        )
    assert_close(dict(fast.named_parameters()), dict(slow.named_parameters()))
    assert chain.v.tolist() == rule.chain[0].tolist()
    assert chain.cursor == cursor
    assert not torch.equal(fast.weight, machine(bias).weight)


def _next_is_positive(rule):
    """Look ahead without moving the schedule's generator."""
    if rule.schedule.contrast == 2:
        return True
    state = rule.schedule.generator.get_state()
    phase = rule.schedule.next()[0]
    rule.schedule.generator.set_state(state)
    return phase.positive


def test_long_chains_from_a_large_batch_give_the_gradient_of_the_likelihood(generator):
    net, exact = machine(bias=True, hidden=3), machine(bias=True, hidden=3)
    (-exact.log_likelihood(DATA).mean()).backward()
    rule = BoltzmannMachine(net, steps=40, generator=generator)
    rule.backward(DATA.repeat(4000, 1))
    for ours, theirs in zip(net.parameters(), exact.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, atol=0.015, rtol=0)


def test_the_chain_stands_at_the_data_after_a_positive_phase_and_is_never_reset():
    rule = BoltzmannMachine(machine(), schedule=Bernoulli(0.5, generator=seeded(3)), steps=1)
    assert rule.chain is None
    stood = []
    for _ in range(30):
        positive = _next_is_positive(rule)
        rule.backward(DATA[2:4])
        stood.append((positive, torch.equal(rule.chain, DATA[2:4])))
    assert all(at_data for positive, at_data in stood if positive)
    assert not all(at_data for positive, at_data in stood if not positive)
    rule.backward(DATA[:1])  # a batch of another size: positive phases replace the chain, negative ones go on with it
    assert len(rule.chain) in (1, 2)


def test_a_machine_that_starts_with_a_dream_starts_from_coins():
    rule = BoltzmannMachine(machine(), schedule=Bernoulli(1e-9), steps=1)
    rule.backward(DATA[:3])
    assert rule.chain.shape == (3, 4)
    chain = train_boltzmann(machine(), DATA, Bernoulli(1e-9), phases=3, rate=0.1, generator=seeded())
    assert chain.cursor == 0
    assert set(chain.v.tolist()) <= {0.0, 1.0}


def test_it_learns_bars_and_stripes_and_not_with_scrambled_signs():
    class Scrambled(Bernoulli):
        def draw(self, count):
            table = super().draw(count)
            return table._replace(weights=table.weights * (-1.0) ** torch.arange(count).numpy())

    start = kl_divergence(DATA, RestrictedBoltzmann(4, 8, scale=0.0))
    ends = {}
    for schedule in (Alternating(), Bernoulli(), Geometric(0.1), Scrambled()):
        net = RestrictedBoltzmann(4, 8, generator=seeded()).double()
        train_boltzmann(net, DATA, schedule, phases=200_000, rate=0.003, steps=10, generator=seeded(1))
        ends[type(schedule).__name__] = kl_divergence(DATA, net)
    assert max(ends[name] for name in ("Alternating", "Bernoulli", "Geometric")) < 0.5 * start
    assert ends["Scrambled"] > 0.8 * start


def test_labels_are_visible_units(generator):
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
    net = RestrictedBoltzmann(4, 6, generator=generator)
    rule = BoltzmannMachine(net, labels=2, steps=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(400):
        rule.learn(x, y, optimizer)
    assert (rule.predict(x).argmax(1) == y).float().mean() > 0.9
    assert BoltzmannMachine(machine()).predict(DATA).shape == (6, 5)


def test_float32_machines_are_trained_in_place():
    net = RestrictedBoltzmann(4, 5, visible_bias=True, generator=seeded())
    before = net.weight.data_ptr()
    train_boltzmann(net, DATA.float(), Alternating(), phases=20, rate=0.1, generator=seeded())
    assert net.weight.dtype == torch.float32
    assert net.weight.data_ptr() == before
    assert net.visible_bias.abs().max() > 0


def test_divergence_is_raised():
    with pytest.raises(FloatingPointError, match="diverges within"):
        train_boltzmann(machine(), DATA, Bernoulli(), phases=50, rate=float("inf"), generator=seeded())


def test_the_rule_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    BoltzmannMachine(machine()).backward(DATA)
    train_boltzmann(machine(), DATA, Bernoulli(), phases=5, rate=0.1, generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: BoltzmannMachine(nn.Linear(2, 2)), TypeError, "trains a RestrictedBoltzmann, got Linear"),
        (lambda: BoltzmannMachine(machine(), labels=4), ValueError, "labels must be 0 to 3"),
        (lambda: BoltzmannMachine(machine(), labels=2).backward(DATA, torch.zeros(6).long()), ValueError, "4 inputs"),
        (lambda: BoltzmannMachine(machine(), labels=2).backward(DATA[:, :2]), ValueError, "pass y"),
        (lambda: with_labels(DATA, torch.tensor([0, 1, 2, 0, 1, 7]), 3), ValueError, "from 0 to 7"),
        (lambda: with_labels(DATA, torch.tensor([0]), 3), ValueError, "6 inputs, 1 labels"),
        (lambda: train(phases=0), ValueError, "phases and steps"),
        (lambda: train(phases=3), ValueError, "even number"),
        (lambda: train(update="x"), ValueError, "update must be"),
        (lambda: train(data=DATA[:, :3]), ValueError, "data have shape"),
        (lambda: train(data=DATA[:0]), ValueError, "data have shape"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def train(data=DATA, **options):
    return train_boltzmann(
        machine(), data, Alternating(), **{"phases": 2, "rate": 0.1, "generator": seeded(), **options}
    )


def test_a_chain_is_not_changed_by_going_on():
    first = train_boltzmann(machine(), DATA, Alternating(), phases=2, rate=0.1, generator=seeded())
    v = first.v.copy()
    train_boltzmann(machine(), DATA, Alternating(), phases=2, rate=0.1, generator=seeded(), chain=Chain(*first))
    assert (first.v == v).all()
