"""Does a first layer that learns from its own inputs help a network through corrupted images that nobody labels?

Neuro-modulated Hebbian learning (Tang et al. 2023) adapts a trained classifier while it answers a stream: the first
convolution by soft Hebbian competition, a thin modulator behind it by the entropy of the answers. Statistics of the
batch do nearly all of the work in such a stream, so the study asks what is left on top: against those statistics alone
(Norm), the modulator alone, and entropy minimisation over all norms (Tent). Two controls share the size of every change
but not its direction: one fixed random direction, and minus the change. Each method's rate is chosen, seed by seed,
from a grid of four on corruptions that the stream does not have, over images that it does not have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, corrupt, load
from neuropil.learning import Backpropagation, train_epoch
from neuropil.learning.hebbian import (
    Adapter,
    BatchNormAdapt,
    NeuroModulatedHebbian,
    SoftHebb,
    Tent,
    patches,
    strided_conv,
    wide_resnet,
)
from neuropil.learning.rule import Packet
from neuropil.learning.training import adam
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import paired

STREAM = {"gaussian noise": 0.4, "impulse noise": 0.17, "mean blur": 7.0, "contrast": 0.3, "brightness": 0.4}
HELD = {"shot noise": 5.0, "pixelate": 0.3}  # severities 4, of other kinds, on other images
CIFAR_C = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
CIFAR_C_HELD = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
UNKNOWN = "yes (its figures are not known to us)"


# Found with an independent implementation of the study: shot noise 3 and pixelation 0.25 held out, rates .003 to .1.
TUNING = (
    "It turns on how the rates are chosen: held-out corruptions so mild that the source errs on only a fifth of them "
    "chose a Hebbian rate ten times smaller or less, and left every such comparison undecided (5 seeds)."
)


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own data, CIFAR-10-C, are a folder of the user's in the scale "paper"."""

    images: str = "mnist"
    train: int | None = 4500
    held: int = 1000
    stream: int | None = 1500
    epochs: int = 3
    rate: float = 2e-3
    batch: int = 100
    seeds: int = 5
    modulator_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    hebbian_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    temperature: float = 1.0
    cifar: bool = False
    folder: str = ""
    depth: int = 40
    width: int = 2
    cifar_epochs: int = 100
    cifar_batch: int = 200
    cifar_seeds: int = 3


