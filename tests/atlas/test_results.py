import json

import pytest

from neuropil.atlas import Claim, Result, record


@pytest.fixture
def result():
    claims = [Claim.checked("c", holds=None, measured=0.1, interval=(None, 2))]
    table = {"columns": ["a", "b"], "rows": [[1, None], ["x", 2.5]]}
    return Result("good", "On good", "smoke", 3, "complete", claims=claims, tables={"t": table}, figures=["f.svg"])


def test_a_result_survives_its_file(result, tmp_path):
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path) == result == Result.read(tmp_path / "result.json")
    assert Result.read(tmp_path).folder == tmp_path


def test_keys_of_the_file(result, tmp_path):
    result.write(tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert list(written) == [
        *["schema", "slug", "title", "scale", "seed", "status", "error", "started", "seconds", "settings", "claims"],
        *["tables", "figures", "data", "environment"],
    ]
    assert list(written["claims"][0]) == [
        *["text", "paper", "measured", "interval", "unit", "threshold", "baseline", "holds", "note"]
    ]


def test_only_complete_runs_are_recorded(result, tmp_path):
    assert record(result, tmp_path) == tmp_path / "good.json"
    assert Result.read(tmp_path / "good.json") == result
    result.status = "interrupted"
    with pytest.raises(ValueError, match="good is interrupted"):
        record(result, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=2), "has schema 2; this version reads schema 1"),
        (lambda r: r.pop("claims"), "lacks claims"),
        (lambda r: r.update(seed=True), "seed is true or false, expected a number or null"),
        (lambda r: r.update(error=1), "error is a number, expected text or null"),
        (lambda r: r.update(status="done"), "status is 'done'"),
        (lambda r: r["claims"][0].update(holds="yes"), r"claims\[0\]\.holds is text, expected true or false or null"),
        (lambda r: r["claims"][0].update(extra=1), r"claims\[0\] is no claim: .*extra"),
        (lambda r: r["tables"]["t"]["rows"].append([1]), r"tables\['t'\]\.rows\[2\] must be a list of 2 cells"),
        (lambda r: r["tables"].update(t=[]), r"tables\['t'\] is a list, expected an object"),
        (lambda r: r.update(figures=[1]), "figures holds 1, expected the plain name"),
    ],
)
def test_a_foreign_file_is_named_with_what_is_wrong(result, tmp_path, change, message):
    values = result.to_json()
    change(values)
    (tmp_path / "odd.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"odd\.json.*{message}"):
        Result.read(tmp_path / "odd.json")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"null"])
def test_a_corrupted_file_is_named(tmp_path, content):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.json"):
        Result.read(tmp_path / "odd.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json is neither a run folder nor a result file"):
        Result.read(tmp_path / "none.json")
