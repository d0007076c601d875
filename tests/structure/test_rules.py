"""Single operations between two convolutions: which leave units removable, and that the removal is right."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from neuropil.structure.graph import trace_units
from neuropil.structure.surgery import discover, mask_units, shrink
from neuropil.structure.surgery.proof import agree, outputs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FIRST = torch.zeros(2, 8, 1, 6, dtype=torch.long)  # an index with channels of its own
GRID = torch.rand(2, 4, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
Operation = Callable[[Tensor], Tensor]

# By operation on (2, 8, 6, 6): how many channels come of it.
EXACT: dict[str, tuple[Operation, int]] = {
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32),
    "unfold": (lambda x: F.unfold(x, 3).unflatten(2, (4, 4)), 72),
    "fold": (lambda x: F.fold(F.unfold(x, 3), (6, 6), 3), 8),
    "grid_sample": (lambda x: F.grid_sample(x, GRID, align_corners=False), 8),
    "max_unpool": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 8),
    "flip": (lambda x: x.flip(3), 8),
    "roll": (lambda x: x.roll(1, 2), 8),
    "rot90": (lambda x: x.rot90(1, (2, 3)), 8),
    "tril": (lambda x: x.tril(), 8),
    "cumsum": (lambda x: x.cumsum(2), 8),
    "diff": (lambda x: x.diff(dim=2), 8),
    "topk": (lambda x: x.topk(2, dim=3)[0], 8),
    "fft": (lambda x: torch.fft.rfft2(x).abs(), 8),
    "complex": (lambda x: torch.view_as_real(torch.complex(x, x.sin())).prod(-1), 8),
    "index_select": (lambda x: x.index_select(2, torch.tensor([0, 1])), 8),
    "index_add": (lambda x: x.index_add(2, torch.tensor([0]), x[:, :, :1]), 8),
    "gather by itself": (lambda x: x.gather(2, x.argsort(2)), 8),
    "take along": (lambda x: torch.take_along_dim(x, FIRST[:, :1], 2), 8),
    "scatter": (lambda x: x.scatter(2, x.argsort(2), x.sin()), 8),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), 8),
    "like": (lambda x: x + torch.ones_like(x), 8),
    "new": (lambda x: x + x.new_full((2, 8, 6, 6), 0.5), 8),
    "a number of them": (lambda x: x + torch.ones(1, 8).to(x.dtype).transpose(0, 1).unsqueeze(2), 8),
    "numbers of them": (lambda x: x + torch.ones(8, 1, 1).expand(2, 8, 6, 6).permute(0, 1, 3, 2).to(x.dtype), 8),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), 8),
    "logsumexp": (lambda x: x.logsumexp(3, keepdim=True), 8),
    "aminmax": (lambda x: x - torch.aminmax(x, dim=3, keepdim=True)[0], 8),
    "var_mean": (lambda x: torch.var_mean(x, dim=(2, 3), keepdim=True)[0], 8),
    "quantile": (lambda x: x.quantile(0.5, dim=3, keepdim=True), 8),
    "normalize": (lambda x: F.normalize(x, dim=2), 8),
    "cosine": (lambda x: F.cosine_similarity(x, x.roll(1, 3), dim=2).unsqueeze(2), 8),
    "circular pad": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), 8),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 8),
    "fake quantize": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -100, 100), 8),
    "bucketize": (lambda x: x * torch.bucketize(x, torch.tensor([0.0, 1.0], dtype=torch.float64)), 8),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 16),
    "tensor_split": (lambda x: torch.cat(torch.tensor_split(x, 2, dim=1)[::-1], 1), 8),
    "softmax over space": (lambda x: x.flatten(2).softmax(-1).view_as(x), 8),
}
INEXACT: dict[str, tuple[Operation, int]] = {
    "normalize": (lambda x: F.normalize(x, dim=1), 8),
    "softmax": (lambda x: x.softmax(1), 8),
    "cosine": (lambda x: x * F.cosine_similarity(x, x.roll(1, 3), dim=1).unsqueeze(1), 8),
    "minus the mean": (lambda x: x - x.mean(1, keepdim=True), 8),
}
FROZEN: dict[str, tuple[Operation, int, str]] = {
    "flip": (lambda x: x.flip(1), 8, "flip runs over units"),
    "cumsum": (lambda x: x.cumsum(1), 8, "cumsum runs over units"),
    "fft": (lambda x: torch.fft.fftn(x).abs(), 8, "fft_fftn runs over units"),
    "gather": (lambda x: x.gather(2, FIRST), 8, "gather meets an axis that is nobody's unit"),
    "gather along units": (lambda x: x.gather(1, FIRST), 8, "gather runs over units"),
    "some of them": (lambda x: x.gather(2, FIRST[:, :4]), 4, "gather takes some of these"),
    "take along all": (
        lambda x: x + torch.take_along_dim(x, FIRST[:1, :1, :1, :1].flatten()),
        8,
        "take_along_dim runs",
    ),
    "own scale": (lambda x: x * torch.arange(8.0, dtype=torch.float64).view(8, 1, 1), 8, "mul meets an axis"),
    "pad": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 10, "pad lengthens units"),
    "strides": (lambda x: x.as_strided(x.shape, x.stride()), 8, "no rule for as_strided"),
}


class Between(nn.Module):
    """Two convolutions and what is between them."""

    def __init__(self, operation: Operation, channels: int):
        super().__init__()
        self.one, self.operation, self.two = nn.Conv2d(3, 8, 3), operation, nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.operation(self.one(x)))


def between(operation: Operation, channels: int) -> Between:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Between(operation, channels).double().eval()


@pytest.mark.parametrize("kind", EXACT)
def test_exact_removal_equals_masking(kind: str):
    net = between(*EXACT[kind])
    graph = trace_units(net, X)
    assert not graph.unknown
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in graph.prunable()}
    assert keep
    masked = copy.deepcopy(net)
    mask_units(masked, keep, graph).apply_(masked)
    assert agree(outputs(shrink(net, keep, graph, backend="graph"), X), outputs(masked, X), 1e-12)
    if not isinstance(discover(net, graph)[next(iter(keep))], str):  # a size is written in the operation
        assert agree(outputs(shrink(net, keep, graph), X), outputs(masked, X), 1e-12)


@pytest.mark.parametrize("kind", INEXACT)
def test_inexact_removal_is_that_of_the_code(kind: str):
    net = between(*INEXACT[kind])
    graph = trace_units(net, X)
    assert not graph.prunable()
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in graph.prunable(inexact=True)}
    small = shrink(net, keep, graph, backend="graph")
    assert agree(outputs(shrink(net, keep, graph), X), outputs(small, X), 1e-12)


@pytest.mark.parametrize("kind", FROZEN)
def test_what_cannot_follow_is_frozen_with_the_reason(kind: str):
    operation, channels, reason = FROZEN[kind]
    graph = trace_units(between(operation, channels), X)
    assert not graph.prunable(inexact=True)
    assert any(reason in one for one in graph.frozen()["reason"])
