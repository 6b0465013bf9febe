"""Which samples make which batch, and the batch as arrays: rows, positions, documents, labels, weights and the routing plan.

Shape suffixes: G micro-batches of an update, B sequences of one, S sequence, T = B·S, M blocks (one domain each), N RRE layers,
K experts stored in a layer, A active experts.

The order of samples is a function of the seed and of how many samples each domain has given, and of nothing else: not of the
number of processes, nor of when a run was stopped. A `Cursor` is those counts.

Every rank of a run makes the same whole batch, and then takes its share: some of the blocks, and of each some sequences. So what is
wrong with a batch is wrong on all ranks, and none waits for one that stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.indexed import TokenFile
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domains, domain_sets, domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.parallel.layout import capacity, share_of, takers
from pangu_sigma.parallel.plans import Planner, UpdatePlan
from pangu_sigma.rre.plan import RoutingPlan, route
from pangu_sigma.rre.table import RoutingTable


@dataclass(frozen=True)
class Batch:
    """One update's data on the host side: this rank's, and what it should know of the whole, which is the same on all ranks."""

    slots_GM: np.ndarray
    ids_GBS: np.ndarray
    rows_GBS: np.ndarray
    positions_GBS: np.ndarray
    documents_GBS: np.ndarray
    labels_GBS: np.ndarray
    weights_GBS: np.ndarray
    """The loss mask over the tokens that count in the whole batch: losses and gradients of ranks add up."""
    plan: UpdatePlan = field(repr=False)
    blocks: np.ndarray
    """Which blocks of the whole this rank has a part of."""

    domains_M: np.ndarray
    block_weights_GM: np.ndarray
    """Share of the loss that each block brings."""
    tokens: int
    counted: int
    """Tokens whose successor is predicted."""
    load_NK: np.ndarray
    """Tokens per stored expert over the whole update, int64."""
    digest: str
    """Hash of the token ids and their domains: equal where the same samples come in the same order."""

    @property
    def active_NA(self) -> np.ndarray:
        """Active experts of the update in each RRE layer, in rows of the rank's store; unused places hold the number of rows."""
        return self.plan.plans[0].active_NA

    def arrays(self) -> StepArrays:
        """What the step is given of this batch."""
        plans = self.plan.plans
        used_NA1 = np.zeros_like(plans[0].offsets_NA1)
        used_NA1[:, 1:] = np.cumsum(self.plan.used_NA, axis=1)
        return StepArrays(
            rows_GBS=self.rows_GBS,
            positions_GBS=self.positions_GBS,
            documents_GBS=self.documents_GBS,
            slots_GM=self.slots_GM,
            labels_GBS=self.labels_GBS,
            weights_GBS=self.weights_GBS,
            order_GNT=np.stack([plan.order_NT for plan in plans]),
            inverse_GNT=np.stack([plan.inverse_NT for plan in plans]),
            offsets_GNA1=np.stack([plan.offsets_NA1 for plan in plans]),
            active_NA=self.active_NA,
            used_NA1=used_NA1,
        )


