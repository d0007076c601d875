"""Cut any network into stages, without touching it.

A cut is a place in the forward pass: the output (or input) of a named module. Forward hooks, removed after every call,
record the tensor at each cut and pass on what the rule wants the next stage to see:

    stages(x)                       the same values without their graph: every output reaches its own stage's parameters
    stages(x, activities=[h_1..])   the given activities: one ordinary forward pass evaluates every stage at its clamp
    stages(x, between=f)            f(index, value): what a rule makes of each value (normalised, masked) on its way up
    stages(x, detach=False)         the same tensors: the graph of the whole net, for dL/dh

so convolutions, norms, attention and residual sums inside a stage need no treatment of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Between", "Inputs", "Stages", "feed", "undisturbed"]

Inputs = Tensor | tuple | Mapping[str, Any]
"""What a net is called with: one tensor, or several arguments by position or by name."""
Between = Callable[[int, Tensor], Tensor]
"""(index of the cut, value there) -> what the next stage sees."""


def feed(net: nn.Module, x: Inputs) -> Any:
    """Call a net with its inputs: `net(x)`, `net(*x)` for a tuple, `net(**x)` for a mapping."""
    if isinstance(x, Tensor):
        return net(x)
    return net(**x) if isinstance(x, Mapping) else net(*x)


class Cut(NamedTuple):
    """A place in the forward pass: where a module's output leaves it, or its input enters."""

    module: str
    side: Literal["output", "input"] = "output"

    def __str__(self) -> str:
        return self.module if self.side == "output" else f"input of {self.module}"


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """Run the net without a trace: buffers (running statistics) and the random state are as before afterwards.

    A rule that runs the net several times a batch does all passes but the last in here; then batch norm counts the
    batch once, and every pass draws the same dropout masks.
    """
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    devices = sorted({p.device.index for p in net.parameters() if p.is_cuda and p.device.index is not None})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.data.copy_(before)  # past the version count: graphs made inside can still go backward


def _holds_weights(module: nn.Module) -> bool:
    """Whether a module has a weight matrix (kernel, embedding), as opposed to norms, activations and pools."""
    return any(parameter.dim() >= 2 for parameter in module.parameters())


def _sequential_points(net: nn.Sequential, cut: str) -> list[Cut]:
    names = [name for name, _ in net.named_children()]
    weighty = [index for index, module in enumerate(net.children()) if _holds_weights(module)]
    if cut == "activation":
        return [Cut(names[index - 1]) for index in weighty[1:]]
    return [Cut(names[index]) for index in weighty[:-1]]


def _block_points(net: nn.Module) -> list[Cut]:
    points: list[Cut] = []
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{point.module}.") for point in points)  # a list within a block is the block's
        if isinstance(module, nn.ModuleList) and not inside:
            blocks = [f"{name}.{index}" if name else str(index) for index in range(len(module))]
            points += [Cut(blocks[0], "input"), *map(Cut, blocks)] if blocks else []
    return points


