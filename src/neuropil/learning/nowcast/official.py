"""Read the published nowcasters: `nino.pt` and its relatives, whose weights fit ours under other names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropil.learning.nowcast.forecasts import MLPNowcaster
from neuropil.learning.nowcast.messages import GraphNowcaster

__all__ = ["load_official"]

EDGES = {
    "layer_embed.weight": "edge_kind.weight",
    "edge_proj.fc.0": "edge_states",
    "node_proj.fc.0": "position",
    "wte_pos_enc_layer.weight": "word.weight",
    "edge_out.fc.0": "head.0",
    "edge_out.fc.2": "head.2",
}
ROUND = {
    "convs.{}.edge_encoder": "modulation",
    "convs.{}.pre_nns.0.0": "message.0",
    "convs.{}.post_nns.0.0": "gather",
    "convs.{}.lin": "node",
    "edge_update.{}.lin_e": "of_edge",
    "edge_update.{}.lin_s": "of_source",
    "edge_update.{}.lin_t": "of_target",
    "edge_update.{}.lin1": "edge",
}


def load_official(path: str | Path) -> MLPNowcaster | GraphNowcaster:
    """Make a nowcaster from a checkpoint of the authors' repository.

    The file holds a state dict, or a dict with the entry `state_dict`, with these tensors:

    ```
    layer_embed.weight (15, hid)                    embedding of the kinds of edges
    edge_proj.fc.0.{weight, bias}                   (hid, 5) in nino_mlp.pt, (hid, 9 * 5) in the others
    edge_mlp.fc.{0, 2, 4, 6}.{weight, bias}         nino_mlp.pt and nino_mlp_h32.pt only
    node_proj.fc.0.{weight, bias} (hid, 8)          Laplacian eigenvectors
    wte_pos_enc_layer.weight (50258, hid)           nino.pt only: words of the GPT-2 vocabulary
    gnn.convs.{l}.{edge_encoder, pre_nns.0.0, post_nns.0.0, lin}.{weight, bias}
    gnn.edge_update.{l}.{lin_e, lin_s, lin_t, lin1}.{weight, bias}
    edge_out.fc.{0, 2}.{weight, bias}               (9 * 40, hid) last
    ```

    Sizes are read off the tensors. A last convolution without an edge update after it cannot reach the forecast and is
    left out. Nothing but tensors and plain values is unpickled.

    Args:
        path: of the file.

    Returns:
        In evaluation mode: an `MLPNowcaster` or a `GraphNowcaster` with messages along the arrows only. Networks that
        the authors' graphs cover are laid out alike, save for the inside of attention (see `neural_graph`).

    Raises:
        ValueError: if the file is no such state dict, or its messages are split into towers; a name is given.
    """
    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{Path(path).name} is no state dict of tensors.")
    state = {str(name): value.float() for name, value in held.items()}
    model, names = _perceptron(state) if "edge_mlp.fc.0.weight" in state else _graph(state)
    ours = {ours: _found(state, theirs) for theirs, ours in names.items()}
    for name, wanted in model.state_dict().items():
        if ours[name].shape != wanted.shape:
            raise ValueError(f"{name} has shape {tuple(ours[name].shape)} in the file, {tuple(wanted.shape)} fits.")
    unread = sorted(set(state) - set(names) - _dead(state))
    if unread:
        raise ValueError(f"The file holds weights that this nowcaster has no place for: {', '.join(unread)}.")
    model.load_state_dict(ours)
    return model.eval()


def _found(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"The file has no {name}: it is no official nowcaster. It has {', '.join(sorted(state)[:8])}.")
    return state[name]


def _both(theirs: str, ours: str) -> dict[str, str]:
    """A layer's weight and bias; names that end in weight stand for themselves."""
    if theirs.endswith("weight"):
        return {theirs: ours}
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _perceptron(state: dict[str, Tensor]) -> tuple[MLPNowcaster, dict[str, str]]:
    hid, context = _found(state, "edge_proj.fc.0.weight").shape
    numbers = sorted({int(name.split(".")[2]) for name in state if name.startswith("edge_mlp.fc.")})
    horizons = len(_found(state, f"edge_mlp.fc.{numbers[-1]}.weight"))
    names = {"layer_embed.weight": "kind.weight"} | _both("edge_proj.fc.0", "states")
    for number in numbers:
        names |= _both(f"edge_mlp.fc.{number}", f"head.{number}")
    return MLPNowcaster(hid, layers=len(numbers), context=context, horizons=horizons, **_unseen()), names


def _graph(state: dict[str, Tensor]) -> tuple[GraphNowcaster, dict[str, str]]:
    context, features = 5, 9  # not to be told apart from the shapes: only their product is there
    hid, width = _found(state, "edge_proj.fc.0.weight").shape
    outputs = len(_found(state, "edge_out.fc.2.weight"))
    if width != context * features or outputs % features:
        raise ValueError(f"edge_proj takes {width} numbers and edge_out gives {outputs}: wanted 9 weights by 5 states.")
    rounds = len({name for name in state if name.startswith("gnn.edge_update.") and name.endswith("lin_e.weight")})
    if "gnn.convs.0.pre_nns.1.0.weight" in state:
        raise ValueError("The file's messages are split into towers (pre_nns.1), which GraphNowcaster does not have.")
    words = state.get("wte_pos_enc_layer.weight")
    position = state.get("node_proj.fc.0.weight")
    names: dict[str, str] = {}
    for theirs, ours in EDGES.items():
        optional = theirs.startswith(("wte", "node"))
        if not optional or any(name.startswith(theirs) for name in state):
            names |= _both(theirs, ours)
    for index in range(rounds):
        for theirs, ours in ROUND.items():
            names |= _both("gnn." + theirs.format(index), f"rounds.{index}.{ours}")
    model = GraphNowcaster(
        hid,
        rounds,
        outputs // features,
        context=context,
        features=features,
        eigenvectors=0 if position is None else position.shape[1],
        kinds=False,
        words=0 if words is None else len(words) - 1,
        both_ways=False,
        **_unseen(),
    )
    return model, names


def _dead(state: dict[str, Tensor]) -> set[str]:
    """Weights of a last convolution that no edge update reads."""
    rounds = {name.split(".")[2] for name in state if name.startswith("gnn.edge_update.")}
    return {name for name in state if name.startswith("gnn.convs.") and name.split(".")[2] not in rounds}


def _unseen() -> dict[str, Any]:
    """Initial weights that are overwritten at once, without a draw from the global state."""
    return {"generator": torch.Generator()}
