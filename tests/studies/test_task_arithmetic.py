"""The longer scales of the study, on tiny shapes, and what it computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropil.atlas import run_study
from neuropil.data import DataError
from neuropil.structure.weightspace.scale import KeepControl
from neuropil.structure.weightspace.vectors import TaskVector
from neuropil.studies.structure._task_worlds import TRANSFORMS, Images
from neuropil.studies.structure.task_arithmetic import LOW, SCALES, climbed, cosines, forgetting, sums, world_of

TINY = {
    "data": "digits",
    "tasks": ("plain", "turned 90", "inverted"),
    "hidden": (24,),
    "pretraining": 100,
    "tuning": 200,
    "validation": 100,
    "test": 100,
    "epochs": (4, 2),
    "grid": 5,
    "seeds": 2,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("task-arithmetic", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 3 + 3 + 2 + 3
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["edits.svg"]
    assert set(result.tables) == {"forgetting", "cosines"}


def clip_folder(place: Path) -> None:
    """A CLIP of a few thousand weights that reads letter by letter."""
    transformers = pytest.importorskip("transformers")
    place.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz.-"
    words = [form for letter in letters for form in (letter, f"{letter}</w>")] + ["<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab": str(place / "vocab.json"), "merges": str(place / "merges.txt")}
    transformers.CLIPTokenizer(**files).save_pretrained(place)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    start, end = len(words) - 2, len(words) - 1
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    text = {**small, **special, "vocab_size": len(words), "max_position_embeddings": 48}
    vision = {**small, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(place)


def image_folder(place: Path, classes: dict[str, tuple[int, int, int]]) -> None:
    """Noise around one colour a class, wider than high."""
    draws = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        for name, colour in classes.items():
            folder = place / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(draws.normal(colour, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path, monkeypatch):
    clip_folder(tmp_path / "clip")
    for task, shift in (("sea", 0), ("sky", 60)):
        image_folder(tmp_path / "tasks" / task, {"red_one": (190, shift, 20), "blue": (20, shift, 190)})
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    tiny = {"data": "tasks", "checkpoint": "clip", "tasks": ("sea", "sky"), "validation": 6, "test": 8}
    tiny |= {"steps": 3, "warmup": 1, "rates": (0.0, 1e-2), "batch_size": 4, "grid": 3, "seeds": 1}
    result = run_study("task-arithmetic", scale="paper", settings=tiny, output=tmp_path / "runs")
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 3 + 3 + 2

    world = world_of(replace(SCALES["paper"], **tiny), 0, torch.device("cpu"))
    pixels = world._pixels(world._parts["sea"][0].files[:2])
    assert pixels.shape == (2, 3, 16, 16)
    assert world.heads["sea"].shape == (2, 8)
    assert not world.heads["sea"].requires_grad
    files = [set(split.files) for split in (*world._parts["sea"], world._measured["validation"]["sea"])]
    assert sum(map(len, files)) == len(set.union(*files)) == 24
    assert world.accuracies(world.pre, "test", ["sky"], [1])["sky"] == 100.0  # one class to choose from
    lengths = world.pre(pixels).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(2), atol=1e-5)
    with pytest.raises(DataError, match="no folder nowhere"):
        world_of(replace(SCALES["paper"], checkpoint="nowhere"), 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def world():
    sizes = {key: TINY[key] for key in ("hidden", "pretraining", "tuning", "validation", "test", "epochs")}
    device = torch.device("cpu")
    return Images("digits", TINY["tasks"], rates=(1e-2, 3e-3), batch_size=50, seed=0, device=device, **sizes)


def test_transforms_move_pixels_and_lose_none():
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for name, transform in TRANSFORMS.items():
        y = transform(x)
        assert y.shape == x.shape
        if name == "inverted":
            assert torch.allclose(transform(y), x, atol=1e-6)
        else:
            assert torch.equal(y.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
        assert torch.equal(transform(x), y)
    assert len({tuple(transform(x)[0].flatten().tolist()) for transform in TRANSFORMS.values()}) == len(TRANSFORMS)


def test_the_head_is_never_tuned_and_the_world_is_the_same_again(world):
    tuned = world.tune("plain")
    assert torch.equal(tuned[-1].weight, world.pre[-1].weight)
    assert not torch.equal(tuned[0].weight, world.pre[0].weight)
    assert torch.equal(world.tune("plain")[0].weight, tuned[0].weight)
    assert not torch.equal(world.tune("plain", 1)[0].weight, tuned[0].weight)
    assert set(TaskVector.between(world.pre, tuned)) == {f"{i}.{what}" for i in (0, 2) for what in ("weight", "bias")}
    vector = TaskVector.between(world.pre, tuned)
    assert float(vector["2.weight"].abs().max()) == 0.0


def test_the_parts_of_a_world_share_no_image(world):
    (first, _), (second, _) = world._parts
    validation, test = (world._measured[part]["plain"][0] for part in ("validation", "test"))
    rows = [row.tobytes() for part in (first, second, validation, test) for row in part.flatten(1).numpy()]
    assert len(set(rows)) == len(rows)


def test_accuracies_of_some_classes_are_those_of_their_images_and_answers(world):
    whole = world.accuracies(world.pre, "test", ["plain"])["plain"]
    low = world.accuracies(world.pre, "test", ["plain"], LOW)["plain"]
    x, y = world._measured["test"]["plain"]
    logits = world.pre(x)
    assert whole == pytest.approx(100 * float((logits.argmax(1) == y).double().mean()))
    assert low == pytest.approx(100 * float((logits[:, :5].argmax(1) == y)[y < 5].double().mean()))


def test_rows_say_what_an_edit_does(world):
    tuned = {task: world.tune(task) for task in world.tasks}
    vectors = {task: TaskVector.between(world.pre, net) for task, net in tuned.items()}
    settings = SCALES["default"]
    rows, curves = forgetting(world, vectors, settings, 0)
    assert len(curves) == 3 * 2 * settings.grid
    before = world.accuracies(world.pre, "test")
    for row in rows:
        assert row["before"] == before[row["task"]]
        edited = world.accuracies((-vectors[row["task"]]).apply_to(world.pre, row["scale"]), "test")
        assert row["negation"] == edited[row["task"]]
        others = [edited[task] for task in world.tasks if task != row["task"]]
        assert row["negation, controls"] == pytest.approx(np.mean(others))
    table = sums(world, tuned, vectors, settings)
    assert [row["sum"] for row in table[::2]] == [
        "plain + turned 90",
        "plain + inverted",
        "turned 90 + inverted",
        "all",
        "all",
    ]
    angles = cosines(vectors, vectors)
    assert [row["cosine"] for row in angles if row["kind"] == "one task"] == pytest.approx([1.0] * 3)


def test_climbing_forgets_and_stops_where_the_rule_says(world):
    rule = KeepControl(0.95, ["turned 90", "inverted"])
    found = climbed(world, "plain", rule)
    before = world.accuracies(world.pre, "test")
    assert found["climbing"]["plain"] < before["plain"] - 20
    assert found["climbing"]["plain"] <= found["climbing, stopped"]["plain"] <= before["plain"]
