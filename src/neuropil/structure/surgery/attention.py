"""Multi-head attention whose heads need not span the model's width: what is left of `nn.MultiheadAttention`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

__all__ = ["SlimAttention"]


class SlimAttention(nn.Module):
    """Attention with any number of heads of any size: parameters, names and call as in `nn.MultiheadAttention`.

    That module insists on heads x size = width, so that it cannot lose heads. This one takes its place and keeps its
    parameters: in_proj_weight (3 heads size, width), in_proj_bias, out_proj.

    Args:
        whole: the attention to replace; its parameters become this module's, the same objects.
        heads: number of heads that the in-projection now holds; None: as many as it had.

    Raises:
        ValueError: if keys and values have widths of their own, or biases or zeros are added to them.
    """

    def __init__(self, whole: nn.MultiheadAttention, heads: int | None = None):
        super().__init__()
        if whole.in_proj_weight is None or whole.bias_k is not None or whole.add_zero_attn:
            raise ValueError("Only attention with one in-projection, and nothing added to keys and values, can be cut.")
        self.in_proj_weight = whole.in_proj_weight
        self.in_proj_bias = whole.in_proj_bias
        self.out_proj = whole.out_proj
        self.heads = heads or whole.num_heads
        self.scale = 1 / math.sqrt(whole.head_dim)
        self.dropout, self.batch_first = whole.dropout, whole.batch_first
        self._qkv_same_embed_dim = False  # read by torch's encoder layers: no short cut that assumes the whole width
        self.train(whole.training)

    @property
    def num_heads(self) -> int:
        """Number of heads, by the name of the module replaced."""
        return self.heads

    def forward(
        self,
        query: Float[Tensor, "*tokens width"],
        key: Float[Tensor, "*others width"],
        value: Float[Tensor, "*others width"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; as `nn.MultiheadAttention` does, with (batch, time, width) or (time, batch, width) or unbatched."""
        batched = query.dim() == 3
        tokens = [
            x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        ]
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip(tokens, self.in_proj_weight.chunk(3), biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q, is_causal and attn_mask is None)
        if need_weights:
            scores = self.scale * q @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            dropped = nn.functional.dropout(weights, self.dropout, self.training)
            mixed = dropped @ v
        else:
            weights = None
            dropout = self.dropout if self.training else 0.0
            mixed = scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, causal: bool) -> Tensor | None:
        """Join masks into one that is added to the scores, (batch or 1, heads or 1, queries, keys)."""
        joined: Tensor | None = None
        if causal:
            n = q.shape[-2]
            joined = torch.full((n, n), -math.inf, dtype=q.dtype, device=q.device).triu(1)
        if mask is not None:
            added = _added(mask, q)
            if added.dim() == 3:  # one for every batch and head: with heads cut, only one shared by them fits
                added = added.unflatten(0, (q.shape[0], -1))
            joined = added
        if padding is not None:
            added = _added(padding, q)[..., None, None, :] if padding.dim() == 2 else _added(padding, q)
            joined = added if joined is None else joined + added
        return joined


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """Turn "true where hidden" into minus infinity there."""
    if mask.dtype != torch.bool:
        return mask.to(q)
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -math.inf)
