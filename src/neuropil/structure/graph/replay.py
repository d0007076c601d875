"""A recorded network as a module that runs."""

from collections.abc import Mapping, Sequence, Set
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_unflatten

from neuropil.structure.graph.recording import Recording

__all__ = ["Replay", "replayed"]


def replayed(recording: Recording, tensors: Mapping[str, Tensor], leaves: Sequence[Any]) -> list[Any]:
    """Run a recorded graph once, without making a module of it.

    Args:
        recording: of a network.
        tensors: its parameters and buffers, by the first of their names.
        leaves: of the inputs.

    Returns:
        The leaves of what the network returns.
    """
    given = iter(leaves)
    known: dict[Node, Any] = {}
    feeds = iter(recording.feeds)

    def value(node: Node) -> Any:
        return known[node]

    for node in recording.graph.nodes:
        if node.op == "placeholder":
            feed = next(feeds)
            if feed.kind == "input":
                known[node] = next(given)
            else:
                known[node] = (tensors if feed.kind == "tensor" else recording.constants)[feed.name]
        elif node.op == "get_attr":
            known[node] = recording.attributes[str(node.target)]
        elif node.op == "output":
            return list(map_arg(node.args[0], value))
        else:
            function: Any = node.target
            known[node] = function(*map_arg(node.args, value), **map_arg(node.kwargs, value))
    raise AssertionError("a graph without an output")


class Replay(nn.Module):
    """Runs a recorded graph with the parameters that it is given, which it holds under the names that they had.

    It is specialised to the mode and the sizes of the recording. It is called as the recorded network was: with as many
    arguments, laid out alike, and the same keywords; arguments that are no tensors are those of the recording.

    Args:
        recording: of a network.
        tensors: its parameters and buffers, by all their names.
        passing: names of buffers that are no part of the state.
    """

    def __init__(self, recording: Recording, tensors: Mapping[str, Tensor], passing: Set[str] = frozenset()):
        super().__init__()
        for name, tensor in tensors.items():
            path, _, last = name.rpartition(".")
            holder = _made(self, path)
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(last, tensor)
            else:
                holder.register_buffer(last, tensor, persistent=name not in passing)
        holder = _made(self, "_constants")
        for name, constant in recording.constants.items():
            if isinstance(constant, Tensor):
                holder.register_buffer(name.replace(".", "_"), constant, persistent=False)
            else:
                setattr(holder, name.replace(".", "_"), constant)
        names = {"tensor": "{}", "constant": "_constants.{}"}
        self._feeds = [
            attrgetter(names[feed.kind].format(feed.name if feed.kind == "tensor" else feed.name.replace(".", "_")))
            for feed in recording.feeds
            if feed.kind != "input"
        ]
        self._fed = [feed.kind != "input" for feed in recording.feeds]
        self._inputs, self._keywords, self._outputs = recording.inputs, recording.keywords, recording.outputs
        self._run = GraphModule(dict(recording.attributes), recording.graph)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Compute what the recorded network computes in the mode of the recording.

        Raises:
            TypeError: if the arguments are laid out in another way than those of the recording.
        """
        if set(self._keywords) == set(keywords):
            keywords = {name: keywords[name] for name in self._keywords}
        leaves, layout = tree_flatten((args, keywords))
        if layout != self._inputs:
            raise TypeError(f"This network was recorded with arguments laid out as {self._inputs}, got {layout}.")
        given, held = iter(leaves), iter(self._feeds)
        ends = self._run(*[next(held)(self) if fed else next(given) for fed in self._fed])
        return tree_unflatten(ends, self._outputs)


def _made(root: nn.Module, path: str) -> nn.Module:
    """Find a module by its path, and make those that are missing on the way."""
    for name in path.split(".") if path else ():
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root
