"""From a traced network to nodes and edges: an interpreter of its torch.fx graph that passes neurons, not numbers."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from neuropil.learning.nowcast.graph import EDGE_TYPES, NODE_KINDS, NORMS, NeuralGraph

__all__ = ["trace"]

ADDS = {"add", "iadd", "sub", "isub"}
MULTIPLIES = {"mul", "imul", "truediv", "div"}
RESHAPES = {"flatten", "view", "reshape"}
REARRANGES = {"cat", "concat", "stack", "einsum", "unfold", "pixel_shuffle", "roll", "flip"}
NO_TENSOR = {"size", "dim", "getattr"}
TRANSPOSES = {"T", "mT", "H", "mH"}


@dataclass(eq=False)
class Channels:
    """The neurons along the channels of a value.

    Attributes:
        ids: their nodes; None for an input that no layer has read yet.
        flat: whether channels and places were flattened into one axis, channel by channel.
    """

    ids: Tensor | None
    flat: bool = False


class Edges(NamedTuple):
    """Edges of one layer.

    Attributes:
        source: nodes that they leave.
        target: nodes that they reach.
        kind: number of `EDGE_TYPES`.
        weights: places of their weights, -1 for none.
        constant: what they carry instead.
    """

    source: Tensor
    target: Tensor
    kind: int
    weights: Tensor
    constant: float = 0.0


class Builder:
    """Nodes and edges as they come.

    Args:
        table: places and kinds of the weights.
        places: by the parameter's id, where it lies in the flat vector.
        features: at most so many weights on one edge.
    """

    def __init__(self, table: NeuralGraph, places: dict[int, slice], features: int):
        self.table, self.places, self.features = table, places, features
        self.kinds: list[Tensor] = []
        self.words: list[Tensor] = []
        self.nodes = 0
        self.edges: list[Edges] = []
        self.ends: dict[int, tuple[Tensor, Tensor]] = {}
        self.weight_type = torch.zeros_like(table.weight_type)

    def new(self, count: int, kind: str, words: bool = False) -> Tensor:
        """Add nodes."""
        ids = torch.arange(self.nodes, self.nodes + count)
        self.nodes += count
        self.kinds.append(torch.full((count,), NODE_KINDS[kind]))
        self.words.append(torch.arange(1, count + 1) if words else torch.zeros(count, dtype=torch.int64))
        return ids

    def place(self, parameter: Tensor, where: str) -> Tensor:
        """Where a parameter's entries lie in the flat vector, in the parameter's shape."""
        span = self.places.get(id(parameter))
        if span is None:
            raise TypeError(f"A weight of {where} is computed from other parameters: neural_graph does not know that.")
        return torch.arange(span.start, span.stop).reshape(parameter.shape)

    def connect(self, source: Tensor, target: Tensor, kind: str, weights: Tensor) -> None:
        """Add edges with weights: source and target broadcast to the leading axes, the last axis is the kernel's."""
        shape = weights.shape[:-1]
        source, target = source.expand(shape).reshape(-1), target.expand(shape).reshape(-1)
        self.weight_type[weights.reshape(-1)] = EDGE_TYPES[kind]
        for part in weights.reshape(len(source), -1).split(self.features, dim=1):
            self.edges.append(Edges(source, target, EDGE_TYPES[kind], part))

    def structure(self, source: Tensor, target: Tensor, kind: str, constant: float = 1.0) -> None:
        """Add edges without weights."""
        none = torch.full((len(source), 1), -1)
        self.edges.append(Edges(source, target, EDGE_TYPES[kind], none, constant))

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        """Where two branches meet: the earlier one's channels drive the later one's, which go on."""
        if torch.equal(one, other):
            return one
        earlier, later = (one, other) if int(one.max()) < int(other.max()) else (other, one)
        self.structure(earlier, later, "residual")
        return later

    def constant(self, parameter: Tensor | None, target: Tensor, kind: str, where: str, rows: int = 1) -> None:
        """Connect constants to channels by a parameter: a bias, a norm's weight, embeddings of positions."""
        if parameter is None:
            return
        weights = self.place(parameter, where).reshape(rows, len(target), 1)
        if id(parameter) not in self.ends:
            source = self.new(rows, "constant")
            self.ends[id(parameter)] = (source, target)
            self.connect(source[:, None], target[None], kind, weights)
        else:
            self.join(self.ends[id(parameter)][1], target)

    def matrix(
        self, parameter: Tensor, source: Tensor, target: Tensor | None, kind: str, where: str, flip: bool = False
    ) -> Tensor:
        """Connect by a weight (targets, sources); `flip` lets the arrows point back. Returns the targets.

        New targets are made where none are given. A parameter that was used before joins the neurons it stands between.
        """
        outputs, inputs = parameter.shape
        if id(parameter) in self.ends:
            first_source, first_target = self.ends[id(parameter)]
            if len(first_source) != inputs or first_source is first_target:
                first_source, first_target = first_target, first_source
            self.join(first_source, source)
            return first_target if target is None else self.join(first_target, target)
        target = self.new(outputs, "hidden") if target is None else target
        self.ends[id(parameter)] = (source, target)
        weights = self.place(parameter, where)[..., None]
        ends = (target[:, None], source[None]) if flip else (source[None], target[:, None])
        self.connect(*ends, kind, weights)
        return target

    def finish(self, outputs: Iterable[Tensor]) -> NeuralGraph:
        """The graph of all that was added, with a loop at every node."""
        every = torch.arange(self.nodes)
        self.structure(every, every, "self", 2.0)
        kinds = torch.cat(self.kinds)
        for ids in outputs:
            kinds[ids] = torch.where(kinds[ids] == NODE_KINDS["hidden"], NODE_KINDS["output"], kinds[ids])
        width = max(edges.weights.shape[1] for edges in self.edges)
        return replace(
            self.table,
            weight_type=self.weight_type,
            edge_index=torch.stack(
                [torch.cat(ends) for ends in ([e.source for e in self.edges], [e.target for e in self.edges])]
            ),
            edge_type=torch.cat([torch.full((len(edges.source),), edges.kind) for edges in self.edges]),
            edge_weights=torch.cat(
                [nn.functional.pad(e.weights, (0, width - e.weights.shape[1]), value=-1) for e in self.edges]
            ),
            edge_constant=torch.cat([torch.full((len(edges.source),), edges.constant) for edges in self.edges]),
            node_kind=kinds,
            node_word=torch.cat(self.words),
            node_pos=torch.zeros(self.nodes, 0),
        )


