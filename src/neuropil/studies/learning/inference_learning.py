"""Does inference learning take implicit gradient steps, and does that make it stable at any step size?

Inference learning relaxes the activities of a net between input and target and learns from what is left (Alonso,
Millidge, Krichmar & Neftci 2022). The study asks it of single steps first: is the step the implicit one, exactly where
the theory says so, and how close is it with the short inference that is used in practice? Then of training with one
sample at a time: which step sizes train, and how fast. A step towards a target saturates in alpha by construction, so
stability alone proves little; backpropagation towards the same target (BP-prox) shows what inference adds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cosine_similarity, cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load, locate
from neuropil.learning import Backpropagation, mlp
from neuropil.learning.energy import (
    Backpropagating,
    InferenceLearning,
    Inferring,
    PredictiveCoding,
    Replicas,
    StackedAdam,
    StackedSGD,
    implicit_sgd_step,
    sweep,
)
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import Comparison, compare_paired, t_interval


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    data: str = "digits"
    exact_alphas: tuple[float, ...] = (0.01, 1.0, 100.0)
    step_hidden: int = 64
    step_seeds: int = 5
    step_samples: int = 30
    step_alphas: tuple[float, ...] = (0.1, 1.0, 100.0)
    step_training: tuple[int, ...] = (0, 600)
    implicit_inner: tuple[int, ...] = (200, 1000, 4000)
    hidden: tuple[int, ...] = (64, 64)
    seeds: int = 5
    steps: int = 3000
    every: int = 50
    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    eps: float = 0.25
    sgd_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    adam_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    tuning_seeds: int = 3
    batch: int = 64
    batch_steps: int = 1000


SCALES = {
    "smoke": Settings(
        exact_alphas=(1.0,),
        step_seeds=5,
        step_samples=20,
        step_alphas=(1.0,),
        step_training=(0,),
        implicit_inner=(300,),
        steps=0,
    ),
    "default": Settings(),
    "paper": Settings(
        data="mnist",
        hidden=(256, 256),
        steps=20_000,
        alphas=(0.01, 0.1, 1.0, 2.5, 10.0, 100.0),
        eps=0.0,
        sgd_rates=(0.005, 0.01, 0.015, 0.03, 0.05, 0.1),
        batch_steps=20_000,
    ),
}

SHORT = {"own": 0.015, "above": 0.015}  # IL-prox
PLAIN = {"own": 0.015, "above": 0.02}  # IL-SGD
INFERENCE = 25
GOAL = 0.85


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    exactness(settings, run)
    limits(run)
    single_steps(settings, run)
    if settings.steps:
        if locate(settings.data) is None:
            run.claim(
                "IL-prox trains at every step size", holds=None, note=f"`neuropil data fetch {settings.data}` gets the data."
            )
            return
        stability(settings, run)
        speed(settings, run)
        large_batches(settings, run)


def split(settings: Settings, seed: int) -> Dataset:
    """Flat data; the seed draws the split where there is no official one."""
    return load(settings.data, seed=seed).flat() if settings.data == "digits" else load(settings.data).flat()


def exactness(settings: Settings, run: Run) -> None:
    """Exact inference takes the implicit step: against an independent minimiser of the same objective."""
    generator = torch.Generator().manual_seed(run.seed)
    gaps = []
    for alpha in settings.exact_alphas:
        net = mlp(6, 5, 4, 3, activation=nn.Tanh, generator=generator).double()
        x, y = torch.randn(1, 6, generator=generator).double(), torch.tensor([1])
        expected = implicit_parameters(net, x, y, alpha)
        InferenceLearning(net, cross_entropy, alpha=alpha, eps=0, inference="exact", steps=3000).learn(x, y)
        gaps.append(float((flat(net.parameters()) - expected).abs().max()))
    run.claim(
        "with exact inference the proximal step is the implicit step: largest difference of a parameter",
        paper="approximate; the exact statement is our derivation",
        measured=max(gaps),
        threshold="< 1e-6 at every alpha",
        holds=max(gaps) < 1e-6,
        note=f"alpha {', '.join(map('{:g}'.format, settings.exact_alphas))}; L-BFGS over activities against L-BFGS over "
        "parameters, 6-5-4-3 tanh net, one sample.",
    )


def implicit_parameters(net: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """argmin L(theta') + ||theta' - theta||^2 / (2 alpha), by scipy."""
    shapes = [(name, p.shape, p.numel()) for name, p in net.named_parameters()]
    start = flat(net.parameters())

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        moving = torch.tensor(values, requires_grad=True)
        pieces = moving.split([size for *_, size in shapes])
        named = {name: piece.view(shape) for (name, shape, _), piece in zip(shapes, pieces, strict=True)}
        total = cross_entropy(functional_call(net, named, (x,)), y) + (moving - start).square().sum() / (2 * alpha)
        (slope,) = torch.autograd.grad(total, moving)
        return total.item(), slope.numpy()

    options = {"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-12}
    return torch.tensor(minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", options=options).x)


def limits(run: Run) -> None:
    """Predictive coding is backpropagation for a small nudge, and inference only lowers the energy."""
    generator = torch.Generator().manual_seed(run.seed)
    data = load("digits", seed=run.seed).flat()
    run.uses(data)
    net = mlp(data.features, 32, 32, data.classes, activation=nn.Tanh, generator=generator).double()
    x, y = data.x_train[:20].double(), data.y_train[:20]
    rules = [
        Backpropagation(net, cross_entropy),
        PredictiveCoding(net, cross_entropy, nudge=1e-4, rate_own=0.2, rate_above=0.2, steps=300, tol=1e-12),
    ]
    gradients = []
    for rule in rules:
        net.zero_grad()
        rule.backward(x, y)
        gradients.append(flat(p.grad for p in net.parameters() if p.grad is not None))
    cosine = float(cosine_similarity(*gradients, dim=0))
    run.claim(
        "with converged inference and a small nudge, predictive coding is backpropagation: cosine of the gradients",
        measured=cosine,
        threshold="> 0.9999",
        holds=cosine > 0.9999,
    )
    rises = []
    for own, above in ((0.1, 0.1), (1.5, 1.5)):
        energy = PredictiveCoding(net, cross_entropy, rate_own=own, rate_above=above, steps=60).relax(x, y).energy.sum(1)
        rises.append(float(energy.diff().max() / energy[0]))
    run.claim(
        "guarded inference never raises the free energy: largest rise of a step, relative to the start",
        measured=max(rises),
        threshold="<= 1e-6, at rates 0.1 and 1.5",
        holds=max(rises) <= 1e-6,
    )


def single_steps(settings: Settings, run: Run) -> None:
    """Steps of each rule at one sample beside the implicit and the explicit step."""
    table = run.checkpoint("single-steps", lambda: measured_steps(settings, run))
    run.metrics("single-steps", table)
    mean = table.groupby(["training", "alpha", "rule"], sort=False)[["cosine", "explicit", "distance"]].mean()
    run.table("single-steps", mean.reset_index())
    closer = [
        (f"{training:g} steps, alpha {alpha:g}", _paired_means(rows, "cosine", "IL, converged", "SGD"))
        for (training, alpha), rows in table.groupby(["training", "alpha"], sort=False)
    ]
    worst, least = min(closer, key=lambda entry: entry[1].interval[0])
    run.claim(
        "converged inference points closer to the implicit step than SGD does: lead in cosine, where it is least",
        paper="IL is closer to implicit than to explicit SGD (figure; values not known)",
        measured=least.mean,
        interval=least.interval,
        threshold="interval above 0 at every alpha, before and after training",
        baseline=f"cosine of SGD there: {_mean_of(table, worst, 'SGD'):.3f}",
        holds=_all([comparison.above(0) for _, comparison in closer]),
        note=f"Least at {worst}. " + "; ".join(f"{where}: {value.mean:.3f}" for where, value in closer) + ".",
    )
    large = table[table["alpha"] >= 1]
    distances = [
        (f"{training:g} steps, alpha {alpha:g}", _paired_means(rows, "distance", "SGD", "IL-prox"))
        for (training, alpha), rows in large.groupby(["training", "alpha"], sort=False)
    ]
    place, near = min(distances, key=lambda entry: entry[1].interval[0])
    control = _paired_means(_place(table, place), "distance", "SGD", "BP-prox")
    run.claim(
        "for alpha >= 1, IL-prox lands closer to the implicit step than SGD: lead in relative distance, where it is least",
        paper="IL-prox approximates implicit SGD best (figure; values not known)",
        measured=near.mean,
        interval=near.interval,
        unit="lengths of the implicit step",
        threshold="interval above 0 at every alpha >= 1, before and after training",
        baseline=f"BP-prox's lead there: {control.mean:.2f}",
        holds=_all([comparison.above(0) for _, comparison in distances]),
        note=f"Least at {place}. It is the length that short inference gets right: its direction is no better than "
        f"SGD's (cosines {_mean_of(table, place, 'IL-prox'):.2f} and {_mean_of(table, place, 'SGD'):.2f}), and BP-prox "
        "has the same lead.",
    )
    if run.scale != "smoke":
        nearer_implicit(table, run)
    run.figure("single-steps", plot_single_steps(table))


def nearer_implicit(table: pd.DataFrame, run: Run) -> None:
    """The paper's comparison by direction: is a step of IL nearer to the implicit than to the explicit step?"""
    own = table[table["rule"].isin(["IL, converged", "IL-prox"])]
    leads = []
    for (training, alpha, rule), rows in own.groupby(["training", "alpha", "rule"], sort=False):
        by_seed = rows.groupby("seed")[["cosine", "explicit"]].mean()
        leads.append((f"{rule}, {training:g} steps, alpha {alpha:g}", compare_paired(by_seed["cosine"], by_seed["explicit"])))
    where, most = max(leads, key=lambda entry: entry[1].mean)
    decided = [comparison.above(0) for _, comparison in leads]
    run.claim(
        "steps of inference learning are closer in direction to the implicit than to the explicit step: lead, where most",
        paper="closer to implicit SGD (figure; values not known)",
        measured=most.mean,
        interval=most.interval,
        threshold="interval above 0 at some alpha for IL with converged inference or IL-prox",
        holds=True if any(decided) else None if None in decided else False,
        note=f"Most at {where}; {sum(d is True for d in decided)} of {len(decided)} conditions lead. Both steps of IL are "
        "closer to each other's gradient at the start than the implicit step, which follows the gradient at its end.",
    )


def measured_steps(settings: Settings, run: Run) -> pd.DataFrame:
    """Cosines and distances of every rule's step, one row a sample."""
    rows = []
    for seed in run.track(range(run.seed, run.seed + settings.step_seeds), "seeds of single steps"):
        data = load("digits", seed=seed).flat()
        net = mlp(data.features, settings.step_hidden, data.classes, generator=torch.Generator().manual_seed(seed))
        x, y = data.x_train[: settings.step_samples], data.y_train[: settings.step_samples]
        trained = 0
        for training in settings.step_training:
            train_plainly(net, data, training - trained, skip=settings.step_samples + trained)
            trained = training
            for alpha, inner in zip(settings.step_alphas, settings.implicit_inner, strict=True):
                target = implicit_steps(net, x, y, alpha, inner)
                rules = {
                    "SGD": Backpropagating(),
                    "IL, converged": Inferring(100, 0.1, 0.1),
                    "IL-prox": Inferring(INFERENCE, **SHORT, alpha=alpha, eps=settings.eps),
                    "BP-prox": Backpropagating(alpha, settings.eps),
                }
                explicit = one_by_one(net, rules["SGD"], x, y)
                for name, rule in rules.items():
                    step = one_by_one(net, rule, x, y) * (1 if rule.alpha is not None else alpha)
                    frame = pd.DataFrame(
                        {
                            "cosine": cosine_similarity(step, target, dim=1).tolist(),
                            "explicit": cosine_similarity(step, explicit, dim=1).tolist(),
                            "distance": ((step - target).norm(dim=1) / target.norm(dim=1)).tolist(),
                        }
                    )
                    rows.append(frame.assign(seed=seed, training=training, alpha=alpha, rule=name))
    return pd.concat(rows, ignore_index=True)


def train_plainly(net: nn.Sequential, data: Dataset, steps: int, skip: int) -> None:
    """Steps of SGD at rate 0.1, one sample each, none of those that are measured."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for sample in range(skip, skip + steps):
        optimizer.zero_grad()
        cross_entropy(net(data.x_train[sample : sample + 1]), data.y_train[sample : sample + 1]).backward()
        optimizer.step()


def implicit_steps(net: nn.Module, x: Tensor, y: Tensor, alpha: float, inner: int) -> Tensor:
    """The implicit step of every sample on its own, (samples, parameters)."""

    def after(sample: Tensor, label: Tensor) -> dict[str, Tensor]:
        return implicit_sgd_step(net, cross_entropy, sample[None], label[None], alpha, inner=inner, lr=0.1)

    found = vmap(after)(x, y)
    return torch.cat([(found[name] - p.detach()).flatten(1) for name, p in net.named_parameters()], 1)


def one_by_one(net: nn.Module, rule: Backpropagating | Inferring, x: Tensor, y: Tensor) -> Tensor:
    """A rule's step of every sample on its own, (samples, parameters): a replica a sample."""
    replicas = Replicas([net] * len(x))
    gradients = next(iter(rule.teach(replicas, x[:, None], y[:, None])))
    return -torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def stability(settings: Settings, run: Run) -> None:
    """One sample at a time, at step sizes over four orders of magnitude."""
    cells = [{"alpha": alpha} for alpha in settings.alphas]
    proximal = {name: arm for name, arm in arms(settings).items() if "Adam" not in name}
    table = run.checkpoint("stability", lambda: raced(proximal, cells, settings, run))
    run.metrics("stability", table)
    last = table[table["step"] == table["step"].max()]
    run.table("stability", last.groupby(["rule", "alpha"], sort=False)["accuracy"].agg(["mean", "std"]).reset_index())
    means = last.groupby(["rule", "alpha"])["accuracy"].mean().mul(100)
    large = [alpha for alpha in settings.alphas if alpha >= 1]
    huge = [alpha for alpha in settings.alphas if alpha >= 10]
    worst = min(large, key=lambda alpha: means["IL-prox", alpha])
    failing = max(means["BP-SGD", alpha] for alpha in huge)
    run.claim(
        "IL-prox trains at every alpha from 1 to 100, where BP-SGD fails: its accuracy where it is worst",
        paper="trains at every alpha from 0.01 to 100; BP-SGD and IL-SGD fail at large alpha (figure; values not known)",
        measured=means["IL-prox", worst],
        interval=t_interval(100 * _at(last, "IL-prox", worst)),
        unit="%",
        threshold="mean > 85 at every alpha >= 1, while BP-SGD's is < 30 at 10 and 100",
        baseline=f"at 10 and 100 at most: BP-SGD {failing:.1f}%, IL-SGD "
        f"{max(means['IL-SGD', alpha] for alpha in huge):.1f}%",
        holds=means["IL-prox", worst] > 85 and failing < 30,
        note=f"Worst at alpha {worst:g}. At alpha 0.01 it is stable but slow: {means['IL-prox', min(settings.alphas)]:.1f}%.",
    )
    leads = {
        alpha: compare_paired(_at(last, "IL-prox", alpha), _at(last, "BP-prox", alpha), scale=100) for alpha in large
    }
    least = min(leads, key=lambda alpha: leads[alpha].interval[0])
    run.claim(
        "inference adds something to the proximal target: IL-prox's lead on BP-prox for alpha >= 1, where it is least",
        measured=leads[least].mean,
        interval=leads[least].interval,
        unit="points",
        threshold="interval above 0 at every alpha >= 1",
        baseline="BP-prox: " + ", ".join(f"{means['BP-prox', alpha]:.1f}% at {alpha:g}" for alpha in large),
        holds=_all([lead.above(0) for lead in leads.values()]),
        note="; ".join(f"alpha {alpha:g}: {lead.mean:.1f} points" for alpha, lead in leads.items()) + ".",
    )
    run.figure("stability", plot_stability(table))


def arms(settings: Settings) -> dict:
    """Rules of the batch-1 races; each makes (rule, optimizer) from the column alpha."""
    return {
        "BP-SGD": (lambda c: Backpropagating(), lambda c: StackedSGD(c["alpha"])),
        "IL-SGD": (lambda c: Inferring(INFERENCE, **PLAIN), lambda c: StackedSGD(c["alpha"])),
        "BP-prox": (lambda c: Backpropagating(c["alpha"], settings.eps), lambda c: StackedSGD(1.0)),
        "IL-prox": (lambda c: Inferring(INFERENCE, **SHORT, alpha=c["alpha"], eps=settings.eps), lambda c: StackedSGD(1.0)),
        "BP-Adam": (lambda c: Backpropagating(), lambda c: StackedAdam(c["alpha"])),
        "IL-Adam": (lambda c: Inferring(INFERENCE, **PLAIN), lambda c: StackedAdam(c["alpha"])),
    }


def raced(
    contenders: dict,
    cells: list[dict[str, float]] | dict[str, list[dict[str, float]]],
    settings: Settings,
    run: Run,
    *,
    batch: int = 1,
    steps: int | None = None,
    tuning: bool = False,
) -> pd.DataFrame:
    """Train every contender on its cells; on a validation split and seeds of its own where it is for tuning."""
    first = run.seed + (1000 if tuning else 0)
    seeds = range(first, first + (settings.tuning_seeds if tuning else settings.seeds))
    held = {seed: split(settings, seed).holdout(0.2, seed=seed) if tuning else split(settings, seed) for seed in seeds}
    features, classes = held[first].features, held[first].classes
    run.uses(held[first])
    frames = []
    for name in contenders if isinstance(cells, list) else cells:
        rule, optimizer = contenders[name]
        frames.append(
            sweep(
                cells if isinstance(cells, list) else cells[name],
                rule,
                optimizer,
                held.__getitem__,
                lambda generator: mlp(features, *settings.hidden, classes, generator=generator),
                seeds=seeds,
                steps=settings.steps if steps is None else steps,
                batch_size=batch,
                every=settings.every,
                device=run.device,
                track=run.track,
                label=f"{name}, {'tuning' if tuning else 'training'}, batch {batch}",
            ).assign(rule=name)
        )
    return pd.concat(frames, ignore_index=True)


def tuned(table: pd.DataFrame, tail: float) -> dict[str, list[dict[str, float]]]:
    """The best cell of every rule: mean accuracy over seeds and the last part of the looks; ties to the smaller."""
    chosen = {}
    for rule, rows in table.groupby("rule", sort=False):
        late = rows[rows["step"] > (1 - tail) * rows["step"].max()]
        score = late.groupby("alpha")["accuracy"].mean()
        chosen[str(rule)] = [{"alpha": float(score.index[int(score.to_numpy().argmax())])}]
    return chosen


def speed(settings: Settings, run: Run) -> None:
    """How many samples each rule needs, one at a time, at its own best step size."""
    grids = {
        "BP-SGD": settings.sgd_rates,
        "IL-SGD": settings.sgd_rates,
        "BP-Adam": settings.adam_rates,
        "BP-prox": settings.alphas,
        "IL-prox": settings.alphas,
    }
    cells = {rule: [{"alpha": rate} for rate in rates] for rule, rates in grids.items()}
    best = tuned(run.checkpoint("tuning", lambda: raced(arms(settings), cells, settings, run, tuning=True)), tail=1.0)
    table = run.checkpoint("speed", lambda: raced(arms(settings), best, settings, run))
    run.metrics("speed", table)
    needed = {rule: samples_to_goal(rows, settings) for rule, rows in table.groupby("rule", sort=False)}
    last = table[table["step"] == table["step"].max()]
    run.table(
        "speed",
        pd.DataFrame(
            {
                "rule": list(needed),
                "alpha": [best[str(rule)][0]["alpha"] for rule in needed],
                "samples to 85%": [float(np.mean(values)) for values in needed.values()],
                "accuracy": [100 * float(last.loc[last["rule"] == rule, "accuracy"].mean()) for rule in needed],
            }
        ),
    )
    shown = ", ".join(f"{rule} {np.mean(values):.0f} (at {best[str(rule)][0]['alpha']:g})" for rule, values in needed.items())
    for rival, paper in (("BP-SGD", "faster than BP-SGD"), ("BP-Adam", "matches BP-Adam")):
        lead = compare_paired(needed[rival], needed["IL-prox"])
        run.claim(
            f"with one sample at a time IL-prox reaches 85% with no more samples than {rival}: samples saved",
            paper=f"{paper} (curves)",
            measured=lead.mean,
            interval=lead.interval,
            unit="samples",
            threshold="interval not below 0: true if above, undecided if it covers 0",
            baseline=f"each at its best step size: {shown}",
            holds=lead.above(0),
            note=f"Looked at every {settings.every} samples; a run that never gets there counts as {settings.steps}.",
        )
    run.figure("speed", plot_speed(table))


def samples_to_goal(rows: pd.DataFrame, settings: Settings) -> list[float]:
    """Of every seed: the first look at which it has 85%; the whole length where it never has."""
    found = []
    for _, own in rows.groupby("seed"):
        reached = own.loc[own["accuracy"] >= GOAL, "step"]
        found.append(float(reached.min()) if len(reached) else float(settings.steps))
    return found


def large_batches(settings: Settings, run: Run) -> None:
    """With larger batches and Adam on both sides."""
    cells = {rule: [{"alpha": rate} for rate in settings.adam_rates] for rule in ("BP-Adam", "IL-Adam")}
    options = {"batch": settings.batch, "steps": settings.batch_steps}
    grid = run.checkpoint("batch-tuning", lambda: raced(arms(settings), cells, settings, run, tuning=True, **options))
    best = tuned(grid, tail=0.25)
    table = run.checkpoint("batch", lambda: raced(arms(settings), best, settings, run, **options))
    run.metrics("batch", table)
    last = table[table["step"] == table["step"].max()]
    gap = compare_paired(
        *(last.loc[last["rule"] == rule, "accuracy"].to_numpy() for rule in ("IL-Adam", "BP-Adam")), scale=100
    )
    low, high = gap.interval
    run.claim(
        f"with batches of {settings.batch}, IL-Adam equals BP-Adam: difference of accuracy",
        paper="equal (curves, CIFAR-10)",
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval within -1.5 and 1.5",
        baseline=f"BP-Adam: {100 * last.loc[last['rule'] == 'BP-Adam', 'accuracy'].mean():.1f}%",
        holds=True if -1.5 < low and high < 1.5 else False if low > 1.5 or high < -1.5 else None,
        note=", ".join(f"{rule} at {found[0]['alpha']:g}" for rule, found in best.items())
        + f", {settings.batch_steps} batches.",
    )


def plot_single_steps(table: pd.DataFrame) -> Figure:
    """Cosine and distance to the implicit step, a panel a measure."""
    figure, axes = panels(2)
    last = table[table["training"] == table["training"].max()]
    alphas = sorted(last["alpha"].unique())
    rules = list(dict.fromkeys(last["rule"]))
    for ax, (value, label) in zip(
        axes, {"cosine": "cosine to the implicit step", "distance": "distance / its length"}.items(), strict=True
    ):
        for place, (colour, rule) in enumerate(zip(COLOURS, rules, strict=False)):
            rows = last[last["rule"] == rule].groupby(["alpha", "seed"])[value].mean().unstack()
            offset = 0.12 * (place - (len(rules) - 1) / 2)
            x = np.arange(len(alphas)) + offset
            mean = rows.mean(axis=1)
            ends = np.array([t_interval(row) for row in rows.to_numpy()]).T
            ax.errorbar(x, mean, yerr=np.abs(ends - mean.to_numpy()), fmt="o", ms=4, color=colour, capsize=2, label=rule)
        ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        ax.set_xlabel("step size alpha")
        ax.set_ylabel(label)
    axes[1].set_yscale("log")
    axes[1].axhline(1, color=GREY, lw=0.6)
    axes[0].legend(frameon=False, fontsize=7)
    axes[0].set_title(f"after {last['training'].iloc[0]} steps of SGD", fontsize=9)
    return figure


def plot_stability(table: pd.DataFrame) -> Figure:
    """Final accuracy against alpha, and the learning curves at the largest."""
    figure, (left, right) = panels(2)
    last = table[table["step"] == table["step"].max()]
    largest = table["alpha"].max()
    for colour, (rule, rows) in zip(COLOURS, last.groupby("rule", sort=False), strict=False):
        by_seed = rows.pivot_table(index="alpha", columns="seed", values="accuracy") * 100
        left.plot(by_seed.index, by_seed, "o", ms=2.5, color=colour, alpha=0.4, mew=0)
        left.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=1.6, label=rule)
        curve = table[(table["rule"] == rule) & (table["alpha"] == largest)]
        over = curve.pivot_table(index="step", columns="seed", values="accuracy") * 100
        right.plot(over.index, over.mean(axis=1), color=colour, lw=1.4)
    left.set_xscale("log")
    left.set_xlabel("step size alpha")
    left.set_ylabel("test accuracy (%)")
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel("samples")
    right.set_title(f"alpha {largest:g}", fontsize=9)
    return figure


