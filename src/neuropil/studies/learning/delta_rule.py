"""What can one neuron learn by its own error, and what takes a second layer?

Teaching notes (Cuevas-Tello 2018) draw the McCulloch-Pitts neuron, find its weights by the delta rule, and reach the
non-linear problems for which backpropagation was made. The study checks each step where theory gives a number: the
perceptron's bound on mistakes, the least-squares solution, the largest stable step, the truth tables that one neuron
can have, the share of starts from which a small net solves XOR. On real data it compares the logistic delta rule with
logistic regression.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from sklearn.datasets import make_circles, make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, nn

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.learning import Backpropagation
from neuropil.learning.neuron import DeltaRule, McCullochPitts
from neuropil.learning.online import History, decision_boundary, fit_online, perceptron_bound
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import compare_paired

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
AND, OR, XOR = (torch.tensor(table)[:, None] for table in ([0.0, 0, 0, 1], [0.0, 1, 1, 1], [0.0, 1, 1, 0]))
LOW, HIGH = 0.1, 0.9  # targets of a logistic neuron: 0 and 1 would take infinite weights


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the notes give none."""

    hidden: tuple[int, ...] = (2, 3, 4, 8)
    activations: tuple[str, ...] = ("logistic", "tanh")
    starts: int = 40
    xor_epochs: int = 2000
    splits: int = 20
    epochs: int = 50
    rate: float = 0.1
    perceptron_epochs: int = 200
    curve_samples: int = 400
    curve_epochs: int = 20
    curve_seeds: int = 5


SCALES = {
    "smoke": Settings(hidden=(3,), activations=("logistic",), starts=20, splits=0),
    "default": Settings(),
    "paper": Settings(),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    histories = gates(run)
    least_squares(run)
    gradients(run)
    one_neuron_and_xor(run)
    rates = hidden_units(settings, run)
    if settings.splits:
        iris(settings, run)
        against_logistic_regression(settings, run)
        curved(settings, run)
    draw(histories, rates, settings, run)


def gates(run: Run) -> dict[str, History]:
    """AND and OR by the perceptron rule, against the bound on its mistakes."""
    histories = {}
    for name, target in (("AND", AND), ("OR", OR)):
        rule = DeltaRule(McCullochPitts([0.0, 0.0]), mode="perceptron")
        histories[name] = fit_online(rule, CORNERS, target, lr=1.0, shuffle=False)
        bound = perceptron_bound(CORNERS, target[:, 0] > 0)
        mistakes = int(histories[name].mistakes.sum())
        run.claim(
            f"the perceptron rule learns {name} within its bound",
            paper="separable classes are separated",
            measured=mistakes,
            unit="mistakes",
            threshold=f"stops, with at most (R / gamma)^2 = {bound:.4g} mistakes",
            holds=histories[name].converged and mistakes <= bound,
        )
    return histories


def least_squares(run: Run) -> None:
    """The delta rule of a linear neuron: where it ends, and with which steps it gets there."""
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    rows = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1)
    solution = torch.from_numpy(np.linalg.lstsq(rows.numpy(), y.numpy(), rcond=None)[0])
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    limit = 2 / float(values[-1])

    def distance(factor: float, steps: int) -> tuple[float, float]:
        start = solution + vectors[:, -1:]  # off the solution where the steps are longest
        neuron = McCullochPitts(start[:-1].T, start[-1], "identity")
        rule, optimizer = DeltaRule(neuron), torch.optim.SGD(neuron.parameters(), factor * limit)
        for _ in range(steps):
            rule.learn(x, y, optimizer)
        ended = torch.cat([neuron.weight.detach().T, neuron.bias.detach()[:, None]])
        return float((start - solution).norm()), float((ended - solution).norm())

    _, rest = distance(0.5, 2000)
    run.claim(
        "the delta rule of a linear neuron ends at the least-squares solution: distance from numpy's",
        measured=rest,
        unit="",
        threshold="< 1e-4",
        holds=rest < 1e-4,
    )
    (before, below), (_, above) = distance(0.95, 200), distance(1.05, 200)
    run.claim(
        "batch steps are stable up to 2 / lambda_max(X^T X): growth of the distance in 200 steps at 1.05 of it",
        measured=above / before,
        unit="times",
        threshold="falls at 0.95 of the limit, grows at 1.05",
        baseline=f"at 0.95 of it: {below / before:.2g} times",
        holds=below < before < above,
    )


