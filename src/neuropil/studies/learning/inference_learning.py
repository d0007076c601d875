"""Does inference learning take implicit gradient steps, and does that make it stable at any step size?

Inference learning relaxes the activities of a net between input and target and learns from what is left (Alonso,
Millidge, Krichmar & Neftci 2022). The study asks it of single steps first: is the step the implicit one, exactly where
the theory says so, and how close is it with the short inference that is used in practice? Then of training with one
sample at a time: which step sizes train, and how fast. A step towards a target saturates in alpha by construction, so
stability alone proves little; backpropagation towards the same target (BP-prox) shows what inference adds.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cosine_similarity, cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, is_at_hand, load
from neuropil.learning import Backpropagation, mlp
from neuropil.learning.energy import (
    Backpropagating,
    InferenceLearning,
    Inferring,
    PredictiveCoding,
    StackedAdam,
    StackedSGD,
    implicit_sgd_step,
    plot_curves,
    plot_step_sizes,
    plot_steps,
    single_steps_of,
    sweep,
)
from neuropil.parallel import parallel
from neuropil.statistics import Comparison, compare_paired, t_interval


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    data: str = "digits"
    train: int | None = None
    test: int | None = None
    exact_alphas: tuple[float, ...] = (0.01, 1.0, 100.0)
    step_hidden: int = 64
    step_seeds: int = 5
    step_samples: int = 24
    step_alphas: tuple[float, ...] = (0.1, 1.0, 100.0)
    step_training: tuple[int, ...] = (0, 600)
    implicit_inner: tuple[int, ...] = (400, 500, 2500)
    implicit_rates: tuple[float, ...] = (0.005, 0.02, 0.03)
    hidden: tuple[int, ...] = (64, 64)
    seeds: int = 10
    steps: int = 3000
    every: int = 50
    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    eps: float = 0.25
    sgd_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    adam_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
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
        implicit_rates=(0.02,),
        steps=0,
    ),
    "default": Settings(),
    "paper": Settings(
        data="mnist",
        hidden=(256, 256),
        seeds=5,
        steps=20_000,
        every=500,
        alphas=(0.01, 0.1, 1.0, 2.5, 10.0, 100.0),
        eps=0.0,
        sgd_rates=(0.005, 0.01, 0.015, 0.03, 0.05, 0.1),
        batch_steps=20_000,
    ),
}

SHORT = {"own": 0.015, "above": 0.015}  # IL-prox
PLAIN = {"own": 0.015, "above": 0.02}  # IL-SGD
INFERENCE = 25
TURNING = (
    "The implicit step turns away from the gradient as alpha grows (cosine 0.80 before training at alpha 100); the "
    "direction of these steps hardly depends on alpha and stays near the gradient's."
)
GOAL = 0.85


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    exactness(settings, run)
    limits(run)
    single_steps(settings, run)
    if settings.steps:
        if not is_at_hand(settings.data):
            run.claim(
                "IL-prox trains at every step size",
                holds=None,
                note=f"`neuropil data fetch {settings.data}` gets the data.",
            )
            return
        stability(settings, run)
        speed(settings, run)
        large_batches(settings, run)


def splits(settings: Settings, seeds: range) -> dict[int, Dataset]:
    """Flat data of every seed, which draws the split where there is no official one."""
    if settings.data == "digits":
        return {seed: load("digits", seed=seed).flat() for seed in seeds}
    data = load(settings.data).flat()
    return {seed: data.subset(settings.train, settings.test, seed=seed) for seed in seeds}


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
        note=f"alpha {', '.join(map('{:g}'.format, settings.exact_alphas))}; L-BFGS over activities against L-BFGS "
        "over parameters, 6-5-4-3 tanh net, one sample.",
    )


def implicit_parameters(net: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Minimise L(theta') + ||theta' - theta||^2 / (2 alpha), by scipy."""
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
        energy = (
            PredictiveCoding(net, cross_entropy, rate_own=own, rate_above=above, steps=60).relax(x, y).energy.sum(1)
        )
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
    keys = ["training", "alpha", "rule"]
    values = ["cosine", "explicit", "distance"]
    run.table("single-steps", table.pivot_table(index=keys, values=values, sort=False).reset_index())
    places = [(training, alpha) for training in settings.step_training for alpha in settings.step_alphas]
    closer = {place: lead(table, place, "cosine", "IL, converged", "SGD") for place in places}
    place, least = min(closer.items(), key=lambda entry: entry[1].interval[0])
    run.claim(
        "converged inference points closer to the implicit step than SGD does: lead in cosine, where it is least",
        paper="IL is closer to implicit than to explicit SGD (figure; values not known)",
        measured=least.mean,
        interval=least.interval,
        threshold="interval above 0 at every alpha, before and after training",
        baseline=f"cosine of SGD there: {by_seed(table, place, 'SGD', 'cosine').mean():.3f}",
        holds=all_of([comparison.above(0) for comparison in closer.values()]),
        note=f"Least {words(place)}. " + "; ".join(f"{words(at)}: {c.mean:.3f}" for at, c in closer.items()) + ".",
    )
    far = {place: lead(table, place, "distance", "SGD", "IL-prox") for place in places if place[1] >= 1}
    place, near = min(far.items(), key=lambda entry: entry[1].interval[0])
    control = lead(table, place, "distance", "SGD", "BP-prox")
    cosines = [by_seed(table, place, rule, "cosine").mean() for rule in ("IL-prox", "SGD")]
    run.claim(
        "for alpha >= 1 IL-prox lands closer to the implicit step than SGD: lead in distance, where least",
        paper="IL-prox approximates implicit SGD best (figure; values not known)",
        measured=near.mean,
        interval=near.interval,
        unit="lengths of the implicit step",
        threshold="interval above 0 at every alpha >= 1, before and after training",
        baseline=f"BP-prox's lead there: {control.mean:.2f}",
        holds=all_of([comparison.above(0) for comparison in far.values()]),
        note=f"Least {words(place)}. Short inference gets the length right: cosines to the implicit step "
        f"there are {cosines[0]:.2f} (IL-prox) and {cosines[1]:.2f} (SGD).",
    )
    if run.scale != "smoke":
        nearer_implicit(table, places, run)
    shown = table.query("training == training.max()")
    run.figure("single-steps", plot_steps(shown, title=f"after {max(settings.step_training)} steps of SGD"))


