"""Rows that are exchanged, counted and assigned, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.npu.capacity import (
    Capacity,
    CapacityError,
    DispatchLayout,
    Receivers,
    check_room,
    sent_rows,
)

LAYERS = 2


def routes(draw: st.DrawFn, shape: tuple[int, ...], stored: int) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 999))).integers(0, stored, shape)


@given(st.data())
def test_sent_rows_are_counts_by_taker_and_expert(data: st.DataObject):
    takers, stored = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    experts_NGBS = routes(data.draw, (LAYERS, 2, 4, 3), stored)
    taker_B = np.array(data.draw(st.lists(st.integers(0, takers - 1), min_size=4, max_size=4)))
    sent = sent_rows(experts_NGBS, taker_B, takers, stored)
    assert sent.shape == (LAYERS, 2, takers, stored)
    for taker in range(takers):
        for expert in range(stored):
            expected = (experts_NGBS[:, :, taker_B == taker] == expert).sum(axis=(2, 3))
            assert (sent[:, :, taker, expert] == expected).all()


def test_refuse_names_the_layer_the_expert_and_the_factor_that_is_needed():
    sent, names = np.zeros((2, 1, 2, 4), np.int64), ["RRE layer 0", "RRE layer 1"]
    sent[1, 0, 1, 2], sent[0, 0, 0, 0] = 7, 4
    arrived = Receivers("compacted", 1, np.array([0, 0, 1, 1])).arrived(sent)
    check_room(sent, 7, 3, names, "capacity_factor")
    check_room(arrived, 7, 3, names, "arrival_factor")
    with pytest.raises(
        CapacityError, match=r"RRE layer 1: a rank has 7 rows for expert 2, whose capacity is 3"
    ) as error:
        check_room(sent, 3, 3, names, "capacity_factor")
    assert "parallel.capacity_factor to 2.34 or more" in str(error.value), "7 rows of an even 3, rounded up"
    with pytest.raises(CapacityError, match=r"RRE layer 1: 7 rows arrive where 5 have room") as error:
        check_room(arrived, 5, 3, names, "arrival_factor")
    assert "parallel.arrival_factor to 2.34 or more" in str(error.value)


@pytest.mark.parametrize("layout", ["compacted", "dropless"])
@given(st.data())
def test_first_senders_rows_have_room_first(layout: DispatchLayout, data: st.DataObject):
    """Room is given row by row: to the rows of a sender for an expert, then to what arrives, in the order of the senders."""
    groups, peers, replicas, stored = 2, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), 6
    holder_K = np.arange(stored) % peers
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    sent = rng.integers(0, 5, (LAYERS, 1, groups * peers * replicas, stored))
    room = Capacity(data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12)))
    receivers = Receivers(layout, groups, holder_K)
    accepted = receivers.accepted(sent, room)
    left: dict[tuple[int, ...], int] = {}
    expected = np.zeros_like(sent)
    for n, taker, expert in np.ndindex(LAYERS, sent.shape[2], stored):
        group, replica = taker // (peers * replicas), taker % replicas
        where = (n, group, replica, int(holder_K[expert]) if layout == "dropless" else stored + expert)
        free = left.setdefault(where, room.arrived)
        expected[n, 0, taker, expert] = min(sent[n, 0, taker, expert], room.sent or 0, free)
        left[where] -= expected[n, 0, taker, expert]
    assert (accepted == expected).all()
    arrived = receivers.arrived(accepted)
    assert arrived.max() <= (room.arrived)
