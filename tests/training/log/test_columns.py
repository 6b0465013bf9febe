"""The columns are the numbers of the log's lines, one row a line."""

from __future__ import annotations

import numpy as np
import pytest

import pangu_sigma as ps
from pangu_sigma.sealed import sealed_line
from pangu_sigma.training.log.columns import last, metrics_columns, points
from pangu_sigma.training.log.metrics import EmptyLogError, MetricsLog, read_metrics


@pytest.fixture
def run(tmp_path):
    lines = [
        {"kind": "run", "step": 0, "domains": ["a", "b"]},
        {"kind": "step", "step": 5, "loss": 3.5, "loss/a": 3, "samples": "x", "norm": None},
        {"kind": "step", "step": 10, "loss/a": 2, "loss/b": 1.5, "samples": "y", "norm": None},
        {"kind": "load", "step": 5, "tokens_NK": [[1, 2], [3, 4]]},
        {"kind": "load", "step": 10, "tokens_NK": [[5, 6], [7, 8]]},
        {"kind": "evaluation", "step": 5, "unigram": {"a": 6.5}, "per_sample": {"a": {"nats": [1, 2]}}},
        {"kind": "evaluation", "step": 10, "unigram": {"b": 6.0}, "per_sample": {"a": {"nats": [1]}}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))
    return tmp_path


def test_each_line_of_the_kind_is_a_row(run):
    found = metrics_columns(run, "step")
    assert list(found) == ["step", "loss", "loss/a", "samples", "norm", "loss/b"]
    assert found["step"].tolist() == [5, 10] and found["step"].dtype.kind == "i"
    np.testing.assert_array_equal(found["loss"], [3.5, np.nan])
    np.testing.assert_array_equal(found["loss/b"], [np.nan, 1.5])
    assert np.isnan(found["norm"]).all() and found["samples"] == ["x", "y"]


def test_arrays_are_arrays_and_lists_of_several_lengths_stay_lists(run):
    assert metrics_columns(run, "load")["tokens_NK"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    evaluations = metrics_columns(run, "evaluation")
    assert evaluations["per_sample/a/nats"] == [[1, 2], [1]]
    np.testing.assert_array_equal(evaluations["unigram/a"], [6.5, np.nan])


def test_points_are_the_finite_values_with_their_steps(run):
    steps = metrics_columns(run, "step")
    assert [values.tolist() for values in points(steps, "loss/b")] == [[10], [1.5]]
    assert (last(steps, "loss"), last(steps, "loss/a"), last(steps, "norm"), last(steps, "samples")) == (
        3.5,
        2,
        None,
        None,
    )


def test_steps_of_an_earlier_version_are_refused_with_the_commit_that_reads_them(tmp_path):
    lines = [{"kind": "run", "step": 0}, {"kind": "step", "step": 5, "per_domain_loss": {"a": 3.0}}]
    (tmp_path / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))
    told = r"metrics\.jsonl: .*under other names; commit e9a89c7e reports them\. To train on, move the file away"
    with pytest.raises(EmptyLogError, match=told):
        metrics_columns(tmp_path, "step")
    with pytest.raises(EmptyLogError, match=told):
        MetricsLog(tmp_path, ["a"], 10, 5, 5)
    assert read_metrics(tmp_path) == lines, "evaluations are read as ever"


def test_the_face_gives_a_table_that_prints_and_that_pandas_takes(run):
    pandas = pytest.importorskip("pandas")
    table = ps.metrics(run)
    assert str(table).splitlines()[0] == "2 rows; the columns, from the first value to the last:"
    assert [*str(table).splitlines()[1].split()] == ["step", "5", "…", "10"]
    frame = pandas.DataFrame(table)
    assert frame.shape == (2, 6) and frame["loss"].isna().tolist() == [False, True]
    assert "[2 × 2]" in str(ps.metrics(run, "load"))


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ps.UserError, match=r"kind='spike': .* has no such lines; it has run, step, load, evaluation"):
        ps.metrics(run, "spike")
    with pytest.raises(ps.UserError, match=r"none/metrics\.jsonl: No such file or directory; name a run folder"):
        ps.metrics(tmp_path / "none")
