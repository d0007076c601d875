"""Networks to and from NIR, the neuromorphic intermediate representation that simulators and chips exchange.

NIR says neurons in continuous time (Pedersen et al. 2024), u the input:

    LIF       tau dv/dt = (v_leak - v) + r u                   fires at v > v_threshold, then v = v_reset
    LI        the same without spikes
    IF, I     dv/dt = r u                                      with and without spikes
    CubaLIF   tau_syn di/dt = -i + w_in u,  tau_mem dv/dt = (v_leak - v) + r i

and this library in steps, h = a v + k x + (1 - a) v_rest. With the input held over a step dt

    a = 1 - dt/tau "euler",  a = exp(-dt/tau) "exact";  k = r (1 - a)        LIF, LI
    a = 1,  k = r dt                                                         IF, I
    a and b from tau_mem and tau_syn likewise;  k = r (1 - a) w_in (1 - b)   CubaLIF

`from_nir` evaluates these in float64, and `to_nir` writes the numbers for which they give a and k back, rounding of
float64 included, where there are such: for every decay of at least 3/4 and the gain 1 - a. Other decays and gains may
come back some 1e-16 away, which float32 does not see. One rounding moves: where a decay is one float32 tensor for all
neurons (a `PLIF`) and v_rest is not 0, (1 - a) v_rest comes back rounded from float64.

NIR fires above the threshold, this library at it: they differ at exact ties. A synaptic current of ours is NIR's over
w_in (1 - b). NIR says no initial state: simulators begin at v_leak, as this library does, or at 0.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require_positive
from neuropil.spiking.layers import Integration, LeakyReadout, Spiking
from neuropil.spiking.neurons import CubaLIFNeuron, LIFNeuron, Number
from neuropil.spiking.recurrent import RecurrentSpiking, SpikingSequential
from neuropil.spiking.surrogate import Surrogate

__all__ = ["from_nir", "to_nir"]

Edges = list[tuple[str, str]]
Shape = tuple[int, ...]
_PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Identity)
_LEAKY = ("LIF", "IF", "CubaLIF", "LI", "I")
_KNOWN = ("Linear", "Affine", "Conv1d", "Conv2d", "AvgPool2d", "SumPool2d", "Flatten", *_LEAKY)


def to_nir(
    module: nn.Module,
    sample: Float[Tensor, "time batch *inputs"] | None = None,
    dt: float = 1.0,
    integration: Integration = "euler",
) -> Any:
    """A network as a graph of NIR; its numbers are copied.

    Args:
        module: a layer, or an `nn.Sequential` or `SpikingSequential` of them, nested or not: Linear, Conv1d, Conv2d,
            AvgPool2d (with divisor_override=1 a SumPool2d), Flatten, `Spiking` layers of `LIFNeuron` and
            `CubaLIFNeuron` with a hard reset, `RecurrentSpiking` ones whose recurrence is linear, `LeakyReadout`.
        sample: an input (T, B, *), for the shape; None where the first layer is linear or recurrent, which tells it.
        dt: the step in the unit that the graph's time constants shall have. NIR's readers take seconds, so 1e-3 makes
            a step a millisecond; 1 writes time constants in steps.
        integration: how the reader is to take time constants, "euler" or "exact": which equations above are solved.
            What the network computes in a step does not depend on it.

    Returns:
        A `nir.NIRGraph` with nodes "input", one a layer by its name in the module, and "output"; a recurrent layer is
        two, "name.lif" and "name.w_rec".

    Raises:
        ImportError: if the package nir is missing.
        ValueError: if NIR cannot say a layer, which is named with the reason, or the shape is unknown or does not fit.

    Source: Pedersen et al., Nature Communications 15 (2024), Neuromorphic intermediate representation.
    """
    nir = _package()
    _check_step(dt, integration)
    layers = list(_layers(module))
    for name, layer, lead in layers:
        if reasons := "; ".join(_unsaid(layer, lead, integration)):
            raise ValueError(f"NIR cannot say layer {name!r} ({type(layer).__name__}): {reasons}.")
    shape, last = _input_shape(layers, sample), "input"
    nodes: dict[str, Any] = {last: nir.Input(np.array(shape))}
    edges: Edges = []
    for name, layer, lead in layers:
        try:
            node, after = _node(nir, layer, shape, lead, dt, integration)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"Layer {name!r} does not take its input of shape {shape}: {error}.") from error
        while name in (*nodes, "output"):
            name += "_"  # noqa: PLW2901
        if isinstance(layer, RecurrentSpiking):
            name, back = f"{name}.lif", f"{name}.w_rec"  # noqa: PLW2901
            nodes[back] = _linear(nir, layer.recurrent)
            edges += [(name, back), (back, name)]
        nodes[name] = node
        edges.append((last, name))
        last, shape = name, after
    nodes["output"] = nir.Output(np.array(shape))
    return nir.NIRGraph(nodes, [*edges, (last, "output")])


def from_nir(
    graph: Any, dt: float, integration: Integration = "euler", *, surrogate: str | Surrogate = "atan"
) -> SpikingSequential:
    """A network of this library from a graph of NIR; its numbers are copied.

    Args:
        graph: a `nir.NIRGraph` or the path of a file: a chain from one input to one output, where a spiking node may
            also feed back on itself through one linear map, whose output arrives a step later. Graphs in the graph are
            taken apart.
        dt: the step in the unit of the graph's time constants, seconds by custom.
        integration: "euler" or "exact".
        surrogate: derivative of the spikes, of which NIR says nothing.

    Returns:
        The layers in a row: `module(x, state)` takes x (T, B, *) and returns the output and the state. What neurons
        have in common is a number of the layer, the rest a buffer. Buffers and weights are of double precision if a
        weight of the graph is, and of torch's default type if it has none.

    Raises:
        ImportError: if the package nir is missing.
        TypeError: if graph is neither.
        ValueError: if the graph has nodes of unknown kinds, or another form, or numbers that this library has no place
            for; the nodes are named.
    """
    nir = _package()
    _check_step(dt, integration)
    graph = nir.read(graph) if isinstance(graph, str | Path) else graph
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph or the path of one, got {type(graph).__name__}.")
    nodes, edges = _flat(nir, graph)
    unknown = [f"{name!r} ({_kind(node)})" for name, node in nodes.items() if _kind(node) not in _KNOWN]
    if unknown:
        raise ValueError(f"No layer stands for {', '.join(unknown)}; known are {', '.join(_KNOWN)}.")
    order, back = _chain(nodes, edges)
    types = {torch.as_tensor(node.weight).dtype for node in nodes.values() if hasattr(node, "weight")}
    dtype = next((each for each in (torch.float64, torch.float32) if each in types), torch.get_default_dtype())
    layers = []
    for name in order:
        node = nodes[name]
        try:
            layer = (
                _leaky(node, dt, integration, dtype, surrogate) if _kind(node) in _LEAKY else _stateless(node, dtype)
            )
            if isinstance(layer, LIFNeuron):
                recurrent = _stateless(nodes[back[name]], dtype) if name in back else None
                layer = Spiking(layer) if recurrent is None else RecurrentSpiking(layer, recurrent)
        except ValueError as error:
            raise ValueError(f"Node {name!r} ({_kind(node)}): {error}") from error
        layers.append(layer)
    return SpikingSequential(*layers)


def _package() -> Any:
    try:
        import nir  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("NIR needs the package nir: pip install 'neuropil[nir]'.") from error
    return nir


def _check_step(dt: float, integration: str) -> None:
    require_positive(dt=dt)
    if integration not in ("euler", "exact"):
        raise ValueError(f"integration must be 'euler' or 'exact', got {integration!r}.")


def _layers(module: nn.Module, name: str = "", lead: int = 1) -> Iterator[tuple[str, nn.Module, int]]:
    """Every layer with its name and how many axes of time and batch it sees if it has no state, 1 or 2."""
    if isinstance(module, nn.Sequential):
        if isinstance(module, SpikingSequential):
            lead = 1 if module.flatten else 2
        # Not named_children, which leaves out a layer that is used a second time.
        for key, child in zip(module._modules, module, strict=True):
            yield from _layers(child, f"{name}.{key}" if name else key, lead)
    elif not isinstance(module, nn.Identity):
        yield name or "0", module, lead


def _unsaid(layer: nn.Module, lead: int, integration: Integration) -> Iterator[str]:
    """Why NIR cannot say a layer; nothing if it can."""
    if isinstance(layer, Spiking):
        yield from _unsaid_neurons(layer, integration)
    elif isinstance(layer, LeakyReadout):
        yield from _unsaid_decay("decay", layer.decay, integration)
    elif not any(type(layer).forward is kind.forward for kind in _PLAIN):
        yield "no node computes what it does"
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        if layer.groups != 1:
            yield "the package nir takes the channels of one group for all channels"
        if len(set(layer.kernel_size)) > 1 and layer.padding != "same":
            yield f"the package nir takes kernels for square, and this one is {layer.kernel_size}"
        if layer.padding_mode != "zeros":
            yield f"it pads with zeros, not by padding_mode={layer.padding_mode!r}"
    elif isinstance(layer, nn.AvgPool2d):
        uncounted = not layer.count_include_pad and np.any(np.array(layer.padding) > 0)
        if layer.ceil_mode or uncounted or layer.divisor_override not in (None, 1):
            yield "pooling has no ceil_mode, counts its padding, and divides by the size of the window or not at all"
    elif isinstance(layer, nn.Flatten) and 0 <= layer.start_dim < lead:
        yield "it flattens the batch"


def _unsaid_neurons(layer: Spiking, integration: Integration) -> Iterator[str]:
    loops = (Spiking._sequence, RecurrentSpiking._sequence)
    if type(layer).forward is not Spiking.forward or type(layer)._sequence not in loops:
        yield "it runs over time in a way of its own"
    if isinstance(layer, RecurrentSpiking) and type(layer.recurrent).forward is not nn.Linear.forward:
        yield f"a recurrence is linear, and this one {type(layer.recurrent).__name__}"
    neuron = layer.neuron
    if not isinstance(neuron, LIFNeuron) or type(neuron) not in (LIFNeuron, CubaLIFNeuron):
        yield f"no node is a {type(neuron).__name__}"
        return
    if neuron.reset != "hard":
        yield f"a reset sets the potential to a value, and this one is reset={neuron.reset!r}"
    if neuron.held_steps:
        yield "there is no refractory time"
    if neuron.normalizer is not None:
        yield "nothing maps the potential before the threshold, as a normalizer does"
    if neuron.rectifier is not None:
        yield "nothing maps the potential before the threshold; eval() leaves the rectifier out"
    if neuron.polarity is not None:
        yield "neurons fire above the threshold, whatever their polarity"
    if type(neuron.spike).__call__ is not Surrogate.__call__:
        yield f"spikes are 0 or 1, and {type(neuron.spike).__name__} replaces them"
    cuba = isinstance(neuron, CubaLIFNeuron)
    yield from _unsaid_decay("decay", neuron.a, integration, filtered=cuba)
    if cuba:
        yield from _unsaid_decay("decay_synapse", neuron.b, integration, filtered=True)
    elif neuron.v_rest != 0 and np.all(_numbers(neuron.a) == 1):
        yield f"integrators without a leak begin at 0, not at v_rest = {neuron.v_rest:g}"


def _unsaid_decay(name: str, decay: Number, integration: Integration, *, filtered: bool = False) -> Iterator[str]:
    values = _numbers(decay)
    if np.any(values == 1) and (filtered or not np.all(values == 1)):
        yield f"a {name} of 1 has no time constant" + ("" if filtered else ", and an integrator is another node")
    if integration == "exact" and np.any(values == 0):
        yield f"a {name} of 0 has no time constant but by forward Euler"


def _input_shape(layers: list[tuple[str, nn.Module, int]], sample: Tensor | None) -> Shape:
    if not layers:
        raise ValueError("module has no layer.")
    if sample is not None:
        if sample.ndim < 3:
            raise ValueError(f"sample must be of shape (T, B, *) with neurons, got {tuple(sample.shape)}.")
        return tuple(sample.shape[2:])
    name, layer, _ = layers[0]
    first = layer.recurrent if isinstance(layer, RecurrentSpiking) else layer
    if not isinstance(first, nn.Linear):
        raise ValueError(f"Give a sample: the first layer, {name!r} ({type(first).__name__}), does not tell its shape.")
    return (first.in_features,)


def _node(nir: Any, layer: Any, shape: Shape, lead: int, dt: float, integration: Integration) -> tuple[Any, Shape]:
    """The node of a layer for an input of a shape, and the shape of its output."""
    if isinstance(layer, Spiking):
        return _neurons(nir, layer.neuron, shape, dt, integration), shape
    if isinstance(layer, LeakyReadout):
        leak = _leak(layer.decay, layer.k, shape, dt, integration)
        return (nir.LI(**leak, v_leak=np.zeros(shape)) if "tau" in leak else nir.I(**leak)), shape
    if isinstance(layer, nn.Linear):
        if shape != (layer.in_features,):
            raise ValueError(f"it wants a vector of {layer.in_features}, and a Flatten before it may make one")
        return _linear(nir, layer), (layer.out_features,)
    with torch.no_grad():
        like = next(layer.parameters(), torch.zeros(()))
        after = tuple(layer(like.new_zeros((1,) * lead + shape)).shape[lead:])
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        plane = isinstance(layer, nn.Conv2d)
        if not plane:
            geometry = {key: each if isinstance(each, str) else each[0] for key, each in geometry.items()}
        options = {"weight": _array(layer.weight), "bias": _array(bias), "groups": 1, **geometry}
        return (nir.Conv2d(shape[1:], **options) if plane else nir.Conv1d(shape[1], **options)), after
    if isinstance(layer, nn.AvgPool2d):
        kind = nir.AvgPool2d if layer.divisor_override is None else nir.SumPool2d
        return kind(*(np.full(2, each) for each in (layer.kernel_size, layer.stride, layer.padding))), after
    # The axes of a node are those of one sample.
    return nir.Flatten(np.array(shape), *(n if n < 0 else n - lead for n in (layer.start_dim, layer.end_dim))), after


def _neurons(nir: Any, neuron: Any, shape: Shape, dt: float, integration: Integration) -> Any:
    named = {"v_threshold": neuron.v_threshold, "v_reset": neuron.floor, "v_leak": neuron.v_rest}
    levels = {name: np.broadcast_to(_numbers(value), shape).copy() for name, value in named.items()}
    leak = _leak(neuron.a, neuron.k, shape, dt, integration)
    if isinstance(neuron, CubaLIFNeuron):
        # Such that the input counts once, w_in (1 - b) = 1.
        synapse = _leak(neuron.b, 1.0, shape, dt, integration)
        return nir.CubaLIF(synapse["tau"], leak["tau"], leak["r"], w_in=synapse["r"], **levels)
    if "tau" not in leak:
        del levels["v_leak"]
        return nir.IF(**leak, **levels)
    return nir.LIF(**leak, **levels)


def _leak(decay: Number, gain: Number, shape: Shape, dt: float, integration: Integration) -> dict[str, np.ndarray]:
    """Time constants and resistances of neurons for their decay and gain; no time constants where the decay is 1."""
    a, k = np.broadcast_arrays(_numbers(decay), _numbers(gain))
    if np.all(a == 1):
        found = {"r": _solve(k, k / dt, lambda r: r * dt)}
    else:
        guess = dt / (1.0 - a) if integration == "euler" else -dt / np.log(a)
        tau = _solve(a, guess, lambda tau: _decay(tau, dt, integration))
        rate = 1.0 - _decay(tau, dt, integration)
        found = {"tau": tau, "r": _solve(k, k / rate, lambda r: r * rate[..., None])}
    return {name: np.broadcast_to(each, shape).copy() for name, each in found.items()}


def _solve(wanted: np.ndarray, guess: np.ndarray, image: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The number by a guess whose image comes closest to what is wanted; one of 12 digits if that does as well."""
    steps = np.array([0.0, -1.0, 1.0, -2.0, 2.0, -3.0, 3.0, -4.0, 4.0])
    short = np.vectorize(lambda each: float(f"{each:.12g}"), otypes=[float])(guess)
    near = guess[..., None] + steps * np.spacing(guess)[..., None]
    candidates = np.concatenate((short[..., None], near), axis=-1)
    best = np.abs(image(candidates) - wanted[..., None]).argmin(-1, keepdims=True)
    return np.take_along_axis(candidates, best, -1)[..., 0]


