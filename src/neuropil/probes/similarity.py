"""How alike two networks are in what they say, or in what passes some site, in one pass and bounded memory.

    CKA(X, Y) = ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F)      columns centred over all samples; linear CKA, in [0, 1]
    agreement = mean of [argmax x = argmax y]
    JS(p, q)  = KL(p | m) / 2 + KL(q | m) / 2,  m = (p + q) / 2,  p = softmax x, q = softmax y;  in [0, ln 2] nats

CKA holds the three products of units with units, about their running means (Chan, Golub & LeVeque 1979): it is that of
all samples at once, whatever the batches. The mean of the CKAs of small batches is another, larger number.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neuropil.learning.stages import feed
from neuropil.probes.reducers.base import Reducer, RowNumbers
from neuropil.probes.reducers.moments import centred
from neuropil.probes.sites import Where
from neuropil.probes.taps import record

__all__ = ["Agreement", "JensenShannon", "LinearCKA", "Similarity", "similarity", "stream_pair"]

Kind = Literal["cka", "agreement", "js"]


@dataclass(frozen=True)
class Similarity:
    """A similarity, or a divergence.

    Attributes:
        count: rows that it is of.
        value: the number.
    """

    count: int
    value: float


class LinearCKA(Reducer):
    """Linear centred kernel alignment; `update(x, y)` takes both tensors of a batch, which may differ in units.

    1 where y is an orthogonal map and a scale of x, NaN where one of the two never changes.

    Args:
        dim: the axis of the units in both; all others are samples.

    Source: Kornblith, Norouzi, Lee & Hinton, ICML 2019.
    """

    arity = 2
    state = ("mean_x", "mean_y", "xx", "xy", "yy")

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        p, q = self.units
        self.mean_x, self.mean_y, self.xx, self.xy, self.yy = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in (p, q, (p, p), (p, q), (q, q))
        )

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        (mean_x, x), (mean_y, y) = map(centred, rows)
        self._add(len(x), mean_x, mean_y, x.T @ x, x.T @ y, y.T @ y)

    def _join(self, other: "LinearCKA") -> None:
        self._add(other.count, *(getattr(other, name).to(self.xy.device) for name in self.state))

    def _add(self, n_b: int, mean_x: Tensor, mean_y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
        n = self.count + n_b
        if not n_b:
            return
        weight = self.count * (n_b / n)
        delta_x, delta_y = mean_x - self.mean_x, mean_y - self.mean_y
        for mine, its, one, two in (
            (self.xx, xx, delta_x, delta_x),
            (self.xy, xy, delta_x, delta_y),
            (self.yy, yy, delta_y, delta_y),
        ):
            mine.add_(its)
            mine.addr_(one, two, alpha=weight)
        self.mean_x, self.mean_y = self.mean_x + delta_x * (n_b / n), self.mean_y + delta_y * (n_b / n)

    def result(self) -> Similarity:
        """Give the alignment.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        sizes = [float(matrix.abs().max()) for matrix in (self.xx, self.yy)]
        if min(sizes) == 0:
            return Similarity(self.count, math.nan)
        # Scaled before they are squared: products of tiny or huge activations leave the range of float64.
        one, two = (float((m / size).norm()) for m, size in zip((self.xx, self.yy), sizes, strict=True))
        cross = float((self.xy / math.sqrt(sizes[0]) / math.sqrt(sizes[1])).norm())
        return Similarity(self.count, min(1.0, cross * cross / (one * two)))