def gradients(run: Run) -> None:
    """The rule against its textbook form, -(d - y) f'(v) x, with each activation's derivative in closed form."""
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    d = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    slopes = {
        "identity": torch.ones_like,
        "logistic": lambda y: y * (1 - y),
        "tanh": lambda y: 1 - y * y,
    }
    gaps = []
    for kind, slope in slopes.items():
        weights = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        neuron = McCullochPitts(weights, torch.zeros(4), kind)
        DeltaRule(neuron).backward(x, d)
        y = neuron(x).detach()
        delta = (d - y) * slope(y)
        ours = torch.autograd.grad(0.5 * (neuron(x) - d).square().sum(), neuron.weight)[0]
        gaps += [float((-delta.T @ x - gradient).abs().max()) for gradient in (neuron.weight.grad, ours)]
    run.claim(
        "the delta rule is gradient descent: largest difference between rule, textbook form and autograd",
        measured=max(gaps),
        unit="",
        threshold="< 1e-6",
        holds=max(gaps) < 1e-6,
    )


def one_neuron_and_xor(run: Run) -> None:
    """All truth tables of two inputs: which can one neuron have?"""
    tables = [torch.tensor(table) for table in itertools.product([False, True], repeat=4)]
    possible = [table for table in tables if np.isfinite(perceptron_bound(CORNERS, table))]
    best = max(int((table == (XOR[:, 0] > 0)).sum()) for table in possible)
    run.claim(
        "one neuron cannot do XOR: the most rows of its truth table that one can have",
        paper="impossible",
        measured=best,
        unit="of 4",
        threshold="14 of the 16 truth tables are separable, and the nearest has 3 rows of XOR's",
        holds=len(possible) == 14 and best == 3,
    )


