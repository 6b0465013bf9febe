"""The figures of a benchmark's result."""

from __future__ import annotations

from pangu_sigma.evaluate.benchmarks.task_result import TaskResult


def test_figures_are_metrics_and_counts():
    result = TaskResult({"acc": 0.5, "f1": 0.25}, n=8, skipped=2, truncated=1)
    assert result.figures() == {"acc": 0.5, "f1": 0.25, "n": 8, "skipped": 2, "truncated": 1}
