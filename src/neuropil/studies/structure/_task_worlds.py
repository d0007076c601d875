"""A world for task vectors: one pre-trained net, several tasks that it half knows, and a head that is never tuned.

Tasks are one set of images seen through fixed transforms. Every task has two disjoint parts to tune on, and validation
and test images of its own.
"""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset, load
from neuropil.learning.networks import mlp

__all__ = ["TRANSFORMS", "Images", "Watch", "train"]

Watch = Callable[[int, nn.Module], None]
PIXELS, SHUFFLING = 0x919E7, 0x5EED


def train(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    ascend: bool = False,
    watch: Watch | None = None,
) -> int:
    """Minimise the cross-entropy, or climb it, and let `watch` see the net after every step; give the steps."""
    step, sign = 0, -1.0 if ascend else 1.0
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for chosen in order.split(batch_size):
            optimizer.zero_grad()
            loss = sign * cross_entropy(net(x[chosen]), y[chosen])
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"The loss is {loss.item()} at step {step}.")
            loss.backward()
            optimizer.step()
            step += 1
            if watch is not None:
                watch(step, net)
                net.train()
    return step


def _permuted(seed: int) -> Callable[[Tensor], Tensor]:
    def see(x: Tensor) -> Tensor:
        pixels = x[0].numel()
        order = torch.randperm(pixels, generator=torch.Generator().manual_seed(PIXELS + seed))
        return x.flatten(1)[:, order.to(x.device)].view_as(x)

    return see


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "turned 90": lambda x: x.rot90(1, (2, 3)),
    "turned 180": lambda x: x.rot90(2, (2, 3)),
    "inverted": lambda x: x.amax() + x.amin() - x,
    "permuted 1": _permuted(1),
    "permuted 2": _permuted(2),
}


class Images:
    """Images through transforms, a multi-layer perceptron pre-trained on a few of each, its last layer frozen then.

    Args:
        data: name of the set.
        tasks: names of transforms.
        hidden: units of the hidden layers.
        pretraining: images that the net is pre-trained on, each through every transform.
        tuning: images of each of the two parts for tuning.
        validation: images for choosing factors.
        test: images for results, of the test part.
        epochs: of pre-training and of tuning.
        rates: learning rates of both (Adam).
        batch_size: images a step.
        seed: of the draw of images, the initial weights and the order of batches.
        device: where all is computed.
    """

    def __init__(
        self,
        data: str,
        tasks: Sequence[str],
        *,
        hidden: Sequence[int],
        pretraining: int,
        tuning: int,
        validation: int,
        test: int,
        epochs: tuple[int, int],
        rates: tuple[float, float],
        batch_size: int,
        seed: int,
        device: torch.device,
    ):
        self.tasks, self.seed = tuple(tasks), seed
        self.epochs, self.rates, self.batch_size = epochs, rates, batch_size
        whole = _standardised(load(data).subset(pretraining + 2 * tuning + validation, test, seed=seed)).to(device)
        x, y = (part.split([pretraining, tuning, tuning, validation]) for part in (whole.x_train, whole.y_train))
        self._parts = list(zip(x[1:3], y[1:3], strict=True))
        self._measured = {
            "validation": {task: (TRANSFORMS[task](x[3]).flatten(1), y[3]) for task in tasks},
            "test": {task: (TRANSFORMS[task](whole.x_test).flatten(1), whole.y_test) for task in tasks},
        }
        self.pre = mlp(whole.features, *hidden, whole.classes, generator=torch.Generator().manual_seed(seed)).to(device)
        seen = torch.cat([TRANSFORMS[task](x[0]).flatten(1) for task in tasks])
        self._train(self.pre, seen, y[0].repeat(len(tasks)), 0, seed)
        self.pre[-1].requires_grad_(False)

    def _train(self, net: nn.Module, x: Tensor, y: Tensor, stage: int, order: int, **options) -> None:
        tuned = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(tuned, lr=self.rates[stage], fused=True)
        generator = torch.Generator().manual_seed(order ^ SHUFFLING)
        epochs, size = self.epochs[stage], self.batch_size
        train(net, x, y, optimizer, epochs=epochs, batch_size=size, generator=generator, **options)

    def tune(
        self,
        task: str,
        part: int = 0,
        *,
        classes: Collection[int] | None = None,
        ascend: bool = False,
        watch: Watch | None = None,
    ) -> nn.Module:
        """Train all but the last layer of a copy of the net on a task.

        Args:
            task: name of a transform.
            part: 0 or 1, of the images.
            classes: digits whose images are used; None: all.
            ascend: climb the loss instead.
            watch: called with the number of steps and the net after every step.
        """
        x, y = self._parts[part]
        if classes is not None:
            chosen = torch.isin(y, torch.tensor(sorted(classes), device=y.device))
            x, y = x[chosen], y[chosen]
        net = deepcopy(self.pre)
        order = 1 + 2 * self.tasks.index(task) + part + 1000 * self.seed
        self._train(net, TRANSFORMS[task](x).flatten(1), y, 1, order, ascend=ascend, watch=watch)
        return net

    def accuracies(
        self,
        net: nn.Module,
        part: str,
        tasks: Sequence[str] | None = None,
        classes: Collection[int] | None = None,
    ) -> dict[str, float]:
        """Accuracy by task in percent; with `classes`, on their images alone and with answers among them alone."""
        names = self.tasks if tasks is None else tasks
        sets = [self._measured[part][name] for name in names]
        with torch.no_grad():
            logits = net.eval()(torch.cat([x for x, _ in sets]))
            if classes is not None:
                others = [number for number in range(logits.shape[1]) if number not in classes]
                logits[:, others] = -torch.inf
            predicted = logits.argmax(1).view(len(sets), -1)
        right = {}
        for name, guesses, (_, y) in zip(names, predicted, sets, strict=True):
            counted = slice(None) if classes is None else torch.isin(y, torch.tensor(sorted(classes), device=y.device))
            right[name] = 100 * float((guesses == y)[counted].double().mean())
        return right


def _standardised(data: Dataset) -> Dataset:
    """Pixels with mean 0 and variance 1 over the training part, by one mean and one scale for all."""
    mean, scale = data.x_train.mean(), data.x_train.std()
    parts = {"x_train": (data.x_train - mean) / scale, "x_test": (data.x_test - mean) / scale}
    return Dataset(**{**{field: getattr(data, field) for field in data.__dataclass_fields__}, **parts})
