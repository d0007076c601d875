"""Files of the official repository: built here with its names and shapes, compared with its equations in loops."""

import pickle

import pytest
import torch
from torch.nn.functional import linear, silu

from neuropil.learning.networks import mlp, small_conv
from neuropil.learning.nowcast import GraphNowcaster, MLPNowcaster, load_official, neural_graph, weight_table
from neuropil.learning.nowcast.forecasts import standardise

H, WORDS = 6, 7


def layers(shapes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (outputs, inputs) in shapes.items():
        state[f"{name}.weight"] = 0.4 * torch.randn(outputs, inputs, generator=generator)
        state[f"{name}.bias"] = 0.4 * torch.randn(outputs, generator=generator)
    return state


def mlp_state() -> dict[str, torch.Tensor]:
    shapes = {"edge_proj.fc.0": (H, 5), **{f"edge_mlp.fc.{i}": (H, H) for i in (0, 2, 4)}, "edge_mlp.fc.6": (40, H)}
    return {"layer_embed.weight": torch.randn(15, H, generator=torch.Generator().manual_seed(1)), **layers(shapes)}


def graph_state(convolutions: int = 3, words: bool = False) -> dict[str, torch.Tensor]:
    shapes = {"edge_proj.fc.0": (H, 45), "node_proj.fc.0": (H, 8)}
    for index in range(convolutions):
        shapes |= {
            f"gnn.convs.{index}.edge_encoder": (2 * H, H),
            f"gnn.convs.{index}.pre_nns.0.0": (H, 2 * H),
            f"gnn.convs.{index}.post_nns.0.0": (H, 2 * H),
            f"gnn.convs.{index}.lin": (H, H),
        }
    for index in range(convolutions - 1):
        shapes |= {f"gnn.edge_update.{index}.{name}": (H, H) for name in ("lin_e", "lin_s", "lin_t", "lin1")}
    shapes |= {"edge_out.fc.0": (H, H), "edge_out.fc.2": (9 * 40, H)}
    generator = torch.Generator().manual_seed(1)
    state = {"layer_embed.weight": torch.randn(15, H, generator=generator), **layers(shapes)}
    return state | ({"wte_pos_enc_layer.weight": torch.randn(WORDS + 1, H, generator=generator)} if words else {})


def saved(state, path):
    torch.save(state, path / "nino.pt")
    return path / "nino.pt"


def dense(state, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def test_the_mlp_is_theirs(tmp_path, generator):
    state = mlp_state()
    nowcaster = load_official(saved({"state_dict": state, "step": 3}, tmp_path))
    assert isinstance(nowcaster, MLPNowcaster)
    assert not nowcaster.training
    graph = weight_table(mlp(3, 4, 2))
    scaled, _ = standardise(torch.randn(graph.weights, 5, generator=generator), graph)
    h = dense(state, "edge_proj.fc.0", scaled) + state["layer_embed.weight"][graph.weight_type]
    for index in (0, 2, 4):
        h = silu(dense(state, f"edge_mlp.fc.{index}", h))
    torch.testing.assert_close(nowcaster.changes(scaled, graph), dense(state, "edge_mlp.fc.6", h))


@pytest.mark.parametrize("words", [False, True])
def test_the_graph_network_is_theirs(words, tmp_path, generator):
    state = graph_state(words=words)
    nowcaster = load_official(saved(state, tmp_path))
    assert isinstance(nowcaster, GraphNowcaster)
    assert len(nowcaster.rounds) == 2
    graph = neural_graph(small_conv((1, 4, 4), 3, (2,)))
    scaled, _ = standardise(torch.randn(graph.weights, 5, generator=generator), graph)

    history = graph.on_edges(scaled)
    e = [dense(state, "edge_proj.fc.0", one.flatten()) for one in history]
    e = [one + state["layer_embed.weight"][kind] for one, kind in zip(e, graph.edge_type, strict=True)]
    x = [dense(state, "node_proj.fc.0", position) for position in graph.node_pos]
    if words:
        x = [one + state["wte_pos_enc_layer.weight"][0] for one in x]  # no words here: the entry of none
    ends = graph.edge_index.T.tolist()
    for index in range(3):
        inbox = [[] for _ in x]
        for edge, (source, target) in zip(e, ends, strict=True):
            scale, shift = dense(state, f"gnn.convs.{index}.edge_encoder", edge).chunk(2)
            sent = dense(state, f"gnn.convs.{index}.pre_nns.0.0", torch.cat([x[target], x[source]]))
            inbox[target].append(scale * sent + shift)
        heard = [torch.stack(box).mean(0) for box in inbox]
        x = [
            dense(state, f"gnn.convs.{index}.lin", dense(state, f"gnn.convs.{index}.post_nns.0.0", torch.cat(pair)))
            for pair in zip(x, heard, strict=True)
        ]
        if index == 2:
            break  # no edge update follows: the forecast does not see this x
        x = [silu(one) for one in x]
        name = f"gnn.edge_update.{index}"
        e = [
            dense(
                state,
                f"{name}.lin1",
                silu(
                    dense(state, f"{name}.lin_e", edge)
                    + dense(state, f"{name}.lin_s", x[source])
                    + dense(state, f"{name}.lin_t", x[target])
                ),
            )
            for edge, (source, target) in zip(e, ends, strict=True)
        ]
    out = torch.stack([dense(state, "edge_out.fc.2", silu(dense(state, "edge_out.fc.0", edge))) for edge in e])
    expected = graph.on_weights(out.view(len(e), 9, 40))
    torch.testing.assert_close(nowcaster.changes(scaled, graph), expected, rtol=1e-4, atol=1e-5)


def test_sizes_of_the_published_files():
    sizes = {
        "nino_mlp.pt": sum(p.numel() for p in MLPNowcaster().parameters()),
        "nino_mlp_h32.pt": sum(p.numel() for p in MLPNowcaster(32).parameters()),
    }
    assert 0.95 < 4 * sizes["nino_mlp.pt"] / 234e3 < 1
    assert 0.8 < 4 * sizes["nino_mlp_h32.pt"] / 25e3 < 1
    nowcaster = GraphNowcaster(kinds=False, both_ways=False)
    unread = sum(p.numel() for p in nowcaster.rounds[0].parameters()) - 4 * (128 * 128 + 128)
    assert 0.95 < 4 * (sum(p.numel() for p in nowcaster.parameters()) + unread) / 2.2e6 < 1.01


def test_other_builds_and_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_official(tmp_path / "none.pt")
    towers = graph_state() | layers({"gnn.convs.0.pre_nns.1.0": (H, H)})
    with pytest.raises(ValueError, match=r"not known gnn\.convs\.0\.pre_nns\.1\.0\.bias"):
        load_official(saved(towers, tmp_path))
    missing = mlp_state()
    del missing["edge_mlp.fc.4.bias"]
    with pytest.raises(ValueError, match=r"missing edge_mlp\.fc\.4\.bias"):
        load_official(saved(missing, tmp_path))
    with pytest.raises(ValueError, match=r"holds no nowcaster: its entries are 0\.bias"):
        load_official(saved(mlp(2, 2).state_dict(), tmp_path))
    with pytest.raises(ValueError, match="no state dict"):
        load_official(saved([1, 2], tmp_path))
    with pytest.raises(ValueError, match="does not fit a nowcaster of 4 states"):
        load_official(saved(mlp_state(), tmp_path), context=4)
    wide = mlp_state() | {"layer_embed.weight": torch.zeros(3, H)}
    with pytest.raises(ValueError, match="kinds of edges are not 15"):
        load_official(saved(wide, tmp_path))


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_nothing_in_a_file_is_executed(tmp_path):
    (tmp_path / "nino.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load_official(tmp_path / "nino.pt")
    torch.save({"state_dict": mlp_state(), "config": Payload()}, tmp_path / "nino.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load_official(tmp_path / "nino.pt")
    assert not Payload.ran
