"""Sizes that known modules remember beside their weights, set right after rows were cut or added."""

from collections.abc import Mapping
from operator import attrgetter

from torch import Tensor, nn

from neuropil.structure.surgery.attention import SlimAttention
from neuropil.structure.surgery.rows import Rows

__all__ = ["knows_its_sizes", "settle_sizes"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
OTHERS = (nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag, nn.PReLU, nn.Bilinear)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# Where a weight is: plain, under either form of weight norm, under another parametrisation; or what is as long.
PARTS = ("parametrizations.weight.original1", "parametrizations.weight.original")
WEIGHTS = ("weight", "weight_v", *PARTS, "running_mean", "weight_hh_l0", "weight_hh")


def knows_its_sizes(module: nn.Module | None) -> bool:
    """Tell whether `settle_sizes` sets every size that a module's own operations hold."""
    return isinstance(module, (*CONVOLUTIONS, *BATCH_NORMS, *OTHERS, *RECURRENT)) or _is_conv1d(module)


def settle_sizes(net: nn.Module, rows: Rows, old: Mapping[str, tuple[int, ...]]) -> None:
    """Set in_features, out_channels, groups, normalized_shape and their like after the parameters' new shapes.

    Args:
        net: whose parameters have been replaced.
        rows: what every axis that changed now holds.
        old: shapes of the parameters before, by name.
    """
    for path in {_owner(name) for name in rows}:
        module = net.get_submodule(path)
        whole = next((name for end in WEIGHTS if (name := f"{path}.{end}" if path else end) in old), "")
        mine = {
            "weight" if name == whole else name.rpartition(".")[2]: axes
            for name, axes in rows.items()
            if _owner(name) == path
        }
        if whole:
            _settle(module, mine, old[whole], tuple(attrgetter(whole)(net).shape))
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            inside = [name for name in rows if name.startswith(f"{path}." if path else "")]
            if inside:
                slim = SlimAttention(
                    module, _heads(module, rows.get(f"{path}.in_proj_weight" if path else "in_proj_weight"))
                )
                parent, _, last = path.rpartition(".")
                setattr(net.get_submodule(parent), last, slim)


def _owner(name: str) -> str:
    """Give the path of the module whose parameter it is, reparametrised or not."""
    return name.rpartition(".")[0].split(".parametrizations.")[0] if "." in name else ""


def _settle(
    module: nn.Module, rows: Mapping[str, Mapping[int, Tensor]], old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    """Set the sizes of one module, after the old and the new shape of its weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = new
    elif isinstance(module, CONVOLUTIONS):
        groups = _blocks(rows.get("weight", {}).get(0), old[0], module.groups)
        sizes = (new[0], new[1] * groups)
        module.out_channels, module.in_channels = sizes[::-1] if module.transposed else sizes
        module.groups = groups
    elif isinstance(module, BATCH_NORMS):
        module.num_features = new[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = _blocks(rows.get("weight", {}).get(0), module.num_channels, module.num_groups)
        module.num_channels = new[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = new
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = new
    elif isinstance(module, nn.PReLU):
        module.num_parameters = new[0]
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = new
    elif isinstance(module, nn.RNNBase):
        module.input_size, module.hidden_size = module.get_parameter("weight_ih_l0").shape[1], new[1]
        module.flatten_parameters()
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.get_parameter("weight_ih").shape[1], new[1]
    elif _is_conv1d(module):
        vars(module).update(zip(("nx", "nf"), new, strict=True))


def _blocks(rows: Tensor | None, size: int, blocks: int) -> int:
    """Count the blocks that an axis now has: of cut ones those with anything left, of copied ones every copy."""
    if rows is None:
        return blocks
    within = size // blocks
    if within == 1:
        return len(rows)
    block, place = rows // within, rows % within
    again = (place[1:] == 0) & (place[:-1] == within - 1)  # a whole block was copied
    return 1 + int(((block[1:] != block[:-1]) | again).sum())


def _heads(module: nn.MultiheadAttention, rows: Mapping[int, Tensor] | None) -> int:
    """Count the heads that are left, from the first third of the in-projection."""
    if rows is None or 0 not in rows:
        return module.num_heads
    kept = rows[0]
    return _blocks(kept[kept < module.embed_dim], module.embed_dim, module.num_heads)


def _is_conv1d(module: nn.Module | None) -> bool:
    """Tell the linear layer of transformers, whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), nn.Parameter)
