"""Which samples make which batch, and the batch as arrays: rows, positions, documents, labels, weights and the routing plan.

Shape suffixes: G micro-batches of an update, B sequences of one, S sequence, T = B·S, M blocks (one domain each), N RRE layers,
A active experts.

The order of samples is a function of the seed and of how many samples each domain has given, and of nothing else: not of the
number of processes, nor of when a run was stopped. A `Cursor` is those counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.errors import DataError
from pangu_sigma.data.indexed import TokenFile
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.routing.plan import RoutingPlan, make_plans
from pangu_sigma.routing.table import RoutingTable


@dataclass
class Cursor:
    """Samples taken so far from each domain, by index."""

    taken: list[int]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Cursor:
        return cls(list(state["taken"]))


@dataclass(frozen=True)
class Batch:
    """One update's data on the host side."""

    domains_M: np.ndarray
    slots_GM: np.ndarray
    ids_GBS: np.ndarray
    rows_GBS: np.ndarray
    positions_GBS: np.ndarray
    documents_GBS: np.ndarray
    labels_GBS: np.ndarray
    weights_GBS: np.ndarray
    plans: list[RoutingPlan] = field(repr=False)

    @property
    def tokens(self) -> int:
        return self.ids_GBS.size

    @property
    def active_NA(self) -> np.ndarray:
        """Active experts of the update in each RRE layer, unused places K."""
        return self.plans[0].active_NA

    def block_weights(self) -> np.ndarray:
        """Share of the loss that each block brings, [G, M]."""
        return self.weights_GBS.reshape(*self.slots_GM.shape, -1).sum(axis=-1)

    def load(self, stored: int) -> np.ndarray:
        """Tokens per stored expert over the whole update, int64 [N, K]."""
        load_NK = np.zeros((len(self.active_NA), stored + 1), np.int64)
        for plan in self.plans:
            for n, active_A in enumerate(plan.active_NA):
                np.add.at(load_NK[n], active_A, plan.load()[n])
        return load_NK[:, :stored]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Arguments of `TrainStep` after the learning rate, in its order."""
        plans = self.plans
        used_NA1 = np.zeros_like(plans[0].offsets_NA1)
        used_NA1[:, 1:] = np.cumsum(sum(plan.load() for plan in plans), axis=1)
        return (
            self.rows_GBS,
            self.positions_GBS,
            self.documents_GBS,
            self.slots_GM,
            self.labels_GBS,
            self.weights_GBS,
            np.stack([plan.order_NT for plan in plans]),
            np.stack([plan.inverse_NT for plan in plans]),
            np.stack([plan.offsets_NA1 for plan in plans]),
            self.active_NA,
            used_NA1,
        )


class Batches:
    """The batches of one split of prepared data.

    folder: what `prepare-data` wrote. Raises DataError when a domain has less text than one sample.
    """

    def __init__(self, config: Config, folder: Path, tokenizer: Tokenizer, table: RoutingTable, split: str = "train"):
        self.config = config
        self.domains: Domains = domains_of(config)
        self.tokenizer = tokenizer
        self.table = table
        self.files = [self._open(folder / f"{d.name}.{split}") for d in self.domains]
        self.length = config.model.seq_length
        self.samples = [(file.tokens - 1) // self.length for file in self.files]
        for domain, samples, file in zip(self.domains, self.samples, self.files, strict=True):
            if samples < 1:
                raise DataError(
                    f"domain {domain.name}: the {split} split has {file.tokens} tokens, fewer than one sample of "
                    f"{self.length + 1}; prepare more text, or lower model.seq_length"
                )
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def start(self) -> Cursor:
        return Cursor([0] * len(self.domains))

    def next(self, cursor: Cursor) -> Batch:
        """The batch at `cursor`, which moves past it."""
        data, train = self.config.data, self.config.train
        blocks, per_block = data.domains_per_step, train.batch_size // data.domains_per_step
        chosen, samples = self._choose(cursor, blocks, per_block * train.accumulation), []
        for domain in chosen:
            for _ in range(per_block * train.accumulation):
                samples.append(self._sample(domain, cursor.taken[domain]))
                cursor.taken[domain] += 1
        ids = np.stack(samples).reshape(blocks, train.accumulation, per_block, self.length + 1)
        ids_GBS1 = ids.transpose(1, 0, 2, 3).reshape(train.accumulation, train.batch_size, self.length + 1)
        return self.assemble(ids_GBS1, np.array(chosen))

    def held_out(self, domain: int, batches: int) -> list[Batch]:
        """The first `batches` batches of a domain in file order; the last one is filled up with samples of weight 0."""
        size, blocks = self.config.train.batch_size, self.config.data.domains_per_step
        wanted = min(self.samples[domain], batches * size)
        result = []
        for first in range(0, wanted, size):
            numbers = np.arange(first, first + size)
            ids = np.stack([self._read(domain, min(int(n), wanted - 1)) for n in numbers])
            result.append(self.assemble(ids[None], np.full(blocks, domain), numbers < wanted))
        return result

    def assemble(self, ids_GBS1: np.ndarray, domains_M: np.ndarray, counted_B: np.ndarray | None = None) -> Batch:
        """Arrays of a batch from its token ids; the sequences of block m belong to domain domains_M[m].

        ids_GBS1 hold one id more than the sequence, for the shift to labels. counted_B: sequences that count in the loss.
        Raises DataError for an id that the domain's slot has no row for.
        """
        ids, labels = ids_GBS1[..., :-1], ids_GBS1[..., 1:]
        micro, batch = ids.shape[:2]
        domains_B = np.repeat(domains_M, batch // len(domains_M))
        slots_M = np.array([self.domains[d].slot for d in domains_M], np.int32)
        slots_B1 = np.repeat(slots_M, batch // len(domains_M))[:, None]
        rows, label_rows = self.tokenizer.row_of[slots_B1, ids], self.tokenizer.row_of[slots_B1, labels]
        self._check_rows(rows, ids, domains_B)
        self._check_rows(label_rows, labels, domains_B)
        documents, positions = documents_and_positions(ids, self.tokenizer.eot)
        weights = ((ids != self.tokenizer.eot) & (labels != self.tokenizer.pad)).astype(np.float32)
        if counted_B is not None:
            weights *= counted_B[:, None]
        domains_GB = np.broadcast_to(domains_B, (micro, batch))
        return Batch(
            domains_M=domains_M,
            slots_GM=np.tile(slots_M, (micro, 1)),
            ids_GBS=ids,
            rows_GBS=(slots_B1 * self.config.model.slot_rows + rows).astype(np.int32),
            positions_GBS=positions,
            documents_GBS=documents,
            labels_GBS=label_rows.astype(np.int32),
            weights_GBS=weights / weights.sum(),
            plans=self._plans(ids, domains_GB, positions),
        )

    def _open(self, path: Path) -> TokenFile:
        return TokenFile(path, self.tokenizer.size)

    def _plans(self, ids_GBS: np.ndarray, domains_GB: np.ndarray, positions_GBS: np.ndarray) -> list[RoutingPlan]:
        if (
            not self.table.layers
        ):  # graphs cannot take empty tensors, so a model without RRE layers carries a plan of zeros
            return [RoutingPlan(*(np.zeros((1, 2), np.int32),) * 4) for _ in ids_GBS]
        places = self.config.active_experts
        return make_plans(self.table, ids_GBS, domains_GB, positions_GBS, self.config.experts, places)

    def _choose(self, cursor: Cursor, blocks: int, per_block: int) -> list[int]:
        """Domains of the next blocks: each time the one that is furthest behind its weight, equals by a seeded draw."""
        weights = np.array([d.weight for d in self.domains])
        drawn = np.array(cursor.taken) // per_block
        rng = np.random.default_rng([self.config.seed, int(drawn.sum())])
        chosen = []
        for _ in range(blocks):
            behind = (drawn.sum() + 1) * weights / weights.sum() - drawn + 1e-6 * rng.random(len(weights))
            chosen.append(int(behind.argmax()))
            drawn[chosen[-1]] += 1
        return sorted(chosen)

    def _sample(self, domain: int, number: int) -> np.ndarray:
        """The domain's sample in training order: a new shuffle for every pass over its text."""
        epoch, place = divmod(number, self.samples[domain])
        if (domain, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != domain}
            rng = np.random.default_rng([self.config.seed, domain, epoch])
            self._orders[domain, epoch] = rng.permutation(self.samples[domain])
        return self._read(domain, int(self._orders[domain, epoch][place]))

    def _read(self, domain: int, sample: int) -> np.ndarray:
        return self.files[domain].read(sample * self.length, self.length + 1)

    def _check_rows(self, rows_GBS: np.ndarray, ids_GBS: np.ndarray, domains_B: np.ndarray) -> None:
        missing = np.argwhere(rows_GBS < 0)
        if len(missing):
            g, b, s = missing[0]
            domain = self.domains[int(domains_B[b])]
            raise DataError(
                f"domain {domain.name}: token id {ids_GBS[g, b, s]} has no row in embedding slot "
                f"{self.domains.slot_names[domain.slot]!r}; the text was prepared for other slots, run prepare-data again"
            )


def documents_and_positions(ids: np.ndarray, eot: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the document each token of a row [..., S] is in, and its position there; both start at 0. int32."""
    starts = np.zeros(ids.shape, bool)
    starts[..., 1:] = ids[..., :-1] == eot
    documents = np.cumsum(starts, axis=-1)
    places = np.arange(ids.shape[-1])
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=-1)
    return documents.astype(np.int32), (places - first).astype(np.int32)
