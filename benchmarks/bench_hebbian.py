"""What a soft Hebbian step of a convolution costs, beside a loop over positions and beside the convolution itself.

python benchmarks/bench_hebbian.py
"""

from functools import partial

import torch
from timing import medians
from torch import Tensor, nn
from torch.nn.functional import conv2d, unfold

from neuropil.learning.hebbian import SoftHebb
from neuropil.learning.networks import lecun_normal_

CASES = {
    "1 -> 16, 5x5 stride 2, 100 images of 28x28": ((1, 16, 5, 2), (100, 1, 28, 28)),
    "3 -> 16, 3x3, 50 images of 32x32": ((3, 16, 3, 1), (50, 3, 32, 32)),
    "3 -> 64, 7x7 stride 2, 4 images of 96x96": ((3, 64, 7, 2), (4, 3, 96, 96)),
}


@torch.no_grad()
def looped(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The same change, position by position over the whole batch: the plain way to write it."""
    weight = layer.weight.detach().flatten(1)
    columns = unfold(x, layer.kernel_size, padding=layer.kernel_size[0] // 2, stride=layer.stride)
    change = torch.zeros_like(weight)
    for position in range(columns.shape[2]):
        rows = columns[:, :, position]
        drive = rows @ weight.T
        share = torch.softmax(drive, 1)
        change += share.T @ rows - (share * drive).sum(0)[:, None] * weight
    return (change / (len(x) * columns.shape[2])).view_as(layer.weight)


@torch.no_grad()
def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """One forward pass."""
    return conv2d(x, layer.weight, None, layer.stride, layer.padding)


def compared(sizes: tuple[int, int, int, int], shape: tuple[int, ...]) -> str:
    """Ratios of one layer."""
    inputs, outputs, kernel, stride = sizes
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    lecun_normal_(layer.weight, generator)
    x = torch.rand(shape, generator=generator)
    rule = SoftHebb(layer)
    apart = float((rule.change(x) - looped(layer, x)).abs().max())
    calls = {
        "step": partial(rule.change, x),
        "loop": partial(looped, layer, x),
        "forward": partial(convolved, layer, x),
    }
    times = medians(calls, rounds=15)
    return (
        f"a loop over positions {times['loop'] / times['step']:5.1f} x, one forward pass "
        f"{times['forward'] / times['step']:.2f} x a step of {1e3 * times['step']:.1f} ms; "
        f"largest difference {apart:.1e}"
    )


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, float32")
    for title, (sizes, shape) in CASES.items():
        print(f"{title:<44} {compared(sizes, shape)}")
