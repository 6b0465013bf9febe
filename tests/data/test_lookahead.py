"""Batches that are made ahead are the batches that would have been made in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy import toy_batches, toy_config

from pangu_sigma.data.batches import Batch, BatchLoader, Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def batches(folder: Path) -> BatchLoader:
    return toy_batches(toy_config(train={"accumulation": 2}), folder)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip((*one.arrays(), one.domains_M), (*other.arrays(), other.domains_M), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_batches_and_cursors_come_in_the_order_of_batches_with_the_one_that_follows(folder: Path):
    """Over several passes through the text, whose orders are drawn anew."""
    start, expected = Cursor([0] * 4), batches(folder)
    feed, cursor = Lookahead(batches(folder), start), Cursor([0] * len(expected.domains))
    coming = expected.next(cursor)
    assert min(expected.samples.counts) < 20 * 8
    for _ in range(20):
        now, after = coming, cursor.taken.copy()
        coming = expected.next(cursor)
        batch, at, follows = feed.take()
        assert same(batch, now)
        assert at.taken == after
        assert same(follows, coming)
    assert start.taken == [0] * 4, "the caller's"


def test_the_cursor_of_a_batch_resumes_after_it(folder: Path):
    loader = batches(folder)  # once: it writes the text, which the thread of a lookahead reads
    feed = Lookahead(loader, Cursor([0] * 4))
    for _ in range(5):
        _, cursor, follows = feed.take()
    resumed = Lookahead(loader, cursor)
    for _ in range(3):
        batch, at, coming = resumed.take()
        assert same(batch, follows)
        now, after, follows = feed.take()
        assert same(now, batch)
        assert same(coming, follows)
        assert at == after


def test_an_error_of_the_thread_reaches_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch):
    source = batches(folder)
    feed, made = Lookahead(source, Cursor([0] * 4)), source.next
    feed.take()

    def fail(cursor: Cursor) -> Batch:
        made(cursor)
        raise DataError("domain d1: token id 5 has no row")

    monkeypatch.setattr(source, "next", fail)
    with pytest.raises(DataError, match="domain d1"):
        for _ in range(4):
            feed.take()


def test_an_error_of_the_batch_after_this_one_is_raised_where_that_is_to_be_taken(folder: Path, monkeypatch):
    """A run whose last batch is whole ends, whatever comes behind it in the text."""
    source, expected, cursor = batches(folder), batches(folder), Cursor([0] * 4)
    assemble, numbers = source.next, iter(range(1, 9))

    def fail_third(cursor: Cursor) -> Batch:
        if next(numbers) == 3:
            raise DataError("domain d1: token id 5 has no row")
        return assemble(cursor)

    monkeypatch.setattr(source, "next", fail_third)
    feed = Lookahead(source, Cursor([0] * 4))
    first, second = expected.next(cursor), expected.next(cursor)
    batch, _, coming = feed.take()
    assert same(batch, first) and same(coming, second)
    batch, at, coming = feed.take()
    assert same(batch, second) and coming is batch and at == cursor
    with pytest.raises(DataError, match="domain d1"):
        feed.take()
