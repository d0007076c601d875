import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.atlas import checkpoints

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=values)
def test_json_values_survive(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("run")
    assert checkpoints.read(checkpoints.keep(folder, "v", value)) == value


def test_a_frame_keeps_values_and_dtypes(tmp_path):
    frame = pd.DataFrame(
        {
            "float": [0.1, np.nan, 1e-300],
            "float32": np.array([0.1, 2, 3], dtype="float32"),
            "int8": np.array([1, 2, 3], dtype="int8"),
            "bool": [True, False, True],
            "text": ["a", None, "ü,\n"],
            "category": pd.Categorical(["x", "y", "x"]),
            "time": pd.to_datetime(["2024-01-01", None, "2024-01-02T03:04:05"], format="ISO8601"),
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "mixed": pd.Series([1, "a", None], dtype=object),
        }
    )
    pd.testing.assert_frame_equal(checkpoints.read(checkpoints.keep(tmp_path, "f", frame)), frame)


def test_an_empty_frame_survives(tmp_path):
    frame = pd.DataFrame({"a": pd.Series([], dtype="float64")})
    pd.testing.assert_frame_equal(checkpoints.read(checkpoints.keep(tmp_path, "f", frame)), frame)


def test_tensors_survive_with_the_state_of_an_optimizer(tmp_path):
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"epoch": 3, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    back = checkpoints.read(checkpoints.keep(tmp_path, "state", state))
    assert back["epoch"] == 3
    torch.testing.assert_close(back["net"], dict(net.state_dict()), rtol=0, atol=0)
    assert back["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert {file.suffix for file in tmp_path.iterdir()} == {".pt"}


@pytest.mark.parametrize("value", [object(), {"a": [np.zeros(2)]}, {1, 2}])
def test_what_cannot_be_kept_is_refused_when_it_is_kept(tmp_path, value):
    with pytest.raises(TypeError, match="cannot keep"):
        checkpoints.keep(tmp_path, "v", value)
    assert checkpoints.find(tmp_path, "v") is None


def test_what_torch_would_not_load_again_is_refused_with_its_place(tmp_path):
    with pytest.raises(TypeError, match=r"state\['log'\]\[1\] is float64"):
        checkpoints.keep_tensors(tmp_path, "state", {"w": torch.ones(1), "log": [1.0, np.float64(2)]})


def test_an_index_that_would_be_lost_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reset_index"):
        checkpoints.keep(tmp_path, "f", pd.DataFrame({"a": [1]}, index=["x"]))


@pytest.mark.parametrize("suffix", [checkpoints.FRAME, checkpoints.JSON, checkpoints.TENSORS])
def test_a_broken_file_is_named(tmp_path, suffix):
    (tmp_path / f"v{suffix}").write_text("{")
    with pytest.raises(ValueError, match=rf"v{suffix} cannot be read .*: delete it"):
        checkpoints.read(tmp_path / f"v{suffix}")