def plot_speed(table: pd.DataFrame) -> Figure:
    """Learning curves at batch 1, each rule at its best step size."""
    figure, (ax,) = panels(1, size=(4.6, 3.0))
    for colour, (rule, rows) in zip(COLOURS, table.groupby("rule", sort=False), strict=False):
        over = rows.pivot_table(index="step", columns="seed", values="accuracy") * 100
        ax.plot(over.index, over.mean(axis=1), color=colour, lw=1.4, label=f"{rule} at {rows['alpha'].iloc[0]:g}")
    ax.axhline(100 * GOAL, color=GREY, lw=0.6)
    ax.set_xlabel("samples")
    ax.set_ylabel("test accuracy (%)")
    ax.legend(frameon=False, fontsize=8)
    return figure


def flat(tensors) -> Tensor:
    """All entries in one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _paired_means(rows: pd.DataFrame, value: str, first: str, second: str) -> Comparison:
    """Two rules, mean over the samples of each seed."""
    by_seed = rows.groupby(["rule", "seed"])[value].mean()
    return compare_paired(by_seed[first].to_numpy(), by_seed[second].to_numpy())


def _place(table: pd.DataFrame, where: str) -> pd.DataFrame:
    named = "{:g} steps, alpha {:g}".format
    return table[[named(*pair) == where for pair in zip(table["training"], table["alpha"], strict=True)]]


def _mean_of(table: pd.DataFrame, where: str, rule: str) -> float:
    rows = _place(table, where)
    return float(rows.loc[rows["rule"] == rule, "cosine"].mean())


def _at(table: pd.DataFrame, rule: str, alpha: float) -> np.ndarray:
    rows = table[(table["rule"] == rule) & (table["alpha"] == alpha)]
    return rows.sort_values("seed")["accuracy"].to_numpy(dtype=float)


def _all(decided: list[bool | None]) -> bool | None:
    """True if all are, False if one is, undecided otherwise."""
    return False if False in decided else None if None in decided else True