class Batches:
    """The batches of one split of prepared data.

    folder: what `prepare-data` wrote. Raises DataError when a domain has less text than one sample.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        tokenizer: Tokenizer,
        table: RoutingTable,
        split: str = "train",
        rank: int = 0,
        exchanged: bool | None = None,
    ):
        """rank: whose share of each batch is made. exchanged: of `Planner`."""
        self.config = config
        self.planner = Planner(config, rank, exchanged)
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
        self._sets = [np.array(members) for members in domain_sets(config)]
        self._mine = [d for s in share_of(config, rank).sets for d in self._sets[s].tolist()]
        self._held_out_capacity: int | None = None

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
        """This rank's share of the first `batches` batches of a domain in file order; none of a domain of another group.

        The group takes such a batch as several, each as large as its part of a training batch. The last one is filled up with
        samples of weight 0. No row is dropped: the capacity is what these batches need.
        """
        if domain not in self._mine:
            return []
        if self._held_out_capacity is None and self.planner.exchanged and self.table.layers:
            self._held_out_capacity = max(self._fullest(d, batches) for d in self._mine)
        return [
            self._assemble(ids, domains_M, self._group_takers(), self._held_out_capacity or 0, counted_B[None])
            for ids, domains_M, counted_B in self._held_out_ids(domain, batches)
        ]

    def held_out_like_training(self, batches: int) -> list[Batch]:
        """The same samples of all domains of the rank's group, in batches that the graph of training takes: as many micro-batches,
        a domain for each block, and as much room for an expert. Raises CapacityError as training does.

        Where a domain has no more samples, some of weight 0 fill its block.
        """
        train, blocks = self.config.train, self.config.data.domains_per_step // self.config.parallel.groups
        per_block = train.batch_size // self.config.data.domains_per_step
        size, found = train.accumulation * per_block, []
        for first in range(0, len(self._mine), blocks):
            own = self._mine[first : first + blocks]
            wanted = [min(self.samples[d], batches * train.batch_size) for d in own] + [0] * (blocks - len(own))
            domains = [*own, *(d for d in self._mine if d not in own)][:blocks]
            for start in range(0, max(wanted), size):
                numbers = np.arange(start, start + size)
                ids = np.stack([self._read(d, min(int(n), self.samples[d] - 1)) for d in domains for n in numbers])
                counted = np.concatenate([numbers < number for number in wanted])
                by_pass = (blocks, train.accumulation, per_block)
                ids = ids.reshape(*by_pass, -1).swapaxes(0, 1).reshape(train.accumulation, -1, self.length + 1)
                counted_GB = counted.reshape(by_pass).swapaxes(0, 1).reshape(train.accumulation, -1)
                takers, rows = self._group_takers(), capacity(self.config)
                found.append(self._assemble(ids, np.array(domains), takers, rows, counted_GB))
        return found

    def assemble(self, ids_GBS1: np.ndarray, domains_M: np.ndarray) -> Batch:
        """Arrays of a batch from its token ids; the sequences of block m belong to domain domains_M[m].

        ids_GBS1 hold one id more than the sequence, for the shift to labels.
        Raises DataError for an id that the domain's slot has no row for, CapacityError as `Planner.plan`.
        """
        return self._assemble(ids_GBS1, domains_M, takers(self.config), capacity(self.config))

    def _assemble(
        self,
        ids_GBS1: np.ndarray,
        domains_M: np.ndarray,
        taker_B: np.ndarray,
        capacity: int,
        counted_GB: np.ndarray | None = None,
    ) -> Batch:
        """taker: who takes each sequence. counted: sequences that count in the loss."""
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
        if counted_GB is not None:
            weights *= counted_GB[..., None]
        counted = weights.sum()
        weights /= counted
        plan, load_NK = self._plan(ids, domains_B, positions, taker_B, capacity)
        own = self.planner.own(taker_B)
        blocks = np.unique(own // (batch // len(domains_M)))
        digest = xxhash.xxh3_64(np.ascontiguousarray(ids_GBS1, np.int32).tobytes())
        digest.update(np.ascontiguousarray(domains_M, np.int32).tobytes())
        return Batch(
            slots_GM=np.tile(slots_M[blocks], (micro, 1)),
            ids_GBS=ids[:, own],
            rows_GBS=(slots_B1 * self.config.model.slot_rows + rows).astype(np.int32)[:, own],
            positions_GBS=positions[:, own],
            documents_GBS=documents[:, own],
            labels_GBS=label_rows.astype(np.int32)[:, own],
            weights_GBS=weights[:, own],
            plan=plan,
            blocks=blocks,
            domains_M=domains_M,
            block_weights_GM=weights.reshape(micro, len(domains_M), -1).sum(axis=-1),
            tokens=ids.size,
            counted=int(counted),
            load_NK=load_NK,
            digest=digest.hexdigest(),
        )

    def _open(self, path: Path) -> TokenFile:
        return TokenFile(path, self.tokenizer.size)

    def _plan(
        self, ids_GBS: np.ndarray, domains_B: np.ndarray, positions_GBS: np.ndarray, taker_B: np.ndarray, capacity: int
    ) -> tuple[UpdatePlan, np.ndarray]:
        """The rank's plan, and the tokens of each expert in the whole batch."""
        stored = self.config.experts
        if not self.table.layers:
            # graphs cannot take empty tensors, so a model without RRE layers carries a plan of zeros
            plans = [RoutingPlan(*(np.zeros((1, 2), np.int32),) * 4) for _ in ids_GBS]
            return UpdatePlan(plans, np.zeros((1, 1), int), 0), np.zeros((1, stored), int)
        experts_NGBS = self._route(ids_GBS, domains_B, positions_GBS)
        load_NK = np.stack([np.bincount(experts.ravel(), minlength=stored) for experts in experts_NGBS])
        return self.planner.plan(experts_NGBS, taker_B, capacity), load_NK

    def _route(self, ids_GBS: np.ndarray, domains_B: np.ndarray, positions_GBS: np.ndarray) -> np.ndarray:
        domains_GB = np.broadcast_to(domains_B, ids_GBS.shape[:2])
        return route(self.table, ids_GBS, domains_GB, positions_GBS)

    def _held_out_ids(self, domain: int, batches: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids, domain of each block, and which sequences count, of each batch of a group."""
        groups, batch = self.config.parallel.groups, self.config.train.batch_size
        size, wanted = batch // groups, min(self.samples[domain], batches * batch)
        domains_M = np.full(self.config.data.domains_per_step // groups, domain)
        for first in range(0, wanted, size):
            numbers = np.arange(first, first + size)
            ids = np.stack([self._read(domain, min(int(n), wanted - 1)) for n in numbers])
            yield ids[None], domains_M, numbers < wanted

    def _group_takers(self) -> np.ndarray:
        """Who of the rank's group takes each sequence of a held-out batch."""
        everybody = takers(self.config)
        return everybody[np.isin(everybody, self.planner.group)]

    def _fullest(self, domain: int, batches: int) -> int:
        """Capacity that held-out batches of a domain need."""
        most = 0
        for ids_GBS1, domains_M, _ in self._held_out_ids(domain, batches):
            ids = ids_GBS1[..., :-1]
            _, positions = documents_and_positions(ids, self.tokenizer.eot)
            domains_B = np.repeat(domains_M, ids.shape[1] // len(domains_M))
            most = max(most, self.planner.fullest(self._route(ids, domains_B, positions), self._group_takers()))
        return most

    def _choose(self, cursor: Cursor, blocks: int, per_block: int) -> list[int]:
        """Domains of the next blocks: of its set, each time the one that is furthest behind its weight, equals by a seeded draw."""
        weights = np.array([d.weight for d in self.domains])
        drawn = np.array(cursor.taken) // per_block
        rng = np.random.default_rng([self.config.seed, int(drawn.sum())])
        chosen = np.zeros(blocks, int)
        for m in range(blocks):
            members, chance = self._sets[m % len(self._sets)], rng.random(len(weights))
            due = (drawn[members].sum() + 1) * weights[members] / weights[members].sum()
            behind = due - drawn[members] + 1e-6 * chance[members]
            chosen[m] = members[behind.argmax()]
            drawn[chosen[m]] += 1
        for s in range(len(self._sets)):
            chosen[s :: len(self._sets)].sort()
        return chosen.tolist()

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
