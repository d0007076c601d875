"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.data.graphs import graph_is_at_hand
from neuropil.studies.learning._dfa_tasks import KINDS, Sizes, bayes, parts

TINY = {
    "rates": (1e-3, 1e-2),
    "seeds": 2,
    "text_seeds": 2,
    "digit_epochs": 1,
    "pixels": 12,
    "frequencies": 3,
    "view_width": 5,
    "view_depth": 2,
    "view_steps": 4,
    "users": 9,
    "items": 7,
    "clicks": 300,
    "click_steps": 4,
    "graph_width": 4,
    "graph_steps": 4,
    "context": 6,
    "text_width": 8,
    "blocks": 1,
    "text_batch": 2,
    "text_steps": 4,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    changes = TINY | ({"digit_seeds": 2, "rates": (1e-2,)} if scale == "paper" else {})
    result = run_study("dfa-scaling", scale=scale, settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("trains" in text for text in texts) == 4 + (scale == "paper")
    assert sum("comes close" in text for text in texts) == 2 + graph_is_at_hand("cora")
    assert result.figures == ["tasks.svg"]


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    result = run_study("dfa-scaling", scale="default", settings={**TINY, "tasks": ("papers",)}, output=tmp_path)
    (claim,) = result.claims
    assert claim.holds is None
    assert claim.note is not None
    assert "load_graph('cora')" in claim.note


def test_a_text_may_be_given_as_a_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcab é\n" * 200, encoding="utf-8")
    sizes = Sizes(text=str(file), context=6, text_width=8, blocks=1, text_batch=3)
    task = KINDS["text"].make(sizes, 0, False)
    x, y = task.batch()
    assert x.shape == y.shape == (3, 6)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert int(x.max()) < 6  # a, b, c, space, line feed, and one for what is not ASCII
    with torch.no_grad():
        assert task.net(x).shape == (3, 6, 6)


def test_a_transformer_looks_back_only():
    task = KINDS["text"].make(Sizes(context=6, text_width=8, blocks=2), 0, False)
    x, _ = task.batch()
    with torch.no_grad():
        before = task.net(x)
        changed = x.clone()
        changed[:, 3] = (changed[:, 3] + 1) % 7
        after = task.net(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_rates_are_chosen_without_a_look_at_what_judges():
    (learnt, judge), (seen, hidden) = (
        parts(50, 0.4, tuning, torch.Generator().manual_seed(1)) for tuning in (True, False)
    )
    assert [len(part) for part in (learnt, judge, seen, hidden)] == [24, 6, 30, 20]
    assert sorted([*learnt.tolist(), *judge.tolist()]) == sorted(seen.tolist())
    assert sorted([*seen.tolist(), *hidden.tolist()]) == list(range(50))


def test_true_logits_are_no_oracle():
    assert 75 < bayes(Sizes(), range(2)) < 90