def _decay(tau: np.ndarray, dt: float, integration: Integration) -> np.ndarray:
    # NumPy's exponential may round otherwise in long arrays than in short ones.
    return 1.0 - dt / tau if integration == "euler" else np.vectorize(math.exp, otypes=[float])(-dt / tau)


def _linear(nir: Any, layer: Any) -> Any:
    weight = _array(layer.weight)
    return nir.Linear(weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias))


def _array(tensor: Tensor) -> np.ndarray:
    """A copy, in single precision unless it is in double."""
    return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32)).numpy().copy()


def _numbers(value: Number) -> np.ndarray:
    return np.atleast_1d(torch.as_tensor(value, dtype=torch.float64).detach().cpu().numpy())


def _kind(node: Any) -> str:
    return type(node).__name__


def _flat(nir: Any, graph: Any, prefix: str = "") -> tuple[dict[str, Any], Edges]:
    """Nodes and edges without inputs and outputs, and with the graphs in the graph taken apart.

    An edge that comes from an input comes from "", and one that goes to an output goes to "".
    """
    nodes: dict[str, Any] = {}
    names, edges, doors = {}, [], []
    for key, node in graph.nodes.items():
        name = prefix + key
        names[key] = (name, name)
        if isinstance(node, nir.Input | nir.Output):
            names[key] = ("", "")
        elif isinstance(node, nir.NIRGraph):
            names[key] = (f"{name}.in", f"{name}.out")
            inside, between = _flat(nir, node, f"{name}.")
            nodes |= inside
            edges += [(a or names[key][0], b or names[key][1]) for a, b in between]
            doors += names[key]
        else:
            nodes[name] = node
    edges += [(names[a][1], names[b][0]) for a, b in graph.edges]
    for door in doors:
        before, after = [a for a, b in edges if b == door], [b for a, b in edges if a == door]
        edges = [edge for edge in edges if door not in edge] + [(a, b) for a in before for b in after]
    return nodes, list(dict.fromkeys(edges))


