"""The paper's own world for task vectors: an image encoder of CLIP, and tasks that are folders of images.

    $NEUROPIL_DATA/<checkpoint>/                           as transformers saves a CLIP model, with its tokenizer
    $NEUROPIL_DATA/<folder>/<task>/{train,test}/<class name>/<image>

The text encoder makes a head of every task from the names of its classes, several prompts averaged; heads are frozen,
the image encoder is tuned (Ilharco et al. 2022, appendix B: AdamW at 1e-5, 2000 steps of 128 images, 200 of warm-up,
cosine, weight decay 0.1).
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.lr_scheduler import LambdaLR

from neuropil.data import DataError

__all__ = ["ClipTasks", "Encoder"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
PROMPTS = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a close-up photo of a {}.")
CHUNK = 256


class Split(NamedTuple):
    """Images on disk and their classes."""

    files: list[Path]
    y: Tensor

    def chosen(self, index: Tensor) -> "Split":
        """Some of them."""
        return Split([self.files[i] for i in index.tolist()], self.y[index])


class Encoder(nn.Module):
    """Images to directions in the space that they share with texts."""

    def __init__(self, clip: Any):
        super().__init__()
        self.vision, self.projection = clip.vision_model, clip.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, dimensions), of length 1."""
        return normalize(self.projection(self.vision(pixel_values=pixels).pooler_output), dim=1)


