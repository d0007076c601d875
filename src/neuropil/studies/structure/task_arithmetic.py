"""Can a net be taught, untaught and taught several tasks at once by adding and subtracting differences of its weights?

A task vector is what fine-tuning added to a net's weights (Ilharco et al. 2022). Its negative is to make the net forget
the task and nothing else, sums of several are to do all of their tasks, and c + (b - a) is to do a task that was never
trained. Here the tasks are one set of digits seen through fixed transforms, by one net that half knows them all, as a
zero-shot model does. Random vectors of equal length, and climbing the loss instead, are the controls. Every factor is
chosen on validation images, the results are on test images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import nn

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.learning.networks import mlp
from neuropil.parallel import parallel
from neuropil.structure.weightspace.scale import KeepControl, MaxMean, choose_scale
from neuropil.structure.weightspace.vectors import TaskVector, analogy, sum_of
from neuropil.studies.structure._clip_world import ClipTasks
from neuropil.studies.structure._task_claims import addition_claims, analogy_claims, direction_claims, forgetting_claims
from neuropil.studies.structure._task_pictures import Table, draw_edits
from neuropil.studies.structure._task_worlds import TRANSFORMS, Images

World = Images | ClipTasks
LOW, HIGH = range(5), range(5, 10)  # the classes of an analogy
RANDOM = 0x2A4D0  # apart from the seeds of training


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths.

    `keep`: fraction of control accuracy that forgetting must keep; `grid`: number of factors from 0 to 1; `epochs` and
    `rates`: of pre-training and of tuning. With a `checkpoint`, the name of a folder in $NEUROPIL_DATA, the net is that
    CLIP model and the tasks are folders of images in `data`, tuned by `steps`; see the module `_clip_world`.
    """

    data: str = "mnist"
    tasks: tuple[str, ...] = tuple(TRANSFORMS)
    hidden: tuple[int, ...] = (128, 128)
    pretraining: int = 500
    tuning: int = 4000
    validation: int = 400
    test: int = 2000
    epochs: tuple[int, int] = (5, 4)
    rates: tuple[float, float] = (1e-3, 3e-4)
    batch_size: int = 50
    keep: float = 0.95
    grid: int = 21
    seeds: int = 3
    checkpoint: str | None = None
    steps: int = 2000
    warmup: int = 200
    decay: float = 0.1


