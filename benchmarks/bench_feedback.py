"""What direct feedback alignment costs beside plain backpropagation, as ratios measured in one run.

python benchmarks/bench_feedback.py
"""

from collections.abc import Callable
from functools import partial

import torch
from timing import medians
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.learning import LearningRule, mlp, small_conv
from neuropil.learning.feedback import DirectFeedbackAlignment, Shallow, signal_alignment

BATCH, INPUTS, CLASSES = 128, 784, 10
# By name: hidden layers, width, most that a step may cost.
DENSE = {"3 hidden layers of 1,000": (3, 1000, 1.3), "10 hidden layers of 1,000": (10, 1000, 1.0)}


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Gradients by autograd."""
    net.zero_grad()
    cross_entropy(net(x), y).backward()


def rule_step(rule: LearningRule, x: Tensor, y: Tensor) -> None:
    """Gradients by a rule."""
    rule.net.zero_grad()
    rule.backward(x, y)


def ratios(title: str, net: nn.Module, x: Tensor, y: Tensor, most: float | None, rounds: int) -> None:
    """Steps of the rules on one net, beside a plain one; and one look at the signals."""
    direct = DirectFeedbackAlignment(net, cross_entropy)
    candidates: dict[str, Callable[[], object]] = {
        "plain": partial(plain_step, net, x, y),
        "direct": partial(rule_step, direct, x, y),
        "shallow": partial(rule_step, Shallow(net, cross_entropy), x, y),
        "look": partial(signal_alignment, direct, x, y),
    }
    times = medians(candidates, rounds=rounds)
    target = "" if most is None else f"   (target <= {most})"
    print(f"Direct feedback / backpropagation, {title:<28} {times['direct'] / times['plain']:6.2f} x{target}")
    others = (
        f"last stage only {times['shallow'] / times['plain']:.2f} x, alignment {times['look'] / times['plain']:.2f} x"
    )
    print(f"    {1e3 * times['plain']:.1f} ms; {others}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, float32, batch {BATCH}, medians of alternating calls")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, INPUTS, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    for title, (depth, width, most) in DENSE.items():
        net = mlp(INPUTS, *[width] * depth, CLASSES, generator=generator)
        ratios(title, net, images, labels, most, rounds=30 if depth < 5 else 15)
    conv = small_conv((1, 28, 28), CLASSES, generator=generator)
    ratios("2 convolutions", conv, images.view(BATCH, 1, 28, 28), labels, None, rounds=15)
