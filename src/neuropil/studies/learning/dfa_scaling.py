"""Does random feedback straight from the output train modern networks, or only perceptrons on digits?

Direct feedback alignment is put beside backpropagation and beside a net of which only the last stage learns, on small
versions of the four kinds of tasks of Launay et al. (2020): a coordinate network that renders a photograph, a
recommender that predicts clicks, a graph network that sorts papers, a Transformer that writes text. Every arm has its
own rate from one grid. A task in which backpropagation hardly beats random features needs no hidden learning, and its
claims are void.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    gelu,
    mse_loss,
    scaled_dot_product_attention,
)

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.data.graphs import graph_is_at_hand, load_graph
from neuropil.learning import Backpropagation, Contender, LearningRule, compare, final_accuracies, mlp
from neuropil.learning.feedback import DirectFeedbackAlignment, Shallow, signal_alignment, signal_cosines
from neuropil.learning.networks import linear
from neuropil.learning.rule import Loss
from neuropil.learning.stages import Inputs
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, panels
from neuropil.statistics import above, compare_paired, paired, t_interval

ARMS = ("backpropagation", "direct feedback", "last stage only")
LOOKS = 5  # how often the signals of a run are looked at


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; tasks that are not named are left out."""

    tasks: tuple[str, ...] = ("views", "clicks", "papers", "text")
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 3
    digit_seeds: int = 0
    digit_epochs: int = 30
    pixels: int = 64
    frequencies: int = 32
    view_width: int = 128
    view_depth: int = 3
    view_steps: int = 300
    users: int = 300
    items: int = 200
    clicks: int = 20_000
    click_steps: int = 500
    graph_width: int = 32
    graph_steps: int = 100
    text: str = ""
    context: int = 32
    text_width: int = 64
    blocks: int = 2
    text_batch: int = 32
    text_steps: int = 300


SCALES = {
    "smoke": Settings(tasks=(), digit_seeds=2),
    "default": Settings(),
    # The paper's kinds of tasks at sizes near its own; WikiText-103 where its file is given as `text`.
    "paper": Settings(
        rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        seeds=10,
        digit_seeds=10,
        pixels=256,
        frequencies=128,
        view_width=256,
        view_depth=8,
        view_steps=20_000,
        users=10_000,
        items=5_000,
        clicks=2_000_000,
        click_steps=20_000,
        graph_steps=200,
        context=128,
        text_width=512,
        blocks=6,
        text_batch=64,
        text_steps=50_000,
    ),
}


class Task(NamedTuple):
    """A task for one seed: a net, where it is cut, what it is given and how it is judged (higher is better)."""

    net: nn.Module
    loss_fn: Loss
    batch: Callable[[], tuple[Inputs, Tensor]]
    score: Callable[[], float]
    points: Sequence[str] | str | None = None
    batch_dims: tuple[int, ...] = (0,)
    decay: float = 0.0


class Kind(NamedTuple):
    """A kind of task: how it is made, and what counts on it."""

    make: Callable[[Settings, int, bool], Task]
    title: str
    unit: str
    void: float  # lead of backpropagation on random features below which nothing can be told
    recovers: bool  # whether half of that lead is asked for
    steps: Callable[[Settings], int]
    paper: str


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    if settings.digit_seeds:
        digits(settings, run)
    scores, looks = [], []
    for name in settings.tasks:
        if name == "papers" and not graph_is_at_hand("cora"):
            note = "cora is not on this machine: neuropil.data.graphs.load_graph('cora') gets it."
            run.claim(f"direct feedback trains {KINDS[name].title}", holds=None, note=note)
            continue
        rows, seen = trained(name, settings, run)
        task_claims(name, rows, settings, run)
        scores.append(rows)
        looks.append(seen)
    if scores:
        table, signals = pd.concat(scores, ignore_index=True), pd.concat(looks, ignore_index=True)
        run.table("scores", table)
        run.metrics("signals", signals)
        alignment_claim(signals, run)
        figures(table, signals, run)


