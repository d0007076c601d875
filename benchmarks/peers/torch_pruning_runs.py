"""torch-pruning as its users run it: the layers that give the output are named, and so may the attention heads be."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Heads", "TorchPruning", "output_layers", "shape_keepers"]

Heads = Literal["unnamed", "thinner", "fewer"]
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
SIZES = ("head_dim", "attention_head_size", "dim_head", "key_value_proj_dim", "size")
WIDTHS = ("all_head_size", "embed_dim", "inner_dim", "dim")
QUERIES = ("q", "query", "q_proj", "q_lin", "qkv", "c_attn", "query_key_value")
KEYS = ("k", "key", "k_proj", "k_lin", "v", "value", "v_proj", "v_lin")


class TorchPruning:
    """Trace at once, prune when asked.

    Args:
        net: any module; it is changed.
        example: what it is called with.
        ratio: of the units of every group to cut.
        heads: whether the pruner is told how many heads each projection of attention has, as its examples do by hand,
            and then makes them thinner or fewer; new numbers are written into the modules afterwards.
        ignored: names of layers whose units must stay, beside those that give the output.
    """

    def __init__(
        self, net: nn.Module, example: Any, ratio: float, heads: Heads = "unnamed", ignored: Sequence[str] = ()
    ):
        self.net = net
        counts = {} if heads == "unnamed" else dict(_projections(net))
        # Its dictionaries must be given: their defaults are shared by all pruners.
        self.pruner = tp.pruner.BasePruner(
            net,
            example,  # pyright: ignore[reportArgumentType]  (a dict of keywords is taken too)
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=[*output_layers(net, example), *(net.get_submodule(name) for name in ignored)],
            in_channel_groups={},
            out_channel_groups={},
            num_heads=counts,
            prune_num_heads=heads == "fewer",
            prune_head_dims=heads != "fewer",
            head_pruning_ratio=ratio if heads == "fewer" else 0.0,
            output_transform=_leaves,
        )

    def prune(self) -> nn.Module:
        """Cut, and write sizes of attention where heads were named."""
        self.pruner.step()
        for module in self.net.modules():
            for name, layer in module.named_children():
                if layer in self.pruner.num_heads and name in QUERIES:
                    _resize(module, layer, self.pruner.num_heads[layer])
        return self.net


def output_layers(net: nn.Module, example: Any) -> list[nn.Module]:
    """Find the modules whose output is an output of the network: their units must stay."""
    made: dict[int, nn.Module] = {}
    alive = []  # the address of a freed tensor is used again

    def note(module: nn.Module, _: Any, out: Any) -> None:
        alive.append(out)
        if isinstance(out, Tensor):
            made[out.data_ptr()] = module

    handles = [m.register_forward_hook(note) for m in net.modules() if not list(m.children())]
    leaves = _outputs(net, example)
    for handle in handles:
        handle.remove()
    return [made[leaf.data_ptr()] for leaf in leaves if leaf.data_ptr() in made]


def shape_keepers(net: nn.Module, example: Any) -> list[str]:
    """Find, by trial, the layers that change the shape of an output when they lose a unit."""
    shapes = [leaf.shape for leaf in _outputs(net, example)]
    found = []
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv1d):
            continue
        trial = copy.deepcopy(net)
        cut = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        try:
            graph = tp.DependencyGraph().build_dependency(trial, example, output_transform=_leaves)
            graph.get_pruning_group(trial.get_submodule(name), cut, idxs=[0]).prune()
            if [leaf.shape for leaf in _outputs(trial, example)] != shapes:
                found.append(name)
        except Exception:  # what cannot be tried tells nothing
            continue
    return found


def _leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _outputs(net: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        if isinstance(example, dict):
            return _leaves(net(**example))
        return _leaves(net(*example) if isinstance(example, tuple) else net(example))


def _projections(net: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Layers that project to heads, with the number of heads."""
    for module in net.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield module, module.num_heads
            continue
        count = next((n for name in COUNTS if isinstance(n := getattr(module, name, None), int)), None)
        config = getattr(module, "config", None)
        if count is None and any(name in QUERIES for name, _ in module.named_children()):
            count = getattr(config, "num_attention_heads", None)
        if count is None:
            continue
        shared = getattr(module, "num_key_value_heads", None) or getattr(config, "num_key_value_heads", None) or count
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and name in QUERIES:
                yield layer, count
            elif isinstance(layer, nn.Linear) and name in KEYS:
                yield layer, shared


def _resize(module: nn.Module, query: nn.Module, heads: int) -> None:
    """Write the new size of a head, and of all heads, where a module of attention remembers the old ones."""
    rows = query.get_parameter("weight").shape[0]
    fused = all(name not in KEYS for name, _ in module.named_children())
    width = rows // 3 if fused else rows
    for names, value in ((COUNTS, heads), (SIZES, width // heads), (WIDTHS, width)):
        for name in names:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)