class Replicas(nn.Module):
    """Nets of one hidden layer from many starts, trained together: they share no weight, so neither a gradient."""

    def __init__(self, starts: int, hidden: int, activation: str, generator: torch.Generator):
        super().__init__()

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.rand(starts, *shape, generator=generator) - 0.5)

        self.first, self.bias = draw(2, hidden), draw(1, hidden)
        self.second, self.shift = draw(hidden, 1), draw(1, 1)
        self.activation = {"logistic": torch.sigmoid, "tanh": torch.tanh}[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all nets, (starts, batch, 1)."""
        return torch.sigmoid(self.activation(x @ self.first + self.bias) @ self.second + self.shift)


def solved(hidden: int, activation: str, starts: int, epochs: int, seed: int) -> float:
    """Share of starts from which backpropagation gets all four rows of XOR right."""
    net = Replicas(starts, hidden, activation, torch.Generator().manual_seed(seed))
    rule = Backpropagation(net, lambda output, target: 0.5 * (output - target).square().sum())
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    for _ in range(epochs):
        rule.learn(CORNERS, XOR, optimizer)
    with torch.no_grad():
        right = ((net(CORNERS) > 0.5) == (XOR > 0.5)).all(1)
    return float(right.float().mean())


def hidden_units(settings: Settings, run: Run) -> pd.DataFrame:
    """XOR by backpropagation, against the number of hidden units."""
    cases = list(itertools.product(settings.activations, settings.hidden))
    calls = [partial(solved, h, kind, settings.starts, settings.xor_epochs, run.seed) for kind, h in cases]
    shares = parallel(calls, jobs=run.jobs, track=run.track, label="XOR by backpropagation")
    rows = [{"activation": kind, "hidden": h, "solved": s} for (kind, h), s in zip(cases, shares, strict=True)]
    table = pd.DataFrame(rows)
    run.table("xor", table)
    enough = table.loc[table["hidden"] == 3, "solved"].to_numpy(dtype=float)
    run.claim(
        "a second layer solves XOR: starts of a 2-3-1 net from which backpropagation gets every row right",
        paper="solved by two layers",
        measured=100 * float(enough.min()),
        unit="% of starts (worst activation)",
        threshold="at least 90% (18 of 20)",
        holds=bool(enough.min() >= 0.9),
    )
    if 2 in settings.hidden:
        few = table.loc[table["hidden"] == 2, "solved"].to_numpy(dtype=float)
        run.claim(
            "two hidden units, enough to represent XOR, are not enough to learn it from every start",
            measured=100 * float(few.min()),
            unit="% of starts (worst activation)",
            threshold="fewer than with three, for every activation",
            baseline=f"three hidden units: {100 * float(enough.min()):.0f}%",
            holds=bool((few < enough).all()),
            note=", ".join(
                f"{kind}: {100 * share:.0f}%" for kind, share in zip(settings.activations, few, strict=True)
            ),
        )
    return table


def two_classes(data: Dataset, negative: int, positive: int, part: str) -> tuple[Tensor, Tensor]:
    """Samples of two classes, and which are of the positive one, (samples, 1)."""
    x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    chosen = (y == negative) | (y == positive)
    return x[chosen], (y[chosen] == positive)[:, None].float()


def iris(settings: Settings, run: Run) -> None:
    """A real pair of classes that a line separates, and one that none does."""
    data = load("iris")
    run.uses(data)
    x, labels = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])  # all 150 flowers
    pairs = {
        "setosa from the rest": (x, (labels == 0)[:, None].float()),
        "versicolor from virginica": (x[labels > 0], (labels[labels > 0] == 2)[:, None].float()),
    }
    for name, (samples, target) in pairs.items():
        rule = DeltaRule(McCullochPitts([0.0] * 4), mode="perceptron")
        bound = perceptron_bound(samples, target[:, 0] > 0)
        history = fit_online(rule, samples, target, lr=1.0, epochs=settings.perceptron_epochs)
        separable = name.startswith("setosa")
        run.claim(
            f"the perceptron {'separates' if separable else 'cannot separate'} {name} (iris)",
            paper="separable classes are separated" if separable else None,
            measured=int(history.mistakes.sum()) if separable else int(history.mistakes.min()),
            unit="mistakes" if separable else "mistakes in its best epoch",
            threshold=f"stops within its bound of {bound:.4g} mistakes"
            if separable
            else f"no separating plane exists, and no clean epoch in {settings.perceptron_epochs}",
            holds=history.converged and float(history.mistakes.sum()) <= bound
            if separable
            else not history.converged and bound == float("inf"),
        )


def delta_against_regression(name: str, classes: tuple[int, int], epochs: int, rate: float, seed: int) -> list[float]:
    """Test accuracies of the logistic delta rule and of logistic regression on one split."""
    data = load(name, seed=seed)
    (x, y), (x_test, y_test) = (two_classes(data, *classes, part) for part in ("train", "test"))
    scaler = StandardScaler().fit(x.numpy())
    x, x_test = (torch.from_numpy(scaler.transform(part.numpy())).float() for part in (x, x_test))
    neuron = McCullochPitts([0.0] * x.shape[1], 0.0, "logistic")
    order = torch.Generator().manual_seed(seed)
    fit_online(DeltaRule(neuron), x, LOW + (HIGH - LOW) * y, lr=rate, epochs=epochs, tol=0.0, generator=order)
    reference = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy().ravel())
    with torch.no_grad():
        ours = ((neuron(x_test) > 0.5).float() == y_test).float().mean()
    return [float(ours), float(reference.score(x_test.numpy(), y_test.numpy().ravel()))]


def against_logistic_regression(settings: Settings, run: Run) -> None:
    """One logistic neuron on real data, over paired splits."""
    run.uses(load("breast-cancer"))
    seeds = range(run.seed, run.seed + settings.splits)
    for title, name, classes in (
        ("breast cancer", "breast-cancer", (0, 1)),
        ("versicolor and virginica", "iris", (1, 2)),
    ):
        calls = [partial(delta_against_regression, name, classes, settings.epochs, settings.rate, s) for s in seeds]
        scores = np.array(parallel(calls, jobs=run.jobs, track=run.track, label=title))
        gap = compare_paired(scores[:, 0], scores[:, 1], scale=100)
        run.claim(
            f"one neuron by the delta rule classifies as well as logistic regression: its lead ({title})",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold="interval above -2",
            baseline=f"logistic regression: {100 * scores[:, 1].mean():.1f}%",
            holds=gap.above(-2),
            note=f"{settings.splits} splits.",
        )


def curve_scores(
    make: Callable[..., tuple[np.ndarray, np.ndarray]], degree: int, settings: Settings, seed: int
) -> float:
    """Test accuracy of one neuron on polynomial features of a curved problem; half of the samples train."""
    x, y = make(n_samples=settings.curve_samples, noise=0.1, random_state=seed)
    half = len(x) // 2
    features = PolynomialFeatures(degree, include_bias=False).fit_transform(x)
    features = torch.from_numpy(StandardScaler().fit(features[:half]).transform(features)).float()
    target = torch.from_numpy(y).float()[:, None]
    neuron = McCullochPitts([0.0] * features.shape[1], 0.0, "logistic")
    goals = LOW + (HIGH - LOW) * target[:half]
    fit_online(DeltaRule(neuron), features[:half], goals, lr=0.1, epochs=settings.curve_epochs, tol=0.0)
    with torch.no_grad():
        return float(((neuron(features[half:]) > 0.5).float() == target[half:]).float().mean())


def curved(settings: Settings, run: Run) -> None:
    """Problems with no separating line: squares and products of the inputs make one neuron enough."""
    seeds = range(run.seed, run.seed + settings.curve_seeds)
    problems = (("circles", partial(make_circles, factor=0.4), 2, 20), ("moons", make_moons, 3, 5))
    for name, make, degree, margin in problems:
        calls = [partial(curve_scores, make, d, settings, s) for d in (degree, 1) for s in seeds]
        scores = np.reshape(parallel(calls, jobs=run.jobs, track=run.track, label=name), (2, len(seeds)))
        gain = compare_paired(scores[0], scores[1], scale=100)
        run.claim(
            f"polynomial features of degree {degree} let one neuron draw a curve: its gain ({name})",
            paper="non-linear problems",
            measured=gain.mean,
            interval=gain.interval,
            unit="points",
            threshold=f"interval above {margin}",
            baseline=f"without: {100 * scores[1].mean():.1f}%",
            holds=gain.above(margin),
        )


def draw(histories: dict[str, History], rates: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Boundaries through training, a path on the error surface, XOR against hidden units, a net's answer to XOR."""
    figure, (lines, surface, shares, answer) = panels(4)
    moving_boundary(lines, histories["AND"])
    error_surface(surface)
    for colour, (kind, rows) in zip(COLOURS, rates.groupby("activation", sort=False), strict=False):
        shares.plot(rows["hidden"], 100 * rows["solved"], "o-", color=colour, label=str(kind))
    shares.set_xlabel("hidden units")
    shares.set_ylabel(f"starts that solve XOR (%, of {settings.starts})")
    shares.set_ylim(0, 105)
    shares.set_title("XOR by backpropagation")
    shares.legend(frameon=False, fontsize=8)
    xor_answer(answer, settings)
    run.figure("neurons", figure)


def moving_boundary(ax: Axes, history: History) -> None:
    """Lines of the perceptron after each epoch, darker with time."""
    ax.scatter(*CORNERS.T, c=[COLOURS[1] if on else COLOURS[0] for on in AND[:, 0]], zorder=3)
    x1 = np.linspace(-0.5, 1.5, 2)
    for share, (w1, w2, b) in zip(np.linspace(0.15, 1, len(history.weights)), history.weights.tolist(), strict=True):
        if w2:
            ax.plot(x1, -(w1 * x1 + b) / w2, color=GREY if share < 1 else COLOURS[6], alpha=share, lw=1.2)
    ax.set(xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xlabel="first input", ylabel="second input")
    ax.set_title("AND: the boundary after each epoch")


def error_surface(ax: Axes) -> None:
    """Error of a logistic neuron of two weights, and the path that the delta rule takes over it."""
    x = torch.tensor([[1.0, 0.2], [0.4, 1.0], [-1.0, -0.3], [-0.2, -1.0], [0.8, -0.5], [-0.7, 0.6]])
    target = torch.tensor([[0.9], [0.9], [0.1], [0.1], [0.9], [0.1]])
    neuron = McCullochPitts([-2.5, 3.5], 0.0, "logistic")
    neuron.bias.requires_grad_(False)
    history = fit_online(DeltaRule(neuron), x, target, lr=1.0, epochs=60, tol=0.0, shuffle=False)
    axis = torch.linspace(-4, 5, 60)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    error = 0.5 * (torch.sigmoid(grid @ x.T) - target[:, 0]).square().sum(-1)
    ax.contourf(axis, axis, error, levels=15, cmap="Greys")
    ax.plot(history.weights[:, 0], history.weights[:, 1], ".-", color=COLOURS[1], lw=1, ms=4)
    ax.set(xlabel="first weight", ylabel="second weight")
    ax.set_title("the delta rule on its error surface")


def xor_answer(ax: Axes, settings: Settings) -> None:
    """What one trained net of three hidden units says between the corners."""
    net = Replicas(1, 3, "logistic", torch.Generator().manual_seed(1))
    rule = Backpropagation(net, lambda output, target: 0.5 * (output - target).square().sum())
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    for _ in range(settings.xor_epochs):
        rule.learn(CORNERS, XOR, optimizer)
    boundary = decision_boundary(nn.Sequential(net, nn.Flatten(0, 1)), (-0.5, 1.5, -0.5, 1.5))
    shown = ax.contourf(*boundary, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.7)
    ax.figure.colorbar(shown, ax=ax, label="output", ticks=[0, 0.5, 1])
    ax.scatter(*CORNERS.T, c=[COLOURS[1] if on else COLOURS[0] for on in XOR[:, 0]], edgecolors="white", zorder=3)
    ax.set(xlabel="first input", ylabel="second input")
    ax.set_title("XOR: output of a 2-3-1 net")
