"""What is searched: named decisions with their options, and which codes stand for the same network.

An architecture is a code, one option's number for every decision:

    a = (a_1 .. a_D),   0 <= a_d < options of d

Some codes are no networks (`valid`), and several may be one network (`canonical`: the depth says two layers, so the
width of the third tells nothing). Queries are counted by canonical form, so that no search pays twice for one network.
Cells, whose decisions are edges or graphs, are in `cell_spaces`.

Source: White et al. 2023 (arXiv 2301.08727), section 2.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Architecture", "Product", "Space", "chain_space"]

Architecture = tuple[int, ...]
"""One option's number for every decision of a space."""

TRIES = 100_000  # draws until a valid code is found: a space rarer than that needs a sampler of its own


def below(count: int, generator: torch.Generator) -> int:
    """An integer from 0 to count - 1."""
    return int(torch.randint(count, (), generator=generator, device=generator.device))


class Space:
    """Named decisions, each with its options.

    Args:
        choices: options by decision.
        valid: whether a code is a network; None takes every code.
        canonical: the code that stands for all codes of the same network, itself valid; None is the identity.

    Attributes:
        names: of the decisions, in order.
        options: of each decision.

    Raises:
        ValueError: if there are no decisions, or one has no options.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Any]],
        *,
        valid: Callable[[Architecture], bool] | None = None,
        canonical: Callable[[Architecture], Architecture] | None = None,
    ):
        empty = [name for name, options in choices.items() if len(options) == 0]
        if not choices or empty:
            what = f"no options for {empty}" if empty else "no decisions"
            raise ValueError(f"choices makes an empty space: {what}.")
        self.names = tuple(choices)
        self.options = tuple(tuple(options) for options in choices.values())
        self._valid, self._canonical = valid, canonical

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.names)} decisions, {self.size} codes)"

    @property
    def size(self) -> int:
        """Number of codes, invalid and equivalent ones included."""
        return math.prod(len(options) for options in self.options)

    def valid(self, architecture: Architecture) -> bool:
        """Whether a code of the right form is a network."""
        return self._valid is None or self._valid(architecture)

    def canonical(self, architecture: Architecture) -> Architecture:
        """The code that stands for all codes of the same network."""
        return architecture if self._canonical is None else self._canonical(architecture)

    def check(self, architecture: Architecture) -> Architecture:
        """Return a code if it is a network of this space.

        Raises:
            ValueError: if it has another length, an option is out of range, or it is no valid network.
        """
        if len(architecture) != len(self.names):
            raise ValueError(f"An architecture has {len(self.names)} decisions, got {architecture}.")
        for name, options, chosen in zip(self.names, self.options, architecture, strict=True):
            if not 0 <= chosen < len(options):
                raise ValueError(f"{name} has options 0 to {len(options) - 1}, got {chosen} in {architecture}.")
        if not self.valid(architecture):
            raise ValueError(f"{architecture} is no valid network of the space.")
        return architecture

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """The chosen option by decision.

        Raises:
            ValueError: as `check`.
        """
        chosen = zip(self.names, self.options, self.check(architecture), strict=True)
        return {name: options[number] for name, options, number in chosen}

    def code(self, chosen: Mapping[str, Any]) -> Architecture:
        """The inverse of `describe`.

        Raises:
            ValueError: if a decision is missing or unknown, an option is none of its, or the network is not valid.
        """
        if set(chosen) != set(self.names):
            raise ValueError(f"Decisions {sorted(self.names)} wanted, got {sorted(chosen)}.")
        for name, options in zip(self.names, self.options, strict=True):
            if chosen[name] not in options:
                raise ValueError(f"{name} has the options {options}, got {chosen[name]!r}.")
        pairs = zip(self.names, self.options, strict=True)
        return self.check(tuple(options.index(chosen[name]) for name, options in pairs))

    def sample(self, generator: torch.Generator) -> Architecture:
        """A valid code, each as probable as any other.

        Raises:
            ValueError: if none was found in 100,000 draws.
        """
        for _ in range(TRIES):
            drawn = tuple(below(len(options), generator) for options in self.options)
            if self.valid(drawn):
                return drawn
        raise ValueError(f"No valid architecture in {TRIES} draws of {self}.")

    def mutate(self, architecture: Architecture, generator: torch.Generator) -> Architecture:
        """Change one decision, drawn at random, to another of its options, drawn at random.

        Raises:
            ValueError: if no decision has two options, or no valid mutation was found in 100,000 draws.
        """
        free = [index for index, options in enumerate(self.options) if len(options) > 1]
        if not free:
            raise ValueError(f"No decision of {self} has two options: nothing to mutate.")
        for _ in range(TRIES):
            index = free[below(len(free), generator)]
            # A draw among the others: those from the current one on are one further.
            other = below(len(self.options[index]) - 1, generator)
            other += other >= architecture[index]
            mutated = (*architecture[:index], other, *architecture[index + 1 :])
            if self.valid(mutated):
                return mutated
        raise ValueError(f"No valid neighbour of {architecture} in {TRIES} draws.")

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All valid codes that differ in one decision, in order."""
        found = []
        for index, options in enumerate(self.options):
            others = (number for number in range(len(options)) if number != architecture[index])
            found += [(*architecture[:index], other, *architecture[index + 1 :]) for other in others]
        return [neighbour for neighbour in found if self.valid(neighbour)]

    def all(self) -> Iterator[Architecture]:
        """Every network once, by its canonical form, in the order of the codes. For spaces that can be counted."""
        seen = set()
        for code in itertools.product(*(range(len(options)) for options in self.options)):
            if self.valid(code):
                canonical = self.canonical(code)
                if canonical not in seen:
                    seen.add(canonical)
                    yield canonical

    def encode(self, architecture: Architecture, kind: str = "onehot") -> Float[Tensor, " features"]:
        """Numbers that a surrogate can learn from; equal for codes of the same network.

        Args:
            architecture: the code.
            kind: "onehot", one number an option of every decision; spaces of cells also know "path".

        Raises:
            ValueError: if the space has no such encoding.
        """
        if kind != "onehot":
            raise ValueError(f'{type(self).__name__} has the encoding "onehot", got {kind!r}.')
        features, start = torch.zeros(sum(map(len, self.options))), 0
        for options, number in zip(self.options, self.canonical(architecture), strict=True):
            features[start + number] = 1
            start += len(options)
        return features


