"""The longer scales of the study, on tiny shapes: every part of it runs."""

import numpy as np
import pytest

from neuropil.atlas import run_study
from neuropil.studies.spiking._evidence import Evidence
from neuropil.studies.spiking._networks import BrunelNetwork, torch_loop, vogels_abbott

TINY = {
    "identical_neurons": 100,
    "identical_ms": 20.0,
    "gradient_neurons": 10,
    "gradient_steps": 5,
    "excitatory": 200,
    "in_degree": 40,
    "weight": 0.4,
    "brunel_ms": 150.0,
    "slow_ms": 150.0,
    "dropped_ms": 50.0,
    "window_ms": 100.0,
    "seeds": 2,
    "graphs": 3,
    "neurons": 200,
    "cuba_ms": 300.0,
    "coba_ms": 300.0,
    "speed_ms": 50.0,
    "event_ms": 50.0,
    "csr_ms": 50.0,
    "repeats": 2,
    "active": (1, 10, 200),
    "products": 3,
    "sizes": (100, 200, 400),
    "size_ms": 20.0,
    "best_of": 2,
    "task": Evidence(excitatory=12, inhibitory=4, early=4, late=3, steps=9, iterations=3, tested=20),
    "rates": (0.01,),
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    sizes = {"huge": (200, 1000), "huge_ms": 50.0} if scale == "paper" else {}
    result = run_study("brain-simulator", scale=scale, settings=TINY | sizes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == (15 if scale == "paper" else 14)
    assert all(claim.threshold for claim in result.claims)
    figures = {"states", "in-degrees", "networks", "crossover", "scaling", "evidence"}
    assert {f"{name}.svg" for name in figures} == set(result.figures)
    exact = [claim for claim in result.claims if "dense matrices" in claim.text or "true gradient" in claim.text]
    assert [claim.holds for claim in exact] == [True, True]


@pytest.mark.parametrize("product", ["event", "csr"])
def test_the_loops_in_torch_fire_as_the_engine_does(product):
    engine = vogels_abbott("CUBA", 400, 3).run(40.0)
    loop = torch_loop(vogels_abbott("CUBA", 400, 3), product)(40.0)
    assert len(loop) > 50
    assert np.array_equal(loop.numpy(), engine.neurons["cells"])


def test_random_in_degrees_differ_less_where_they_vary_less():
    """At p near 1 every neuron hears everybody: the theory of random in-degrees becomes that of fixed ones."""
    for excitatory, widest in ((1001, 3.0), (100_000, 40.0)):
        net = BrunelNetwork(excitatory, 1000, 0.1, 5.0, 2.0)
        mean, spread = net.theory_at_random()
        assert 0 < spread < widest
        assert abs(mean - net.theory()) < 0.1 * spread
