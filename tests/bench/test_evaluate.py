"""`bench evaluate` asks both ways for the same items."""

from __future__ import annotations

from pangu_sigma.bench.evaluate import _asked, _models, compare_items


def test_the_row_is_the_rate_of_items():
    (row,) = compare_items(items=6, alone=2, rounds=1)
    assert (row.peer, row.unit) == ("one by one", "items/s")
    assert row.ours > 0 and row.ratio is not None and row.ratio > 0


def test_both_ways_give_the_same_numbers():
    with _models((4, 1)) as (together, one_by_one):
        asked = _asked(together, 3)
        assert together.loglikelihood(asked, disable_tqdm=True) == one_by_one.loglikelihood(asked, disable_tqdm=True)
