"""Routing tables: level 2 of RRE, token id → expert of the domain's group, drawn once and never learned.

Shape suffixes: N segments of all RRE layers (the layers, if each has one), D domains, V vocabulary, E experts of a domain.

`random` is the paper's table (a shuffled round robin: every expert gets the same number of token *ids*). Real text is Zipf
distributed, so equal numbers of ids are not equal load; `balanced` packs ids by their frequency instead, and spreads an id that
alone exceeds half an expert's fair share over several neighbouring experts by token position (our choice; the paper is silent).
Tables of one's own are read from a file (own_table.py makes them).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.rre.row_keys import draw_row_tables, row_keys
from pangu_sigma.rre.table_file import DAMAGED, read_tables, write_tables
from pangu_sigma.sections import RoutingConfig, RowsConfig, Segment


@dataclass(frozen=True)
class RoutingTable:
    """Routing tables of all RRE layers, one for each segment.

    first_NDV: expert within the domain's group for a token at position 0, int16; in a common segment it is one of all experts, and
        the same for all domains.
    spread_DV: number of neighbouring experts over which the id is spread by position, int16; 1 for almost every id.
    experts: E, experts of one domain in a segment.
    common_N: number of experts of each segment that is common, and 0 for own segments, int16; None if no segment is common.
    common_spread_V: as spread_DV, for common segments.
    row_EV, before_EV1: the tables of `model.rows` (row_keys.py), int32; None without rows.
    """

    first_NDV: np.ndarray
    spread_DV: np.ndarray
    experts: int
    common_N: np.ndarray | None = None
    common_spread_V: np.ndarray | None = None
    row_EV: np.ndarray | None = None
    before_EV1: np.ndarray | None = None

    @property
    def layers(self) -> int:
        """Number of RRE layers."""
        return self.first_NDV.shape[0]

    @property
    def hash(self) -> str:
        """SHA-256 hash of the tables. A checkpoint records it, and a run with other tables refuses that checkpoint."""
        digest = hashlib.sha256(f"{self.first_NDV.shape} {self.experts}".encode())
        digest.update(np.ascontiguousarray(self.first_NDV).tobytes())
        digest.update(np.ascontiguousarray(self.spread_DV).tobytes())
        for array in (self.common_N, self.common_spread_V, self.row_EV, self.before_EV1):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the tables to an .npz file."""
        write_tables(path, vars(self))

    @classmethod
    def load(cls, path: Path, fix: str = DAMAGED) -> RoutingTable:
        """Load the tables that `save` wrote. Raises DataError, which ends with `fix`, for any other file."""
        return cls(**read_tables(path, fix))

    @property
    def _common(self) -> np.ndarray:
        return np.zeros(self.layers, np.int16) if self.common_N is None else self.common_N

    @property
    def _spread_of_common(self) -> np.ndarray:
        return np.ones(self.spread_DV.shape[-1], np.int16) if self.common_spread_V is None else self.common_spread_V

    def of_segment(self, n: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (first [D, V], spread [D, V], experts) of segment n. experts: number of experts that share a domain's tokens: the
        domain's own, or all common ones."""
        if not self._common[n]:
            return self.first_NDV[n], self.spread_DV, self.experts
        return self.first_NDV[n], np.broadcast_to(self._spread_of_common, self.spread_DV.shape), int(self._common[n])

    def route(self, ids: np.ndarray, domains: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the expert of every token in every segment, numbered over all domains (0 … D·E − 1) or all common experts.

        ids, domains, positions: int arrays of one shape [...]. Returns int32 [N, ...].
        """
        first = self.first_NDV[:, domains, ids]
        shift = positions % self.spread_DV[domains, ids]
        experts = (domains * self.experts + (first + shift) % self.experts).astype(np.int32)
        for n in np.flatnonzero(self._common):  # common experts have the same numbers for all domains
            experts[n] = (first[n] + positions % self._spread_of_common[ids]) % self._common[n]
        return experts

    def has_keys_of(self, entries: Sequence[RowsConfig]) -> bool:
        """Return True if the tables of rows fit these entries of `model.rows`: one for each entry, with values below its `rows`."""
        if self.row_EV is None or self.before_EV1 is None:
            return not entries
        largest_E = np.maximum(self.row_EV.max(axis=1, initial=0), self.before_EV1.max(axis=1, initial=0)).tolist()
        return len(largest_E) == len(entries) and all(
            n < entry.rows for n, entry in zip(largest_E, entries, strict=True)
        )

    def row_keys(
        self,
        entries: Sequence[RowsConfig],
        ids: np.ndarray,
        domains: np.ndarray,
        positions: np.ndarray,
        before: np.ndarray | int = -1,
    ) -> np.ndarray:
        """Return the row of every token in every entry of `model.rows`: see `row_keys`."""
        if self.row_EV is None or self.before_EV1 is None:
            return np.empty((0, *ids.shape), np.int64)
        return row_keys(entries, self.row_EV, self.before_EV1, ids, domains, positions, before)


def draw_tables(
    routing: RoutingConfig,
    layers: int,
    domains: int,
    vocabulary: int,
    experts: int,
    frequencies_DV: np.ndarray | None,
    segments: Sequence[Segment] = ("own",),
    common: int = 0,
    rows: Sequence[RowsConfig] = (),
) -> RoutingTable:
    """Draw the routing tables of `layers` RRE layers, layer l with the seed routing.seed + l, and with (that seed, s) for its
    segment s above 0; or read them, if routing.table is a file.

    domains, vocabulary: numbers of domains and token ids. experts, common: numbers of experts of a domain in an own segment, and of
    all experts of a common segment. frequencies_DV: token counts of the training text, which only routing.table=balanced needs.
    segments: kind of each segment of a layer. rows: entries of `model.rows`, whose tables are drawn, too. Raises ConfigError if
    balanced tables have no frequencies, or a file's tables have other sizes, DataError if they cannot be read.
    """
    common_N = np.array([common if kind == "common" else 0 for kind in segments] * layers, np.int16) if common else None
    if routing.file:
        return _read(routing.file, (layers * len(segments), domains, vocabulary), experts, common_N, rows)
    if routing.table == "balanced" and frequencies_DV is None:
        raise ConfigError(
            "routing.table=balanced needs token frequencies; run prepare-data, or use routing.table=random"
        )
    counts_D: list[np.ndarray | None] = [None] * domains  # None: random tables
    counts_V = None
    if routing.table == "balanced" and frequencies_DV is not None:
        counts_D, counts_V = [*frequencies_DV], frequencies_DV.sum(axis=0)
    spread_DV = np.stack([_spread(counts, vocabulary, experts) for counts in counts_D])
    common_spread_V = _spread(counts_V, vocabulary, common)
    first_NDV = np.empty((layers * len(segments), domains, vocabulary), np.int16)
    for n, kind in enumerate([*segments] * layers):
        layer, segment = divmod(n, len(segments))
        rng = np.random.default_rng([routing.seed + layer, segment] if segment else routing.seed + layer)
        if kind == "common":
            first_NDV[n] = _first_experts(vocabulary, common, counts_V, common_spread_V, rng)
            continue
        for domain, counts in enumerate(counts_D):
            first_NDV[n, domain] = _first_experts(vocabulary, experts, counts, spread_DV[domain], rng)
    of_rows = draw_row_tables(rows, vocabulary, routing.seed) if rows else (None, None)
    of_common = (None, None) if common_N is None else (common_N, common_spread_V)
    return RoutingTable(first_NDV, spread_DV, experts, *of_common, *of_rows)


def _read(
    file: Path, shape: tuple[int, int, int], experts: int, common_N: np.ndarray | None, rows: Sequence[RowsConfig]
) -> RoutingTable:
    """Read routing tables that a user made. shape: [N, D, V] of the run. experts, common_N: its experts of a domain, and of each
    common segment. Raises ConfigError for tables of other sizes, DataError if they cannot be read."""
    table = RoutingTable.load(file, "write it with ps.write_routing, or name routing.npz of a run")
    sizes = {
        "segments, domains and token ids": (table.first_NDV.shape, shape),
        "experts of a domain": (table.experts, experts),
        "experts of each common segment": (
            table._common.tolist(),
            ([0] * shape[0] if common_N is None else common_N.tolist()),
        ),
    }
    for unit, (table_size, run_size) in sizes.items():
        if table_size != run_size:
            raise ConfigError(
                f"routing.table={file} is for {table_size} {unit}, this run has {run_size}; write it for this configuration "
                "and its prepared text, with ps.write_routing"
            )
    if not table.has_keys_of(rows):
        raise ConfigError(
            f"routing.table={file} has not the tables of these model.rows; write it with ps.write_routing"
        )
    return table


def shares_of_experts(
    first_DV: np.ndarray, spread_DV: np.ndarray, experts: int, frequencies_DV: np.ndarray
) -> np.ndarray:
    """Return each expert's fraction of each domain's tokens, [D, E experts]; tokens of a spread id are divided evenly.

    first_DV: first expert of each id. spread_DV: number of neighbouring experts, from the first on, that share it. experts: E.
    frequencies_DV: number of tokens of each id in the text of each domain; at least one above 0 in each domain."""
    shares_DE = np.zeros((len(frequencies_DV), experts))
    for shares_E, first_V, spread_V, counts_V in zip(shares_DE, first_DV, spread_DV, frequencies_DV, strict=True):
        share_V = counts_V / counts_V.sum() / spread_V  # that each expert of an id gets
        for offset in range(int(spread_V.max())):
            is_spread_V = spread_V > offset
            experts_of_ids = (first_V[is_spread_V] + offset) % experts
            shares_E += np.bincount(experts_of_ids, share_V[is_spread_V], minlength=experts)
    return shares_DE


def _first_experts(
    vocabulary: int, experts: int, counts_V: np.ndarray | None, spread_V: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the first expert of each id, int16 [V]: packed by counts, or without counts dealt out at random, equally many each."""
    if counts_V is not None:
        return _pack(counts_V, spread_V, experts, rng)
    first_V = np.empty(vocabulary, np.int16)
    first_V[rng.permutation(vocabulary)] = np.arange(vocabulary) % experts
    return first_V


def _spread(counts_V: np.ndarray | None, vocabulary: int, experts: int) -> np.ndarray:
    """Return the number of experts that share each id, int16 [V], such that no id gives an expert more than half of an even share
    of all tokens; 1 without counts, or without experts."""
    if counts_V is None or not experts:
        return np.ones(vocabulary, np.int16)
    fair_share = max(counts_V.sum() / experts, 1.0)
    return np.clip(np.ceil(counts_V / (fair_share / 2)), 1, experts).astype(np.int16)


def _pack(counts_V: np.ndarray, spread_V: np.ndarray, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Return the first expert of each id, int16 [V]: each id goes to the expert with the lightest load, roughly heaviest id first,
    and ids that are spread before all others. counts_V: how often each id occurs. spread_V: number of neighbouring experts that
    share an id; 1: it is not spread.

    Counts are multiplied by a random factor of up to two before sorting: without it, all layers would put the same frequent ids
    together. Ids that never occurred have no load to balance and are dealt out in turn.
    """
    order = np.argsort(-counts_V * rng.uniform(1.0, 2.0, len(counts_V)), kind="stable")
    order, absent_ids = np.split(order, [np.count_nonzero(counts_V)])
    is_spread = spread_V[order] > 1
    first_V = np.empty(len(counts_V), np.int16)
    load_E = np.zeros(experts)
    for token in order[is_spread]:
        width = int(spread_V[token])
        # for each expert the heaviest load among the `width` neighbours that begin with it
        heaviest_from_E = np.max([np.roll(load_E, -i) for i in range(width)], axis=0)
        first_V[token] = heaviest_from_E.argmin()
        load_E[(first_V[token] + np.arange(width)) % experts] += counts_V[token] / width
    lightest_first = [(load, expert) for expert, load in enumerate(load_E.tolist())]
    heapq.heapify(lightest_first)
    for token in order[~is_spread]:
        load, expert = lightest_first[0]
        first_V[token] = expert
        heapq.heapreplace(lightest_first, (load + counts_V[token], expert))
    first_V[rng.permutation(absent_ids)] = np.arange(len(absent_ids)) % experts
    # all loads begin at 0: without a rotation, expert 0 would get the heaviest id in every layer
    return ((first_V + rng.integers(experts)) % experts).astype(np.int16)
