"""At rates where pruning leaves a net nothing to learn with, is it enough to freeze the other weights at random values?

FreezeNet (Wimmer et al. 2020) trains the few weights with the largest gradients and keeps the others at the random
values that a seed gives back; SNIP prunes to as many trained weights. The two differ in the mask and in what the other
weights hold, so both are varied: masks by gradient, by w dL/dw (SNIP) or drawn at random, and the other weights frozen
or 0. All arms of a seed share initial weights, score batch and the order of the batches; biases are trained in all.
What is stored is counted in bytes, with the mask, the biases and the header of the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import above, compare_paired, t_interval
from neuropil.structure.freeze import FrozenNet
from neuropil.structure.masks import prunable_parameters
from neuropil.studies.structure._columns import means, numbers
from neuropil.studies.structure._freezing import DENSE, images, make_net, prepared, train_arm

EVERYWHERE = ("gradient, frozen", "SNIP, pruned", "random, frozen", "random, pruned")
# Found by giving one mask the other's number of weights in each layer, at rate 0.998, seeds 0 to 2.
SHARES = (
    "Most of it is how many weights of each layer are trained: SNIP's factor |w| is larger in the later layers, so it "
    "trains fewer weights of the first and more of the readout, which then read more units (table). The largest "
    "gradients with SNIP's numbers by layer: 82.3% on seeds 0 to 2, with their own 80.7%; SNIP's mask 82.9%."
)
HARDEST = ("SNIP, frozen", "gradient, pruned")  # at the highest rate only


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    data: str = "mnist"
    net: str = "lenet-300-100"
    train: int | None = 20_000
    test: int | None = None
    rates: tuple[float, ...] = (0.99, 0.9936, 0.998)  # claims name the first, the second and the last
    epochs: int = 2
    drops: tuple[int, ...] = (1,)
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    scored: int = 100
    seeds: int = 5


SCALES = {
    "smoke": Settings(data="digits", net="small", train=None, rates=(0.95,), seeds=0),
    "default": Settings(),
    "paper": Settings(net="lenet-5", train=None, epochs=250, drops=(100, 150, 200)),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    run.uses(load(settings.data))
    exact(settings, run)
    if not settings.seeds:
        return
    s = settings
    how: dict[str, Any] = {
        "epochs": s.epochs,
        "drops": s.drops,
        "batch_size": s.batch_size,
        "learning_rate": s.learning_rate,
        "weight_decay": s.weight_decay,
        "scored": s.scored,
    }
    arms = [
        (DENSE, 0.0),
        *((arm, rate) for rate in s.rates for arm in EVERYWHERE),
        *((a, s.rates[-1]) for a in HARDEST),
    ]
    calls: list[Callable[[], dict]] = [
        partial(train_arm, arm, rate, (s.data, s.train, s.test), s.net, **how, seed=seed)
        for seed in range(run.seed, run.seed + s.seeds)
        for arm, rate in arms
    ]
    table = run.checkpoint(
        "arms", lambda: pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="trainings"))
    )
    run.metrics("arms", table)
    run.table(
        "accuracy",
        means(table, ("arm", "rate"), ("trained", "in the readout", "units read", "accuracy", "gradient")).round(4),
    )
    claims(table, settings, run)
    storage(table, settings, run)
    figure(table, settings, run)


def exact(settings: Settings, run: Run) -> None:
    """What holds to the last bit."""
    s, rate = settings, settings.rates[0]
    data = images(s.data, s.train, s.test, flat=s.net != "lenet-5")
    frozen = prepared("gradient, frozen", s.net, data, rate, s.scored, run.seed)
    dense = prepared(DENSE, s.net, data, rate, s.scored, run.seed)
    x, y = data.x_train[: s.batch_size], data.y_train[: s.batch_size]
    for each in (frozen, dense):
        cross_entropy(each.net(x), y).backward()
    names = prunable_parameters(dense.net)
    gap = max(_gap(frozen.net.get_parameter(name).grad, dense.net.get_parameter(name).grad) for name in names)
    run.claim(
        "at the start every gradient is that of the dense net: largest difference",
        measured=gap,
        threshold="exactly 0",
        holds=gap == 0,
    )
    start = frozen.frozen_values()
    optimizer = torch.optim.Adam(frozen.net.parameters(), 1e-3, weight_decay=0.1)
    frozen.attach(optimizer)
    for step in range(100):
        chosen = torch.arange(step * s.batch_size, (step + 1) * s.batch_size) % len(data.x_train)
        optimizer.zero_grad()
        cross_entropy(frozen.net(data.x_train[chosen]), data.y_train[chosen]).backward()
        optimizer.step()
    moved = max(_gap(frozen.net.get_parameter(name)[~mask], start[name][~mask]) for name, mask in frozen.masks.items())
    run.claim(
        "100 steps of Adam with weight decay move no frozen weight: largest change",
        measured=moved,
        threshold="exactly 0",
        holds=moved == 0,
    )
    again = FrozenNet.expand(lambda: make_net(s.net, data, run.seed + 1), frozen.compact()).net.state_dict()
    worst = max(_gap(value, again[name]) for name, value in frozen.net.state_dict().items())
    run.claim(
        "the trained net comes back from its compact bytes: largest difference",
        measured=worst,
        threshold="exactly 0",
        holds=worst == 0,
    )


def _gap(first: torch.Tensor | None, second: torch.Tensor | None) -> float:
    if first is None or second is None:
        return float("inf")
    return float((first - second).detach().abs().max()) if first.numel() else 0.0


def claims(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """What the mask does, and what the other weights do."""
    low, middle, high = settings.rates[0], settings.rates[min(1, len(settings.rates) - 1)], settings.rates[-1]
    dense = numbers(table, "accuracy", arm=DENSE)
    wanted = [
        (
            "gradient, frozen",
            "SNIP, pruned",
            high,
            20.0,
            "FreezeNet against SNIP",
            "SNIP collapses, FreezeNet does not",
        ),
        ("gradient, frozen", "SNIP, pruned", low, 0.0, "FreezeNet against SNIP", "better at every rate"),
        ("random, frozen", "random, pruned", low, 30.0, "one random mask, the rest frozen against pruned", None),
        ("gradient, frozen", "random, frozen", low, 0.0, "both frozen, the gradient's mask against a random one", None),
        ("SNIP, frozen", "SNIP, pruned", high, 0.0, "SNIP's mask, the rest frozen against pruned", None),
        ("gradient, frozen", "SNIP, frozen", high, 0.0, "both frozen, the gradient's mask against SNIP's", None),
    ]
    for first, second, rate, threshold, text, paper in wanted:
        ours, theirs = (numbers(table, "accuracy", arm=arm, rate=rate) for arm in (first, second))
        gap = compare_paired(ours, theirs, scale=100)
        known = second == "SNIP, frozen" and run.scale == "default" and gap.above(threshold) is False
        found = f" {SHARES}" if known else ""
        run.claim(
            f"{text}, at rate {rate:g}",
            paper=paper,
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold=f"interval above {threshold:g}",
            baseline=f"{100 * theirs.mean():.1f}%; dense {100 * dense.mean():.1f}%",
            holds=gap.above(threshold),
            note=f"{100 * ours.mean():.1f}%. {gap.seed_by_seed()}{found}",
        )
    ratio = numbers(table, "accuracy", arm="gradient, frozen", rate=middle) / dense
    run.claim(
        f"FreezeNet's share of the dense net's accuracy, at rate {middle:g}",
        paper="0.992 (LeNet-5, 250 epochs)",
        measured=float(ratio.mean()),
        interval=t_interval(ratio),
        threshold="interval above 0.88",
        baseline=f"SNIP {(numbers(table, 'accuracy', arm='SNIP, pruned', rate=middle) / dense).mean():.3f}",
        holds=above(t_interval(ratio), 0.88),
    )


def storage(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """What is stored."""
    rows = []
    for rate in settings.rates:
        size, dense = (numbers(table, of, arm="gradient, frozen", rate=rate) for of in ("bytes", "dense bytes"))
        trained = numbers(table, "trained", arm="gradient, frozen", rate=rate)
        weights = numbers(table, "trained", arm=DENSE)
        rows.append(
            {
                "rate": rate,
                "trained weights": int(trained[0]),
                "weights over trained": float((weights / trained).mean()),
                "bytes": float(size.mean()),
                "dense bytes over bytes": float((dense / size).mean()),
            }
        )
    run.table("storage", pd.DataFrame(rows).round({"weights over trained": 1, "bytes": 0, "dense bytes over bytes": 1}))
    row = rows[min(1, len(rows) - 1)]
    run.claim(
        f"dense bytes over stored bytes, with mask, biases and header, at rate {row['rate']:g}",
        paper=157,
        measured=row["dense bytes over bytes"],
        threshold="at least 80",
        holds=row["dense bytes over bytes"] >= 80,
        note=f"The paper's figure counts trained weights, here {row['weights over trained']:.1f} to one. Its mask "
        "costs nothing if the reader can compute the scores again to the last bit; the file holds the mask instead.",
    )
    arms = [arm for arm in dict.fromkeys(table["arm"]) if not arm.endswith("pruned")]
    back = np.concatenate([numbers(table, "comes back", arm=arm) for arm in arms])
    run.claim(
        "every trained net that is not pruned comes back from its bytes",
        measured=int(back.sum()),
        unit=f"of {len(back)} nets",
        threshold="all, to the last bit",
        holds=bool(back.all()),
    )


def figure(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Accuracy over trained weights, and the four combinations at the highest rate."""
    drawn, (ax, right) = panels(2, size=(3.8, 2.9))
    dense = 100 * numbers(table, "accuracy", arm=DENSE).mean()
    for colour, arm in zip(COLOURS, EVERYWHERE, strict=False):
        counts = [numbers(table, "trained", arm=arm, rate=rate)[0] for rate in settings.rates]
        found = [100 * numbers(table, "accuracy", arm=arm, rate=rate) for rate in settings.rates]
        style = "-" if arm.endswith("frozen") else "--"
        for count, values in zip(counts, found, strict=True):
            ax.plot(np.full(len(values), count), values, "o", ms=3, color=colour, alpha=0.4, mew=0)
        ax.plot(counts, [values.mean() for values in found], style, color=colour, lw=1.5, label=arm)
    ax.set_xscale("log")
    counts = [numbers(table, "trained", arm=EVERYWHERE[0], rate=rate)[0] for rate in settings.rates]
    ax.set_xticks(counts, [f"{int(count)}" for count in counts])
    ax.minorticks_off()
    ax.axhline(dense, color=GREY, lw=0.8, ls=":")
    ax.text(counts[-1], dense + 1, "dense", fontsize=7, color=GREY)
    ax.set_xlabel("trained weights")
    ax.set_ylabel("test accuracy (%)")
    ax.set_ylim(0, 102)
    ax.legend(frameon=False, fontsize=7)
    arms = [f"{masks}, {rest}" for masks in ("gradient", "SNIP", "random") for rest in ("frozen", "pruned")]
    for place, arm in enumerate(arms):
        values = 100 * numbers(table, "accuracy", arm=arm, rate=settings.rates[-1])
        colour = COLOURS[0] if arm.endswith("frozen") else COLOURS[1]
        right.plot(np.full(len(values), place), values, "o", ms=4, color=colour, alpha=0.5, mew=0)
        right.plot([place], [values.mean()], "_", ms=16, mew=1.6, color=colour)
    right.set_xticks(range(len(arms)), arms, rotation=35, ha="right", fontsize=8)
    right.axhline(dense, color=GREY, lw=0.8, ls=":")
    right.set_ylim(0, 102)
    right.set_title(f"{int(counts[-1])} trained weights", fontsize=9)
    run.figure("accuracy", drawn)