SCALES = {
    "smoke": Settings(seeds=0),
    "default": Settings(),
    "paper": Settings(
        data="clip-tasks",
        tasks=("Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SUN397", "SVHN"),
        checkpoint="clip-vit-base-patch32",
        validation=1000,
        test=10_000,
        rates=(0.0, 1e-5),
        batch_size=128,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    identities(run)
    if not settings.seeds:
        return
    if settings.checkpoint is None:
        run.uses(load(settings.data))
    seeds = range(run.seed, run.seed + settings.seeds)
    calls = [partial(measured, seed, settings, run.device) for seed in seeds]

    def compute() -> dict:
        found = parallel(calls, jobs=run.jobs, track=run.track, label="seeds")
        return {name: [row for one in found for row in one[name]] for name in found[0]}

    rows = run.checkpoint("edits", compute)
    tables: dict[str, Table] = {name: pd.DataFrame(value) for name, value in rows.items()}
    for name, table in tables.items():
        if len(table):
            run.metrics(name, table)
    run.table(
        "forgetting", tables["forgetting"].groupby("task", sort=False).mean(numeric_only=True).drop(columns="seed")
    )
    run.table("cosines", tables["cosines"].groupby(["kind", "first", "second"])["cosine"].mean().reset_index())
    forgetting_claims(tables["forgetting"], settings.keep, run)
    addition_claims(tables["sums"], run)
    direction_claims(tables["cosines"], run)
    if len(tables["analogies"]):
        analogy_claims(tables["analogies"], run)
    run.figure("edits", draw_edits(tables))


def identities(run: Run) -> None:
    """In a linear model edits are exact: what they are only roughly in a deep net."""
    pre, first, second = (
        mlp(6, 4, generator=torch.Generator().manual_seed(run.seed + number)).double() for number in range(3)
    )
    u, v = TaskVector.between(pre, first), TaskVector.between(pre, second)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(run.seed), dtype=torch.float64)
    checks: list[tuple[str, nn.Module, torch.Tensor]] = [
        ("the vector of a task gives its net", u.apply_to(pre), first(x)),
        ("minus the vector takes it back", (-u).apply_to(first), pre(x)),
        (
            "outputs of a sum are sums",
            sum_of([u, v]).apply_to(pre, 0.3),
            0.7 * pre(x) + 0.3 * (first(x) + second(x) - pre(x)),
        ),
        ("an analogy closes the parallelogram", analogy(u, v, u).apply_to(pre), second(x)),
    ]
    gap = max(float((net(x) - wanted).detach().abs().max()) for _, net, wanted in checks)
    run.claim(
        f"in a linear model {', '.join(text for text, _, _ in checks)}: largest difference",
        measured=gap,
        threshold="< 1e-12",
        holds=gap < 1e-12,
    )
    generator = torch.Generator().manual_seed(run.seed)
    random = u.random_like(generator)
    gap = max(abs(float(random[name].norm() / u[name].norm()) - 1) for name in u)
    run.claim(
        "a random vector has the length of the task's, tensor by tensor: largest relative difference",
        measured=gap,
        threshold="< 1e-12",
        holds=gap < 1e-12,
    )


def world_of(settings: Settings, seed: int, device: torch.device) -> World:
    """A net that half knows several tasks."""
    if settings.checkpoint is not None:
        return ClipTasks(
            settings.checkpoint,
            settings.data,
            settings.tasks,
            validation=settings.validation,
            test=settings.test,
            steps=settings.steps,
            warmup=settings.warmup,
            rate=settings.rates[1],
            decay=settings.decay,
            batch_size=settings.batch_size,
            seed=seed,
            device=device,
        )
    return Images(
        settings.data,
        settings.tasks,
        hidden=settings.hidden,
        pretraining=settings.pretraining,
        tuning=settings.tuning,
        validation=settings.validation,
        test=settings.test,
        epochs=settings.epochs,
        rates=settings.rates,
        batch_size=settings.batch_size,
        seed=seed,
        device=device,
    )


def measured(seed: int, settings: Settings, device: torch.device) -> dict[str, list[dict]]:
    """Everything for one seed: rows by table."""
    world = world_of(settings, seed, device)
    tuned = {task: world.tune(task) for task in world.tasks}
    vectors = {task: TaskVector.between(world.pre, net) for task, net in tuned.items()}
    again = {task: TaskVector.between(world.pre, world.tune(task, 1)) for task in world.tasks}
    forgotten, curves = forgetting(world, vectors, settings, seed)
    rows = {
        "forgetting": forgotten,
        "curves": curves,
        "sums": sums(world, tuned, vectors, settings),
        "cosines": cosines(vectors, again),
        "analogies": analogies(world, settings) if isinstance(world, Images) else [],
    }
    return {name: [{"seed": seed, **row} for row in several] for name, several in rows.items()}


def grid(settings: Settings) -> list[float]:
    """The factors to choose from."""
    return np.linspace(0, 1, settings.grid).tolist()


def _edited(world: World, vector: TaskVector, scale: float, part: str = "test") -> dict[str, float]:
    return world.accuracies(vector.apply_to(world.pre, scale), part)


def forgetting(
    world: World, vectors: Mapping[str, TaskVector], settings: Settings, seed: int
) -> tuple[list[dict], list[dict]]:
    """Subtract every task's vector; one row a task, and one a factor for the curves."""
    before = world.accuracies(world.pre, "test")
    rows, curves = [], []
    for number, (task, vector) in enumerate(vectors.items()):
        controls = [other for other in world.tasks if other != task]
        rule = KeepControl(settings.keep, controls)
        generator = torch.Generator().manual_seed(RANDOM + 1000 * seed + number)
        edits = {"negation": -vector, "random": vector.random_like(generator)}
        found = {
            name: choose_scale(world.pre, edit, lambda net: world.accuracies(net, "validation"), grid(settings), rule)
            for name, edit in edits.items()
        }
        scale = found["negation"].scale
        arms = {
            "before": before,
            "negation": _edited(world, edits["negation"], scale),
            "random": _edited(world, edits["random"], scale),
            "random, own factor": _edited(world, edits["random"], found["random"].scale),
            **climbed(world, task, rule),
        }
        row: dict = {"task": task, "scale": scale}
        for name, accuracies in arms.items():
            row[name] = accuracies[task]
            row[f"{name}, controls"] = float(np.mean([accuracies[other] for other in controls]))
        rows.append(row)
        for name, search in found.items():
            kept = search.table[controls].mean(axis=1)
            curves += [
                {"task": task, "arm": name, "scale": at, "target": target, "controls": control}
                for at, target, control in zip(search.table["scale"], search.table[task], kept, strict=True)
            ]
    return rows, curves


def climbed(world: World, task: str, rule: KeepControl) -> dict[str, dict[str, float]]:
    """Climb the loss of a task: to the end, and to the step that the rule chooses on validation images."""
    steps, validation, test = [0], [world.accuracies(world.pre, "validation")], [world.accuracies(world.pre, "test")]
    watched = set(np.unique(np.geomspace(1, 1000, 40).round()).astype(int).tolist())

    def watch(step: int, net: nn.Module) -> None:
        if step in watched:
            steps.append(step)
            validation.append(world.accuracies(net, "validation"))
            test.append(world.accuracies(net, "test"))

    end = world.tune(task, ascend=True, watch=watch)
    score, allowed = rule.judge(pd.DataFrame(validation).assign(scale=steps))
    best = int(np.where(allowed, score, -np.inf).argmax())
    return {"climbing, stopped": test[best], "climbing": world.accuracies(end, "test")}


def sums(
    world: World, tuned: Mapping[str, nn.Module], vectors: Mapping[str, TaskVector], settings: Settings
) -> list[dict]:
    """Add vectors of pairs and of all tasks: normalised accuracies, one row a sum and task."""
    groups = {" + ".join(pair): pair for pair in combinations(world.tasks, 2)} | {"all": world.tasks}
    references = {
        part: {task: world.accuracies(net, part, [task])[task] for task, net in tuned.items()}
        for part in ("validation", "test")
    }
    before = world.accuracies(world.pre, "test")
    rows = []
    for name, group in groups.items():
        vector = sum_of([vectors[task] for task in group])
        rule = MaxMean({task: references["validation"][task] for task in group})
        found = choose_scale(
            world.pre, vector, partial(world.accuracies, part="validation", tasks=group), grid(settings), rule
        )
        after = _edited(world, vector, found.scale)
        rows += [
            {
                "sum": name,
                "task": task,
                "scale": found.scale,
                "accuracy": after[task],
                "before": before[task],
                "tuned alone": references["test"][task],
                "normalised": after[task] / references["test"][task],
                "normalised before": before[task] / references["test"][task],
            }
            for task in group
        ]
    return rows


def cosines(vectors: Mapping[str, TaskVector], again: Mapping[str, TaskVector]) -> list[dict]:
    """Angles between tasks, and between two tunings of one task on other images."""
    pairs = [("two tasks", first, second, vectors[second]) for first, second in combinations(vectors, 2)]
    pairs += [("one task", task, task, again[task]) for task in vectors]
    return [
        {"kind": kind, "first": first, "second": second, "cosine": vectors[first].cosine(other)}
        for kind, first, second, other in pairs
    ]


def analogies(world: Images, settings: Settings) -> list[dict]:
    """Low plain digits are to high plain ones as low turned ones are to high turned ones, which nobody trains on.

    Answers are among the classes of the task, as with a head of its own: otherwise a net that says "high" more often
    would be the better one.
    """
    plain, turned = world.tasks[:2]
    a, b, c, d = (
        TaskVector.between(world.pre, world.tune(task, classes=classes))
        for task, classes in ((plain, LOW), (plain, HIGH), (turned, LOW), (turned, HIGH))
    )
    arms = {"analogy": analogy(a, b, c), "c alone": c, "b alone": b, "b + c": sum_of([b, c]), "trained on d": d}

    def accuracy(net: nn.Module, part: str) -> Mapping[str, float]:
        return world.accuracies(net, part, [turned], HIGH)

    rows = [{"arm": "before", "scale": 0.0, "accuracy": accuracy(world.pre, "test")[turned], "cosine": np.nan}]
    for name, vector in arms.items():
        scale = choose_scale(world.pre, vector, partial(accuracy, part="validation"), grid(settings)).scale
        after = accuracy(vector.apply_to(world.pre, scale), "test")[turned]
        rows.append({"arm": name, "scale": scale, "accuracy": after, "cosine": vector.cosine(d)})
    return rows
