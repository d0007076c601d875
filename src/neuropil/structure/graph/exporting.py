"""What a recording cannot follow, by `torch.export`: control flow, numbers read out of tensors, transforms.

It runs on tensors without numbers, so that it sees where numbers matter, and refuses what it cannot carry through.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import export
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from neuropil.structure.graph.recording import Feed, Recording, aliases, made

__all__ = ["exported"]

TENSORS = {InputKind.PARAMETER, InputKind.BUFFER}


def exported(net: nn.Module, args: Sequence[Any], keywords: Mapping[str, Any]) -> Recording:
    """Export a network, and give it as a recording.

    Args:
        net: in the mode in which it is to be exported.
        args: positional arguments.
        keywords: keyword arguments.

    Raises:
        ValueError: if it cannot be exported; the message names the operation and the cure.
    """
    try:
        program = export(net, tuple(args), dict(keywords), strict=False)
        _translate(program.graph_module)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = [*lines[:2], *(line for line in lines[2:] if line.startswith("Caused by"))]
        raise ValueError(
            f"torch.export cannot read {type(net).__name__}: {' '.join(said)} The two usual cures: replace a "
            f"branch on the values of a tensor by torch.where or torch.cond, and pass as keywords what the forward "
            f"expects as keywords (use_cache=False, for instance)."
        ) from error
    feeds, constants, first = [], {}, aliases(net)
    nodes = {node.name: node for node in program.graph_module.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind in TENSORS:
            feeds.append(Feed("tensor", first[str(spec.target)]))
        elif spec.kind == InputKind.USER_INPUT:
            feeds.append(Feed("input"))
            given = nodes[spec.arg.name].meta.get("val")
            nodes[spec.arg.name].meta["value"] = None if isinstance(given, Tensor) else given
        else:
            feeds.append(Feed("constant", str(spec.target)))
            constants[str(spec.target)] = program.constants[str(spec.target)]
    attributes = {name: one for name, one in program.graph_module.named_children() if isinstance(one, GraphModule)}
    layout = program.call_spec
    assert layout.in_spec is not None and layout.out_spec is not None
    graph = program.graph_module.graph
    return Recording(graph, tuple(feeds), constants, layout.in_spec, tuple(keywords), layout.out_spec, attributes)


def _translate(module: GraphModule) -> None:
    """Put what a recording notes of every operation into the graph, and into graphs within it."""
    for node in module.graph.nodes:
        node.meta["made"] = made(node.meta.get("val"))
        node.meta.update(module=_module(node), where=_line(node))
    for inner in module.children():
        if isinstance(inner, GraphModule):
            _translate(inner)


def _module(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self']").removeprefix(".") if paths else ""


def _line(node: Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    own = [place for place in places if "/torch/" not in place]
    return (own or places or [""])[-1]