class Reader(fx.Interpreter):
    """Run a traced network on channels."""

    def __init__(self, traced: fx.GraphModule, builder: Builder, wrapped: bool):
        super().__init__(traced, garbage_collect_values=False)
        self.builder, self.wrapped = builder, wrapped
        self.embedded = False

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Channels:
        """An input: neurons as soon as a layer says how many."""
        return Channels(None)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter or buffer used outside a layer."""
        value = super().get_attr(target, args, kwargs)
        return value if isinstance(value, nn.Parameter) else None

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A layer."""
        module = self.fetch_attr(target)
        name = "the network" if self.wrapped else repr(target)
        where = f"{name} ({type(module).__name__})"
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Channels)]
        if isinstance(module, nn.Embedding):
            return self.embedding(module, bool(values), where)
        if not values:
            return None
        if isinstance(module, nn.MultiheadAttention):
            given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            sources = [given.get(part, values[0]) for part in ("query", "key", "value")]  # alone it attends to itself
            return self.attention(module, sources, where)
        readers: tuple[tuple[Any, Callable[..., Channels]], ...] = (
            (nn.Linear, self.dense),
            (nn.modules.conv._ConvNd, self.convolution),
            (NORMS, self.norm),
        )
        for kinds, read in readers:
            if isinstance(module, kinds) and not getattr(module, "transposed", False):
                return read(module, values[0], where)
        if any(True for _ in module.parameters()):
            raise TypeError(
                f"neural_graph does not know {where}: it has parameters and is none of Linear, Conv, Norm, Embedding "
                "and MultiheadAttention. A LinearNowcaster or MLPNowcaster needs no graph."
            )
        return Channels(values[0].ids, flat=True) if isinstance(module, nn.Flatten) else values[0]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A function of values: it keeps the channels, flattens them, or joins those of several values."""
        return self.function(getattr(target, "__name__", str(target)).strip("_"), args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A method of a value, as a function of it."""
        return self.function(str(target).strip("_"), args, kwargs)

    def function(self, name: str, args: Any, kwargs: Any) -> Any:
        """See `call_function`."""
        given = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, (Channels, nn.Parameter))]
        values = list(dict.fromkeys(value for value in given if isinstance(value, Channels)))
        if name == "getattr" and args[1] in TRANSPOSES:
            return args[0]
        if name in NO_TENSOR or not given:
            return None
        parameters = [value for value in given if isinstance(value, nn.Parameter)]
        if name in REARRANGES:
            raise TypeError(f"neural_graph does not know {name!r}: it rearranges channels.")
        if not values and len(parameters) == 1:
            return parameters[0]  # a view or a slice of a parameter: what it is added to shows its channels
        if not values:
            raise TypeError(f"neural_graph does not know the function {name!r} of parameters alone.")
        result = values[0]
        for other in values[1:]:
            result = self.meet(result, other, name)
        for parameter in parameters:
            self.parameter(parameter, result, name)
        return Channels(result.ids, flat=True) if name in RESHAPES else result

    def meet(self, one: Channels, other: Channels, name: str) -> Channels:
        """Two branches meet channel by channel."""
        known = other if one.ids is None else one
        if known.ids is None:
            return one
        where = f"the function {name!r}"
        pair = [self.channels(value, len(known.ids), where) for value in (one, other)]
        return Channels(self.builder.join(*pair), flat=one.flat and other.flat)

    def parameter(self, parameter: nn.Parameter, value: Channels, name: str) -> None:
        """A parameter that is added to or multiplied with the channels."""
        if name not in ADDS | MULTIPLIES:
            raise TypeError(f"neural_graph does not know parameters in the function {name!r}.")
        wanted = parameter.shape[-1] if value.ids is None and parameter.dim() else None
        ids = self.channels(value, wanted or len(_known(value, name)), name)
        rows, rest = divmod(parameter.numel(), len(ids))
        if rest or (rows > 1 and parameter.shape[-1] != len(ids)):
            raise TypeError(
                f"A parameter of shape {tuple(parameter.shape)} does not fit {len(ids)} channels ({name!r})."
            )
        kind = "position" if rows > 1 else "norm" if name in MULTIPLIES else "bias"
        self.builder.constant(parameter, ids, kind, f"the function {name!r}", rows)

    def channels(self, value: Channels, count: int, where: str) -> Tensor:
        """The nodes of a value that a layer reads as `count` channels."""
        if value.ids is None:
            value.ids = self.builder.new(count, "input")
        if len(value.ids) == count:
            return value.ids
        if value.flat and count % len(value.ids) == 0:
            return value.ids.repeat_interleave(count // len(value.ids))
        raise TypeError(f"{where} takes {count} channels, but neural_graph follows {len(value.ids)} to it.")

    def dense(self, module: Any, value: Channels, where: str) -> Channels:
        """Channels to channels."""
        ids = self.channels(value, module.in_features, where)
        out = self.builder.matrix(module.weight, ids, None, "linear", where)
        self.builder.constant(module.bias, out, "bias", where)
        return Channels(out)

    def convolution(self, module: Any, value: Channels, where: str) -> Channels:
        """Channels to channels; the kernel lies on the edge."""
        builder, groups = self.builder, module.groups
        ids = self.channels(value, module.in_channels, where)
        if id(module.weight) in builder.ends:
            source, out = builder.ends[id(module.weight)]
            builder.join(source, ids)
        else:
            out = builder.new(module.out_channels, "hidden")
            builder.ends[id(module.weight)] = (ids, out)
            weights = builder.place(module.weight, where).flatten(2)
            source = ids.reshape(groups, -1).repeat_interleave(module.out_channels // groups, dim=0)
            builder.connect(source, out[:, None], "convolution", weights)
        builder.constant(module.bias, out, "bias", where)
        return Channels(out)

    def norm(self, module: Any, value: Channels, where: str) -> Channels:
        """Weight and bias join the channels as constants' edges; the channels stay what they are."""
        scale, shift = getattr(module, "weight", None), getattr(module, "bias", None)
        for parameter, kind in ((scale, "norm"), (shift, "bias")):
            if parameter is None:
                continue
            if parameter.dim() != 1:
                raise TypeError(f"neural_graph does not know {where} over {parameter.dim()} axes.")
            self.builder.constant(parameter, self.channels(value, len(parameter), where), kind, where)
        return value

    def embedding(self, module: Any, of_input: bool, where: str) -> Channels:
        """Words (of the first embedding of an input) or positions (of any other) to channels.

        Its ends are kept as those of a Linear with the same weight, which goes from channels to words.
        """
        builder, words = self.builder, of_input and not self.embedded
        if id(module.weight) not in builder.ends:
            rows = builder.new(module.num_embeddings, "input", words=words)
            out = builder.new(module.embedding_dim, "hidden")
            builder.ends[id(module.weight)] = (out, rows)
            kind = "word" if words else "position"
            builder.connect(rows[:, None], out[None], kind, builder.place(module.weight, where)[..., None])
            self.embedded = self.embedded or words
        return Channels(builder.ends[id(module.weight)][0])

    def attention(self, module: nn.MultiheadAttention, values: list[Channels], where: str) -> tuple[Channels, None]:
        """Queries and keys meet in the dimensions of a head, the head gates its values."""
        builder, width, heads = self.builder, module.embed_dim, module.num_heads
        sizes = (width, module.kdim or width, module.vdim or width)
        query, key, value = (self.channels(given, size, where) for given, size in zip(values, sizes, strict=True))
        again = id(module.out_proj.weight) in builder.ends
        if again:
            raise TypeError(f"neural_graph does not know {where} when it is used twice.")
        dimensions, values_out = builder.new(width, "hidden"), builder.new(width, "hidden")
        if module.in_proj_weight is not None:
            spans = builder.place(module.in_proj_weight, where).reshape(3, width, width)
        else:
            projections = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            spans = [builder.place(projection, where) for projection in projections]
        builder.connect(query[None], dimensions[:, None], "query", spans[0][..., None])
        builder.connect(dimensions[:, None], key[None], "key", spans[1][..., None])
        builder.connect(value[None], values_out[:, None], "value", spans[2][..., None])
        if module.in_proj_bias is not None:
            biases = builder.place(module.in_proj_bias, where).reshape(3, width, 1)
            for weights, target in zip(biases, (dimensions, dimensions, values_out), strict=True):
                builder.connect(builder.new(1, "constant"), target, "bias", weights)
        for extra, target in ((module.bias_k, dimensions), (module.bias_v, values_out)):
            builder.constant(extra, target, "bias", where)
        nodes = builder.new(heads, "head").repeat_interleave(width // heads)
        builder.structure(dimensions, nodes, "head")
        builder.structure(nodes, values_out, "head")
        out = builder.matrix(module.out_proj.weight, values_out, None, "linear", where)
        builder.constant(module.out_proj.bias, out, "bias", where)
        return Channels(out), None


def trace(net: nn.Module, table: NeuralGraph, features: int) -> NeuralGraph:
    """Connect the weights of a table as the traced net does.

    Raises:
        TypeError: as `neural_graph`.
    """
    wrapped = fx.Tracer().is_leaf_module(net, "")  # a single layer, seen from outside
    try:
        traced = fx.symbolic_trace(nn.Sequential(net) if wrapped else net)
    except Exception as error:
        raise TypeError(f"torch.fx cannot trace {type(net).__name__}: {error}") from error
    places = {id(parameter): table.param_slices[name] for name, parameter in net.named_parameters()}
    builder = Builder(table, places, features)
    reader = Reader(traced, builder, wrapped)
    result = reader.run(*[None] * sum(node.op == "placeholder" for node in traced.graph.nodes))
    for name, parameter in net.named_parameters():
        if not bool(builder.weight_type[table.param_slices[name]].all()):
            module = net.get_submodule(name.rpartition(".")[0])
            raise TypeError(
                f"neural_graph cannot place {name!r} {tuple(parameter.shape)} of {type(module).__name__}: nothing that "
                "it knows reads it."
            )
    outputs = [leaf.ids for leaf in _leaves(result) if isinstance(leaf, Channels) and leaf.ids is not None]
    return builder.finish(outputs)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]


def _known(value: Channels, name: str) -> Tensor:
    if value.ids is None:
        raise TypeError(f"neural_graph does not know how many channels the input of the function {name!r} has.")
    return value.ids
