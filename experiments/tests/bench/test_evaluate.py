"""`bench evaluate` asks all three ways for the same items."""

from __future__ import annotations

import pytest

from experiments.bench.evaluate import _PEERS, _asked, _check_alike, _models, compare_items


def test_the_rows_are_rates_of_items():
    rows = compare_items(items=6, alone=2, rounds=1)
    assert [(row.peer, row.unit) for row in rows] == [(peer, "items/s") for peer in _PEERS]
    assert all(row.ours > 0 and row.ratio is not None and row.ratio > 0 for row in rows)


def test_all_ways_give_the_same_numbers():
    with _models() as (together, one_by_one, graph):
        asked = _asked(together, 3)
        found = together.loglikelihood(asked, disable_tqdm=True)
        assert found == one_by_one.loglikelihood(asked, disable_tqdm=True)
        by_graph = graph.loglikelihood(asked, disable_tqdm=True)
        assert [score for score, _ in by_graph] == pytest.approx([score for score, _ in found], abs=1e-4)
    with pytest.raises(RuntimeError, match=r"log-probabilities differ by 2.0e-04, and may by 0.0001"):
        _check_alike([[(-1.0, True)], [(-1.0002, True)]])
