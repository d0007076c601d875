"""What learning rules cost beside plain backpropagation, as ratios measured in one run.

python benchmarks/bench_learning.py
"""

from functools import partial

import torch
from timing import medians
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset
from neuropil.learning import (
    RULES,
    Backpropagation,
    DisinhibitoryControl,
    DisinhibitoryNetwork,
    LearningRule,
    contender,
    mlp,
    step_cost,
)
from neuropil.learning.inhibition import close_loop
from neuropil.learning.training import made

SIZES, BATCH = (784, 512, 512, 10), 128
SMALL, SMALL_BATCH = (64, 64, 64, 64, 10), 100


def problem(sizes: tuple[int, ...], batch: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(batch, sizes[0], generator=generator),
        torch.randint(sizes[-1], (batch,), generator=generator),
        generator,
    )


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Gradients by autograd."""
    net.zero_grad()
    cross_entropy(net(x), y).backward()


def rule_step(rule: LearningRule, x: Tensor, y: Tensor) -> None:
    """Gradients by a rule."""
    rule.net.zero_grad()
    rule.backward(x, y)


def overhead() -> None:
    """Backpropagation in the dress of a rule."""
    x, y, generator = problem(SIZES, BATCH)
    net = mlp(*SIZES, activation=nn.ReLU, generator=generator)
    rule = Backpropagation(net, cross_entropy)
    times = medians(
        {"plain": partial(plain_step, net, x, y), "rule": partial(rule_step, rule, x, y)}, rounds=200, warm=20
    )
    print(
        f"Backpropagation as a rule / loss.backward()      {times['rule'] / times['plain']:6.2f} x   (target <= 1.05)"
    )


def control() -> None:
    """One step of dis-inhibitory control beside one of backpropagation, and where its time goes."""
    for sizes, batch in ((SIZES, BATCH), (SMALL, SMALL_BATCH)):
        x, y, generator = problem(sizes, batch)
        net = DisinhibitoryNetwork(sizes, generator=generator)
        softplus = mlp(*sizes, activation=nn.Softplus, readout_bias=False, generator=generator)
        exact = DisinhibitoryControl(net, cross_entropy)
        steps = {"backpropagation": partial(plain_step, softplus, x, y), "exact rule": partial(rule_step, exact, x, y)}
        times = medians(steps, rounds=40)
        ratio = times["exact rule"] / times["backpropagation"]
        name = "-".join(map(str, sizes))
        target = "   (target <= 15)" if sizes == SIZES else ""
        print(f"Dis-inhibitory control / backpropagation, {name:<19} {ratio:6.2f} x{target}")
        parts(net, exact, x, y, times["exact rule"])


def parts(net: DisinhibitoryNetwork, rule: DisinhibitoryControl, x: Tensor, y: Tensor, whole: float) -> None:
    """Where a step's time goes: the same calls as in the rule, one by one."""
    rule.backward(x, y)
    start = net.settle(x)
    feedback, _ = rule._feedback(start)
    error = rule._error(start.readout, rule._target(y, start.readout))
    times = medians(
        {
            "open loop": lambda: net.settle(x),
            "feedback weights": lambda: rule._feedback(start),
            "closed loop": lambda: close_loop(net, start, feedback, error, rule.controller.gain),
        },
        rounds=40,
    )
    times["plasticity"] = max(whole - sum(times.values()), 0.0)
    shares = ", ".join(f"{name} {100 * seconds / whole:.0f}%" for name, seconds in times.items())
    sweeps = rule.last.sweeps if rule.last else 0
    print(f"    {1e3 * whole:.1f} ms: {shares}; {sweeps} sweeps")


def solvers() -> None:
    """The algebraic loop beside 2 s of simulated time, at equal answers."""
    x, y, generator = problem(SMALL, SMALL_BATCH)
    net = DisinhibitoryNetwork(SMALL, generator=generator)
    rules = {name: DisinhibitoryControl(net, cross_entropy, solver=name) for name in ("algebraic", "ode")}
    gradients = {}
    for name, rule in rules.items():
        rule_step(rule, x, y)
        gradients[name] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    gap = float((gradients["ode"] - gradients["algebraic"]).abs().max())
    times = medians({name: partial(rule_step, rule, x, y) for name, rule in rules.items()}, rounds=5, warm=1)
    print(
        f"Integrating the circuit / solving it at rest     {times['ode'] / times['algebraic']:6.0f} x   (target >= 20)"
    )
    print(f"    largest difference of the gradients {gap:.1e}")


def every_rule() -> None:
    """One step of each rule that has a name, beside one of backpropagation: time, and peak memory."""
    x, y, _ = problem(SIZES, BATCH)
    data = Dataset("random", x, y, x, y, tuple(map(str, range(SIZES[-1]))))
    rules = {}
    for name in RULES:
        arm = contender(name, data, lambda generator: mlp(*SIZES, generator=generator), hidden=SIZES[1:-1])
        rules[name] = made(arm.rule, arm.net(torch.Generator().manual_seed(0)), cross_entropy, 0)
    times = medians({name: partial(rule_step, rule, x, y) for name, rule in rules.items()}, rounds=7, warm=1)
    bytes_of = {name: step_cost(rule, x, y, calls=1).megabytes for name, rule in rules.items()}
    base = "backpropagation"
    print(f"One step of each rule / {base}, {'-'.join(map(str, SIZES))}       time    memory")
    for name in sorted(rules, key=times.__getitem__):
        print(f"    {name:<42} {times[name] / times[base]:8.2f} x {bytes_of[name] / bytes_of[base]:6.2f} x")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, float32, medians of alternating calls")
    overhead()
    control()
    solvers()
    every_rule()
