"""Keys of rows for pairs of tokens (`model.rows`): which row of an entry a token reads, by tables that are drawn once.

    order 1    key = A[x_t]                        the token alone
    order 2    key = (A[x_t] + B[x_{t−1}]) mod R   the token and the one before it; B's last column: no token before

Both values are below R, and R is below 2^30, so sum and remainder are one comparison in 32 bits: a graph needs nothing else. x is
the id of the tokenizer. The rows of an own entry belong to domains: domain d has the rows d·R … (d + 1)·R − 1.

Shape suffixes: E entries of `model.rows`, V vocabulary, V1 = V + 1, S sequence. Source: our choice; n-gram rows are known from
others, tables in place of multiplying hashes are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pangu_sigma.sections import RowsConfig


def draw_row_tables(entries: Sequence[RowsConfig], vocabulary: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the tables A [E, V] and B [E, V + 1] of all entries, int32. seed: `routing.seed`.

    Order 1 deals ids out to rows in turn, so two ids share a row only if there are more ids than rows; its B is 0.
    """
    row_EV = np.empty((len(entries), vocabulary), np.int32)
    before_EV1 = np.zeros((len(entries), vocabulary + 1), np.int32)
    for e, entry in enumerate(entries):
        rng = np.random.default_rng([seed, e, len("rows")])  # experts' tables: one number, or two
        if entry.order == 1:
            row_EV[e, rng.permutation(vocabulary)] = np.arange(vocabulary) % entry.rows
        else:
            row_EV[e] = rng.integers(entry.rows, size=vocabulary)
            before_EV1[e] = rng.integers(entry.rows, size=vocabulary + 1)
    return row_EV, before_EV1


def extended_row_tables(
    entries: Sequence[RowsConfig],
    old: tuple[np.ndarray, np.ndarray] | None,
    old_id_V: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return tables for another vocabulary: ids of the old vocabulary keep their values in A and B, other ids draw new ones.

    old: tables of the old vocabulary; None draws all. old_id_V: the old id of each id, -1 for none. seed: `routing.seed`.
    """
    row_EV, before_EV1 = draw_row_tables(entries, len(old_id_V), seed)
    if old is not None:
        # "no token before" is B's last column, whatever the vocabulary
        old_id_V1 = np.append(old_id_V, old[0].shape[1])
        for tables, old_tables, old_ids in ((row_EV, old[0], old_id_V), (before_EV1, old[1], old_id_V1)):
            is_old = old_ids >= 0
            tables[:, is_old] = old_tables[:, old_ids[is_old]]
    return row_EV, before_EV1


def row_keys(
    entries: Sequence[RowsConfig],
    row_EV: np.ndarray,
    before_EV1: np.ndarray,
    ids: np.ndarray,
    domains: np.ndarray,
    positions: np.ndarray,
    before: np.ndarray | int = -1,
) -> np.ndarray:
    """Return the row of every token in every entry, int64 [E, …, S]: (A[x_t] + B[x_{t−1}]) mod R, and in an own entry domain · R
    more. (In an entry of order 1, B is 0.)

    row_EV, before_EV1: tables A and B; B's last column means "no token before". ids, domains, positions: int arrays of one shape
    [..., S], tokens that follow each other on the last axis. positions: of each token in its document; at 0 there is no token
    before. before: the token before the first of each sequence, [..., 1], where its position is not 0.
    """
    previous = np.concatenate([np.broadcast_to(before, ids[..., :1].shape), ids[..., :-1]], axis=-1)
    previous = np.where(positions == 0, row_EV.shape[-1], previous)
    shape = (len(entries), *[1] * ids.ndim)
    rows = np.array([entry.rows for entry in entries], np.int32).reshape(shape)
    domain_rows = np.array([entry.rows * (entry.kind == "own") for entry in entries], np.int64).reshape(shape)
    keys = row_EV[:, ids] + before_EV1[:, previous]  # below 2 R, so the remainder is at most one subtraction
    return keys - rows * (keys >= rows) + domains * domain_rows
