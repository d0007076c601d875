"""A neural developmental program: a tiny network that grows a network (Najarro, Sudhakaran & Risi 2023).

The genome is, in this order: the seed's embedding e_0 (features), if it is learned, and the perceptrons

    growth:     features -> hidden -> 1            (2 features -> hidden -> 1 for growth by pairs)
    transform:  features -> hidden -> features     tanh at the end
    weight:     2 features -> hidden -> 1          tanh at the end; none with binary edges

each as first weights, first biases, second weights, second biases; hidden units are tanh. Growth starts from one node
with a self loop; `growing` has the equations of a cycle. Without the loop nothing flows in the first cycle that thinks.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from neuropil.structure.develop.growing import Graphs, Perceptrons, divide, think, weigh
from neuropil.structure.develop.networks import GrownNetwork, Networks

__all__ = ["DevelopmentalProgram"]


class DevelopmentalProgram(nn.Module):
    """Grow networks from this program's genome, or from a population of genomes of its kind.

    Args:
        embedding: features of a node.
        hidden: units of each perceptron's hidden layer.
        directed: whether the two directions of an edge are weighed apart.
        binary: edges of weight 1 instead of weighed ones.
        growth: who divides: every "node" by itself, or every edge, as the "pair" of its ends.
        additive: whether a node keeps its own embedding when it takes in its neighbours'.
        learn_seed: whether the seed's embedding is in the genome; else it is all ones.
        thinking_extra: steps of thinking in each cycle, beyond the diameter.
        prune: edges of at most this absolute weight are cut at the end of each cycle; 0 for none.
        generator: source of the initial genome, uniform in [-1, 1]; None is a generator of seed 0.
        dtype: of the genome.

    Raises:
        ValueError: if a number is out of range, or binary edges are to be pruned.
    """

    def __init__(
        self,
        embedding: int = 5,
        hidden: int = 5,
        *,
        directed: bool = False,
        binary: bool = False,
        growth: Literal["node", "pair"] = "node",
        additive: bool = False,
        learn_seed: bool = True,
        thinking_extra: int = 0,
        prune: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        if embedding < 1 or hidden < 1:
            raise ValueError(f"embedding and hidden must be at least 1, got {embedding} and {hidden}.")
        if growth not in ("node", "pair"):
            raise ValueError(f'growth must be "node" or "pair", got {growth!r}.')
        if thinking_extra < 0:
            raise ValueError(f"thinking_extra must be at least 0, got {thinking_extra}.")
        if not 0 <= prune < 1 or (binary and prune):
            raise ValueError(f"prune must lie in [0, 1), and be 0 for binary edges, got {prune}.")
        self.embedding, self.hidden = embedding, hidden
        self.directed, self.binary, self.by, self.additive = directed, binary, growth, additive
        self.thinking_extra, self.prune = thinking_extra, float(prune)
        seed = torch.ones(embedding, dtype=dtype)
        if learn_seed:
            self.seed = nn.Parameter(seed)
        else:
            self.register_buffer("seed", seed)
        d, pair = embedding, 2 * embedding
        self.growth = _perceptron(pair if growth == "pair" else d, hidden, 1, dtype)
        self.transform = _perceptron(d, hidden, d, dtype)
        self.weight = None if binary else _perceptron(pair, hidden, 1, dtype)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        with torch.no_grad():
            draw = torch.rand(self.genome_size, generator=generator, dtype=dtype, device=generator.device)
            self.load_genome(2 * draw - 1)

    @property
    def genome_size(self) -> int:
        """Numbers in a genome."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def genome(self) -> Float[Tensor, " numbers"]:
        """All parameters in one vector, with a graph to them."""
        return parameters_to_vector(self.parameters())

    def load_genome(self, vector: Float[Tensor, " numbers"]) -> None:
        """Overwrite all parameters.

        Raises:
            ValueError: if the length is wrong or a number is not finite.
        """
        self._check(vector[None])
        like = next(self.parameters())
        with torch.no_grad():
            vector_to_parameters(vector.detach().to(like), self.parameters())

    def grow(
        self, cycles: int, max_nodes: int = 512, generator: torch.Generator | None = None, loop: bool = True
    ) -> GrownNetwork:
        """Grow one network; differentiable in the genome, but for the decisions to divide.

        Args:
            cycles: of growth.
            max_nodes: largest size. Growth by nodes at most doubles it in each cycle.
            generator: draws the weight of the seed's self loop, uniform in [-1, 1]; None takes 1. It counts until the
                first division, and for good if there is none.
            loop: whether the seed has its self loop.

        Returns:
            The network, with the one after each cycle in its history.

        Raises:
            ValueError: if it grew beyond `max_nodes`, or a number is out of range.
        """
        states = self._develop(self.genome[None], cycles, max_nodes, generator, "raise", loop)
        history = tuple(Networks(graphs, self.directed)[0] for graphs, _ in states)
        last = history[-1]
        return GrownNetwork(last.weights, last.edges, last.embeddings, history, self.directed)

    def develop(
        self,
        genomes: Float[Tensor, "genomes numbers"],
        cycles: int,
        max_nodes: int = 512,
        generator: torch.Generator | None = None,
        beyond: Literal["raise", "stop"] = "raise",
    ) -> Networks:
        """Grow a population at once, from genomes laid out as this program's own; differentiable in them.

        Args:
            genomes: one row each.
            cycles: of growth.
            max_nodes: largest size.
            generator: draws the weight of the seed's self loop, the same for all; None takes 1.
            beyond: what becomes of a network that would exceed `max_nodes`: an error, or ("stop") the divisions of
                that cycle do not happen, and it is marked in `Networks.exceeded`.

        Raises:
            ValueError: if a network grew beyond `max_nodes`, or shapes or numbers are out of range.
        """
        if beyond not in ("raise", "stop"):
            raise ValueError(f'beyond must be "raise" or "stop", got {beyond!r}.')
        self._check(genomes)
        graphs, exceeded = self._develop(genomes, cycles, max_nodes, generator, beyond, True)[-1]
        return Networks(graphs, self.directed, exceeded)

    def _check(self, genomes: Tensor) -> None:
        if genomes.shape[-1] != self.genome_size:
            raise ValueError(f"A genome of this program has {self.genome_size} numbers, got {genomes.shape[-1]}.")
        if not bool(torch.isfinite(genomes).all()):
            raise ValueError("The genome holds a number that is not finite.")

    def _develop(
        self, genomes: Tensor, cycles: int, max_nodes: int, generator: torch.Generator | None, beyond: str, loop: bool
    ) -> list[tuple[Graphs, Tensor]]:
        """The population at the start and after each cycle, and which networks would have grown too large."""
        if cycles < 0 or max_nodes < 1:
            raise ValueError(f"cycles must be at least 0 and max_nodes at least 1, got {cycles} and {max_nodes}.")
        seed, growth, transform, weight = self._genes(genomes)
        count, one = len(genomes), genomes.new_ones(())
        if generator is not None and not self.binary:
            one = 2 * torch.rand((), generator=generator, dtype=torch.float64, device=generator.device).to(one) - 1
        edges = torch.full((count, 1, 1), loop, device=genomes.device)
        sizes = torch.ones(count, dtype=torch.long, device=genomes.device)
        graphs = Graphs(edges * one, edges, seed[:, None], sizes)
        exceeded = torch.zeros_like(sizes, dtype=torch.bool)
        states = [(graphs, exceeded)]
        for cycle in range(cycles):
            graphs = think(graphs, transform, self.thinking_extra, self.additive)
            graphs, exceeds = divide(graphs, growth, self.by, max_nodes)
            if beyond == "raise" and bool(exceeds.any()):
                index = int(exceeds.nonzero()[0, 0])
                raise ValueError(
                    f"Network {index} would grow from {int(graphs.sizes[index])} nodes beyond max_nodes={max_nodes} "
                    f'in cycle {cycle + 1}: take fewer cycles, or develop(..., beyond="stop").'
                )
            graphs = weigh(graphs, weight, self.directed, self.prune)
            exceeded = exceeded | exceeds
            states.append((graphs, exceeded))
        return states

    def _genes(self, genomes: Tensor) -> tuple[Tensor, Perceptrons, Perceptrons, Perceptrons | None]:
        """Cut genomes into seeds and perceptrons."""
        names = dict(self.named_parameters())
        parts = genomes.split([parameter.numel() for parameter in names.values()], dim=1)
        genes = {
            name: part.reshape(len(genomes), *parameter.shape)
            for (name, parameter), part in zip(names.items(), parts, strict=True)
        }
        seed = genes.get("seed")
        if seed is None:
            seed = self.seed.to(genomes).expand(len(genomes), -1)

        def perceptron(name: str) -> Perceptrons:
            return Perceptrons(*(genes[f"{name}.{part}"] for part in ("0.weight", "0.bias", "2.weight", "2.bias")))

        return seed, perceptron("growth"), perceptron("transform"), None if self.binary else perceptron("weight")


def _perceptron(inputs: int, hidden: int, outputs: int, dtype: torch.dtype) -> nn.Sequential:
    """Layers without values: the genome sets them, so that no global generator is asked."""
    first, second = (nn.utils.skip_init(nn.Linear, i, o, dtype=dtype) for i, o in ((inputs, hidden), (hidden, outputs)))
    return nn.Sequential(first, nn.Tanh(), second)
