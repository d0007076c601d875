"""From a traced network to nodes and edges: an interpreter of its torch.fx graph that passes neurons, not numbers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from neuropil.learning.nowcast.building import Builder
from neuropil.learning.nowcast.graph import NORMS, NeuralGraph, weight_table
from neuropil.learning.nowcast.positions import laplacian_positions

__all__ = ["neural_graph"]

ADDS = {"add", "iadd", "sub", "isub"}
MULTIPLIES = {"mul", "imul", "truediv", "div"}
RESHAPES = {"flatten", "view", "reshape"}
REARRANGES = {"cat", "concat", "stack", "einsum", "unfold", "pixel_shuffle", "roll", "flip"}
NO_TENSOR = {"size", "dim", "getattr"}


@dataclass(eq=False)
class Channels:
    """The neurons along the channels of a value.

    Attributes:
        ids: their nodes; None for an input that no layer has read yet.
        flat: whether channels and places were flattened into one axis, channel by channel.
    """

    ids: Tensor | None
    flat: bool = False


def neural_graph(net: nn.Module, *, features: int = 9, eigenvectors: int = 8) -> NeuralGraph:
    """Trace a network with torch.fx and connect its neurons.

    It knows Linear, Conv, batch, instance, layer, group and RMS norms, Embedding, MultiheadAttention, parameters that
    are added to or multiplied with the channels, sums and products of branches (the edges of a residual), and any layer
    without parameters that keeps the channels or flattens them. Weights that are used twice (tied embeddings, shared
    layers) appear once, and their second use joins the neurons at both ends.

    Inside attention, query i drives dimension d of head h, which drives key i; the dimensions of a head drive the
    head's node, and that node drives the head's values: queries and keys meet within a head only.

    Args:
        net: any network that torch.fx can trace; no example input is needed.
        features: at most so many weights on one edge; larger kernels lie on parallel edges.
        eigenvectors: of the Laplacian, for `node_pos`; 0 leaves them out.

    Raises:
        TypeError: if the net cannot be traced, or a parameter stands in a module or function that the graph does not
            know; both are named.
        ValueError: if the net has no parameters, or a number is out of range.

    Source: Knyazev et al. 2025, sec. 3; Kofinas et al. 2024. The layout inside attention is ours: the paper's text
        leaves it open.
    """
    if features < 1 or eigenvectors < 0:
        raise ValueError(f"features must be at least 1 and eigenvectors at least 0, got {features} and {eigenvectors}.")
    graph = _trace(net, weight_table(net), features)
    return replace(graph, node_pos=laplacian_positions(graph.edge_index, graph.nodes, eigenvectors))


class Reader:
    """Runs a traced network on channels, node by node.

    Args:
        traced: the network inside a Sequential.
        builder: where nodes and edges go.
    """

    def __init__(self, traced: fx.GraphModule, builder: Builder):
        self.traced, self.builder = traced, builder
        self.embedded = False

    def run(self) -> Any:
        """Read the whole network; what it returns, in channels."""
        found: dict[fx.Node, Any] = {}
        result = None
        for node in self.traced.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
            if node.op == "placeholder":
                found[node] = Channels(None)  # neurons as soon as a layer says how many
            elif node.op == "get_attr":
                owner, _, own = node.target.rpartition(".")
                value = getattr(self.traced.get_submodule(owner), own)
                found[node] = value if isinstance(value, nn.Parameter) else None
            elif node.op == "call_module":
                found[node] = self.layer(node.target, args, kwargs)
            elif node.op == "output":
                result = args
            else:
                name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
                found[node] = self.function(name.strip("_"), args, kwargs)
        return result

    def layer(self, target: str, args: Any, kwargs: Any) -> Any:
        """Read one layer."""
        module = self.traced.get_submodule(target)
        where = f"{target.removeprefix('0').removeprefix('.') or 'net'!r} ({type(module).__name__})"
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Channels)]
        if not values:
            return None
        readers: tuple[tuple[Any, Callable[[Any, Channels, str], Channels]], ...] = (
            (nn.Linear, self.linear),
            (nn.modules.conv._ConvNd, self.convolution),
            (NORMS, self.norm),
            (nn.Embedding, self.embedding),
        )
        for kind, read in readers:
            if isinstance(module, kind) and not getattr(module, "transposed", False):
                return read(module, values[0], where)
        if isinstance(module, nn.MultiheadAttention):
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return self.attention(module, [given[name] for name in ("query", "key", "value")], where)
        if any(True for _ in module.parameters()):
            raise TypeError(
                f"neural_graph does not know {where}: it has parameters and is none of Linear, Conv, Norm, Embedding "
                "and MultiheadAttention. A LinearNowcaster or MLPNowcaster needs no graph."
            )
        return Channels(values[0].ids, flat=True) if isinstance(module, nn.Flatten) else values[0]

    def function(self, name: str, args: Any, kwargs: Any) -> Any:
        """Read a function or method: it keeps the channels, flattens them, or joins those of several values."""
        given = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, (Channels, nn.Parameter))]
        values = list(dict.fromkeys(value for value in given if isinstance(value, Channels)))
        if name in NO_TENSOR or not given:
            return None
        parameters = [value for value in given if isinstance(value, nn.Parameter)]
        if name in REARRANGES:
            raise TypeError(f"neural_graph does not know {name!r}: it rearranges channels.")
        if not values and len(parameters) == 1:
            return parameters[0]  # a view or a slice of a parameter: what it is added to shows its channels
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

    def linear(self, module: nn.Linear, value: Channels, where: str) -> Channels:
        """All to all."""
        out = self.builder.matrix(module.weight, self.channels(value, module.in_features, where), where)
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

    def embedding(self, module: nn.Embedding, value: Channels, where: str) -> Channels:
        """Words (of the first embedding) or positions (of any other) to channels."""
        builder, kind = self.builder, "position" if self.embedded else "word"
        if id(module.weight) not in builder.ends:
            words = builder.new(module.num_embeddings, "input", words=not self.embedded)
            out = builder.new(module.embedding_dim, "hidden")
            builder.ends[id(module.weight)] = (out, words)  # as a linear layer that shares the weight would have it
            builder.connect(words[:, None], out[None], kind, builder.place(module.weight, where)[..., None])
            self.embedded = True
        return Channels(builder.ends[id(module.weight)][0])

    def attention(self, module: nn.MultiheadAttention, values: list[Channels], where: str) -> tuple[Channels, None]:
        """Queries and keys meet in the dimensions of a head, the head gates its values."""
        builder, width, heads = self.builder, module.embed_dim, module.num_heads
        sizes = (width, module.kdim or width, module.vdim or width)
        query, key, value = (self.channels(given, size, where) for given, size in zip(values, sizes, strict=True))
        if id(module.out_proj.weight) in builder.ends:
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
        out = builder.matrix(module.out_proj.weight, values_out, where)
        builder.constant(module.out_proj.bias, out, "bias", where)
        return Channels(out), None


def _trace(net: nn.Module, table: NeuralGraph, features: int) -> NeuralGraph:
    """Connect the weights of a table as the traced net does.

    Raises:
        TypeError: as `neural_graph`.
    """
    try:
        traced = fx.symbolic_trace(nn.Sequential(net))  # inside another module, so that a single layer is a leaf too
    except Exception as error:
        raise TypeError(f"torch.fx cannot trace {type(net).__name__}: {error}") from error
    places = {id(parameter): table.param_slices[name] for name, parameter in net.named_parameters()}
    builder = Builder(table, places, features)
    result = Reader(traced, builder).run()
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