class _Mean(Reducer):
    """The mean over rows of a number that two tensors of as many units give."""

    arity = 2
    state = ("total",)

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        if self.units[0] != self.units[1]:
            raise ValueError(
                f"{type(self).__name__} compares as many classes, got {self.units[0]} and {self.units[1]}."
            )
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        self.total = self.total + self._summed(*rows)

    def _join(self, other: "_Mean") -> None:
        self.total = self.total + other.total.to(self.total.device)

    @abstractmethod
    def _summed(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum the number over rows."""

    def result(self) -> Similarity:
        """Give the mean.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        return Similarity(self.count, float(self.total) / self.count)


class Agreement(_Mean):
    """Fraction of rows at which two sets of logits have their largest entry at the same class.

    Args:
        dim: the axis of the classes.
    """

    def _summed(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.argmax(1) == y.argmax(1)).sum().double()


class JensenShannon(_Mean):
    """Mean Jensen-Shannon divergence between the predictions of two sets of logits, nats.

    Args:
        dim: the axis of the classes.

    Source: Lin, IEEE Transactions on Information Theory 37 (1991).
    """

    def _summed(self, x: Tensor, y: Tensor) -> Tensor:
        p, q = x.double().log_softmax(1), y.double().log_softmax(1)
        middle = torch.logaddexp(p, q) - math.log(2)
        # exp(p) (p - m) is 0 where p is: no 0 * inf, since logits are finite. Rounding may go below 0.
        divergences = (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1) / 2
        return divergences.clamp(0, math.log(2)).sum()


KINDS: dict[str, type[Reducer]] = {"cka": LinearCKA, "agreement": Agreement, "js": JensenShannon}


def stream_pair(
    a: nn.Module,
    b: nn.Module,
    data: Iterable[Any],
    reducers: Mapping[str, Reducer],
    *,
    at: Where | tuple[Where, Where] | None = None,
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, Similarity]:
    """Run two networks over the same batches and feed reducers of two tensors with both, without gradients.

    Args:
        a: one network; run in evaluation mode and left in the mode in which it came.
        b: the other.
        data: batches, read once.
        reducers: by any name, such as {"cka": LinearCKA()}.
        at: the site whose tensor is compared, or one for each network; None compares what the networks return.
        inputs: makes of a batch what both are called with. None takes the batch, or the first of a tuple or list.

    Returns:
        The results by the same names.

    Raises:
        ValueError: if there are no batches, a site is not met exactly once a pass, the tensors do not go together; and
            what the reducers raise.
        TypeError: if a network is compared by what it returns, and returns no tensor.
    """
    where = at if isinstance(at, tuple) else (at, at)
    empty = True
    with _evaluating(a), _evaluating(b), torch.no_grad():
        for batch in data:
            empty = False
            x = inputs(batch) if inputs is not None else batch[0] if isinstance(batch, (tuple, list)) else batch
            seen = [_seen(net, x, site) for net, site in zip((a, b), where, strict=True)]
            for reducer in reducers.values():
                reducer.update(*seen)
    if empty:
        raise ValueError("data has no batches.")
    return {name: reducer.result() for name, reducer in reducers.items()}


def similarity(
    a: nn.Module,
    b: nn.Module,
    data: Iterable[Any],
    kind: Kind = "cka",
    *,
    at: Where | tuple[Where, Where] | None = None,
    inputs: Callable[[Any], Any] | None = None,
) -> float:
    """Say how alike two networks are.

    Args:
        a: one network.
        b: the other.
        data: batches, read once.
        kind: "cka", "agreement" of the predictions, or "js", their Jensen-Shannon divergence, 0 where they are alike.
        at: as in `stream_pair`.
        inputs: as in `stream_pair`.

    Raises:
        ValueError: if the kind is unknown; and as `stream_pair` does.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    return stream_pair(a, b, data, {kind: KINDS[kind]()}, at=at, inputs=inputs)[kind].value


def _seen(net: nn.Module, x: Any, site: Where | None) -> Tensor:
    if site is None:
        output = feed(net, x)
        if not isinstance(output, Tensor):
            raise TypeError(f"The network returns a {type(output).__name__}: name the site to compare with `at`.")
        return output
    with record(net, site) as recording:
        feed(net, x)
    sites = list(recording)
    if len(sites) != 1 or len(recording.calls(sites[0])) != 1:
        raise ValueError(f"{site} must be one tensor of a pass, it is {sum(len(recording.calls(s)) for s in sites)}.")
    return recording.calls(sites[0])[0]


@contextmanager
def _evaluating(net: nn.Module):
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