def nearer_implicit(table: pd.DataFrame, places: list[tuple[int, float]], run: Run) -> None:
    """The paper's comparison by direction: is a step of IL nearer to the implicit than to the explicit step?"""
    for rule in ("IL, converged", "IL-prox"):
        leads = {
            place: compare_paired(by_seed(table, place, rule, "cosine"), by_seed(table, place, rule, "explicit"))
            for place in places
        }
        place, least = min(leads.items(), key=lambda entry: entry[1].interval[0])
        decided = [comparison.above(0) for comparison in leads.values()]
        explicit = by_seed(table, place, rule, "explicit").mean()
        run.claim(
            f"a step of {rule} points more to the implicit than to the explicit step: lead, where least",
            paper="closer to implicit SGD (figure; values not known)",
            measured=least.mean,
            interval=least.interval,
            threshold="interval above 0 at every alpha, before and after training",
            baseline=f"cosine to the explicit step there: {explicit:.3f}",
            holds=all_of(decided),
            note=f"Least {words(place)}. "
            + "; ".join(f"{words(at)}: {comparison.mean:.3f}" for at, comparison in leads.items())
            + f". {TURNING}",
        )


def measured_steps(settings: Settings, run: Run) -> pd.DataFrame:
    """Cosines and distances of every rule's step, one row a sample."""
    calls = [partial(steps_of_seed, settings, seed) for seed in range(run.seed, run.seed + settings.step_seeds)]
    frames = parallel(calls, jobs=run.jobs, track=run.track, label="seeds of single steps")
    return pd.concat(frames, ignore_index=True)