class Product(Space):
    """Spaces side by side: a hierarchical space has a part for each of its levels.

    Args:
        parts: spaces by name; a decision is called "part/decision".

    Raises:
        ValueError: if there are no parts.
    """

    def __init__(self, parts: Mapping[str, Space]):
        choices = {
            f"{part}/{name}": options
            for part, space in parts.items()
            for name, options in zip(space.names, space.options, strict=True)
        }
        super().__init__(choices)
        self.parts = dict(parts)

    def split(self, architecture: Architecture) -> dict[str, Architecture]:
        """The code of each part."""
        codes, start = {}, 0
        for part, space in self.parts.items():
            codes[part] = architecture[start : start + len(space.names)]
            start += len(space.names)
        return codes

    def valid(self, architecture: Architecture) -> bool:
        """Whether all parts are."""
        return all(self.parts[part].valid(code) for part, code in self.split(architecture).items())

    def canonical(self, architecture: Architecture) -> Architecture:
        """The canonical forms of the parts."""
        codes = (self.parts[part].canonical(code) for part, code in self.split(architecture).items())
        return tuple(itertools.chain.from_iterable(codes))


def chain_space(depths: Sequence[int], layer: Mapping[str, Sequence[Any]]) -> Space:
    """A chain of layers: how many, and each one's own choices ("depth", "layer1/width", ...).

    The choices of layers that the depth leaves out tell nothing: their canonical option is the first.

    Args:
        depths: numbers of layers to choose from, each at least 0.
        layer: options by decision of one layer.

    Raises:
        ValueError: if there are no depths, one is negative, or the layer has no decisions.
    """
    if not depths or min(depths) < 0 or not layer:
        raise ValueError(f"A chain needs depths of at least 0 and decisions a layer, got {depths} and {dict(layer)}.")
    return _Chain(depths, layer)


class _Chain(Space):
    def __init__(self, depths: Sequence[int], layer: Mapping[str, Sequence[Any]]):
        choices: dict[str, Sequence[Any]] = {"depth": list(depths)}
        for number in range(1, max(depths) + 1):
            choices |= {f"layer{number}/{name}": options for name, options in layer.items()}
        super().__init__(choices)
        self._per_layer = len(layer)

    def canonical(self, architecture: Architecture) -> Architecture:
        used = 1 + self.options[0][architecture[0]] * self._per_layer
        return architecture[:used] + (0,) * (len(architecture) - used)
