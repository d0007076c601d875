"""What one group of units sends to another, as a function of both groups' activities.

    dense             W rho_pre + b
    convolution up    pool(K * rho_pre + b)
    convolution down  d/dv <pool(K * v), rho_pre> at v = rho_post          the transpose of a map of its own kernel K

Softmax pooling is a weighted mean in windows that do not overlap, and like max-pooling where one entry stands out,
but holomorphic:

    p = sum_k s_k z_k,   s = softmax(z) in the window,      dp/dz_k = s_k (1 + z_k - p)

so a map and its transpose with the same kernel are the two derivatives of one energy <pool(K * rho_1), rho_2>. The
weights are real; complex activity passes a real linear map as its real and its imaginary part.
"""

from collections.abc import Callable

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from neuropil.learning.equilibrium.activations import holomorphic_softmax
from neuropil.learning.networks import lecun_normal_

__all__ = ["Connection", "ConvolutionDown", "ConvolutionUp", "Dense", "softmax_pool"]


def real_map(operation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """A real linear map of real or complex activity; both parts of a complex one in a single call."""
    if not z.is_complex():
        return operation(z)
    return torch.complex(*operation(torch.cat([z.real, z.imag])).chunk(2))


def windows(z: Inexact[Tensor, "batch channels height width"], window: int) -> Tensor:
    """Cut maps into squares that do not overlap: (batch, channels, height/window, width/window, window^2)."""
    batch, channels, height, width = z.shape
    if height % window or width % window:
        raise ValueError(f"A map of {height} x {width} has no whole number of {window} x {window} windows.")
    cut = z.reshape(batch, channels, height // window, window, width // window, window)
    return cut.transpose(3, 4).flatten(4)


def from_windows(cut: Tensor, window: int) -> Tensor:
    """The inverse of `windows`."""
    batch, channels, rows, columns, _ = cut.shape
    squares = cut.reshape(batch, channels, rows, columns, window, window).transpose(3, 4)
    return squares.reshape(batch, channels, rows * window, columns * window)


def softmax_pool(
    z: Inexact[Tensor, "batch channels height width"], window: int = 2
) -> Inexact[Tensor, "batch channels rows columns"]:
    """Mean over each window, weighted by the softmax of its own entries.

    Args:
        z: maps.
        window: side of the squares, which do not overlap.

    Raises:
        ValueError: if the maps are not a whole number of windows.
    """
    cut = windows(z, window)
    return (holomorphic_softmax(cut, -1) * cut).sum(-1)


class Connection(nn.Module):
    """From a group "pre" to a group "post".

    Attributes:
        linear: whether what is sent is linear (or affine) in the sender's activity, and free of the receiver's.
    """

    linear = False
    weight: nn.Parameter

    def differential(self, pre: Tensor, post: Tensor, d_pre: Tensor, d_post: Tensor) -> Tensor:
        """Change of what is sent along a change of both activities; keeps the graph to the parameters."""
        return torch.func.jvp(self, (pre, post), (d_pre, d_post))[1]


class Dense(Connection):
    """All to all.

    Args:
        pre: number of sending units.
        post: number of receiving units.
        bias: whether the receivers have a bias here.
        generator: source of the initial weights, LeCun normal; the bias starts at 0.
    """

    linear = True

    def __init__(self, pre: int, post: int, *, bias: bool, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(lecun_normal_(torch.empty(post, pre), generator))
        self.bias = nn.Parameter(torch.zeros(post)) if bias else None

    def forward(self, pre: Inexact[Tensor, "batch pre"], post: Tensor | None = None) -> Inexact[Tensor, "batch post"]:
        """What arrives at the receivers, whose own activity plays no part."""
        if not pre.is_complex():
            return linear(pre, self.weight, self.bias)
        sent = real_map(lambda z: linear(z, self.weight), pre)
        return sent if self.bias is None else sent + self.bias

    def differential(self, pre: Tensor, post: Tensor, d_pre: Tensor, d_post: Tensor) -> Tensor:
        """The same map without its bias."""
        return linear(d_pre, self.weight)

    def transposed(self, cotangent: Tensor) -> Tensor:
        """The transposed map: from the receivers to the senders."""
        return cotangent @ self.weight


class ConvolutionUp(Connection):
    """A 3 x 3 convolution, then softmax pooling.

    Args:
        pre: channels of the sending maps.
        post: channels of the receiving maps.
        padding: 1 keeps the size before pooling, 0 takes two off.
        window: of the pooling.
        generator: source of the initial kernel, LeCun normal; the bias starts at 0.
    """

    def __init__(
        self, pre: int, post: int, *, padding: int = 1, window: int = 2, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.weight = nn.Parameter(lecun_normal_(torch.empty(post, pre, 3, 3), generator))
        self.bias = nn.Parameter(torch.zeros(post))
        self.padding, self.window = padding, window

    def forward(
        self, pre: Inexact[Tensor, "batch channels height width"], post: Tensor | None = None
    ) -> Inexact[Tensor, "batch post rows columns"]:
        """What arrives at the receivers, whose own activity plays no part."""
        z = real_map(lambda part: conv2d(part, self.weight, padding=self.padding), pre)
        return softmax_pool(z, self.window) + self.bias[:, None, None]  # pooling passes a common shift on


class ConvolutionDown(Connection):
    """The transpose of a `ConvolutionUp`, with a kernel of its own and no bias.

    Args:
        up: the connection in the other direction, for its shapes.
        generator: source of the initial kernel, LeCun normal of the upward map's fan-in.
    """

    def __init__(self, up: ConvolutionUp, *, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(lecun_normal_(torch.empty_like(up.weight), generator))
        self.padding, self.window = up.padding, up.window

    def forward(
        self,
        pre: Inexact[Tensor, "batch pre rows columns"],
        post: Inexact[Tensor, "batch post height width"],
    ) -> Inexact[Tensor, "batch post height width"]:
        """What arrives at the receivers: sent to where their own activity would win the pooling."""
        z = windows(real_map(lambda part: conv2d(part, self.weight, padding=self.padding), post), self.window)
        share = holomorphic_softmax(z, -1)
        pooled = (share * z).sum(-1, keepdim=True)
        spread = from_windows(share * (1 + z - pooled) * pre[..., None], self.window)
        return real_map(lambda part: conv_transpose2d(part, self.weight, padding=self.padding), spread)
