"""Record a network as a graph of ATen operations, by running it once.

`torch.export` does the same on tensors without numbers, and takes ten times as long. Here the network runs on the
example itself. What a run on numbers cannot see is refused, not guessed (`RecordingError`), and left to `torch.export`
(see `exporting`): a number read out of a tensor that depends on the input or on a parameter, a shape that depends on
such numbers, a tensor that came from outside torch's dispatcher, automatic casting, and transforms of functions.
"""

import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.fx import Graph, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Feed", "Recording", "RecordingError", "aliases", "made", "record", "tensors_of"]

TORCH = f"{Path(torch.__file__).parent}/"
KINDS = (Tensor, nn.Parameter, nn.Buffer)
# They make a tensor from numbers, unseen by the dispatcher, or numbers from a tensor.
MAKERS = frozenset(
    [torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer, Tensor.new_tensor]
)
READERS = frozenset([Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__])
DATA: Any = Tensor.data
DEPENDENT = frozenset([torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape])


class RecordingError(Exception):
    """The network does what a run on numbers cannot record."""


@dataclass(frozen=True)
class Feed:
    """What a placeholder stands for: a parameter or buffer by the first of its names, a constant, or an input."""

    kind: Literal["tensor", "constant", "input"]
    name: str = ""


@dataclass
class Recording:
    """A network as a graph of ATen operations, those too of which nothing comes: the network runs them all the same.

    Every node's meta holds "made" (shapes of what it returns), and of operations "where" (the user's line) and "module"
    (qualified name of the innermost module).

    Attributes:
        graph: its placeholders are parameters, buffers, constants, and the leaves of the inputs.
        feeds: what each placeholder is, in order.
        constants: by name.
        attributes: what `get_attr` finds: graphs within the graph.
        inputs: how (arguments, keywords) are laid out.
        keywords: their names, in the order of the layout.
        outputs: how what is returned is laid out.
    """

    graph: Graph
    feeds: tuple[Feed, ...]
    constants: Mapping[str, Any]
    inputs: TreeSpec
    keywords: tuple[str, ...]
    outputs: TreeSpec
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def reads(self, name: str) -> list[Node]:
        """List the operations that read a parameter or buffer."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        return [
            user
            for node, feed in zip(placeholders, self.feeds, strict=True)
            if feed == Feed("tensor", name)
            for user in node.users
        ]


def record(net: nn.Module, args: Sequence[Any], keywords: Mapping[str, Any]) -> Recording:
    """Run a network and note every operation.

    Args:
        net: in the mode in which it is to be recorded.
        args: positional arguments.
        keywords: keyword arguments.

    Returns:
        The graph. Of tensors it holds constants only.

    Raises:
        RecordingError: if a run on numbers does not tell what the network does for others.
        Exception: whatever the network raises.
    """
    recorder = Recorder(net)
    leaves, layout = tree_flatten((tuple(args), dict(keywords)))
    args, keywords = tree_unflatten(recorder.take_inputs(leaves), layout)
    with as_exporting(), recorder.following(), torch._C._EnablePythonDispatcher(), recorder, Watch(recorder):
        returned = net(*args, **keywords)
    return recorder.finished(returned, layout, tuple(keywords))


def aliases(net: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


@contextmanager
def as_exporting() -> Iterator[None]:
    """Tell libraries that they are being exported: they then leave out branches on numbers that only save time."""
    before = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = before


class Recorder(SchemaCheckMode):
    """Notes operations before autograd takes them apart.

    torch lets only modes of three classes of its own see operations that early; the base is the one that asks nothing
    of its heirs.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Have no part in torch.compile, whose import takes seconds."""
        return False

    def __init__(self, net: nn.Module):
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self._graph, self._feeds, self._constants = Graph(), list[Feed](), dict[str, Tensor]()
        self._known: dict[int, tuple[Callable[[], Any], Node]] = {}
        self._depends: set[Node] = set()  # on the input, or on a parameter
        self._written: set[int] = set()  # memory that such numbers were written into, maybe through a view
        self._paths = {id(module): name for name, module in net.named_modules()}
        self._stack = [""]
        self._held = {id(one) for module in net.modules() for one in tensors_of(list(vars(module).values()))}
        self._storages = set()
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            self._storages.add(_memory(tensor))
            self._place(Feed("tensor", name), tensor)
        self._last: Node | None = None

    def take_inputs(self, leaves: Sequence[Any]) -> list[Any]:
        """Make placeholders for the leaves of the inputs; a tensor that is known already becomes one of its own."""
        taken = []
        for leaf in leaves:
            taken.append(leaf.detach() if isinstance(leaf, Tensor) and self.node(leaf) is not None else leaf)
            self._place(Feed("input"), taken[-1])
        self._last = next(reversed(self._graph.nodes), None)
        return taken

    def _place(self, feed: Feed, value: Any) -> None:
        node = self._placeholder(feed)
        node.meta["made"] = made(value)
        node.meta["value"] = None if isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            self._known[id(value)] = ref(value), node
            self._depends.add(node)

    def _placeholder(self, feed: Feed) -> Node:
        name = f"{feed.kind}_{len(self._feeds)}_{feed.name}".rstrip("_")
        self._feeds.append(feed)
        return self._graph.placeholder(re.sub(r"\W", "_", name))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Know in which module the run is."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(self._paths.get(id(module), self._stack[-1]))

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def node(self, tensor: Tensor) -> Node | None:
        """Find the node that a tensor is."""
        alive, node = self._known.get(id(tensor), (None, None))
        return node if alive is not None and alive() is tensor else None

    def depends(self, tree: Any) -> bool:
        """Tell whether anything in a tree depends on the input or on a parameter."""
        return any(
            (node := self.node(one)) is None or node in self._depends or _memory(one) in self._written
            for one in tensors_of(tree)
        )

    def hold(self, tree: Any) -> None:
        """Take the tensors in a tree for constants."""
        for one in tensors_of(tree):
            if self.node(one) is None:
                self._constant(one)

    def _constant(self, tensor: Tensor) -> Node:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = tensor
        place = self._graph.inserting_after(self._last) if self._last else self._graph.inserting_before(None)
        with place:
            node = self._placeholder(Feed("constant", name))
        node.meta.update(made=made(tensor), value=None)
        self._last = node
        self._known[id(tensor)] = ref(tensor), node
        return node

    def _fresh(self, tensor: Tensor) -> Tensor:
        """Take numbers that became a tensor: a copy of them, for the network may write into it."""
        constant = self._constant(tensor.clone())
        node = self._graph.create_node("call_function", torch.ops.aten.clone.default, (constant,))
        node.meta.update(made=made(tensor), module=self._stack[-1], where="")
        self._known[id(tensor)] = ref(tensor), node
        return tensor

    def _argument(self, tensor: Tensor) -> Node:
        node = self.node(tensor)
        if node is not None:
            return node
        if type(tensor) not in KINDS:
            raise RecordingError(f"a tensor of class {type(tensor).__name__}")
        if id(tensor) not in self._held or _memory(tensor) in self._storages:
            raise RecordingError("a tensor that no operation made")
        return self._constant(tensor)

    def _named(self, tree: Any) -> Any:
        """Put nodes in the place of tensors."""
        if isinstance(tree, Tensor):
            return self._argument(tree)
        if isinstance(tree, list | tuple):
            return tuple([self._named(one) for one in tree])
        if isinstance(tree, dict):
            return {key: self._named(one) for key, one in tree.items()}
        return tree

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation and note it."""
        if peek_interpreter_stack() is not None:
            raise RecordingError("a transform of functions (vmap, grad)")
        if torch._C._is_any_autocast_enabled():
            raise RecordingError("automatic casting")
        kwargs = kwargs or {}
        if func is torch.ops.aten.lift_fresh.default and self.node(args[0]) is None:
            return self._fresh(args[0])
        given, options = self._named(args), self._named(kwargs)
        depends = self.depends((args, kwargs))
        guard = torch._C._DisablePythonDispatcher()
        try:
            result = func(*args, **kwargs)
        finally:
            del guard
        if depends and self._reads_numbers(func, args, result):
            raise RecordingError(f"{func} reads numbers out of a tensor")
        node = self._graph.create_node("call_function", func, given, options)
        node.meta.update(made=made(result), module=self._stack[-1], where=_line())
        if depends:
            self._depends.add(node)
            if func._schema.is_mutable:
                self._written.update(_memory(one) for one in tensors_of(result))
        self._returns(result, node)
        return result

    def _reads_numbers(self, func: Any, args: tuple, result: Any) -> bool:
        if not isinstance(result, Tensor | list | tuple):
            return result is not None
        if not DEPENDENT.intersection(func.tags):
            return False
        if func.overloadpacket is torch.ops.aten.index:  # its shape depends on numbers with masks only
            return any(one.dtype in (torch.bool, torch.uint8) for one in tensors_of(args[1]))
        return True

    def _returns(self, result: Any, node: Node) -> None:
        if isinstance(result, Tensor):
            self._known[id(result)] = ref(result), node
        elif isinstance(result, list | tuple):
            for k, one in enumerate(result):
                if isinstance(one, Tensor):
                    part = self._graph.create_node("call_function", operator.getitem, (node, k), {})
                    part.meta.update(made=made(one), module=node.meta["module"], where=node.meta["where"])
                    if node in self._depends:
                        self._depends.add(part)
                    self._known[id(one)] = ref(one), part

    def finished(self, returned: Any, inputs: TreeSpec, keywords: tuple[str, ...]) -> Recording:
        """Close the graph."""
        leaves, outputs = tree_flatten(returned)
        for one in leaves:
            if not isinstance(one, Tensor | int | float | complex | str | None):
                raise RecordingError(f"an object of class {type(one).__name__} is returned")
        ends = [self._argument(one) if isinstance(one, Tensor) else one for one in leaves]
        self._graph.output(tuple(ends))
        return Recording(self._graph, tuple(self._feeds), self._constants, inputs, keywords, outputs)


