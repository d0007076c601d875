"""Nowcasters that the paper's authors have trained, from their files.

Names in their state dicts (repository SamsungSAILMontreal/nino; `i` numbers the exchanges):

    layer_embed, edge_proj.fc.0                 kinds of edges, history            -> types, history
    edge_mlp.fc.{0,2,4,6}                       the rest of the MLP                -> body.{0,2,4}, out
    node_proj.fc.0, wte_pos_enc_layer           positions, words                   -> positions, words
    gnn.convs.i.{edge_encoder, pre_nns.0.0, post_nns.0.0, lin}                     -> modulation, message, update, mix
    gnn.edge_update.i.{lin_e, lin_s, lin_t, lin1}                                  -> edge_own, _source, _target, _out
    edge_out.fc.{0,2}                           from edge to forecast              -> body.0, out

In their files no edge update follows the last exchange, and the forecast reads edges only: what the last exchange tells
the neurons is read by nothing, so its weights are left out here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropil.learning.nowcast.forecasts import KINDS, MLPNowcaster, Nowcaster
from neuropil.learning.nowcast.messages import GraphNowcaster

__all__ = ["load_official"]

CONVOLUTION = {
    "edge_encoder": "modulations.0",
    "pre_nns.0.0": "messages.0",
    "post_nns.0.0": "update",
    "lin": "mix",
}
UPDATE = {"lin_e": "edge_own", "lin_s": "edge_source", "lin_t": "edge_target", "lin1": "edge_out"}


def load_official(path: str | Path, *, context: int = 5) -> Nowcaster:
    """A nowcaster from a file of the official repository (`nino_mlp.pt`, `nino_no_posw.pt`, `nino.pt`).

    Sizes are read from the shapes. Only tensors and plain values are unpickled.

    Args:
        path: of the file.
        context: number of states that it looks at; the files do not say.

    Returns:
        A MLPNowcaster or GraphNowcaster (one-way messages, no kinds of neurons), in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no such nowcaster, or one of another build (several towers, the "naive"
            graph); the message names the entries.

    Source: Knyazev et al. 2025, code under the MIT licence.
    """
    state = _state(Path(path))
    known = {name for name in state if "aggr_module" not in name}
    if "edge_mlp.fc.0.weight" in known:
        names = _mlp_names()
        build = _mlp
    elif "gnn.convs.0.lin.weight" in known:
        exchanges = len({name.split(".")[2] for name in known if name.startswith("gnn.edge_update.")})
        unread = {name for name in known if name.startswith(f"gnn.convs.{exchanges}.")}
        names = _graph_names(exchanges, "node_proj.fc.0.weight" in known, "wte_pos_enc_layer.weight" in known)
        known -= unread if ".pre_nns.1." not in "".join(unread) else set()
        build = _graph
    else:
        raise ValueError(f"{path} holds no nowcaster: its entries are {_few(known)}.")
    if known != set(names):
        raise ValueError(
            f"{path} is of another build: missing {_few(set(names) - known)}, not known {_few(known - set(names))}."
        )
    try:
        nowcaster = build(state, context)
        nowcaster.load_state_dict({ours: state[theirs] for theirs, ours in names.items()})
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a nowcaster of {context} states: {error}") from error
    return nowcaster.eval()


def _state(path: Path) -> Mapping[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what torch raises here depends on what is wrong with the file
        raise ValueError(f"{path} cannot be read as tensors and plain values: {error}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no state dict of tensors.")
    return loaded


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _mlp_names() -> dict[str, str]:
    names = {"layer_embed.weight": "types.weight"} | _both("edge_proj.fc.0", "history")
    for place in (0, 2, 4):
        names |= _both(f"edge_mlp.fc.{place}", f"body.{place}")
    return names | _both("edge_mlp.fc.6", "out")


def _graph_names(exchanges: int, positions: bool, words: bool) -> dict[str, str]:
    names = {"layer_embed.weight": "types.weight"} | _both("edge_proj.fc.0", "history")
    if positions:
        names |= _both("node_proj.fc.0", "positions")
    if words:
        names |= {"wte_pos_enc_layer.weight": "words.weight"}
    for index in range(exchanges):
        for theirs, ours in CONVOLUTION.items():
            names |= _both(f"gnn.convs.{index}.{theirs}", f"rounds.{index}.{ours}")
        for theirs, ours in UPDATE.items():
            names |= _both(f"gnn.edge_update.{index}.{theirs}", f"rounds.{index}.{ours}")
    return names | _both("edge_out.fc.0", "body.0") | _both("edge_out.fc.2", "out")


def _mlp(state: Mapping[str, Tensor], context: int) -> Nowcaster:
    horizons, hid = _sizes(state, "edge_mlp.fc.6.weight")
    return MLPNowcaster(hid, horizons, context=context)


def _graph(state: Mapping[str, Tensor], context: int) -> Nowcaster:
    outputs, hid = _sizes(state, "edge_out.fc.2.weight")
    features = max(1, _sizes(state, "edge_proj.fc.0.weight")[1] // context)
    positions, words = state.get("node_proj.fc.0.weight"), state.get("wte_pos_enc_layer.weight")
    return GraphNowcaster(
        hid,
        len({name.split(".")[2] for name in state if name.startswith("gnn.edge_update.")}),
        max(1, outputs // features),
        context=context,
        features=features,
        eigenvectors=0 if positions is None else positions.shape[1],
        kinds=False,
        words=0 if words is None else len(words) - 1,
        both_ways=False,
    )


def _sizes(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if state[name].dim() != 2 or len(state["layer_embed.weight"]) != KINDS:
        raise ValueError(f"Another build: {name} has shape {tuple(state[name].shape)}, kinds of edges are not {KINDS}.")
    return int(state[name].shape[0]), int(state[name].shape[1])


def _few(names: set[str]) -> str:
    shown = sorted(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if shown else "nothing"