def digits(settings: Settings, run: Run) -> None:
    """What is known to work: a perceptron on digits, and its signals before and after."""
    data = load("digits").flat()
    run.uses(data)

    def net(generator: torch.Generator) -> nn.Module:
        return mlp(data.features, 64, 64, data.classes, generator=generator)

    sgd = partial(torch.optim.SGD, momentum=0.9)
    rules = {"backpropagation": Backpropagation, "direct feedback": DirectFeedbackAlignment, "last stage only": Shallow}
    table = run.checkpoint(
        "digits",
        lambda: compare(
            {name: Contender(net, rule, 0.05, sgd) for name, rule in rules.items()},
            lambda seed: load("digits", seed=seed).flat(),
            epochs=settings.digit_epochs,
            batch_size=64,
            seeds=range(run.seed, run.seed + settings.digit_seeds),
            measure=partial(signal_cosines, samples=256),
            jobs=run.jobs,
            track=run.track,
        ),
    )
    run.metrics("digits", table)
    run.table("digits", final_accuracies(table))
    lead = paired(table, "direct feedback", "last stage only", scale=100)
    ours = table[table["rule"] == "direct feedback"]
    last = ours[ours["epoch"] == settings.digit_epochs].sort_values("seed")
    run.claim(
        "direct feedback trains hidden layers of a perceptron on digits: its lead on a net whose last layer learns",
        measured=min(lead.differences),
        unit="points (worst seed)",
        threshold="above 5 in every seed",
        holds=min(lead.differences) > 5,
        note=lead.seed_by_seed(),
    )
    run.claim(
        "direct feedback learns the digits",
        measured=100 * float(last["accuracy"].min()),
        unit="% (worst seed)",
        threshold="> 92",
        holds=bool(last["accuracy"].min() > 0.92),
    )
    first = ours[ours["epoch"] == 0].sort_values("seed")
    growth = last["cosine 1"].to_numpy(dtype=float) - first["cosine 1"].to_numpy(dtype=float)
    run.claim(
        "the first layer's teaching signals turn towards those of backpropagation: growth of their cosine",
        measured=float(growth.min()),
        unit="(worst seed)",
        threshold="above 0 in every seed",
        holds=bool((growth > 0).all()),
    )


@cache
def photograph(pixels: int) -> np.ndarray:
    """The middle of scikit-learn's photograph of a temple, 0 to 1, (pixels, pixels, 3)."""
    image = np.asarray(load_sample_image("china.jpg"), dtype=np.float32) / 255
    top, left = (image.shape[0] - pixels) // 2, (image.shape[1] - pixels) // 2
    return image[top : top + pixels, left : left + pixels]


def views(settings: Settings, seed: int, tuning: bool) -> Task:
    """Colours from coordinates through random Fourier features; half of the pixels are never seen (PSNR, dB)."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.from_numpy(photograph(settings.pixels).reshape(-1, 3).copy())
    line = torch.linspace(-1, 1, settings.pixels)
    places = torch.cartesian_prod(line, line) @ (4 * torch.randn(2, settings.frequencies, generator=generator))
    features = torch.cat([places.sin(), places.cos()], 1) * 2**0.5
    seen, hidden = parts(len(colours), 0.5, tuning, generator)
    hiddens = [settings.view_width] * settings.view_depth
    net = mlp(features.shape[1], *hiddens, 3, activation=nn.Tanh, generator=generator)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = seen[torch.randint(len(seen), (512,), generator=generator)]
        return features[chosen], colours[chosen]

    def score() -> float:
        return -10 * math.log10(float(mse_loss(net(features[hidden]).clamp(0, 1), colours[hidden])))

    return Task(net, mse_loss, batch, score)


class Recommender(nn.Module):
    """Inner product of two embeddings, plus a perceptron on both: the logit of a click."""

    def __init__(self, users: int, items: int, generator: torch.Generator, width: int = 16):
        super().__init__()
        self.user = nn.Embedding(users, width, _weight=torch.randn(users, width, generator=generator))
        self.item = nn.Embedding(items, width, _weight=torch.randn(items, width, generator=generator))
        self.first = nn.Sequential(linear(2 * width, 64, generator=generator), nn.Tanh())
        self.second = nn.Sequential(linear(64, 64, generator=generator), nn.Tanh())
        self.readout = linear(64, 1, generator=generator)
        self.product = nn.Parameter(torch.full((width,), 1 / width))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Logits, (batch, 1)."""
        u, v = self.user(user), self.item(item)
        return (u * v) @ self.product[:, None] + self.readout(self.second(self.first(torch.cat([u, v], 1))))


