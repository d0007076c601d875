"""Small nets with attention, written the ways people write it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.structure.zoo.case import Case

__all__ = ["CASES"]


def sequence(length: int = 6, width: int = 12, batch: int = 2) -> Tensor:
    """Give a fixed random batch of sequences."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(2))


class FusedByReshape(nn.Module):
    """One linear layer gives q, k, v; its output is reshaped to (3, heads, size)."""

    def __init__(self, width: int = 12, heads: int = 3, size: int = 4):
        super().__init__()
        self.heads, self.size, self.scale = heads, size, size**-0.5
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (self.scale * q @ k.transpose(-2, -1)).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, self.heads * self.size))


class FusedByChunk(nn.Module):
    """One linear layer gives q, k, v by chunk; heads by view with -1, so that they may be counted anew."""

    def __init__(self, width: int = 12, heads: int = 3, size: int = 4):
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in parts)
        return x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    """Separate projections, einsum for both products."""

    def __init__(self, width: int = 12, heads: int = 2, size: int = 5):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * size, bias=b) for b in (True, False, True))
        self.out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return x + self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class VisionTransformer(nn.Module):
    """A vision transformer with a class token, learned positions and nn.MultiheadAttention, as in torchvision."""

    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 5, width))
        self.norms1, self.norms2 = (nn.ModuleList(nn.LayerNorm(width) for _ in range(depth)) for _ in range(2))
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for norm1, attend, norm2, feed in zip(self.norms1, self.attend, self.norms2, self.feed, strict=True):
            y = norm1(x)
            x = x + attend(y, y, y, need_weights=False)[0]
            x = x + feed(norm2(x))
        return self.head(self.norm(x)[:, 0])


class GatedFeed(nn.Module):
    """SwiGLU written as one fused layer and a chunk."""

    def __init__(self, width: int = 12, hidden: int = 10):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * value)


def stack(block: type[nn.Module]) -> nn.Module:
    """Two blocks between a projection and a head: the trunk's width is free."""
    return nn.Sequential(nn.Linear(7, 12), block(), block(), nn.LayerNorm(12), nn.Linear(12, 4))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
CASES = (
    Case("qkv-reshape", lambda: stack(FusedByReshape), sequence(6, 7), "fused (3, heads, size)"),
    Case("qkv-chunk", lambda: stack(FusedByChunk), sequence(6, 7), "fused by chunk; heads counted by -1; causal"),
    Case("einsum", lambda: stack(Einsum), sequence(6, 7), "einsum attention"),
    Case("vit-own", VisionTransformer, IMAGES, "nn.MultiheadAttention: packed in_proj_weight; class token"),
    Case("swiglu", lambda: stack(GatedFeed), sequence(6, 7), "fused gate by chunk; RMSNorm"),
    Case("encoder", lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 3, 16, batch_first=True), 2, enable_nested_tensor=False
    ), sequence(), "nn.TransformerEncoder, post-norm; in evaluation mode torch may take its fused kernel"),
)  # fmt: skip