def _chain(nodes: dict[str, Any], edges: Edges) -> tuple[list[str], dict[str, str]]:
    """The nodes in order, and by their names the maps through which neurons feed back."""
    after = {name: [b for a, b in edges if a == name] for name in ("", *nodes)}
    before = {name: [a for a, b in edges if b == name] for name in ("", *nodes)}
    back: dict[str, str] = {}
    for name, node in nodes.items():
        neurons = after[name][0] if len(after[name]) == 1 and after[name] == before[name] else ""
        spiking = neurons and _kind(nodes[neurons]) in ("LIF", "IF", "CubaLIF") and neurons not in back
        if spiking and _kind(node) in ("Linear", "Affine"):
            back[neurons] = name
            after[neurons].remove(name)
            before[neurons].remove(name)
    # With one edge to and one from each, all are on a circle, that of "" through input and output or another.
    for name in after.keys() - back.values():
        if len(after[name]) != 1 or len(before[name]) != 1:
            raise ValueError(
                f"{f'Node {name!r}' if name else 'Outside'} comes after {before[name]} and before {after[name]}; this "
                "reads chains from one input to one output, where neurons may feed back through one linear map each."
            )
    order = after[""][:1]
    while order[-1]:
        order.append(after[order[-1]][0])
    if lost := nodes.keys() - {*order, *back.values()}:
        raise ValueError(f"No way leads from the input to {sorted(lost)}.")
    return order[:-1], back


