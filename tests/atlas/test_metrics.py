import pandas as pd
import pytest

from neuropil.atlas.metrics import Metrics


def test_tables_share_the_file_with_all_their_columns(tmp_path):
    file = tmp_path / "metrics.csv"
    metrics = Metrics(file)
    metrics.append("training", pd.DataFrame({"epoch": [0, 1], "loss": [0.1, 1e-17]}))
    metrics.append("curve", pd.DataFrame({"x": [2.0], "epoch": [0]}))
    metrics.append("training", pd.DataFrame({"epoch": [2], "loss": [0.05]}))
    assert file.read_text().splitlines() == [
        *["name,epoch,loss,x", "training,0,0.1,", "training,1,1e-17,", "curve,0,,2.0", "training,2,0.05,"]
    ]


def test_a_resumed_run_does_not_repeat_rows(tmp_path):
    rows = pd.DataFrame({"epoch": [0, 1], "loss": [0.1, 0.2]})
    Metrics(tmp_path / "metrics.csv").append("training", rows)
    resumed = Metrics(tmp_path / "metrics.csv")
    resumed.append("training", rows.assign(epoch=[1, 2], loss=[0.2, 0.3]))
    resumed.append("curve", pd.DataFrame({"x": [1.0]}))
    resumed.append("training", rows)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 4


def test_equal_rows_of_one_session_are_both_kept(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    for _ in range(2):
        metrics.append("training", pd.DataFrame({"loss": [0.1]}))
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 2


def test_a_column_called_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match='column "name"'):
        Metrics(tmp_path / "metrics.csv").append("training", pd.DataFrame({"name": [1]}))
