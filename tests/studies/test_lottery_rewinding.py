"""The longer scales of the study, on tiny shapes, and what its arms share."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.studies.structure._tickets import Task, batches, residual_net, search

TINY = {
    "data": "digits",
    "hidden": (12,),
    "steps": 10,
    "rounds": 2,
    "seeds": 2,
    "residual_data": "digits",
    "channels": (4, 6),
    "residual_steps": 10,
    "residual_rounds": 2,
    "residual_batch_size": 20,
    "residual_seeds": 2,
    "batch_size": 20,
    "train": 100,
    "test": 50,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("lottery-rewinding", scale="default", settings={**TINY, "rewinds": (0.0, 0.2)}, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 4 + 3 + 1 + 2 * 3
    assert all(claim.threshold for claim in result.claims)
    assert all(claim.holds for claim in result.claims[:4])
    assert result.figures == ["accuracy.svg", "stability.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    changes = {**TINY, "rewinds": (0.0, 0.1, 0.3), "channels": (4, 6, 8), "seeds": 1, "residual_seeds": 1}
    result = run_study("lottery-rewinding", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 4 + 3 + 2 + 2 * 4


def test_the_papers_net_is_resnet_20():
    data = Task("residual", "digits", (16,), steps=1, rate=0.1, rounds=1, scope="global").samples(0)
    net = residual_net(data, (16, 32, 64), 3, torch.Generator().manual_seed(0))
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 19  # and the readout: 20 layers
    again = residual_net(data, (16, 32, 64), 3, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_batches_are_the_seeds_and_later_steps_do_not_depend_on_where_one_starts():
    short, long = batches(50, 20, 3, 1), batches(50, 20, 7, 1)
    assert [len(batch) for batch in long] == [20] * 7
    assert all(torch.equal(a, b) for a, b in zip(short, long[:3], strict=True))
    assert not torch.equal(batches(50, 20, 1, 2)[0], short[0])
    passes = torch.cat(long[:2])
    assert len(passes.unique()) == 40


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_a_search_gives_every_arm_and_draws_nothing_from_the_global_state(kind):
    sizes = (12,) if kind == "mlp" else (4, 6)
    scope = "layer" if kind == "mlp" else "global"
    task = Task(kind, "digits", sizes, steps=8, rate=0.01, rounds=2, scope=scope, batch_size=20, train=100, test=50)
    state = torch.random.get_rng_state()
    row = search(task, 0.25, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert row == search(task, 0.25, 3)
    assert row["density"] == pytest.approx(0.66 if kind == "mlp" else 0.64, abs=0.02)
    assert row["history"][0]["density"] == 1.0
    assert row["history"][0]["accuracy"] == row["dense"]  # the first round trains the dense net
    for arm in ("ticket", "dense", "fresh weights", "shuffled mask"):
        assert 0 <= row[arm] <= 1
    for what in ("to pruning", "to order"):
        assert row[f"ticket, {what}, l2"] > 0


def test_tables_have_no_images_for_a_residual_net():
    with pytest.raises(ValueError, match="iris has no images"):
        Task("residual", "iris", (4,), steps=1, rate=0.1, rounds=1, scope="global").samples(0)
