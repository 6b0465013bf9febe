"""Rows for pairs of tokens (`model.rows`), stored on the host as experts are: a third kind of stored thing.

Their keys are known when a batch is read. So the host gathers e, the rows of each token side by side, before the step, which takes
e as one more input and returns its gradient; and the update of the rows runs behind the step, while the loop goes on.

    gather(keys)              e of the next batch, once the update before is done
    read_ahead(keys)          of the batch after it: what a file holds is read while the step computes
    update(keys, grads, …)    gradients of equal keys are added, then lazy AdamW with a step count a row

A row is one record, [weights, moments, step count], and a record of zeros is a row that no token met: nothing here is as long as
the number of rows, but for the address space of the records themselves. Shape suffixes: E entries of `model.rows`, R rows of one, T
tokens, H hidden, W width, U different keys.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ascend_ops.adam import HYPER
from ascend_ops.rows import gather_rows, record_size, update_rows
from pangu_sigma.config import Config
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.arrays import ROW_ARRAYS

_APPLY = HYPER.index("apply")


class RowStore:
    """Rows of all entries of a run. One thread touches the rows, and does its tasks in the order in which it gets them."""

    def __init__(self, config: Config, tier: HostTier):
        """tier: storage of the records."""
        self.entries = config.model.rows
        self.learns = [config.learns(entry.kind) for entry in self.entries]
        """Whether the rows of each entry learn; others are read, and neither updated nor met."""
        ends = np.cumsum([entry.width for entry in self.entries])
        self._columns = [slice(int(end) - entry.width, int(end)) for end, entry in zip(ends, self.entries, strict=True)]
        self.hidden = int(ends[-1])
        self._tier = tier
        sizes = [(config.stored_rows(entry), record_size(entry.width)) for entry in self.entries]
        self.records = [tier.records(e, *size) for e, size in enumerate(sizes)]
        self._met = [[np.zeros(0, np.int64)] for _ in self.entries]  # keys that `met` returns, in arrays to be joined
        self._thread = ThreadPoolExecutor(1, "rows")
        self._pending: list[Future[None]] = []

    def gather(self, keys_EGBS: np.ndarray) -> np.ndarray:
        """Return e [G, B·S, H], float32, of G micro-batches: each entry's row of a token in its own columns, after the last update.
        Rows that no token met are 0."""
        self.settle()
        micro_batches, keys_ET = keys_EGBS.shape[1], _flat(keys_EGBS)
        e_TH = np.empty((keys_ET.shape[1], self.hidden), np.float32)
        for records, keys_T, columns in zip(self.records, keys_ET, self._columns, strict=True):
            gather_rows(records, keys_T, e_TH[:, columns])
        return e_TH.reshape(micro_batches, -1, self.hidden)

    def read_ahead(self, keys_EGBS: np.ndarray) -> None:
        """Let the thread bring the records of the keys into memory, after its earlier tasks, and reserve room for new records."""
        self._pending.append(self._thread.submit(self._touch, _flat(keys_EGBS)))

    def update(self, keys_EGBS: np.ndarray, grads_TH: np.ndarray, hyper: np.ndarray) -> None:
        """Begin to update the rows of the keys. grads: gradient of e, float32, of all micro-batches. hyper: the vector `HYPER`."""
        self._pending.append(self._thread.submit(self._update, _flat(keys_EGBS), grads_TH, hyper))

    def settle(self) -> None:
        """Wait until the last step has updated the rows. Raises the error of the thread, for a full disk StoreError."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def met(self, entry: int) -> np.ndarray:
        """Return the keys of the rows of an entry that a token of training met, or that `put` wrote, ascending, int64. entry: index
        in `model.rows`."""
        self.settle()
        # keys are remembered, and not searched by step count > 0, because `put` also writes rows whose count is 0
        self._met[entry] = [np.unique(np.concatenate(self._met[entry]))]
        return self._met[entry][0]

    def figures(self) -> list[dict[str, Any]]:
        """Return for each entry {"met": rows that a token met, "stored": all rows, "collisions": pairs of tokens that share a row
        with an earlier pair, estimated; None for order 1}. Pairs that tables spread evenly give met/R = 1 - exp(-pairs/R)."""
        figures = []
        for e, entry in enumerate(self.entries):
            stored, keys = len(self.records[e]), self.met(e)
            met_share_D = np.bincount(keys // entry.rows, minlength=stored // entry.rows) / entry.rows
            # a full table would have infinitely many pairs: it counts as full but for half a row
            pairs = -entry.rows * np.log1p(-np.minimum(met_share_D, 1 - 1 / (2 * entry.rows))).sum()
            collisions = None if entry.order == 1 else round(float(pairs) - len(keys))
            figures.append({"met": len(keys), "stored": stored, "collisions": collisions})
        return figures

    def read(self, entry: int, name: str, keys_U: np.ndarray) -> np.ndarray:
        """Return one of ROW_ARRAYS of these rows."""
        values = self.records[entry][keys_U, self._columns_of(entry, name)]
        return values.view(np.int32) if name == "step" else values

    def put(self, entry: int, keys: np.ndarray, weight: np.ndarray, **state: np.ndarray) -> None:
        """Write rows in place of all that an entry has. state: Adam state, by names of ROW_ARRAYS; a model that is only read has
        none. Raises ValueError for keys that are not ascending numbers of rows, or arrays of other shapes."""
        records = self.records[entry]
        if keys.dtype != np.int64 or (
            len(keys) and not (keys[0] >= 0 and (np.diff(keys) > 0).all() and keys[-1] < len(records))
        ):
            raise ValueError(f"keys are not {len(keys)} ascending numbers below {len(records)}")
        records[self.met(entry)] = 0
        self._tier.reserve(entry, records, keys)
        for name, values in {"weight": weight, **state}.items():
            columns = self._columns_of(entry, name)
            records[keys, columns] = values.view(np.float32)
        self._met[entry] = [np.array(keys)]

    def _columns_of(self, entry: int, name: str) -> slice | int:
        number, width = ROW_ARRAYS.index(name), self.entries[entry].width
        return -1 if name == "step" else slice(number * width, (number + 1) * width)

    def _touch(self, keys_ET: np.ndarray) -> None:
        """Read the weights of the keys, so that their records are in memory, and reserve room for records that will be written."""
        for e, keys_T in enumerate(keys_ET):
            gather_rows(self.records[e], keys_T, np.empty((len(keys_T), self.entries[e].width), np.float32))
            if self.learns[e]:
                self._tier.reserve(e, self.records[e], keys_T)

    def _update(self, keys_ET: np.ndarray, grads_TH: np.ndarray, hyper: np.ndarray) -> None:
        """Update the rows of the keys, and remember the rows that are met for the first time: their step count becomes 1."""
        if not hyper[_APPLY]:  # the gradients overflowed: the step changes nothing
            return
        for e, (keys_T, columns) in enumerate(zip(keys_ET, self._columns, strict=True)):
            if self.learns[e]:
                self._tier.reserve(e, self.records[e], keys_T)
                keys_U = update_rows(self.records[e], keys_T, grads_TH[:, columns], hyper)
                new_keys = keys_U[self.read(e, "step", keys_U) == 1]
                self._met[e] += [new_keys] if len(new_keys) else []


def _flat(keys_EGBS: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys_EGBS.reshape(len(keys_EGBS), -1))