SCALES = {
    "smoke": Settings(images=""),
    "default": Settings(),
    "paper": Settings(train=None, held=5000, stream=None, batch=200, seeds=10, cifar=True),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    clusters(run)
    equations(run)
    if settings.images and not run.lacks(settings.images, f"a stream of corrupted images ({settings.images})"):
        run.uses(load(settings.images))
        seeds = range(run.seed, run.seed + settings.seeds)
        streamed(settings.images, partial(handwriting, settings), seeds, settings, run)
    if settings.cifar:
        folder = Path(settings.folder)
        if settings.folder and (folder / "labels.npy").is_file():
            seeds = range(run.seed, run.seed + settings.cifar_seeds)
            streamed("CIFAR-10-C", partial(cifar, settings), seeds, settings, run)
        else:
            run.claim(
                "a stream of corrupted images (CIFAR-10-C)",
                paper="10.7% error at severity 5 (as a leaderboard has it, net not stated)",
                holds=None,
                note="CIFAR-10-C is not on this machine: pass --set folder=FOLDER, with its files as published and "
                "CIFAR-10's training part beside them, train_images.npy (50000, 32, 32, 3) and train_labels.npy.",
            )


def clusters(run: Run) -> None:
    """The rule by itself: three filters among three clusters of directions."""
    angles = torch.tensor([0.0, 2 * pi / 3, 4 * pi / 3])
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    worst_cosine, worst_length, paths = 1.0, 0.0, {}
    for temperature in (0.1, 0.3, 1.0):
        generator = torch.Generator().manual_seed(run.seed)
        layer = nn.Linear(2, 3, bias=False, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.copy_(centres + 0.4 * torch.randn(3, 2, generator=generator))
        rule, optimizer = SoftHebb(layer, temperature=temperature), torch.optim.SGD(layer.parameters(), lr=0.05)
        path = [layer.weight.detach().clone()]
        for _ in range(1500):
            chosen = centres[torch.randint(3, (32,), generator=generator)]
            noisy = chosen + 0.1 * torch.randn(32, 2, generator=generator)
            rule.learn(noisy / noisy.norm(dim=1, keepdim=True), None, optimizer)
            path.append(layer.weight.detach().clone())
        lengths = path[-1].norm(dim=1)
        cosines = (path[-1] * centres).sum(1) / lengths
        worst_cosine = min(worst_cosine, float(cosines.min()))
        worst_length = max(worst_length, float((lengths - 1).abs().max()))
        paths[f"T = {temperature:g}"] = torch.stack(path)
    run.claim(
        "soft Hebbian filters find the directions of three clusters: smallest cosine over T = 0.1, 0.3 and 1",
        measured=worst_cosine,
        unit="",
        threshold="> 0.98, and lengths within 0.02 of 1",
        holds=worst_cosine > 0.98 and worst_length < 0.02,
        note=f"Largest deviation of a length from 1: {worst_length:.4f}.",
    )
    figure, axes = panels(len(paths), size=(2.7, 2.7))
    circle = np.linspace(0, 2 * pi, 200)
    for ax, (title, path) in zip(axes, paths.items(), strict=True):
        ax.plot(np.cos(circle), np.sin(circle), color=GREY, lw=0.8)
        for unit in range(3):
            ax.plot(*path[:, unit].T.numpy(), color=COLOURS[unit], lw=1.2)
            ax.plot(*path[-1, unit].numpy(), "o", color=COLOURS[unit], ms=5)
        ax.plot(*centres.T.numpy(), "+", color="black", ms=9)
        ax.set(title=title, aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes[0].set(xlabel="$w_{k1}$", ylabel="$w_{k2}$")
    run.figure("clusters", figure)


def equations(run: Run) -> None:
    """The gradient is the formula, a convolution is a linear layer on its patches, and no rate is no change."""
    generator = torch.Generator().manual_seed(run.seed)
    layer = nn.Conv2d(2, 5, 3, stride=2, padding=1, bias=False, device="meta").to_empty(device="cpu").double()
    flat = nn.Linear(18, 5, bias=False, device="meta").to_empty(device="cpu").double()
    nn.init.normal_(layer.weight, std=0.5, generator=generator)
    x = torch.randn(3, 2, 9, 9, generator=generator, dtype=torch.float64)
    rows, weight = patches(layer, x), layer.weight.detach().flatten(1)
    with torch.no_grad():
        flat.weight.copy_(weight)
    wanted = torch.zeros_like(weight)
    for row in rows:
        u = weight @ row
        wanted += torch.softmax(u, 0)[:, None] * (row - u[:, None] * weight) / len(rows)
    SoftHebb(layer).backward(x)
    SoftHebb(flat).backward(rows)
    if layer.weight.grad is None or flat.weight.grad is None:
        raise RuntimeError("SoftHebb gave no gradient.")
    taught = layer.weight.grad.flatten(1)
    gaps = float((taught + wanted).abs().max()), float((taught - flat.weight.grad).abs().max())
    run.claim(
        "the gradient is minus the rule, patch by patch, a convolution's is that of its patches: largest difference",
        measured=max(gaps),
        unit="",
        threshold="< 1e-12",
        holds=max(gaps) < 1e-12,
    )
    net = strided_conv((1, 16, 16), 4, (4, 6, 8), generator=generator)
    alone = Tent(deepcopy(net), lr=1e-2, layers=["bn1"])
    ours = NeuroModulatedHebbian(net, lr_hebb=0.0, lr_modulator=1e-2)
    batches = [torch.rand(20, 1, 16, 16, generator=generator) for _ in range(5)]
    gap = max(float((alone.adapt(batch) - ours.adapt(batch)).abs().max()) for batch in batches)
    run.claim(
        "without a Hebbian rate the method is its modulator alone: largest difference of the answers to 5 batches",
        measured=gap,
        unit="",
        threshold="none at all",
        holds=gap == 0.0,
    )


class RandomDirection(SoftHebb):
    """A control: changes of the rule's size, all along one random direction."""

    def change(self, x: Tensor) -> Tensor:
        """The random direction, as long as the rule's change."""
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.net.weight.shape, generator=generator).to(self.net.weight)
        return direction * (super().change(x).norm() / direction.norm())

    def packets(self, x: Any, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the weight, taught by minus the change."""
        yield Packet([self.net.weight], [-self.change(x)], torch.zeros(()))


class Reversed(SoftHebb):
    """A control: minus the rule's change."""

    def packets(self, x: Any, y: Tensor | None = None) -> Iterator[Packet]:
        """The rule's packet with the opposite weight."""
        for packet in super().packets(x, y):
            yield packet._replace(weight=-1.0)


Streams = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """One seed's material: a net to train, the images that train it, and streams by corruption.

    Attributes:
        net: trained here, before anything else.
        data: the test part is not used.
        held: on which rates are chosen.
        stream: on which methods are judged.
        modulator: the norm behind conv1.
        epochs: of training the source.
        batch: samples a batch of a stream.
    """

    net: nn.Module
    data: Dataset
    held: Streams
    stream: Streams
    modulator: str
    epochs: int
    batch: int


def handwriting(settings: Settings, seed: int) -> Task:
    """Written digits, corrupted here."""
    data = load(settings.images)
    # The validation part comes out of images that do not train.
    train = None if settings.train is None else settings.train + settings.held
    split = data.subset(train, settings.stream, seed=seed)
    held = split.holdout(settings.held, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def streams(x: Tensor, y: Tensor, kinds: Mapping[str, float]) -> Streams:
        return {kind: (corrupt(x, kind, generator=generator, amount=amount), y) for kind, amount in kinds.items()}

    return Task(
        strided_conv(data.shape, data.classes, generator=torch.Generator().manual_seed(seed)),
        held,
        streams(held.x_test, held.y_test, HELD),
        streams(split.x_test, split.y_test, STREAM),
        "bn1",
        settings.epochs,
        settings.batch,
    )


def cifar(settings: Settings, seed: int) -> Task:
    """CIFAR-10-C at severity 5, from the user's folder; the four extra kinds choose the rates."""
    folder = Path(settings.folder)

    def pictures(name: str, last: int | None = None) -> Tensor:
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        array = np.array(array if last is None else array[-last:])
        return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255

    def labels(name: str) -> Tensor:
        return torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False).astype(np.int64))

    every = labels("labels")
    last = len(every) // 5  # the files hold five severities, one after another
    y = every[-last:]
    names = tuple(map(str, range(int(every.max()) + 1)))
    clean, classes = pictures("train_images"), labels("train_labels")
    data = Dataset("cifar-10", clean, classes, clean[:1], classes[:1], names)
    held, stream = ({kind: (pictures(kind, last), y) for kind in group} for group in (CIFAR_C_HELD, CIFAR_C))
    generator = torch.Generator().manual_seed(seed)
    net = wide_resnet(data.shape, data.classes, settings.depth, settings.width, generator=generator)
    return Task(net, data, held, stream, "block1.bn1", settings.cifar_epochs, settings.cifar_batch)


def error(adapter: Adapter, streams: Streams, batch: int) -> dict[str, float]:
    """Errors by corruption, %; the source is restored before each. A stream that diverges is wrong throughout."""
    found = {}
    for kind, (x, y) in streams.items():
        adapter.reset()
        try:
            wrong = sum(
                int((adapter.adapt(images).argmax(1) != labels).sum())
                for images, labels in zip(x.split(batch), y.split(batch), strict=True)
            )
        except FloatingPointError:
            wrong = len(y)
        found[kind] = 100 * wrong / len(y)
    adapter.reset()
    return found


@torch.no_grad()
def source_error(net: nn.Module, streams: Streams) -> dict[str, float]:
    """Errors of the source as it is, %."""
    net.eval()
    return {
        kind: 100
        * sum(int((net(a).argmax(1) != b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
        / len(y)
        for kind, (x, y) in streams.items()
    }


def judged(make: Callable[[int], Task], settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Train a source, choose every method's rate, and meet the stream: one row a method and corruption."""
    task = make(seed)
    net = task.net
    rule, order = Backpropagation(net, cross_entropy), torch.Generator().manual_seed(seed)
    optimizer = adam(net.parameters(), settings.rate)
    for _ in range(task.epochs):
        train_epoch(rule, optimizer, task.data, batch_size=100, generator=order)

    def tuned(adapter: Callable[[float], Adapter], rates: Sequence[float]) -> float:
        means = [np.mean(list(error(adapter(rate), task.held, task.batch).values())) for rate in rates]
        return rates[int(np.argmin(means))]  # the smaller rate of equals

    def hebbian(rate: float, lr_modulator: float, kind: type[SoftHebb] = SoftHebb, **options: Any) -> Adapter:
        made = partial(kind, temperature=settings.temperature, **options)
        return NeuroModulatedHebbian(net, "conv1", task.modulator, rule=made, lr_hebb=rate, lr_modulator=lr_modulator)

    def modulator_alone(rate: float) -> Adapter:
        return Tent(net, lr=rate, layers=[task.modulator])

    tent = tuned(lambda rate: Tent(net, lr=rate), settings.modulator_rates)
    alone = tuned(modulator_alone, settings.modulator_rates)
    only = tuned(lambda rate: hebbian(rate, 0.0), settings.hebbian_rates)
    hard = tuned(lambda rate: hebbian(rate, alone, hard=True), settings.hebbian_rates)
    soft = tuned(lambda rate: hebbian(rate, alone), settings.hebbian_rates)
    arms: dict[str, tuple[float, Adapter]] = {
        "Norm": (0.0, BatchNormAdapt(net)),
        "Tent": (tent, Tent(net, lr=tent)),
        "modulator only": (alone, modulator_alone(alone)),
        "Hebb only": (only, hebbian(only, 0.0)),
        "NHL, hard": (hard, hebbian(hard, alone, hard=True)),
        "NHL": (soft, hebbian(soft, alone)),
        "NHL, random direction": (soft, hebbian(soft, alone, RandomDirection)),
        "NHL, reversed": (soft, hebbian(soft, alone, Reversed)),
    }
    results = {"source": (0.0, source_error(net, task.stream))}
    results |= {name: (rate, error(adapter, task.stream, task.batch)) for name, (rate, adapter) in arms.items()}
    return [
        {"method": name, "seed": seed, "rate": rate, "kind": kind, "error": value}
        for name, (rate, found) in results.items()
        for kind, value in found.items()
    ]


def streamed(name: str, make: Callable[[int], Task], seeds: Sequence[int], settings: Settings, run: Run) -> None:
    """All methods on all seeds; the claims."""
    calls = [partial(judged, make, settings, seed) for seed in seeds]
    label = f"{name}: sources, each on its streams"
    table = run.checkpoint(
        name.lower(),
        lambda: pd.DataFrame(
            [row for rows in parallel(calls, jobs=run.jobs, track=run.track, label=label) for row in rows]
        ),
    )
    run.metrics(name, table)
    means = table.groupby(["method", "seed"], as_index=False, sort=False).agg(
        error=("error", "mean"), rate=("rate", "first")
    )
    run.table(f"{name}-errors".lower(), table.pivot_table(index="method", columns="kind", values="error", sort=False))
    run.table(f"{name}-seeds".lower(), means)
    run.figure(f"errors-{name}".lower(), drawn(table, means))
    claims(name, means, run)


def claims(name: str, means: pd.DataFrame, run: Run) -> None:
    """What the stream decides, on mean errors over corruptions."""
    level = {str(method): float(rows["error"].to_numpy(dtype=float).mean()) for method, rows in means.groupby("method")}
    pair = partial(paired, means, value="error", arm="method")
    where = f"difference of mean errors ({name})"
    against = {
        "Norm": "Hebbian learning with a modulator beats the statistics of the batch alone",
        "modulator only": "the Hebbian layer adds to its modulator",
        "Tent": "it beats entropy minimisation over all norms (Tent)",
    }
    for rival, text in against.items():
        gap = pair("NHL", rival)
        run.claim(
            f"{text}: {where}",
            paper=UNKNOWN if rival != "Norm" else "yes: 10.7% error on CIFAR-10-C (as a leaderboard has it)",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold="interval below 0",
            baseline=f"{rival}: {level[rival]:.1f}%, NHL: {level['NHL']:.1f}%, source: {level['source']:.1f}%",
            holds=gap.below(0),
            note=f"{gap.seed_by_seed(2)} {TUNING}",
        )
    gap = pair("NHL", "NHL, hard")
    run.claim(
        f"soft competition beats hard competition: {where}",
        paper=UNKNOWN,
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval below 0",
        baseline=f"hard: {level['NHL, hard']:.1f}%, soft: {level['NHL']:.1f}%",
        holds=gap.below(0),
        note=gap.seed_by_seed(2),
    )
    gap = pair("NHL", "Hebb only")
    run.claim(
        f"the modulator is needed: {where}, with it less without",
        paper=UNKNOWN,
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval below 0",
        baseline=f"Hebb only: {level['Hebb only']:.1f}%",
        holds=gap.below(0),
        note=gap.seed_by_seed(2),
    )
    gap = pair("NHL, random direction", "modulator only")
    run.claim(
        f"a random direction of the same size does not help the modulator: {where}",
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval not below 0",
        baseline=f"modulator only: {level['modulator only']:.1f}%",
        holds=gap.below(0) is not True,
        note=gap.seed_by_seed(2),
    )
    gap = pair("NHL, reversed", "modulator only")
    run.claim(
        f"minus the change harms: {where}",
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval above 0",
        baseline=f"modulator only: {level['modulator only']:.1f}%",
        holds=gap.above(0),
        note=gap.seed_by_seed(2),
    )


def drawn(table: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Error by corruption, and what each method adds to the modulator, seed by seed."""
    shown = ["Norm", "Tent", "modulator only", "Hebb only", "NHL"]
    kinds = list(table["kind"].unique())
    figure, (left, right) = panels(2, size=(max(4.6, 0.5 * len(kinds) + 2), 3.1))
    cells = table.pivot_table(index="method", columns="kind", values="error", sort=False)
    for index, method in enumerate(shown):
        at = np.arange(len(kinds)) + 0.16 * (index - 2)
        left.bar(at, cells.loc[method, kinds].to_numpy(dtype=float), 0.15, color=COLOURS[index], label=method)
    left.set_xticks(range(len(kinds)), [kind.replace(" ", "\n").replace("_", "\n") for kind in kinds])
    left.set_ylabel("error (%)")
    left.set_title("by corruption, mean of seeds")
    left.set_ylim(top=1.3 * left.get_ylim()[1])  # room for the legend
    left.legend(fontsize=7, frameon=False, ncols=3, loc="upper left")
    base = means[means["method"] == "modulator only"].set_index("seed")["error"]
    rows = ["Norm", "Tent", "Hebb only", "NHL, random direction", "NHL, reversed", "NHL, hard", "NHL"]
    for row, method in enumerate(rows):
        gaps = means[means["method"] == method].set_index("seed")["error"] - base
        right.plot(gaps.to_numpy(dtype=float), [row] * len(gaps), "o", ms=4, alpha=0.7, color=COLOURS[0])
        right.plot(float(gaps.to_numpy(dtype=float).mean()), row, "|", ms=14, color="black")
    right.axvline(0, color=GREY, lw=0.8)
    right.set_yticks(range(len(rows)), rows)
    right.set_xlabel("error less that of the modulator alone (points)")
    right.set_title("each seed")
    return figure