def _leaky(node: Any, dt: float, integration: Integration, dtype: torch.dtype, surrogate: Any) -> Any:
    """The neuron of a spiking node, or the readout that a node without spikes is."""
    decay, gain = _steps(getattr(node, "tau", getattr(node, "tau_mem", None)), node.r, dt, integration)
    rest, settings = _one("v_leak", getattr(node, "v_leak", 0.0)), {}
    if _kind(node) == "CubaLIF":
        synapse, weight = _steps(node.tau_syn, node.w_in, dt, integration)
        gain, settings["decay_synapse"] = gain * weight, _value(synapse, dtype)
    settings |= {"decay": _value(decay, dtype), "gain": _value(gain, dtype)}
    if _kind(node) in ("LI", "I"):
        if rest != 0:
            raise ValueError(f"a readout decays to 0, so v_leak must be 0, got {rest:g}.")
        return LeakyReadout(**settings)
    settings |= {"v_threshold": _value(node.v_threshold, dtype), "v_reset": _one("v_reset", node.v_reset)}
    neuron = CubaLIFNeuron if _kind(node) == "CubaLIF" else LIFNeuron
    return neuron(**settings, v_rest=rest, surrogate=surrogate)


def _steps(tau: Any, r: Any, dt: float, integration: Integration) -> tuple[np.ndarray, np.ndarray]:
    """Decay and gain; without a time constant, those of an integrator."""
    r = np.asarray(r, dtype=np.float64)
    if tau is None:
        return np.ones_like(r), r * dt
    tau = np.asarray(tau, dtype=np.float64)
    low = dt if integration == "euler" else np.nextafter(0.0, 1.0)
    if not np.all((tau >= low) & (tau < np.inf)):
        wanted = f"at least dt = {dt:g} with integration='euler'" if integration == "euler" else "positive"
        raise ValueError(f"time constants must be finite and {wanted}, got {tau.min():g} to {tau.max():g}.")
    decay = _decay(tau, dt, integration)
    return decay, r * (1.0 - decay)


