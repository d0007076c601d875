"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.data import locate
from neuropil.learning.nowcast import GraphNowcaster

TINY = {
    "taught_on": ((2,), (3,)),
    "tested_on": (4,),
    "samples": 60,
    "batch_size": 16,
    "steps": 20,
    "period": 5,
    "look": 5,
    "seeds": 2,
    "tuning_seeds": 1,
    "tuning_rates": (1e-3, 1e-2),
    "line_horizons": (5, 40),
    "trajectories": 2,
    "trajectory_steps": 45,
    "mlp_hid": 4,
    "mlp_weights": 16,
    "mlp_slices": 1,
    "mlp_steps": 2,
    "graph_hid": 4,
    "graph_layers": 1,
    "graph_slices": 1,
    "graph_steps": 2,
}


def official_names(nowcaster: GraphNowcaster) -> dict[str, torch.Tensor]:
    """The state of a nowcaster under the names of the official files."""
    names = {"types": "layer_embed", "history": "edge_proj.fc.0", "positions": "node_proj.fc.0"}
    names |= {"body.0": "edge_out.fc.0", "out": "edge_out.fc.2"}
    for index in range(len(nowcaster.rounds)):
        convolution = {"modulations.0": "edge_encoder", "messages.0": "pre_nns.0.0"}
        convolution |= {"update": "post_nns.0.0", "mix": "lin"}
        names |= {f"rounds.{index}.{ours}": f"gnn.convs.{index}.{its}" for ours, its in convolution.items()}
        update = {"edge_own": "lin_e", "edge_source": "lin_s", "edge_target": "lin_t", "edge_out": "lin1"}
        names |= {f"rounds.{index}.{ours}": f"gnn.edge_update.{index}.{its}" for ours, its in update.items()}
    state = nowcaster.state_dict()
    return {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in state.items()}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    changes = {**TINY, "new_task": "digits", "new_samples": 60, "rates": (1e-3, 1e-2)}  # stands for another task
    result = run_study("nino", scale="default", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("saves steps" in text for text in texts) == 4
    assert sum("than a line with its tuned horizon" in text for text in texts) == 2
    assert all(claim.threshold for claim in result.claims)
    assert {"curves.svg", "savings.svg"} == set(result.figures)
    assert result.claims[0].holds
    control = [claim for claim in result.claims if "nothing moves saves nothing" in claim.text]
    assert control[0].holds


@pytest.mark.skipif(locate("fashion-mnist") is None, reason="fashion-mnist is not on this machine")
def test_a_tiny_version_of_the_paper_scale_runs_with_an_official_file(tmp_path):
    torch.save(official_names(GraphNowcaster(4, kinds=False, both_ways=False)), tmp_path / "nino.pt")
    changes = {**TINY, "rates": (1e-3,), "taught_on": ((1,),), "tested_on": (2,), "new_task": "", "seeds": 2}
    changes |= {"tuning_rates": (1e-3,), "line_horizons": (5,), "official": str(tmp_path / "nino.pt")}
    result = run_study("nino", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert "official file" in {row[0] for row in result.tables["steps"]["rows"]}


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    changes = {**TINY, "rates": (1e-3,), "tuning_rates": (1e-3,), "line_horizons": (5,), "seeds": 1}
    result = run_study("nino", scale="default", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    (claim,) = [claim for claim in result.claims if "mnist" in claim.text]
    assert claim.holds is None
    assert claim.note is not None
    assert "neuropil data fetch mnist" in claim.note