class Watch(TorchFunctionMode):
    """Sees the ways between numbers and tensors that pass the dispatcher by."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Refuse what reads numbers that depend on the input, and note what is made of numbers."""
        kwargs = kwargs or {}
        if func in READERS or func in MAKERS:
            if self._recorder.depends((args, kwargs)):
                raise RecordingError(f"{getattr(func, '__name__', func)} reads numbers out of a tensor")
            result = func(*args, **kwargs)
            self._recorder.hold(result)
            return result
        if func == DATA.__get__:
            return args[0].detach()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and len(args) > 1:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple([self._recorded(one) if isinstance(one, list | np.ndarray) else one for one in index])
            like = {"dtype": args[0].dtype, "device": args[0].device}
            rest = [torch.tensor(one, **like) if isinstance(one, int | float | complex) else one for one in args[2:]]
            args = (args[0], index, *rest)
        return func(*args, **kwargs)

    def _recorded(self, numbers: Any) -> Any:
        """Make a constant of numbers that torch would make a tensor of, unseen."""
        if any(True for _ in tensors_of(numbers)):
            return numbers
        return torch.tensor(numbers)


def made(value: Any) -> Any:
    """Give the shape of a tensor as a tuple, those of several as a list, or None for what is none."""
    if isinstance(value, Tensor):
        return tuple(map(int, value.shape))
    if isinstance(value, list | tuple):
        return [made(one) for one in value]
    return None


def _line() -> str:
    """Give the line of the user's code that runs; torch's own if there is none between it and the recorder."""
    frame, inner = sys._getframe(2), ""
    while frame is not None:
        name, at = frame.f_code.co_name, frame.f_code.co_filename
        if at == __file__:
            if name == record.__name__:
                break
        elif at.startswith(TORCH):
            if not inner and at.startswith(f"{TORCH}nn/"):
                inner = f'File "{at}", line {frame.f_lineno}, in {name}'
        elif not at.startswith("<") and "/jaxtyping/" not in at:  # generated code, and wrappers that check types
            return f'File "{at}", line {frame.f_lineno}, in {name}'
        frame = frame.f_back
    return inner


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Give the tensors in arguments or in what a network returns, whatever holds them."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for one in tree.values():
            yield from tensors_of(one)
    elif isinstance(tree, list | tuple):
        for one in tree:
            yield from tensors_of(one)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
