"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.structure.develop.networks import direct_networks, direct_size
from neuropil.studies.structure._developmental_searches import (
    DIRECT,
    EVOLVED,
    GATE_ARMS,
    WORLDS,
    gate_search,
    published_rows,
    world_search,
)

TINY = {
    "seeds": 2,
    "gates": (2, 6),
    "lives": (2, 4),
    "episodes": 1,
    "choosing": 2,
    "fresh": 4,
    "graphs": (2, 4),
    "graph_cycles": 4,
    "graph_nodes": 5,
}


def lander_is_here() -> bool:
    try:
        import gymnasium
    except ImportError:
        return False
    try:
        gymnasium.make("LunarLander-v3").close()
    except gymnasium.error.Error:  # its physics are not installed
        return False
    return True


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("neural-developmental-programs", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    claims = {claim.text: claim for claim in result.claims}
    assert all(claim.threshold for claim in result.claims if not str(claim.note).startswith("Not run"))
    assert sum(text.startswith("XOR by a margin") for text in claims) == len(GATE_ARMS)
    worlds = [name for name in WORLDS if f"evolved genomes beat the best of as many random ones, {name}" in claims]
    assert worlds == (["CartPole"] if scale == "default" else list(WORLDS))
    if scale == "paper" and not lander_is_here():
        lander = claims["evolved genomes beat the best of as many random ones, LunarLander"]
        assert lander.holds is None
        assert str(lander.note).startswith("Not run")
    assert set(result.figures) == {"growth.svg", "fitness.svg", "small-world.svg"}
    assert {"xor", "xor-as-published", "cartpole", "small-worlds"} <= set(result.tables)
    for claim in result.claims[:4]:
        assert claim.holds


def test_the_direct_encoding_solves_xor_within_its_budget():
    found = gate_search(DIRECT, 1, (40, 32))
    assert found.row["rows"] == 4
    assert found.row["worst lead"] >= 0.05
    assert len(found.best) == direct_size(6) == 21
    assert len(found.history) < 40


def test_rows_are_credited_by_the_larger_output():
    weights = torch.zeros(1, 16).double()
    weights[0, 3] = weights[0, 7] = 1.0  # both inputs to the last node: OR, so XOR but for the row (1, 1)
    network = direct_networks(weights, 4, directed=True)
    assert published_rows(network)[0].tolist() == [True, True, True, False]


def test_a_life_is_its_seed_and_plays_on_fresh_episodes():
    arguments = ("CartPole", EVOLVED, 3, (2, 6), 0.5, 1, 2, 4)
    one, same = world_search(*arguments), world_search(*arguments)
    assert torch.equal(one.best, same.best)
    assert one.row["returns"] == same.row["returns"]
    assert one.row["numbers"] == 162
    direct = world_search("CartPole", DIRECT, 3, (1, 4), 0.5, 1, 2, 4)
    assert direct.row["numbers"] == 153
    assert direct.row["nodes"] == 17
