from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.toy import toy_batches, toy_config

from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.order import Cursor
from pangu_sigma.training.feed import InputPipeline

pytestmark = pytest.mark.usefixtures("graph_mode")


class Store:
    """What a feed needs of a store: a tier that notes what it is asked to read ahead."""

    def __init__(self):
        self.asked: list[tuple[Lists, Lists]] = []
        self.rows, self.tier = None, SimpleNamespace(read_ahead=lambda *lists: self.asked.append(lists))

    def rows_of(self, keys_EGBS: np.ndarray) -> tuple[()]:
        return ()


Lists = tuple[np.ndarray, ...]
"""The active experts of each segment."""


@pytest.fixture
def batches(tmp_path) -> BatchLoader:
    return toy_batches(toy_config(), tmp_path)


def test_batches_come_in_order_each_with_the_cursor_after_it(batches):
    start = Cursor([0] * len(batches.domains))
    feed, cursor = InputPipeline(batches, start, Store()), Cursor([0] * len(batches.domains))
    for _ in range(4):
        fed, expected = feed.take(), batches.next(cursor)
        assert fed.batch.digest == expected.digest
        assert fed.cursor == cursor
        for found, field in zip(fed.arrays, expected.arrays(), strict=True):
            tensors, arrays = (each if isinstance(each, tuple) else (each,) for each in (found, field))
            assert all(np.array_equal(t.asnumpy(), array) for t, array in zip(tensors, arrays, strict=True))
    assert start == Cursor([0] * len(batches.domains)), "the run's own cursor moves only when a step is done"


def test_a_store_is_told_the_experts_of_this_step_and_of_the_next(batches):
    store, cursor = Store(), Cursor([0] * len(batches.domains))
    feed = InputPipeline(batches, Cursor([0] * len(batches.domains)), store)
    active = [batches.next(cursor).active_A for _ in range(4)]
    for _ in range(3):
        feed.take()
    assert len(store.asked) == 3
    for number, (now, coming) in enumerate(store.asked):
        assert all(map(np.array_equal, now, active[number]))
        assert all(map(np.array_equal, coming, active[number + 1]))