def clicks(settings: Settings, seed: int, tuning: bool) -> Task:
    """Clicks drawn from known logits: tastes of users and items, and how they match (AUC, points)."""
    generator = torch.Generator().manual_seed(seed)
    user, item, clicked, _ = click_log(settings, generator)
    seen, hidden = parts(len(user), 0.2, tuning, generator)
    net = Recommender(settings.users, settings.items, generator)

    def batch() -> tuple[Inputs, Tensor]:
        chosen = seen[torch.randint(len(seen), (256,), generator=generator)]
        return {"user": user[chosen], "item": item[chosen]}, clicked[chosen, None]

    def score() -> float:
        return 100 * float(roc_auc_score(clicked[hidden].numpy(), net(user[hidden], item[hidden])[:, 0].numpy()))

    points = ["user", "item", "first", "second"]
    return Task(net, binary_cross_entropy_with_logits, batch, score, points)


def click_log(settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(user, item, click, logit) of every event: two habits of unit variance and a match of four traits."""
    users, items = (torch.randn(count, 5, generator=generator) for count in (settings.users, settings.items))
    user = torch.randint(settings.users, (settings.clicks,), generator=generator)
    item = torch.randint(settings.items, (settings.clicks,), generator=generator)
    match = (users[user, 1:] * items[item, 1:]).sum(1) / 2
    logits = users[user, 0] + items[item, 0] + match - 1
    return user, item, torch.bernoulli(logits.sigmoid(), generator=generator), logits


class GraphConvolution(nn.Module):
    """A linear layer, then the average over neighbours (Kipf & Welling 2017)."""

    def __init__(self, propagation: Tensor, inputs: int, outputs: int, generator: torch.Generator):
        super().__init__()
        self.register_buffer("propagation", propagation)
        self.linear = linear(inputs, outputs, generator=generator)

    propagation: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Features of every node, (nodes, features)."""
        return torch.sparse.mm(self.propagation, self.linear(h))


def papers(settings: Settings, seed: int, tuning: bool) -> Task:
    """Fields of Cora's papers from their words and citations (accuracy, points)."""
    graph, generator = load_graph("cora"), torch.Generator().manual_seed(seed)
    words = graph.features / graph.features.norm(dim=1, keepdim=True) * graph.features.shape[1] ** 0.5
    sizes = (words.shape[1], settings.graph_width, settings.graph_width, graph.classes)
    first, second, third = (
        GraphConvolution(graph.propagation(), inputs, outputs, generator)
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
    )
    net = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)
    judged = graph.validation if tuning else graph.test

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits[graph.train], labels[graph.train])

    def score() -> float:
        return 100 * float((net(words).argmax(1) == graph.labels)[judged].float().mean())

    return Task(net, loss_fn, lambda: (words, graph.labels), score, decay=5e-4)