def steps_of_seed(settings: Settings, seed: int) -> pd.DataFrame:
    """The same for one net."""
    rows, trained = [], 0
    data = load("digits", seed=seed).flat()
    net = mlp(data.features, settings.step_hidden, data.classes, generator=torch.Generator().manual_seed(seed))
    x, y = data.x_train[: settings.step_samples], data.y_train[: settings.step_samples]
    for training in settings.step_training:
        train_plainly(net, data, training - trained, skip=settings.step_samples + trained)
        trained = training
        descents = zip(settings.implicit_inner, settings.implicit_rates, strict=True)
        for alpha, (inner, rate) in zip(settings.step_alphas, descents, strict=True):
            target = implicit_steps(net, x, y, alpha, inner, rate)
            rules = {
                "SGD": Backpropagating(),
                "IL, converged": Inferring(100, 0.1, 0.1),
                "IL-prox": Inferring(INFERENCE, **SHORT, alpha=alpha, eps=settings.eps),
                "BP-prox": Backpropagating(alpha, settings.eps),
            }
            explicit = single_steps_of(net, rules["SGD"], x, y)
            for name, rule in rules.items():
                step = single_steps_of(net, rule, x, y) * (1 if rule.alpha is not None else alpha)
                columns = {
                    "cosine": cosine_similarity(step, target, dim=1).tolist(),
                    "explicit": cosine_similarity(step, explicit, dim=1).tolist(),
                    "distance": ((step - target).norm(dim=1) / target.norm(dim=1)).tolist(),
                }
                rows.append(pd.DataFrame(columns).assign(seed=seed, training=training, alpha=alpha, rule=name))
    return pd.concat(rows, ignore_index=True)


