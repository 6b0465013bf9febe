"""Keys of rows: by the formula, token by token; the same whatever the text is cut into; and never by a token that comes later."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.data.batches import documents_and_positions
from pangu_sigma.rre.row_keys import draw_row_tables, extended_row_tables, row_keys
from pangu_sigma.sections import RowsConfig

VOCABULARY, EOT = 50, 9
ENTRIES = [
    RowsConfig(order=1, rows=70, width=4),
    RowsConfig(order=2, rows=31, width=4),
    RowsConfig(order=2, rows=1_000, width=4, kind="own"),
]
TABLES = draw_row_tables(ENTRIES, VOCABULARY, seed=3)


def keys_of(ids: np.ndarray, domains: np.ndarray, positions: np.ndarray, before: np.ndarray | int = -1) -> np.ndarray:
    return row_keys(ENTRIES, *TABLES, ids, domains, positions, before)


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=30), domain=st.integers(0, 3), data=st.data())
def test_keys_follow_the_formula_and_do_not_depend_on_how_a_text_is_cut(ids, domain, data):
    ids_1S = np.array([ids])
    _, positions_1S = documents_and_positions(ids_1S, EOT)
    domains_1S = np.full_like(ids_1S, domain)
    whole = keys_of(ids_1S, domains_1S, positions_1S)
    a_EV, b_EV1 = TABLES
    for e, entry in enumerate(ENTRIES):
        for s, token in enumerate(ids):
            before = VOCABULARY if s == 0 or ids[s - 1] == EOT else ids[s - 1]
            key = int(a_EV[e, token]) + (int(b_EV1[e, before]) if entry.order == 2 else 0)
            assert whole[e, 0, s] == key % entry.rows + (domain * entry.rows if entry.kind == "own" else 0)
    cut = data.draw(st.integers(1, len(ids) - 1))
    rest = keys_of(ids_1S[:, cut:], domains_1S[:, cut:], positions_1S[:, cut:], ids_1S[:, cut - 1 : cut])
    assert np.array_equal(rest, whole[..., cut:])
    changed = ids_1S.copy()
    changed[0, cut] = (changed[0, cut] + 1) % VOCABULARY
    assert np.array_equal(keys_of(changed, domains_1S, positions_1S)[..., :cut], whole[..., :cut]), "no later token"


def test_ids_share_a_row_only_where_there_are_fewer_rows():
    few, many = (RowsConfig(order=1, rows=rows, width=4) for rows in (20, VOCABULARY))
    row_EV, before_EV1 = draw_row_tables([few, many], VOCABULARY, seed=0)
    assert np.ptp(np.bincount(row_EV[0], minlength=20)) <= 1
    assert sorted(row_EV[1]) == list(range(VOCABULARY))
    assert not before_EV1.any(), "order 1 has no token before"


def test_tables_follow_the_seed_and_entries_have_their_own():
    two = [RowsConfig(order=2, rows=1 << 29, width=8)] * 2
    (row_EV, before_EV1), again, other = (draw_row_tables(two, VOCABULARY, seed) for seed in (1, 1, 2))
    assert np.array_equal(row_EV, again[0]) and np.array_equal(before_EV1, again[1])
    assert (row_EV != other[0]).all() and (row_EV[0] != row_EV[1]).all()
    assert (row_EV.dtype, before_EV1.shape) == (np.int32, (2, VOCABULARY + 1))


def test_in_another_vocabulary_known_ids_keep_their_numbers_and_no_token_before_stays_the_last():
    """Ids have moved, two are gone, and three are new."""
    old_id_V = np.array([3, -1, *range(4, VOCABULARY), 0, -1, -1])
    row_EV, before_EV1 = extended_row_tables(ENTRIES, TABLES, old_id_V, seed=3)
    kept = old_id_V >= 0
    assert np.array_equal(row_EV[:, kept], TABLES[0][:, old_id_V[kept]])
    assert np.array_equal(before_EV1[:, :-1][:, kept], TABLES[1][:, old_id_V[kept]])
    assert np.array_equal(before_EV1[:, -1], TABLES[1][:, -1])
    drawn = draw_row_tables(ENTRIES, len(old_id_V), seed=3)
    assert np.array_equal(row_EV[:, ~kept], drawn[0][:, ~kept])
    assert np.array_equal(before_EV1[:, :-1][:, ~kept], drawn[1][:, :-1][:, ~kept])
    for mine, its in zip(extended_row_tables(ENTRIES, None, old_id_V, seed=3), drawn, strict=True):
        assert np.array_equal(mine, its)
