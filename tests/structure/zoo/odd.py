"""Small nets that use their units in unusual ways, and nets that cannot be handled and must say so."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tests.structure.zoo.case import Case

__all__ = ["CASES"]


def rows(width: int, batch: int = 3) -> Tensor:
    """Give a fixed random batch of vectors."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(4))


def tokens(length: int = 5, words: int = 11, batch: int = 2) -> Tensor:
    """Give a fixed random batch of words."""
    return torch.randint(words, (batch, length), generator=torch.Generator().manual_seed(5))


class Tagger(nn.Module):
    """A bidirectional LSTM over words, one label a word."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(x))[0])


class Auxiliary(nn.Module):
    """A second head that runs, and of which nothing comes in evaluation."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.second = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.tanh(self.body(x))
        second = self.second(x)
        return (self.head(x), second) if self.training else self.head(x)


class Last(nn.Module):
    """A GRU of which the last state counts."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6, num_layers=2, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[1][-1])


class Cells(nn.Module):
    """An LSTM, a GRU and a plain cell on top of each other, one with a state that it makes itself."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.plain = nn.LSTMCell(4, 6), nn.GRUCell(6, 5), nn.RNNCell(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        long = None
        middle = torch.zeros(len(x), self.gru.hidden_size, dtype=x.dtype)
        last = None
        for step in range(x.shape[1]):
            long = self.lstm(x[:, step], long)
            middle = self.gru(long[0], middle)
            last = self.plain(middle, last)
        return self.head(last)


class Cell(nn.Module):
    """A plain recurrent cell unrolled by hand: a unit is a row and a column of `recurrent`."""

    def __init__(self, width: int = 7):
        super().__init__()
        self.read, self.recurrent, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.recurrent.in_features, dtype=x.dtype, device=x.device)
        for step in range(x.shape[1]):
            state = torch.tanh(self.read(x[:, step]) + self.recurrent(state))
        return self.head(state)


class TiedEmbedding(nn.Module):
    """The table of words is also the last layer; between them a layer whose units are free."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.words, self.mix = (
            nn.Embedding(11, width),
            nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, width)),
        )
        self.out = nn.Linear(width, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        return self.out(y + self.mix(y))


class TiedTranspose(nn.Module):
    """An autoencoder: the decoder is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.encode, self.narrow = nn.Linear(9, 8), nn.Linear(8, 5)
        self.bias1, self.bias0 = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(9))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.narrow(torch.relu(self.encode(x))))
        hidden = torch.relu(functional.linear(code, self.narrow.weight.t(), self.bias1))
        return functional.linear(hidden, self.encode.weight.t(), self.bias0)


class NamedCode(nn.Module):
    """A layer called `code`, which is also an attribute of every torch.fx.GraphModule."""

    def __init__(self):
        super().__init__()
        self.first, self.code, self.graph = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(torch.relu(self.code(torch.relu(self.first(x)))))


class Reused(nn.Module):
    """One layer applied twice in a chain: its input units are its output units."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Unwrapped(nn.Module):
    """Weights that belong to no layer: a functional linear, a matrix product, a scale and a shift."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(10, 6))
        self.second = nn.Parameter(torch.zeros(10, 7))
        self.scale, self.shift = nn.Parameter(torch.ones(10)), nn.Parameter(torch.zeros(10))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(functional.linear(x, self.first) * self.scale + self.shift)
        return self.head(torch.relu(x @ self.second))


class Unsupported(nn.Module):
    """An operation that mixes units by their place; the layers before and after it are ordinary."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.before = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
        self.after = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.kind == "cumsum":
            x = x.cumsum(-1)
        elif self.kind == "sort":
            x = x.sort(-1).values
        elif self.kind == "fft":
            x = torch.fft.fft(x).real
        elif self.kind == "roll":
            x = x.roll(1, -1)
        else:
            x = functional.pad(x[:, ::2], (2, 2))
        return self.after(x)


class Branch(nn.Module):
    """Which layer runs depends on the numbers: cannot be exported."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.one(x) if bool((x.sum() > 0).item()) else self.two(x)))