class Stages:
    """The stages of a network, cut at named modules.

    Args:
        net: any module whose forward pass returns one tensor.
        points: where to cut: names of modules (as in `named_modules`) after whose output a stage ends; "blocks" for the
            entries of the net's ModuleLists and what feeds them; None for a Sequential, which is cut before each child
            that holds a weight matrix, the first excepted.
        cut: for a Sequential only: "activation" as above, or "preactivation" at the output of each child that holds a
            weight matrix, the last excepted.

    Attributes:
        names: of the cuts in the order in which they are passed, known after the first call.

    Raises:
        ValueError: if there are no points and the net is no Sequential, if a point names no module, or, on the first
            call, if a point is never passed, passed twice, gives no tensor, or if a connection leads around a cut.
    """

    def __init__(
        self,
        net: nn.Module,
        points: Sequence[str] | str | None = None,
        cut: str = "activation",
    ):
        if cut not in ("activation", "preactivation"):
            raise ValueError(f'cut must be "activation" or "preactivation", got {cut!r}.')
        self.net = net
        self._cuts = self._find(points, cut)
        self._optional = points == "blocks"
        self._clone = any(getattr(module, "inplace", False) for module in net.modules())
        self._traced = self._leakproof = False
        self._handles: list[RemovableHandle] = []
        self._visit: Between | None = None

    def _find(self, points: Sequence[str] | None, cut: str) -> list[Cut]:
        if points is None:
            if not isinstance(self.net, nn.Sequential):
                raise ValueError(
                    f"{type(self.net).__name__} is no Sequential: say where to cut, points=[names of modules], "
                    'or points="blocks" for the entries of its ModuleLists.'
                )
            return _sequential_points(self.net, cut)
        if points == "blocks":
            found = _block_points(self.net)
            if not found:
                raise ValueError(f"{type(self.net).__name__} has no ModuleList with blocks: name the points to cut at.")
            return found
        if isinstance(points, str):
            raise ValueError(f'points must be a sequence of module names or "blocks", got {points!r}.')
        modules = dict(self.net.named_modules())
        for point in points:
            if point == "" or point not in modules:
                raise ValueError(
                    f"No module named {point!r} in {type(self.net).__name__}; it has {sorted(modules)[1:]}."
                )
        if len(set(points)) < len(points):
            raise ValueError(f"A point is named twice: {list(points)}.")
        return [Cut(point) for point in points]

    @property
    def names(self) -> list[str]:
        """Names of the cuts, in the order of the forward pass once a batch has been seen."""
        return [str(cut) for cut in self._cuts]

    def __len__(self) -> int:
        """Number of stages, one more than cuts."""
        return len(self._cuts) + 1

    def __call__(
        self,
        x: Inputs,
        activities: Sequence[Tensor] | None = None,
        *,
        between: Between | None = None,
        detach: bool = True,
    ) -> list[Tensor]:
        """Run the net and return the output of every stage, the net's own output last.

        Args:
            x: input of the net, (batch, ...), or several arguments as a tuple or a mapping.
            activities: what each stage but the first sees as its input, instead of the stage below's output; one tensor
                a cut. Then the outputs are the stages' predictions. They are passed on as they come.
            between: instead of `activities`: makes what the next stage sees from the index of the cut and the value
                there (without its graph where `detach`); it may not change the value in place.
            detach: whether a stage's input is cut from the graph of the stage below.

        Raises:
            ValueError: as the class says, if the activities do not fit the cuts in number or shape, or if both
                `activities` and `between` are given.
        """
        if not self._traced:
            self._trace(x)
        if activities is not None:
            if between is not None:
                raise ValueError("activities and between exclude each other: both say what the next stage sees.")
            if len(activities) != len(self._cuts):
                raise ValueError(f"{len(activities)} activities for {len(self._cuts)} cuts ({', '.join(self.names)}).")
        outputs: list[Tensor] = []

        def visit(index: int, value: Tensor) -> Tensor:
            if index != len(outputs):
                raise ValueError(f"The net passed {self.names[index]} out of order: its path depends on the input.")
            outputs.append(value)
            if activities is not None:
                passed = self._given(activities, index, value)
            else:
                passed = value.detach() if detach else value
                if between is not None:
                    passed = between(index, passed)
            return passed.clone() if self._clone and (detach or activities is not None) else passed

        outputs.append(self._run(x, visit))
        if len(outputs) != len(self):
            raise ValueError(
                f"The net passed {len(outputs) - 1} of {len(self._cuts)} cuts: its path depends on the input."
            )
        if detach and activities is None and not self._leakproof and torch.is_grad_enabled():
            self._check_leaks(outputs)
            self._leakproof = True
        return outputs

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Keep the hooks between calls, for rules that run the net many times a batch; they are gone afterwards."""
        if self._handles:
            yield
            return
        try:
            for index, cut in enumerate(self._cuts):
                module = self.net.get_submodule(cut.module)
                self._handles.append(
                    module.register_forward_hook(self._output_hook(index))
                    if cut.side == "output"
                    else module.register_forward_pre_hook(self._input_hook(index))
                )
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _given(self, activities: Sequence[Tensor], index: int, value: Tensor) -> Tensor:
        if activities[index].shape != value.shape:
            raise ValueError(
                f"Activity {index} has shape {tuple(activities[index].shape)}, "
                f"{self.names[index]} gives {tuple(value.shape)}."
            )
        return activities[index]

    def _output_hook(self, index: int):
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return output if self._visit is None else self._visit(index, self._tensor(index, output))

        return hook

    def _input_hook(self, index: int):
        def hook(module: nn.Module, args: tuple) -> tuple:
            if self._visit is None:
                return args
            return self._visit(index, self._tensor(index, args[0] if args else None)), *args[1:]

        return hook

    def _run(self, x: Inputs, visit: Between) -> Tensor:
        with self.installed():
            self._visit = visit
            try:
                output = feed(self.net, x)
            finally:
                self._visit = None
        if not isinstance(output, Tensor):
            raise ValueError(f"{type(self.net).__name__} returns a {type(output).__name__}, not a tensor.")
        return output

    def _tensor(self, index: int, value: object) -> Tensor:
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.names[index]} gives a {type(value).__name__}, not a tensor: cut elsewhere.")
        return value

    def _trace(self, x: Inputs) -> None:
        """Pass one batch without a trace: order the cuts, drop empty stages of "blocks", complain of the rest."""
        passed: list[tuple[int, Tensor]] = []

        def visit(index: int, value: Tensor) -> Tensor:
            passed.append((index, value))
            return value

        with undisturbed(self.net), torch.no_grad():
            output = self._run(x, visit)
        times = [sum(1 for index, _ in passed if index == cut) for cut in range(len(self._cuts))]
        for cut, count in zip(self._cuts, times, strict=True):
            if count == 0 and not self._optional:
                raise ValueError(f"The forward pass never reaches {cut}.")
            if count > 1:
                raise ValueError(f"{cut} is passed {count} times: a module that is used twice cannot end a stage.")
        given = [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, Mapping) else x)
        seen: list[Any] = [*given, output]
        order = []
        for index, value in passed:
            empty = any(value is other for other in seen)
            if empty and not self._optional:
                where = "the net's own output" if value is output else "what another cut or the input already gives"
                raise ValueError(f"{self._cuts[index]} gives {where}: a stage would be empty. Leave this point out.")
            if not empty:
                seen.append(value)
                order.append(index)
        self._cuts = [self._cuts[index] for index in order]
        self._traced = True

    def _check_leaks(self, outputs: Sequence[Tensor]) -> None:
        """No stage's graph may contain a node of an earlier stage's: something led around the cut."""
        owner: dict[object, int] = {}
        for index, output in enumerate(outputs):
            stack, own = [output.grad_fn], set()
            while stack:
                node = stack.pop()
                if node is None or node in own or hasattr(node, "variable"):  # leaves may be shared: tied weights
                    continue
                if node in owner:
                    around, into = self.names[owner[node]], [*self.names, "the output"][index]
                    raise ValueError(
                        f"A connection leads around the cut at {around} into the stage that ends at {into}: "
                        "cut at the output of the whole block instead."
                    )
                own.add(node)
                stack.extend(parent for parent, _ in node.next_functions)
            owner.update(dict.fromkeys(own, index))