class Block(nn.Module):
    """A pre-norm Transformer block that looks back only."""

    def __init__(self, width: int, generator: torch.Generator, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project = linear(width, 3 * width, generator=generator)
        self.merge = linear(width, width, generator=generator)
        self.widen = linear(width, 4 * width, generator=generator)
        self.narrow = linear(4 * width, width, generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens, (batch, time, width)."""
        q, k, v = self.project(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.merge(seen.transpose(1, 2).flatten(2))
        return h + self.narrow(gelu(self.widen(self.norms[1](h))))


class Writer(nn.Module):
    """Characters to logits of the next ones."""

    def __init__(self, characters: int, settings: Settings, generator: torch.Generator):
        super().__init__()
        width = settings.text_width
        self.embedding = nn.Embedding(characters, width, _weight=torch.randn(characters, width, generator=generator))
        self.position = nn.Parameter(0.1 * torch.randn(settings.context, width, generator=generator))
        self.blocks = nn.ModuleList([Block(width, generator) for _ in range(settings.blocks)])
        self.norm, self.head = nn.LayerNorm(width), linear(width, characters, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, time, characters)."""
        h = self.embedding(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@cache
def letters(text: str) -> tuple[Tensor, int]:
    """A text as numbers, and how many characters there are: a file, or Python's reference manual as pydoc has it."""
    manual = (
        Path(text).read_text(encoding="utf-8")
        if text
        else "\n".join(value for _, value in sorted(topics.topics.items()))
    )
    codes = np.frombuffer(manual.encode("ascii", "replace"), dtype=np.uint8)
    known, numbers = np.unique(codes, return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), len(known)


def text(settings: Settings, seed: int, tuning: bool) -> Task:
    """The next character of a text, each token taught by its own error (bits a character, negative)."""
    generator = torch.Generator().manual_seed(seed)
    whole, characters = letters(settings.text)
    # The last tenth judges, the tenth before it when rates are chosen; then the net never sees the last.
    tenth = len(whole) // 10
    seen, hidden = whole[: 8 * tenth], whole[8 * tenth : 9 * tenth] if tuning else whole[9 * tenth :]
    net = Writer(characters, settings, generator)

    def windows(source: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(source) - settings.context, (count, 1), generator=draw)
        pieces = source[starts + torch.arange(settings.context + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def loss_fn(logits: Tensor, following: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), following.flatten())

    def score() -> float:
        x, y = windows(hidden, 256, torch.Generator().manual_seed(0))
        return -float(loss_fn(net(x), y)) / math.log(2)

    return Task(net, loss_fn, lambda: windows(seen, settings.text_batch, generator), score, "blocks", (0, 1))


def parts(count: int, held: float, tuning: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples to learn from and to be judged on; when rates are chosen the judge is a fifth of the former."""
    order = torch.randperm(count, generator=generator)
    hidden, seen = order.split([round(held * count), count - round(held * count)])
    return (seen[len(seen) // 5 :], seen[: len(seen) // 5]) if tuning else (seen, hidden)


KINDS: Mapping[str, Kind] = {
    "views": Kind(
        views,
        "a coordinate network",
        "dB",
        1.0,
        True,
        lambda s: s.view_steps,
        "close to backpropagation on NeRF (its figures are not known to us)",
    ),
    "clicks": Kind(
        clicks,
        "a recommender",
        "points of AUC",
        5.0,
        True,
        lambda s: s.click_steps,
        "close to backpropagation on Criteo (its figures are not known to us)",
    ),
    "papers": Kind(
        papers,
        "a graph network",
        "points",
        5.0,
        True,
        lambda s: s.graph_steps,
        "about 80%, as backpropagation, on Cora (unverified)",
    ),
    "text": Kind(
        text,
        "a Transformer",
        "bits a character",
        0.2,
        False,
        lambda s: s.text_steps,
        "trains with a clear gap: perplexity 52 against 30, above 100 without hidden learning (WikiText-103, unverified)",
    ),
}


def make_rule(arm: str, task: Task, seed: int) -> LearningRule:
    """One of the three arms, for a task."""
    if arm == "backpropagation":
        return Backpropagation(task.net, task.loss_fn)
    if arm == "last stage only":
        return Shallow(task.net, task.loss_fn, task.points)
    generator = torch.Generator().manual_seed(seed + 1_000)
    return DirectFeedbackAlignment(task.net, task.loss_fn, task.points, batch_dims=task.batch_dims, generator=generator)


def train(name: str, arm: str, rate: float, seed: int, tuning: bool, settings: Settings) -> list[dict[str, Any]]:
    """One run: its score, and on the way the cosines of its signals.

    Returns:
        Rows of a look (with "point", "cosine") and a last one with the score; -inf where the loss was not finite.
    """
    kind = KINDS[name]
    task, steps = kind.make(settings, seed, tuning), kind.steps(settings)
    rule = make_rule(arm, task, seed)
    optimizer = torch.optim.Adam(task.net.parameters(), lr=rate, weight_decay=task.decay, fused=True)
    common = {"task": name, "rule": arm, "seed": seed, "rate": rate}
    rows: list[dict[str, Any]] = []
    when = {round(look * steps / (LOOKS - 1)) for look in range(LOOKS)}
    for step in range(steps + 1):
        x, y = task.batch()
        if step in when and arm == "direct feedback" and not tuning:
            seen = signal_alignment(rule, x, y)
            for stage, cosine in enumerate(seen["cosine_mean"], 1):
                rows.append({**common, "step": step, "stage": stage, "cosine": cosine})
        if step < steps and not math.isfinite(float(rule.learn(x, y, optimizer))):
            return [{**common, "score": -math.inf}]
    with torch.no_grad():
        return [*rows, {**common, "score": task.score()}]


def trained(name: str, settings: Settings, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All arms on one task, each at its own rate: scores, and cosines of signals."""

    def compute() -> pd.DataFrame:
        trials = [(arm, rate) for arm in ARMS for rate in settings.rates]
        rates = {arm: max(settings.rates) for arm in ARMS}
        if len(settings.rates) > 1:
            calls = [partial(train, name, arm, rate, run.seed, True, settings) for arm, rate in trials]
            tuned = parallel(calls, jobs=run.jobs, track=run.track, label=f"{name}: rates")
            for arm in ARMS:
                own = {
                    rate: rows[-1]["score"] for (tried, rate), rows in zip(trials, tuned, strict=True) if tried == arm
                }
                rates[arm] = max(own, key=own.__getitem__)
        seeds = range(run.seed, run.seed + settings.seeds)
        calls = [partial(train, name, arm, rates[arm], seed, False, settings) for seed in seeds for arm in ARMS]
        runs = parallel(calls, jobs=run.jobs, track=run.track, label=f"{name}: runs")
        return pd.DataFrame([row for rows in runs for row in rows])

    table = run.checkpoint(name, compute)
    scores = table[table["score"].notna()][["task", "rule", "seed", "rate", "score"]]
    looks = table[table["score"].isna()][["task", "seed", "step", "stage", "cosine"]]
    return scores.reset_index(drop=True), looks.reset_index(drop=True)


def task_claims(name: str, scores: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Whether hidden stages learn, and how much of backpropagation's lead on random features is recovered."""
    kind = KINDS[name]
    if name == "papers":
        run.uses(load_graph("cora"))
    exact, direct, shallow = (
        scores[scores["rule"] == arm].sort_values("seed")["score"].to_numpy(dtype=float) for arm in ARMS
    )
    void = float(exact.mean() - shallow.mean()) < kind.void
    means = ", ".join(
        f"{arm} {abs(mean):.2f}" for arm, mean in zip(ARMS, (exact.mean(), direct.mean(), shallow.mean()), strict=True)
    )
    rates = scores.groupby("rule", sort=False)["rate"].first()
    note = f"Means: {means}; rates: {', '.join(f'{rate:g}' for rate in rates)}."
    if name == "clicks":
        note += f" With the true logits: {bayes(settings, run):.1f}."
    if void:
        note += " Void: backpropagation hardly beats random features."
    lead = compare_paired(direct, shallow)
    run.claim(
        f"direct feedback trains {kind.title}: its lead on a net of which only the last stage learns",
        paper=kind.paper,
        measured=lead.mean,
        interval=lead.interval,
        unit=kind.unit,
        threshold=f"interval above 0; void if backpropagation leads by less than {kind.void:g}",
        baseline=f"last stage only: {abs(shallow.mean()):.2f}",
        holds=None if void else lead.above(0),
        note=f"{note} {lead.seed_by_seed(2)}",
    )
    gap = compare_paired(exact, direct)
    lag = f"Backpropagation leads by {gap.mean:.2f} {kind.unit} ({gap.interval[0]:.2f} to {gap.interval[1]:.2f})."
    if not kind.recovers:
        run.table(f"{name}-lag", pd.DataFrame({"seed": range(len(exact)), "lag": exact - direct}))
        run.claim(
            f"in {kind.title} direct feedback stays behind backpropagation: its lag",
            paper=kind.paper,
            measured=gap.mean,
            interval=gap.interval,
            unit=kind.unit,
            threshold="interval above 0",
            baseline=f"backpropagation: {abs(exact.mean()):.2f}",
            holds=None if void else gap.above(0),
        )
        return
    recovered = 100 * (direct - shallow) / (exact - shallow)
    interval = t_interval(recovered)
    run.claim(
        f"direct feedback comes close to backpropagation in {kind.title}: share of the lead on the last stage alone",
        paper=kind.paper,
        measured=float(recovered.mean()),
        interval=interval,
        unit="% of backpropagation's lead",
        threshold="interval above 50",
        baseline=f"backpropagation: {exact.mean():.2f}",
        holds=None if void else above(interval, 50),
        note=lag,
    )


def bayes(settings: Settings, run: Run) -> float:
    """Points of AUC that the true logits reach, mean over seeds: nobody can do better."""
    areas = []
    for seed in range(run.seed, run.seed + settings.seeds):
        _, _, clicked, logits = click_log(settings, torch.Generator().manual_seed(seed))
        areas.append(roc_auc_score(clicked.numpy(), logits.numpy()))
    return 100 * float(np.mean(areas))


def alignment_claim(looks: pd.DataFrame, run: Run) -> None:
    """Whether, at the end, every hidden stage of every task is taught in a direction that backpropagation shares."""
    last = looks[looks["step"] == looks.groupby("task")["step"].transform("max")]
    low = {
        (task, stage): t_interval(rows["cosine"].to_numpy(dtype=float))
        for (task, stage), rows in last.groupby(["task", "stage"], sort=False)
    }
    means = last.groupby(["task", "stage"], sort=False)["cosine"].mean()
    worst = min(low, key=lambda key: low[key][0])
    run.table("alignment", means.reset_index())
    verdicts = [above(interval, 0) for interval in low.values()]
    run.claim(
        "teaching signals stay aligned with those of backpropagation at all depths: lowest cosine of a stage",
        paper="positive at all depths (figure)",
        measured=float(means[worst]),
        interval=low[worst],
        unit=f"mean cosine ({worst[0]}, stage {worst[1]} of {int(means[worst[0]].index.max())})",
        threshold="interval above 0 in every stage of every task",
        holds=False if False in verdicts else None if None in verdicts else True,
        note=f"{sum(verdict is True for verdict in verdicts)} of {len(verdicts)} stages are above 0 for sure. Highest: "
        f"{float(means.max()):.2f}.",
    )


def figures(scores: pd.DataFrame, looks: pd.DataFrame, run: Run) -> None:
    """A bar a rule and task; cosines of every stage as learning goes on."""
    names = list(dict.fromkeys(scores["task"]))
    figure, axes = panels(len(names), size=(2.6, 2.7))
    for ax, name in zip(axes, names, strict=True):
        for place, (arm, colour) in enumerate(zip(ARMS, COLOURS, strict=False)):
            values = scores[(scores["task"] == name) & (scores["rule"] == arm)]["score"].abs().to_numpy(dtype=float)
            ax.bar(place, values.mean(), color=colour, alpha=0.75, width=0.7)
            ax.plot(np.full(len(values), place), values, "o", ms=3, color="black", mew=0)
        ax.set_xticks(range(len(ARMS)), ["BP", "DFA", "last stage"], fontsize=8)
        ax.set_ylabel(KINDS[name].unit)
        ax.set_title(name)
        every = scores[scores["task"] == name]["score"].abs()
        ax.set_ylim(bottom=max(0.0, float(every.min() - 0.6 * (every.max() - every.min()))))
    run.figure("scores", figure)
    figure, axes = panels(len(names), size=(2.6, 2.7))
    for ax, name in zip(axes, names, strict=True):
        own = looks[looks["task"] == name]
        for stage, rows in own.groupby("stage", sort=False):
            curve = rows.groupby("step")["cosine"].mean()
            ax.plot(curve.index, curve, lw=1.6, label=f"stage {stage}")
        ax.axhline(0, color="black", lw=0.6)
        ax.set_xlabel("step")
        ax.set_title(name)
        ax.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("cosine of teaching signals")
    run.figure("alignment", figure)
