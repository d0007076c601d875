"""Small modern tasks for the study of direct feedback: a photograph, clicks, papers, text.

Each is made for one seed, with its net, where the net is cut, and how it is judged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import numpy as np
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

from neuropil.data.graphs import Graph, load_graph
from neuropil.learning import mlp
from neuropil.learning.networks import linear
from neuropil.learning.rule import Loss
from neuropil.learning.stages import Inputs

__all__ = ["KINDS", "Kind", "Sizes", "Task", "bayes", "parts"]


@dataclass(frozen=True)
class Sizes:
    """How large the nets and the data are, and how long they learn."""

    pixels: int = 64
    frequencies: int = 32
    view_width: int = 128
    view_depth: int = 3
    view_steps: int = 1200
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
    text_steps: int = 1200


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

    make: Callable[[Sizes, int, bool], Task]
    title: str
    unit: str
    void: float  # lead of backpropagation on random features below which nothing can be told
    recovers: bool  # whether half of that lead is asked for
    steps: Callable[[Sizes], int]
    paper: str


@cache
def photograph(pixels: int) -> np.ndarray:
    """The middle of scikit-learn's photograph of a temple, 0 to 1, (pixels, pixels, 3)."""
    image = np.asarray(load_sample_image("china.jpg"), dtype=np.float32) / 255
    top, left = (image.shape[0] - pixels) // 2, (image.shape[1] - pixels) // 2
    return image[top : top + pixels, left : left + pixels]


def views(sizes: Sizes, seed: int, tuning: bool) -> Task:
    """Colours from coordinates through random Fourier features; half of the pixels are never seen (PSNR, dB)."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.from_numpy(photograph(sizes.pixels).reshape(-1, 3).copy())
    line = torch.linspace(-1, 1, sizes.pixels)
    places = torch.cartesian_prod(line, line) @ (4 * torch.randn(2, sizes.frequencies, generator=generator))
    features = torch.cat([places.sin(), places.cos()], 1) * 2**0.5
    seen, hidden = parts(len(colours), 0.5, tuning, generator)
    hiddens = [sizes.view_width] * sizes.view_depth
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


def clicks(sizes: Sizes, seed: int, tuning: bool) -> Task:
    """Clicks drawn from known logits: tastes of users and items, and how they match (AUC, points)."""
    generator = torch.Generator().manual_seed(seed)
    user, item, clicked, _ = click_log(sizes, generator)
    seen, hidden = parts(len(user), 0.2, tuning, generator)
    net = Recommender(sizes.users, sizes.items, generator)

    def batch() -> tuple[Inputs, Tensor]:
        chosen = seen[torch.randint(len(seen), (256,), generator=generator)]
        return {"user": user[chosen], "item": item[chosen]}, clicked[chosen, None]

    def score() -> float:
        return 100 * float(roc_auc_score(clicked[hidden].numpy(), net(user[hidden], item[hidden])[:, 0].numpy()))

    points = ["user", "item", "first", "second"]
    return Task(net, binary_cross_entropy_with_logits, batch, score, points)


def click_log(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(user, item, click, logit) of every event: two habits of unit variance and a match of four traits."""
    users, items = (torch.randn(count, 5, generator=generator) for count in (sizes.users, sizes.items))
    user = torch.randint(sizes.users, (sizes.clicks,), generator=generator)
    item = torch.randint(sizes.items, (sizes.clicks,), generator=generator)
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


@cache
def citations() -> tuple[Graph, Tensor]:
    """Cora, and its words scaled so that a layer of LeCun weights gets inputs of unit variance."""
    graph = load_graph("cora")
    words = graph.features / graph.features.norm(dim=1, keepdim=True)
    return graph, words * words.shape[1] ** 0.5


def papers(sizes: Sizes, seed: int, tuning: bool) -> Task:
    """Fields of Cora's papers from their words and citations (accuracy, points)."""
    (graph, words), generator = citations(), torch.Generator().manual_seed(seed)
    propagation = graph.propagation()
    widths = (words.shape[1], sizes.graph_width, sizes.graph_width, graph.classes)
    first, second, third = (
        GraphConvolution(propagation, inputs, outputs, generator) for inputs, outputs in pairwise(widths)
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
        self.look, self.think = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = linear(width, 3 * width, generator=generator)
        self.merge = linear(width, width, generator=generator)
        self.widen = linear(width, 4 * width, generator=generator)
        self.narrow = linear(4 * width, width, generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens, (batch, time, width)."""
        q, k, v = self.project(self.look(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.merge(seen.transpose(1, 2).flatten(2))
        return h + self.narrow(gelu(self.widen(self.think(h))))


class Writer(nn.Module):
    """Characters to logits of the next ones."""

    def __init__(self, characters: int, sizes: Sizes, generator: torch.Generator):
        super().__init__()
        width = sizes.text_width
        self.embedding = nn.Embedding(characters, width, _weight=torch.randn(characters, width, generator=generator))
        self.position = nn.Parameter(0.1 * torch.randn(sizes.context, width, generator=generator))
        self.blocks = nn.ModuleList([Block(width, generator) for _ in range(sizes.blocks)])
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


def text(sizes: Sizes, seed: int, tuning: bool) -> Task:
    """The next character of a text, each token taught by its own error (bits a character, negative)."""
    generator = torch.Generator().manual_seed(seed)
    whole, characters = letters(sizes.text)
    # The last tenth judges, the tenth before it when rates are chosen; then the net never sees the last.
    tenth = len(whole) // 10
    seen, hidden = whole[: 8 * tenth], whole[8 * tenth : 9 * tenth] if tuning else whole[9 * tenth :]
    net = Writer(characters, sizes, generator)

    def windows(source: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(source) - sizes.context, (count, 1), generator=draw)
        pieces = source[starts + torch.arange(sizes.context + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def loss_fn(logits: Tensor, following: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), following.flatten())

    def score() -> float:
        x, y = windows(hidden, 256, torch.Generator().manual_seed(0))
        return -float(loss_fn(net(x), y)) / math.log(2)

    return Task(net, loss_fn, lambda: windows(seen, sizes.text_batch, generator), score, "blocks", (0, 1))


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
        "perplexity 52, backpropagation 30, above 100 without hidden learning (WikiText-103; unverified)",
    ),
}


def bayes(sizes: Sizes, seeds: Sequence[int]) -> float:
    """Points of AUC that the true logits of the clicks reach, mean over seeds: nobody can do better."""
    areas = []
    for seed in seeds:
        _, _, clicked, logits = click_log(sizes, torch.Generator().manual_seed(seed))
        areas.append(roc_auc_score(clicked.numpy(), logits.numpy()))
    return 100 * float(np.mean(areas))