def train_plainly(net: nn.Sequential, data: Dataset, steps: int, skip: int) -> None:
    """Steps of SGD at rate 0.1, one sample each, none of those that are measured."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for sample in range(skip, skip + steps):
        optimizer.zero_grad()
        cross_entropy(net(data.x_train[sample : sample + 1]), data.y_train[sample : sample + 1]).backward()
        optimizer.step()


def implicit_steps(net: nn.Module, x: Tensor, y: Tensor, alpha: float, inner: int, rate: float) -> Tensor:
    """The implicit step of every sample on its own, (samples, parameters).

    At the default descents it is within 0.2% (alpha 0.1 and 1) and 3% (alpha 100) of descents ten times as fine.
    """

    def after(sample: Tensor, label: Tensor) -> dict[str, Tensor]:
        return implicit_sgd_step(net, cross_entropy, sample[None], label[None], alpha, inner=inner, lr=rate)

    found = vmap(after)(x, y)
    return torch.cat([(found[name] - p.detach()).flatten(1) for name, p in net.named_parameters()], 1)


def stability(settings: Settings, run: Run) -> None:
    """One sample at a time, at step sizes over four orders of magnitude."""
    cells = [{"alpha": alpha} for alpha in settings.alphas]
    proximal = {name: arm for name, arm in arms(settings).items() if "Adam" not in name}
    table = run.checkpoint("stability", lambda: raced(proximal, cells, settings, run))
    run.metrics("stability", table)
    means = {(rule, alpha): ends(table, rule, alpha).mean() for rule in proximal for alpha in settings.alphas}
    spreads = [ends(table, *place).std(ddof=1) if settings.seeds > 1 else None for place in means]
    rules, alphas = zip(*means, strict=True)
    columns = {"rule": rules, "alpha": alphas, "accuracy": list(means.values()), "spread": spreads}
    run.table("stability", pd.DataFrame(columns))
    large = [alpha for alpha in settings.alphas if alpha >= 1]
    huge = [alpha for alpha in settings.alphas if alpha >= 10]
    worst = min(large, key=lambda alpha: means["IL-prox", alpha])
    failing = {rule: max(means[rule, alpha] for alpha in huge) for rule in ("BP-SGD", "IL-SGD")}
    slow = min(settings.alphas)
    run.claim(
        "IL-prox trains at every alpha from 1 to 100, where BP-SGD fails: its accuracy where it is worst",
        paper="trains at every alpha from .01 to 100, BP-SGD and IL-SGD fail at large alpha (figure; values not known)",
        measured=means["IL-prox", worst],
        interval=t_interval(ends(table, "IL-prox", worst)),
        unit="%",
        threshold="mean > 85 at every alpha >= 1, while BP-SGD's is < 30 at 10 and 100",
        baseline=f"at 10 and 100 at most: {', '.join(f'{rule} {value:.1f}%' for rule, value in failing.items())}",
        holds=means["IL-prox", worst] > 85 and failing["BP-SGD"] < 30,
        note=f"Worst at alpha {worst:g}. At alpha {slow:g} it is stable but slow: {means['IL-prox', slow]:.1f}%.",
    )
    leads = {alpha: compare_paired(*(ends(table, rule, alpha) for rule in ("IL-prox", "BP-prox"))) for alpha in large}
    least = min(leads, key=lambda alpha: leads[alpha].interval[0])
    run.claim(
        "inference adds something to the proximal target: IL-prox's lead on BP-prox for alpha >= 1, where it is least",
        measured=leads[least].mean,
        interval=leads[least].interval,
        unit="points",
        threshold="interval above 0 at every alpha >= 1",
        baseline="BP-prox: " + ", ".join(f"{means['BP-prox', alpha]:.1f}% at {alpha:g}" for alpha in large),
        holds=all_of([comparison.above(0) for comparison in leads.values()]),
        note="; ".join(f"alpha {alpha:g}: {comparison.mean:.1f} points" for alpha, comparison in leads.items())
        + f". Standard deviation over seeds at alpha >= 1: BP-prox {_range(table, 'BP-prox', large)}, IL-prox "
        f"{_range(table, 'IL-prox', large)} points: a last step can throw BP-prox off.",
    )
    run.figure("stability", plot_step_sizes(table))


def arms(settings: Settings) -> dict:
    """Rules of the batch-1 races; each makes (rule, optimizer) from the column alpha."""
    return {
        "BP-SGD": (lambda c: Backpropagating(), lambda c: StackedSGD(c["alpha"])),
        "IL-SGD": (lambda c: Inferring(INFERENCE, **PLAIN), lambda c: StackedSGD(c["alpha"])),
        "BP-prox": (lambda c: Backpropagating(c["alpha"], settings.eps), lambda c: StackedSGD(1.0)),
        "IL-prox": (
            lambda c: Inferring(INFERENCE, **SHORT, alpha=c["alpha"], eps=settings.eps),
            lambda c: StackedSGD(1.0),
        ),
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
    held = splits(settings, seeds)
    if tuning:
        held = {seed: data.holdout(0.2, seed=seed) for seed, data in held.items()}
    features, classes = held[first].features, held[first].classes
    run.uses(held[first])
    chosen = dict.fromkeys(contenders, cells) if isinstance(cells, list) else cells
    calls = [
        partial(
            sweep,
            own,
            *contenders[name],
            held.__getitem__,
            lambda generator: mlp(features, *settings.hidden, classes, generator=generator),
            seeds=seeds,
            steps=settings.steps if steps is None else steps,
            batch_size=batch,
            every=settings.every,
            device=run.device,
        )
        for name, own in chosen.items()
    ]
    label = f"rules, {'tuning' if tuning else 'training'}, batch {batch}"
    frames = parallel(calls, jobs=run.jobs, track=run.track, label=label)
    return pd.concat([frame.assign(rule=name) for name, frame in zip(chosen, frames, strict=True)], ignore_index=True)


def tuned(table: pd.DataFrame, tail: float) -> dict[str, list[dict[str, float]]]:
    """The best cell of every rule: mean accuracy over seeds and the last part of the looks; ties to the smaller."""
    late = table.query(f"step > {(1 - tail) * max(table['step'])}")
    chosen = {}
    for rule in dict.fromkeys(table["rule"]):
        scores = late.query("rule == @rule").pivot_table(index="alpha", values="accuracy").reset_index()
        best = int(np.argmax(np.asarray(scores["accuracy"])))
        chosen[str(rule)] = [{"alpha": float(np.asarray(scores["alpha"])[best])}]
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
    needed = {rule: samples_to_goal(table.query("rule == @rule"), settings) for rule in best}
    run.table(
        "speed",
        pd.DataFrame(
            {
                "rule": list(needed),
                "alpha": [best[rule][0]["alpha"] for rule in needed],
                "samples to 85%": [float(np.mean(values)) for values in needed.values()],
                "accuracy": [float(ends(table, rule).mean()) for rule in needed],
            }
        ),
    )
    counts = {rule: f"{np.mean(values):.0f} (at {best[rule][0]['alpha']:g})" for rule, values in needed.items()}
    shown = ", ".join(f"{rule} {count}" for rule, count in counts.items())
    for rival, paper in (("BP-SGD", "faster than BP-SGD"), ("BP-Adam", "matches BP-Adam")):
        saved = compare_paired(needed[rival], needed["IL-prox"])
        run.claim(
            f"with one sample at a time IL-prox reaches 85% with no more samples than {rival}: samples saved",
            paper=f"{paper} (curves)",
            measured=saved.mean,
            interval=saved.interval,
            unit="samples",
            threshold="interval not below 0: true if above, undecided if it covers 0",
            baseline=f"each at its best step size: {shown}",
            holds=saved.above(0),
            note=f"Looked at every {settings.every} samples; a run that never gets there counts as {settings.steps}.",
        )
    run.figure("speed", plot_curves(table, goal=100 * GOAL))


def samples_to_goal(rows: pd.DataFrame, settings: Settings) -> list[float]:
    """Of every seed: the first look at which it has 85%; the whole length where it never has."""
    found = []
    for seed in sorted(set(rows["seed"])):
        steps = np.asarray(rows.query(f"seed == {seed} and accuracy >= {GOAL}")["step"], dtype=float)
        found.append(float(steps.min(initial=settings.steps)))
    return found


def large_batches(settings: Settings, run: Run) -> None:
    """With larger batches and Adam on both sides."""
    cells = {rule: [{"alpha": rate} for rate in settings.adam_rates] for rule in ("BP-Adam", "IL-Adam")}

    def trained(chosen: dict[str, list[dict[str, float]]], tuning: bool) -> pd.DataFrame:
        steps = settings.batch_steps
        return raced(arms(settings), chosen, settings, run, batch=settings.batch, steps=steps, tuning=tuning)

    grid = run.checkpoint("batch-tuning", lambda: trained(cells, tuning=True))
    best = tuned(grid, tail=0.25)
    table = run.checkpoint("batch", lambda: trained(best, tuning=False))
    run.metrics("batch", table)
    gap = compare_paired(ends(table, "IL-Adam"), ends(table, "BP-Adam"))
    low, high = gap.interval
    run.claim(
        f"with batches of {settings.batch}, IL-Adam equals BP-Adam: difference of accuracy",
        paper="equal (curves, CIFAR-10)",
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval within -1.5 and 1.5",
        baseline=f"BP-Adam: {ends(table, 'BP-Adam').mean():.1f}%",
        holds=True if low > -1.5 and high < 1.5 else False if low > 1.5 or high < -1.5 else None,
        note=", ".join(f"{rule} at {found[0]['alpha']:g}" for rule, found in best.items())
        + f", {settings.batch_steps} batches.",
    )


def flat(tensors) -> Tensor:
    """All entries in one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def lead(table: pd.DataFrame, place: tuple[int, float], value: str, first: str, second: str) -> Comparison:
    """First minus second rule at one place, seed by seed."""
    return compare_paired(by_seed(table, place, first, value), by_seed(table, place, second, value))


