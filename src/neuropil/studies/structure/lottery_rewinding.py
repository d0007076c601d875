"""Is there a sparse net in a dense one that trains as well by itself, and does it help to start it a little later?

Iterative magnitude pruning trains, removes a fifth of the weights and goes back: to the start, or to step k of the same
training (Frankle et al. 2019). The ticket it finds is compared with the dense net, with its own mask on fresh weights
and with its own weights under a mask shuffled within layers; all have the same schedule and the same batches, fresh
weights even the k steps more. Two distances say how stable the ticket is: to pruning (from the dense net that was
trained the same way) and to the order of the data.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import compare_paired
from neuropil.structure.lottery import Ticket, distances, find_ticket
from neuropil.structure.masks import prunable_parameters
from neuropil.studies.structure._columns import means, numbers
from neuropil.studies.structure._tickets import Task, search

ARMS = ("ticket", "dense", "fresh weights", "shuffled mask")
FALL = 1.0  # points that tickets from step 0 must lose for the paper's question to arise


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    # the perceptron
    data: str = "digits"
    hidden: tuple[int, ...] = (128, 64)
    steps: int = 300
    rate: float = 1.2e-3
    rounds: int = 8
    batch_size: int = 60
    rewind: float = 0.0
    seeds: int = 5
    # the residual net
    residual_data: str = "digits"
    channels: tuple[int, ...] = (12, 24, 48)
    blocks: int = 1
    residual_steps: int = 150
    residual_rate: float = 0.1
    drops: tuple[float, ...] = (0.6, 0.85)
    weight_decay: float = 0.0
    residual_rounds: int = 8
    residual_batch_size: int = 60
    rewinds: tuple[float, ...] = (0.0, 0.08)
    residual_seeds: int = 3
    # of both
    train: int | None = None
    test: int | None = None

    def plain_task(self) -> Task:
        """The perceptron's training."""
        return Task(
            "mlp",
            self.data,
            self.hidden,
            steps=self.steps,
            rate=self.rate,
            rounds=self.rounds,
            scope="layer",
            batch_size=self.batch_size,
            train=self.train,
            test=self.test,
        )

    def residual_task(self) -> Task:
        """The residual net's training."""
        return Task(
            "residual",
            self.residual_data,
            self.channels,
            steps=self.residual_steps,
            rate=self.residual_rate,
            rounds=self.residual_rounds,
            scope="global",
            blocks=self.blocks,
            batch_size=self.residual_batch_size,
            drops=self.drops,
            weight_decay=self.weight_decay,
            train=self.train,
            test=self.test,
        )


