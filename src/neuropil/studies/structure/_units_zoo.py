"""Networks on which units are found and cut: five written here, five families of transformers from configurations."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["FAMILIES", "HOUSE", "Member", "ResidualNet"]

Example = Tensor | dict[str, Any]


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its batch norm and a ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs)[:2]
        changes = stride > 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride)[:2] if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images, (batch, channels, height, width)."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class ResidualNet(nn.Sequential):
    """A stem, stages of residual blocks, a mean over space, a readout.

    Args:
        channels: of the images.
        classes: number of outputs.
        stem: channels of the stem.
        widths: channels of every stage; each but the first halves the image.
        blocks: of every stage.
    """

    def __init__(self, channels: int, classes: int, stem: int, widths: tuple[int, ...], blocks: int = 1):
        layers: list[nn.Module] = [convolution(channels, stem)]
        inputs = stem
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inputs, width, 2 if stage and not block else 1))
                inputs = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Attention(nn.Module):
    """Self-attention whose queries, keys and values come from one layer, taken apart by reshape or by chunk."""

    def __init__(self, width: int, heads: int, *, reshape: bool):
        super().__init__()
        self.heads, self.size, self.reshape = heads, width // heads, reshape
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, (batch, time, width)."""
        batch, time, _ = x.shape
        if self.reshape:
            q, k, v = self.qkv(self.norm(x)).reshape(batch, time, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        else:
            parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.out(mixed.reshape(batch, time, self.heads * self.size if self.reshape else -1))


class Feedforward(nn.Module):
    """Two linear layers beside a shortcut, the mean over time, a readout."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.readout = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, (batch, time, width)."""
        return self.readout((x + self.inner(x)).mean(dim=1))


class Joined(nn.Module):
    """Two branches laid end to end, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.left, self.right = convolution(3, 5, stride=2), convolution(3, 7, 1, 2)
        self.mix, self.readout = convolution(12, 6), nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Images, (batch, 3, 8, 8)."""
        return self.readout(self.mix(torch.cat([self.left(x), self.right(x)], dim=1)).flatten(1))


@dataclass(frozen=True)
class Member:
    """A network of the zoo: its name, how it is made, and what it is called with."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Example]


def _images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _tokens() -> Tensor:
    return torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _words() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 29, (2, 6), generator=torch.Generator().manual_seed(3))}


def _grouped() -> nn.Module:
    layers = [convolution(3, 12), convolution(12, 18, groups=3), convolution(18, 18, groups=18), convolution(18, 8, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _attentive(*, reshape: bool) -> nn.Module:
    return nn.Sequential(Attention(16, 4, reshape=reshape), Feedforward(16, 24))


HOUSE = (
    Member("residual convolutions with batch norm", lambda: ResidualNet(3, 4, 8, (8, 12)), partial(_images, 12)),
    Member("grouped and depthwise convolutions", _grouped, partial(_images, 8)),
    Member("branches joined and flattened", Joined, partial(_images, 8)),
    Member("attention, one projection reshaped", partial(_attentive, reshape=True), _tokens),
    Member("attention, one projection in chunks", partial(_attentive, reshape=False), _tokens),
)


def _family(model: str, **settings: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, model)
    return made(made.config_class(**settings))


_TEXT: dict[str, Any] = {"vocab_size": 29, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DEEP: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24
}  # fmt: skip
_VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_labels": 4}
_GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12}
_RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1], "num_labels": 4}

_LLAMA: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": 16}
_BERT: dict[str, Any] = {"vocab_size": 29, "max_position_embeddings": 12, "num_labels": 4}

FAMILIES: tuple[Member, ...] = ()
if importlib.util.find_spec("transformers"):
    FAMILIES = tuple(
        Member(f"{name} (transformers)", partial(_family, model, **settings), example)
        for name, model, settings, example in (
            ("ResNet", "ResNetForImageClassification", _RESNET, partial(_images, 32)),
            ("ViT", "ViTForImageClassification", {**_DEEP, **_VISION}, partial(_images, 16)),
            ("GPT-2", "GPT2LMHeadModel", {**_TEXT, **_GPT2}, _words),
            ("Llama", "LlamaForCausalLM", {**_TEXT, **_DEEP, **_LLAMA}, _words),
            ("BERT", "BertForSequenceClassification", {**_DEEP, **_BERT}, _words),
        )
    )