class ClipTasks:
    """Tasks in folders, one image encoder, and a head of class names for each.

    Args:
        checkpoint: name of the folder of the CLIP model.
        folder: name of the folder of the tasks.
        tasks: names of their folders.
        validation: images of a task for choosing factors, taken from its training part; the rest is halved.
        test: images for results, at most.
        steps: of tuning.
        warmup: steps over which the rate grows.
        rate: learning rate.
        decay: weight decay.
        batch_size: images a step.
        seed: of the draw of images and the order of batches.
        device: where all is computed.

    Raises:
        DataError: if $NEUROPIL_DATA has no such folders.
        ImportError: if transformers is not installed.
    """

    def __init__(
        self,
        checkpoint: str,
        folder: str,
        tasks: Sequence[str],
        *,
        validation: int,
        test: int,
        steps: int,
        warmup: int,
        rate: float,
        decay: float,
        batch_size: int,
        seed: int,
        device: torch.device,
    ):
        self.tasks, self.seed, self.device = tuple(tasks), seed, device
        self.steps, self.warmup, self.rate, self.decay, self.batch_size = steps, warmup, rate, decay, batch_size
        clip, tokenizer = _loaded(_at_hand(checkpoint))
        clip = clip.to(device).eval().requires_grad_(False)
        self.size = int(clip.config.vision_config.image_size)
        self.heads: dict[str, Tensor] = {}
        self._parts: dict[str, list[Split]] = {}
        self._measured: dict[str, dict[str, Split]] = {"validation": {}, "test": {}}
        for task in tasks:
            root = _at_hand(folder) / task
            names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
            self.heads[task] = _head(clip, tokenizer, names, device)
            train, tested = _split(root / "train", names), _split(root / "test", names)
            held, first, second = _shared(len(train.files), validation, seed)
            self._parts[task] = [train.chosen(first), train.chosen(second)]
            self._measured["validation"][task] = train.chosen(held)
            order = torch.randperm(len(tested.files), generator=torch.Generator().manual_seed(seed))
            self._measured["test"][task] = tested.chosen(order[:test])
        self.pre: nn.Module = Encoder(clip).requires_grad_(True)

    def tune(
        self,
        task: str,
        part: int = 0,
        *,
        classes: Collection[int] | None = None,
        ascend: bool = False,
        watch: Callable[[int, nn.Module], None] | None = None,
    ) -> nn.Module:
        """Tune a copy of the encoder under the frozen head of a task; see `Images.tune`."""
        data = self._parts[task][part]
        if classes is not None:
            data = data.chosen(torch.isin(data.y, torch.tensor(sorted(classes))).nonzero().flatten())
        net = deepcopy(self.pre).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.rate, weight_decay=self.decay)
        schedule = LambdaLR(optimizer, lambda step: _rate(step, self.warmup, self.steps))
        order = torch.Generator().manual_seed(1000 * self.seed + 2 * self.tasks.index(task) + part)
        for step in range(1, self.steps + 1):
            batch = data.chosen(torch.randint(len(data.y), (self.batch_size,), generator=order))
            logits = net(self._pixels(batch.files)) @ self.heads[task].T
            loss = (-1.0 if ascend else 1.0) * cross_entropy(logits, batch.y.to(self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if watch is not None:
                watch(step, net)
                net.train()
        return net

    @torch.no_grad()
    def accuracies(
        self,
        net: nn.Module,
        part: str,
        tasks: Sequence[str] | None = None,
        classes: Collection[int] | None = None,
    ) -> dict[str, float]:
        """Accuracy by task in percent; with `classes`, on their images alone and with answers among them alone."""
        net.eval()
        found = {}
        for task in self.tasks if tasks is None else tasks:
            data, head = self._measured[part][task], self.heads[task]
            allowed = torch.arange(len(head)) if classes is None else torch.tensor(sorted(classes))
            data = data.chosen(torch.isin(data.y, allowed).nonzero().flatten())
            right = 0
            for start in range(0, len(data.y), CHUNK):
                logits = net(self._pixels(data.files[start : start + CHUNK])) @ head[allowed.to(self.device)].T
                right += int((allowed[logits.argmax(1).cpu()] == data.y[start : start + CHUNK]).sum())
            found[task] = 100 * right / len(data.y)
        return found

    def _pixels(self, files: Sequence[Path]) -> Tensor:
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            images = list(pool.map(lambda file: _pixels_of(file, self.size), files))
        return torch.stack(images).to(self.device)


def _at_hand(name: str) -> Path:
    place = Path(os.environ.get("NEUROPIL_DATA", ".")) / name
    if not place.is_dir():
        raise DataError(f"$NEUROPIL_DATA has no folder {name}: the paper's scale needs it, as the study's helper says.")
    return place


def _loaded(place: Path) -> tuple[Any, Any]:
    try:
        from transformers import CLIPModel, CLIPTokenizer  # noqa: PLC0415 - slow, and for one scale only
    except ImportError as error:
        raise ImportError("The paper's scale of this study needs transformers: pip install transformers.") from error
    model = CLIPModel.from_pretrained(place, local_files_only=True)
    return model, CLIPTokenizer.from_pretrained(place, local_files_only=True)


@torch.no_grad()
def _head(clip: Any, tokenizer: Any, names: Sequence[str], device: torch.device) -> Tensor:
    """One direction a class, the mean over prompts, times CLIP's inverse temperature."""
    total: Tensor | float = 0.0
    for prompt in PROMPTS:
        texts = tokenizer([prompt.format(name.replace("_", " ")) for name in names], padding=True, return_tensors="pt")
        features = clip.get_text_features(**texts.to(device))
        features = features if isinstance(features, Tensor) else features.pooler_output
        total = total + normalize(features, dim=1)
    assert isinstance(total, Tensor)
    return normalize(total, dim=1) * clip.logit_scale.exp()


def _split(root: Path, names: Sequence[str]) -> Split:
    pairs = [(file, number) for number, name in enumerate(names) for file in _images(root / name)]
    if not pairs:
        raise DataError(f"{root.parent.name}/{root.name} has no images.")
    return Split([file for file, _ in pairs], torch.tensor([number for _, number in pairs]))


def _images(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg"})


def _shared(count: int, held: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Validation images, and two halves of the others."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rest = count - held
    if rest < 2:
        raise DataError(f"{count} training images are too few for {held} of validation.")
    held_out, first, second = order.split([held, rest // 2, rest - rest // 2])
    return held_out, first, second


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _pixels_of(file: Path, size: int) -> Tensor:
    """The shorter side to `size`, the middle cut out, standardised as CLIP was trained."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).float().div_(255)
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
