"""Samples that share a sequence fit into it, each is in one, and little room is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.finetune.task_batches import pack


@given(st.lists(st.integers(1, 30), max_size=60))
def test_every_sample_is_in_one_sequence_that_has_room_for_it(lengths):
    found = pack(lengths, 30, together=True)
    assert sorted(number for each in found for number in each) == list(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in each) for each in found)
    assert all(each for each in found)
    assert filled == [] or filled[-1] <= 30
    assert len(filled) < 2 or filled[0] + filled[1] > 30, "no two sequences fit into one"


def test_apart_each_sample_has_its_own_and_the_order_is_that_of_the_file():
    assert pack([5, 9, 2], 10, together=False) == [[0], [1], [2]]
    assert pack([5, 9, 2, 1], 10, together=True) == [[0, 2], [1, 3]]
    assert pack([], 10, together=True) == []
