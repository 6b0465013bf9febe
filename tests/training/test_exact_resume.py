"""A run that stops anywhere and goes on ends in the bits of the one that never stopped."""

from __future__ import annotations

import pytest

from experiments.chaos.exact_resume import CASES, RESUMED_STEPS, ExactResume, random_stops

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_resuming_is_exact_between_micro_batches_overflows_and_dropped_values(tiny_data, tmp_path, case, ranks):
    """Weights, moments, loss scale, counters, data cursor and log, after every step; once in a process of its own."""
    exact = ExactResume(tiny_data, tmp_path, case, ranks)
    if case in ("all", "overflow"):
        assert 2 < exact.skipped < RESUMED_STEPS - 2
    for number, step in enumerate(random_stops(2, seed=1)):
        assert exact.differences(step, fresh=number == 0) == []