class Several(nn.Module):
    """Returns a dict with a tuple in it: two heads and their hidden layer."""

    def __init__(self):
        super().__init__()
        self.trunk, self.side = nn.Linear(5, 8), nn.Linear(8, 7)
        self.one, self.two = nn.Linear(7, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        trunk = torch.relu(self.trunk(x * y))
        side = torch.relu(self.side(trunk))
        return {"heads": (self.one(side), self.two(trunk)), "hidden": trunk}


class Outer(nn.Module):
    """An outer product of two layers, flattened; and a bilinear form: axes that are pairs of units."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 3)
        self.mix, self.form = nn.Linear(12, 6), nn.Bilinear(4, 3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        outer = (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(1)
        return self.head(torch.relu(self.mix(outer) + self.form(a, b)))


class Softmax(nn.Module):
    """Softmax, a norm and a maximum over the units themselves: a masked unit is not an absent one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(functional.rms_norm(self.a(x), (self.a.out_features,))).softmax(-1)
        x = functional.normalize(self.c(x), dim=-1)
        return self.d(x - x.amax(-1, keepdim=True))


class Repeated(nn.Module):
    """Units used twice in one axis: concatenated with themselves, repeated and tiled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(12, 4), nn.Linear(8, 5), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(torch.cat([x, -x], 1)))
        x = torch.relu(self.c(x.repeat_interleave(2, 1)))
        return self.d(x.repeat(1, 3))


def mlp() -> nn.Module:
    """Three layers with batch norm and dropout between."""
    return nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 8), nn.PReLU(8), nn.Linear(8, 3)
    )


SERIES = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(6))
CASES = (
    Case("mlp", mlp, rows(6), "BatchNorm1d, PReLU with a slope a unit"),
    Case("lstm", Tagger, tokens(), "nn.LSTM in two directions, whose units go together", counted=False),
    Case("gru", Last, SERIES, "two layers without biases; the last state is read, the outputs are not", counted=False),
    Case("auxiliary", Auxiliary, rows(5), "a head of which nothing comes"),
    Case("cells", Cells, SERIES, "cells of three kinds, stepped by hand", counted=False),
    Case("cell", Cell, SERIES, "a unit on both axes of one tensor"),
    Case("tied-embedding", TiedEmbedding, tokens(), "one tensor read by an embedding and by a linear layer"),
    Case("tied-transpose", TiedTranspose, rows(9), "one tensor used with both its axes exchanged"),
    Case("named-code", NamedCode, rows(5), "layers called code and graph: exports, but ExportedProgram.module() fails"),
    Case("reused", Reused, rows(5), "one layer twice"),
    Case("unwrapped", Unwrapped, rows(6), "parameters outside layers"),
    *(
        Case(f"unsupported-{kind}", lambda kind=kind: Unsupported(kind), rows(6), f"{kind} over the units")
        for kind in ("cumsum", "sort", "fft", "roll", "stride")
    ),
    Case("branch", Branch, rows(4), "branches on data", exports=False),
    Case("several", Several, (rows(5), rows(5) + 1), "two inputs; a dict with a tuple comes back"),
    Case("outer", Outer, rows(5), "axes that are pairs of units", counted=False),
    Case("softmax", Softmax, rows(5), "softmax, norms and maxima over the units: not exact"),
    Case("repeated", Repeated, rows(5), "one unit at several places of an axis"),
    Case("conv1d", lambda: nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ELU(), nn.Conv1d(6, 6, 3, groups=2), nn.GLU(1), nn.Flatten(),
        nn.Linear(3 * 4, 2),
    ), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(7)),
        "GLU halves the channels of a grouped convolution"),
    Case("bag", lambda: nn.Sequential(
        nn.EmbeddingBag(11, 6, mode="mean"), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)
    ), tokens(), "rows looked up and reduced in one operation"),
    Case("weight-norm", lambda: nn.Sequential(
        weight_norm(nn.Conv1d(4, 6, 3)), nn.ELU(), weight_norm(nn.Conv1d(6, 6, 3, groups=2)),
        nn.BatchNorm1d(6, affine=False), nn.Flatten(), nn.Linear(6 * 4, 5), nn.ELU(), nn.Linear(5, 2),
    ), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(8)), "lengths and directions of weights apart"),
)  # fmt: skip
