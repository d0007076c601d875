"""Networks of the kinds that users bring."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Named stages with skip connections inside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.first = nn.Sequential(nn.ReLU(), nn.Linear(8, 8))
        self.second = nn.Sequential(nn.Tanh(), nn.Linear(8, 8))
        self.mix = nn.Identity()
        self.out = nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.mix(h + self.first(h))
        return self.head(self.out(h + self.second(h)))


class Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(x)


class Attention(nn.Module):
    """Single-head attention of linear projections."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor]:
        q, k, v = self.query(query), self.key(key), self.value(value)
        return (self.out(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v),)


class ProjectedBlock(Block):
    """A pre-norm Transformer block that calls a layer for every weight."""

    def __init__(self, width: int):
        super().__init__(width)
        self.attention = Attention(width)


class Transformer(nn.Module):
    """Tokens to logits of the last position, head tied to the embedding or not."""

    def __init__(self, tied: bool = False, block: type[Block] = Block):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.blocks = nn.ModuleList([block(8), block(8)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, -1])


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )


def case(name: str):
    """(net, points, x, y) of one kind, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = torch.randint(4, (5,))
        if name == "dense":
            return dense(), None, torch.randn(5, 6), y
        if name == "conv":
            return conv(), None, torch.randn(5, 1, 4, 4), y
        if name == "residual":
            return Residual(), ["mix", "out"], torch.randn(5, 6), y
        tied = name == "tied transformer"
        block = ProjectedBlock if name == "projected transformer" else Block
        return Transformer(tied, block), "blocks", torch.randint(11, (5, 5)), y


CASES = ["dense", "conv", "residual", "transformer", "tied transformer"]