def _value(values: Any, dtype: torch.dtype) -> Number:
    """A number where all are the same, else a tensor."""
    values = np.asarray(values, dtype=np.float64)
    first = values.reshape(-1)[0].item()
    return first if np.all(values == first) else torch.from_numpy(values).to(dtype)


def _one(name: str, values: Any) -> float:
    found = _value(values, torch.float64)
    if isinstance(found, Tensor):
        raise ValueError(f"{name} must be one number for all neurons, got {found.min():g} to {found.max():g}.")
    return found


def _stateless(node: Any, dtype: torch.dtype) -> nn.Module:
    """The layer of a node without a state."""
    if _kind(node) == "Flatten":
        # The axes of a node are those of one sample; here the batch stands before them.
        return nn.Flatten(*(int(n) + (n >= 0) for n in (node.start_dim, node.end_dim)))
    if _kind(node) in ("AvgPool2d", "SumPool2d"):
        divisor = 1 if _kind(node) == "SumPool2d" else None
        return nn.AvgPool2d(*map(_whole, (node.kernel_size, node.stride, node.padding)), divisor_override=divisor)
    outputs, inputs, *kernel = node.weight.shape
    # Modules without initial values: torch's own would move the global random state.
    if _kind(node) in ("Linear", "Affine"):
        if kernel:
            raise ValueError(f"weight must have two axes, got {np.shape(node.weight)}.")
        layer: Any = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=_kind(node) == "Affine", dtype=dtype)
    else:
        kind = nn.Conv1d if _kind(node) == "Conv1d" else nn.Conv2d
        groups, padding = int(node.groups), node.padding if isinstance(node.padding, str) else _whole(node.padding)
        options = {"stride": _whole(node.stride), "padding": padding, "dilation": _whole(node.dilation)}
        layer = nn.utils.skip_init(kind, inputs * groups, outputs, tuple(kernel), groups=groups, dtype=dtype, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.as_tensor(getattr(node, name)))
    return layer


def _whole(numbers: Any) -> Any:
    """An integer, or a tuple of them."""
    return int(numbers) if np.ndim(numbers) == 0 else tuple(int(each) for each in numbers)