SCALES = {
    "smoke": Settings(steps=150, rounds=3, seeds=0, residual_seeds=0),
    "default": Settings(),
    # CIFAR-10 is not among the library's data: Fashion-MNIST takes its place, with the paper's ResNet-20 and schedule.
    "paper": Settings(
        data="mnist",
        hidden=(300, 100),
        steps=50_000,
        rounds=15,
        residual_data="fashion-mnist",
        channels=(16, 32, 64),
        blocks=3,
        residual_steps=30_000,
        drops=(2 / 3, 5 / 6),
        weight_decay=1e-4,
        residual_rounds=15,
        residual_batch_size=128,
        rewinds=(0.0, 100 / 30_000, 500 / 30_000, 2_000 / 30_000),
        residual_seeds=5,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    s, calls = settings, list[Callable[[], dict]]()
    run.uses(load(s.data))
    exact(s.plain_task(), run)
    for task, rewinds, seeds in (
        (s.plain_task(), (s.rewind,), s.seeds),
        (s.residual_task(), s.rewinds, s.residual_seeds),
    ):
        if seeds:
            run.uses(load(task.data))
        calls += [
            partial(search, task, rewind, seed) for seed in range(run.seed, run.seed + seeds) for rewind in rewinds
        ]
    if not calls:
        return
    # The longest first, so that no process waits for another at the end.
    rows = run.checkpoint("searches", lambda: parallel(calls[::-1], jobs=run.jobs, track=run.track, label="searches"))
    history = [
        {"kind": row["kind"], "rewind": row["rewind"], "seed": row["seed"], "round": number} | one
        for row in rows
        for number, one in enumerate([*row["history"], {"density": row["density"], "accuracy": row["ticket"]}])
    ]
    rounds = pd.DataFrame(history)
    table = pd.DataFrame([{key: value for key, value in row.items() if key != "history"} for row in rows])
    run.metrics("rounds", rounds)
    run.metrics("arms", table)
    run.table("accuracy", means(table, ("kind", "rewind"), ("density", *ARMS)).round(4))
    if s.seeds:
        tickets(table, s, run)
    if s.residual_seeds:
        rewinding(table, s, run)
    stable(table, s, run)
    figures(table, rounds, s, run)


def exact(task: Task, run: Run) -> None:
    """What holds to the last bit."""
    data = task.samples(run.seed)
    short = replace(task, steps=min(task.steps, 150), rounds=min(task.rounds, 3))
    make, train = short.make_net(data), short.training(data)
    readout = prunable_parameters(make(run.seed))[-1]
    rewind = short.steps // 10
    ticket = find_ticket(
        make,
        train,
        rewind=rewind,
        total=short.steps,
        rounds=short.rounds,
        seed=run.seed,
        scope="layer",
        per_layer_fraction={readout: 0.1},
    )
    net = make(run.seed)
    train(net, 0, rewind, run.seed)
    again = ticket.make().state_dict()
    worst = 0.0
    for name, value in net.state_dict().items():
        expected = value * ticket.masks[name] if name in ticket.masks else value
        worst = max(worst, float((again[name] - expected).abs().max()))
    run.claim(
        "a ticket starts from the weights of step k under its mask: largest difference",
        measured=worst,
        threshold="exactly 0",
        holds=worst == 0,
    )
    counts = _counts(ticket, readout, short.rounds)
    run.claim(
        "every round takes a fifth of what is left in a layer, a tenth in the readout: largest miscount",
        measured=counts,
        unit="weights",
        threshold="exactly 0",
        holds=counts == 0,
    )
    trained = ticket.trained(train)
    left = max(float(trained.get_parameter(name)[~mask].detach().abs().max()) for name, mask in ticket.masks.items())
    run.claim("masked weights stay 0 in training: largest", measured=left, threshold="exactly 0", holds=left == 0)
    whole, plain = ticket.dense().trained(train), net
    train(plain, rewind, short.steps, run.seed)
    apart = float(distances(whole, plain, ticket.masks)["l2"].to_numpy()[-1])
    run.claim(
        "with nothing masked, rewinding is the same training once more: distance",
        measured=apart,
        threshold="exactly 0",
        holds=apart == 0,
    )


def _counts(ticket: Ticket, readout: str, rounds: int) -> int:
    worst = 0
    for name, mask in ticket.masks.items():
        left = mask.numel()
        for _ in range(rounds):
            left = round((0.9 if name == readout else 0.8) * left)
        worst = max(worst, abs(left - int(torch.count_nonzero(mask))))
    return worst


def tickets(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Whether the plain net has a winning ticket."""
    of = partial(numbers, table, kind="mlp", rewind=settings.rewind)
    share = 100 * float(of("density").mean())
    sample = 100 / len(settings.plain_task().samples(run.seed).y_test)
    for rival, threshold in (("dense", -0.5), ("fresh weights", 0.0), ("shuffled mask", 0.0)):
        gap = compare_paired(of("ticket"), of(rival), scale=100)
        run.claim(
            f"the perceptron's ticket of {share:.1f}% of the weights against {rival}",
            paper="tickets match the dense net; other weights and other masks do not",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold=f"interval above {threshold:g}",
            baseline=f"{100 * of(rival).mean():.1f}%",
            holds=gap.above(threshold),
            note=f"Ticket {100 * of('ticket').mean():.1f}%; one test sample is {sample:.2f} points. "
            f"{gap.seed_by_seed()}",
        )


def rewinding(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Whether a later start helps; the question arises only where tickets from the start fall short."""
    of = partial(numbers, table, kind="residual")
    fall = compare_paired(of("dense", rewind=0.0), of("ticket", rewind=0.0), scale=100)
    for rewind in settings.rewinds[1:]:
        gap = compare_paired(of("ticket", rewind=rewind), of("ticket", rewind=0.0), scale=100)
        void = fall.mean < FALL
        why = f"Dense net less ticket from step 0: {fall.mean:.1f} points ({fall.seed_by_seed()[14:-1]})."
        if void:
            why += (
                f" Under {FALL:g} point there is nothing for a later start to repair: the claim is void at this size."
            )
        run.claim(
            f"the residual net's ticket of {100 * of('density').mean():.1f}% trains better from {100 * rewind:.3g}% of "
            "the steps than from the start",
            paper="from step 0 tickets fail, from 1.4% of the steps on they match (ResNet-20, CIFAR-10)",
            measured=round(gap.mean, 9),
            interval=gap.interval,
            unit="points",
            threshold=f"interval above 0; void unless tickets from step 0 end {FALL:g} point below the dense net",
            baseline=f"from the start {100 * of('ticket', rewind=0.0).mean():.1f}%",
            holds=None if void else gap.above(0),
            note=f"{why} {gap.seed_by_seed()}",
        )


def stable(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Whether tickets end nearer than shuffled masks do, in both senses."""
    for kind, rewind in dict.fromkeys(zip(table["kind"], table["rewind"], strict=True)):
        of = partial(numbers, table, kind=kind, rewind=rewind)
        net = "perceptron" if kind == "mlp" else f"residual net, rewound to {100 * rewind:.3g}% of the steps"
        for what, text in (
            ("to pruning", "the trained dense net"),
            ("to order", "itself in another order of the data"),
        ):
            ours = {key: of(f"ticket, {what}, {key}") for key in ("l2", "angle", "norm", "other_norm")}
            theirs = {key: of(f"shuffled mask, {what}, {key}") for key in ours}
            nearer = bool((ours["l2"] < theirs["l2"]).all() and (ours["angle"] < theirs["angle"]).all())
            run.claim(
                f"{net}: the trained ticket is nearer to {text} than with a shuffled mask: distance over its distance",
                paper="rewound tickets are more stable than random subnetworks",
                measured=float((ours["l2"] / theirs["l2"]).mean()),
                threshold="L2 and angle smaller in every seed",
                holds=nearer,
                note=f"L2 {ours['l2'].mean():.2f} against {theirs['l2'].mean():.2f}, angle {ours['angle'].mean():.1f} "
                f"against {theirs['angle'].mean():.1f} degrees; norms of the trained weights "
                f"{ours['other_norm'].mean():.1f} and {theirs['other_norm'].mean():.1f}.",
            )


def figures(table: pd.DataFrame, rounds: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Accuracy over rounds, and the two distances."""
    groups: list[tuple[Any, Any]] = list(dict.fromkeys(zip(table["kind"], table["rewind"], strict=True)))
    groups.sort()
    kinds = list(dict.fromkeys(kind for kind, _ in groups))
    figure, axes = panels(len(kinds), size=(3.6, 2.8))
    for ax, kind in zip(axes, kinds, strict=True):
        own = [rewind for each, rewind in groups if each == kind]
        left = [100.0]
        for colour, rewind in zip(COLOURS, own, strict=False):
            one = partial(numbers, rounds, kind=kind, rewind=rewind)
            steps = range(int(one("round").max()) + 1)
            left = [100 * one("density", round=step).mean() for step in steps]
            found = [100 * one("accuracy", round=step) for step in steps]
            for percent, values in zip(left, found, strict=True):
                ax.plot(np.full(len(values), percent), values, "o", ms=2.5, color=colour, alpha=0.35, mew=0)
            name = "ticket" if len(own) == 1 else f"ticket, k = {100 * rewind:.3g}%"
            ax.plot(left, [values.mean() for values in found], color=colour, lw=1.5, label=name)
            of = partial(numbers, table, kind=kind, rewind=rewind)
            for arm, marker in (("fresh weights", "v"), ("shuffled mask", "s")):
                label = arm if colour == COLOURS[0] else None
                ax.plot(left[-1], 100 * of(arm).mean(), marker, ms=5, color=colour, mfc="white", label=label)
        ax.axhline(100 * numbers(table, "dense", kind=kind).mean(), color=GREY, lw=0.8, ls=":", label="dense")
        ax.set_xscale("log")
        ax.invert_xaxis()
        ticks = [100, 50, 30, 20] if left[-1] > 10 else [100, 30, 10, 3]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("weights left (%)")
        ax.set_title("perceptron" if kind == "mlp" else "residual net")
        ax.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("test accuracy (%)")
    run.figure("accuracy", figure)
    figure, axes = panels(2, size=(3.6, 2.6))
    for ax, what in zip(axes, ("to pruning", "to order"), strict=True):
        for place, (kind, rewind) in enumerate(groups):
            for shift, arm in ((-0.15, "ticket"), (0.15, "shuffled mask")):
                found = numbers(table, f"{arm}, {what}, angle", kind=kind, rewind=rewind)
                colour = COLOURS[0] if arm == "ticket" else COLOURS[1]
                label = arm if place == 0 else None
                ax.plot(
                    np.full(len(found), place + shift), found, "o", ms=4, color=colour, alpha=0.6, mew=0, label=label
                )
        names = ["perceptron" if kind == "mlp" else f"residual\nk = {100 * rewind:.3g}%" for kind, rewind in groups]
        ax.set_xticks(range(len(groups)), names, fontsize=8)
        ax.set_xlim(-0.5, len(groups) - 0.5)
        ax.set_ylim(bottom=0)
        ax.set_title(f"distance {what}")
    axes[0].set_ylabel("angle (degrees)")
    axes[0].legend(frameon=False, fontsize=7)
    run.figure("stability", figure)