def by_seed(table: pd.DataFrame, place: tuple[int, float], rule: str, value: str) -> np.ndarray:
    """Mean over the samples of each seed, at (training, alpha)."""
    rows = table.query(f"training == {place[0]} and alpha == {place[1]} and rule == @rule")
    return np.asarray(rows.pivot_table(index="seed", values=value)[value], dtype=float)


def words(place: tuple[int, float]) -> str:
    """Name a place."""
    return f"after {place[0]} steps at alpha {place[1]:g}"


def ends(table: pd.DataFrame, rule: str, alpha: float | None = None) -> np.ndarray:
    """Accuracies of a rule at the end, percent, in the order of the seeds."""
    rows = table.query("rule == @rule and step == step.max()" + ("" if alpha is None else f" and alpha == {alpha}"))
    return 100 * rows.sort_values(by="seed")["accuracy"].to_numpy(dtype=float)


def _range(table: pd.DataFrame, rule: str, alphas: list[float]) -> str:
    spreads = [float(ends(table, rule, alpha).std(ddof=1)) for alpha in alphas]
    return f"{min(spreads):.1f} to {max(spreads):.1f}"


def all_of(decided: list[bool | None]) -> bool | None:
    """True if all are, False if one is, undecided otherwise."""
    return False if False in decided else None if None in decided else True
