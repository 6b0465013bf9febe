"""Training batches as arrays: embedding rows, positions, documents, labels, loss weights and the routing plan.

tokens of each domain → samples of equal length → samples of the next update, by order.py → batch → arrays of the step

Shape suffixes: G micro-batches of an update, B sequences of a micro-batch, S sequence length, T = B·S, M blocks (sequences of one
domain), N segments of the RRE layers, K experts stored in one, A entries in its list of active experts.

Every rank of a run assembles the same whole batch and keeps its share, some sequences of some blocks. So all ranks raise an error
in a batch, and no rank waits for another that stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.order import Cursor, SampleOrder
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.ranks.layout import data_rank_of, data_rank_of_sequences
from pangu_sigma.ranks.plans import make_planner
from pangu_sigma.rre.plan import Planner, RoutingPlan
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer


class Samples:
    """Samples of every domain of a configuration, in file order.

    files: token files, one per domain. counts: number of samples of each domain. Sample n of a domain is its tokens n·S … n·S + S:
    a sequence and the token after it, because each token predicts the next. weights: sampling weight of each domain; None: the
    weights of the configuration."""

    def __init__(self, config: Config, prepared: PreparedData, split: str, vocabulary: int):
        """vocabulary: number of ids V. Raises DataError for a missing file, and for a domain with fewer tokens than one sample."""
        self._prepared, self._length = prepared, config.model.seq_length
        self.files = files = [prepared.tokens(domain.name, split, vocabulary) for domain in config.domains]
        self.weights: list[float] | None = None
        self.counts = [(file.tokens - 1) // self._length for file in files]
        for domain, count, file in zip(config.domains, self.counts, files, strict=True):
            if count < 1:
                raise DataError(
                    f"domain {domain.name}: the {split} split has {file.tokens} tokens, fewer than one sample of "
                    f"{self._length + 1}; prepare more text, or lower model.seq_length"
                )

    def read(self, domain: int, number: int) -> np.ndarray:
        """Return the token ids of one sample, int32 [S + 1]."""
        return self.files[domain].read(number * self._length, self._length + 1)

    def counted(self, domain: int, number: int) -> np.ndarray:
        """Return the loss mask of a sample, bool [S]: all True. Position s stands for the prediction of token s + 1."""
        return np.ones(self._length, bool)

    def frequencies(self) -> np.ndarray:
        """Return the token counts [D, V] of the training text. Raises DataError if they are damaged."""
        return self._prepared.frequencies()


def open_samples(config: Config, folder: Path, split: str, vocabulary: int) -> Samples:
    """Open the samples of one split of a prepared data folder. vocabulary: number of ids V. Raises ConfigError for a domain that is
    not there, DataError for a missing or damaged file, and for a domain with fewer tokens than one sample."""
    return Samples(config, PreparedData(folder, [domain.name for domain in config.domains]), split, vocabulary)


class StepArrays(NamedTuple):
    """Input arrays of a training step, in the order of `TrainStep.construct` after the learning rate: NumPy arrays or tensors.
    Inside a graph they are plain arguments, because MindSpore 2.9 silently gives a NamedTuple that is built inside `construct` a
    gradient of zero. A test ties the fields to the arguments of `TrainStep.construct`."""

    rows_GBS: Any
    """Row of each token in the flattened embedding slots, int32."""
    positions_GBS: Any
    """Position of each token in its document, int32."""
    documents_GBS: Any
    """Number of the document of each token in its sequence, int32."""
    slots_GM: Any
    """Embedding slot of each block, int32."""
    labels_GBS: Any
    """Row of the next token within its slot, int32."""
    weights_GBS: Any
    """Weight of each token in the loss of the whole update, float32."""
    draws_GB4: Any
    """Random seed of the dropout masks of each sequence, int32 (`draws_of`)."""
    order_GT: Any
    inverse_GT: Any
    offsets_GA1: Any
    """Routing plan of each segment, int32: tuples over the N segments. See `RoutingPlan`."""
    e_GTH: Any
    """Rows of each token (`model.rows`) side by side, float32; () without rows."""
    active_A: Any
    used_A1: Any
    """Active experts of each segment, and offsets of their tokens in all micro-batches and ranks of the group, int32: as above."""

    def of_micro_batch(self, micro_batch: int) -> tuple[Any, ...]:
        """Return the input arrays of `NextTokenLoss` for one micro-batch (a forward-backward pass), without expert weights."""
        arrays = self[: len(MICRO_BATCH_FIELDS)]
        # a tuple has an array for each segment of the RRE layers
        return tuple(tuple(a[micro_batch] for a in x) if isinstance(x, tuple) else x[micro_batch] for x in arrays)


MICRO_BATCH_FIELDS = StepArrays._fields[: StepArrays._fields.index("active_A")]
"""Fields of `StepArrays` that have an axis for micro-batches."""


@dataclass(frozen=True)
class Batch:
    """Training batch of one update, on the host: arrays of this rank's sequences, and statistics of the whole batch."""

    slots_GM: np.ndarray
    ids_GBS: np.ndarray
    rows_GBS: np.ndarray
    positions_GBS: np.ndarray
    documents_GBS: np.ndarray
    labels_GBS: np.ndarray
    weights_GBS: np.ndarray
    """Loss mask divided by `counted`, so that the losses and gradients of the ranks add up to the batch's."""
    draws_GB4: np.ndarray
    row_keys_EGBS: np.ndarray
    """Row of each token of the whole batch in each entry of `model.rows` (rre/row_keys.py), int64."""
    own_B: np.ndarray
    """Indices, in the whole batch, of the sequences of this rank."""
    plans: Sequence[RoutingPlan] = field(repr=False)
    """Routing plan of each segment of the RRE layers; empty without such layers."""
    blocks: np.ndarray
    """Indices, in the whole batch, of the blocks that this rank has sequences of."""

    domains_M: np.ndarray
    block_weights_GM: np.ndarray
    """Weight of each block in the loss; the weights add up to 1."""
    tokens: int
    counted: int
    """Number of predictions of a next token that count in the loss of the whole batch."""
    load_NK: np.ndarray
    """Number of tokens routed to each stored expert over the whole update, int64."""
    digest: str
    """Hash of token ids and domains of the whole batch: equal for the same samples in the same order."""

    @property
    def active_A(self) -> tuple[np.ndarray, ...]:
        """Active experts of the update in each segment: see `RoutingPlan`."""
        return tuple(plan.active_A for plan in self.plans)

    @property
    def own_row_keys(self) -> np.ndarray:
        """Rows of the tokens of this rank, as `row_keys_EGBS`."""
        return self.row_keys_EGBS[:, :, self.own_B]

    @property
    def dropped(self) -> int:
        """Number of tokens of the whole batch that have no expert, summed over segments."""
        return sum(plan.dropped for plan in self.plans)

    def arrays(self, e_GTH: np.ndarray | tuple[()] = ()) -> StepArrays:
        """Return the input arrays of the training step. e_GTH: rows of `model.rows` of this rank's tokens; () without such rows."""
        return StepArrays(
            rows_GBS=self.rows_GBS,
            positions_GBS=self.positions_GBS,
            documents_GBS=self.documents_GBS,
            slots_GM=self.slots_GM,
            labels_GBS=self.labels_GBS,
            weights_GBS=self.weights_GBS,
            draws_GB4=self.draws_GB4,
            order_GT=tuple(plan.order_GT for plan in self.plans),
            inverse_GT=tuple(plan.inverse_GT for plan in self.plans),
            offsets_GA1=tuple(plan.offsets_GA1 for plan in self.plans),
            e_GTH=e_GTH,
            active_A=self.active_A,
            used_A1=tuple(plan.used_A1 for plan in self.plans),
        )


class BatchLoader:
    """Data loader of one rank: its share of each batch of samples."""

    def __init__(
        self,
        config: Config,
        samples: Samples,
        tokenizer: Tokenizer,
        table: RoutingTable,
        rank: int = 0,
        planner: Planner | None = None,
    ):
        """rank: rank that loads. planner: makes the routing plans of this rank; None: the planner of a run on CPUs."""
        self.config, self.samples, self.rank = config, samples, rank
        self.planner = planner or make_planner(config, rank)
        self.domains: Domains = domains_of(config)
        self.domain_sets = config.domain_sets
        self.tokenizer = tokenizer
        self.table = table
        self.order = SampleOrder(config, samples.counts, samples.weights)

    def next(self, cursor: Cursor) -> Batch:
        """Return the training batch at the data position `cursor`, and advance it past the batch. Raises as `assemble`."""
        train, first = self.config.train, sum(cursor.taken)  # before `take` advances the cursor
        blocks = self.order.take(cursor)
        samples = [(domain, number) for domain, numbers in blocks for number in numbers]  # block by block
        index_GB = _sample_indices(train.accumulation, train.batch_size, len(blocks))
        ids_GBS1 = np.stack([self.samples.read(*sample) for sample in samples])[index_GB]
        counted_GBS = np.stack([self.samples.counted(*sample) for sample in samples])[index_GB]
        return self.assemble(ids_GBS1, np.array([domain for domain, _ in blocks]), first, counted_GBS)

    def assemble(
        self,
        ids_GBS1: np.ndarray,
        domains_M: np.ndarray,
        first: int = 0,
        counted_GBS: np.ndarray | None = None,
        taker_B: np.ndarray | None = None,
    ) -> Batch:
        """Assemble a batch from token ids. A micro-batch has equally many sequences of each block, block by block.

        ids_GBS1: token ids of sequences, [G micro-batches, B, S + 1]; the last id is only predicted. domains_M: domain of each
        block. first: number of samples that the run has used so far, for the seeds of dropout.
        counted_GBS: loss mask, broadcastable to [G, B, S]: True where the prediction of the next token counts; None: all. The
        beginning of a document and padding are never predicted.
        taker_B: data-parallel index of the ranks that take each sequence; None for that of training batches.
        Raises DataError for an id without an embedding row in the domain's slot, and the errors of the planner."""
        taker_B = data_rank_of_sequences(self.config) if taker_B is None else taker_B
        ids_GBS, labels_GBS = ids_GBS1[..., :-1], ids_GBS1[..., 1:]
        (micro_batches, sequences), blocks = ids_GBS.shape[:2], len(domains_M)
        domains_B = np.repeat(domains_M, sequences // blocks)
        slots_M = np.array([self.domains[d].slot for d in domains_M], np.int32)
        slots_B1 = np.repeat(slots_M, sequences // blocks)[:, None]
        rows_GBS1 = self.tokenizer.row_of[slots_B1, ids_GBS1]
        self._check_rows(rows_GBS1, ids_GBS1, domains_B)
        documents_GBS, positions_GBS = documents_and_positions(ids_GBS, self.tokenizer.eot)
        weights_GBS = ((ids_GBS != self.tokenizer.eot) & (labels_GBS != self.tokenizer.pad)).astype(np.float32)
        if counted_GBS is not None:
            weights_GBS *= counted_GBS
        counted = weights_GBS.sum()
        weights_GBS /= counted
        domains_GBS = np.broadcast_to(domains_B[:, None], ids_GBS.shape)
        plans, load_NK = self._plan(ids_GBS, domains_GBS, positions_GBS, taker_B)
        own_B = self.own(taker_B)
        own_blocks = np.unique(own_B // (sequences // blocks))
        digest = xxhash.xxh3_64(np.ascontiguousarray(ids_GBS1, np.int32).tobytes())
        digest.update(np.ascontiguousarray(domains_M, np.int32).tobytes())
        return Batch(
            slots_GM=np.tile(slots_M[own_blocks], (micro_batches, 1)),
            ids_GBS=ids_GBS[:, own_B],
            rows_GBS=(slots_B1 * self.config.model.slot_rows + rows_GBS1[..., :-1]).astype(np.int32)[:, own_B],
            positions_GBS=positions_GBS[:, own_B],
            documents_GBS=documents_GBS[:, own_B],
            labels_GBS=rows_GBS1[..., 1:].astype(np.int32)[:, own_B],
            weights_GBS=weights_GBS[:, own_B],
            draws_GB4=draws_of(self.config.seed, first + _sample_indices(micro_batches, sequences, blocks))[:, own_B],
            row_keys_EGBS=self.table.row_keys(self.config.model.rows, ids_GBS, domains_GBS, positions_GBS),
            own_B=own_B,
            plans=plans,
            blocks=own_blocks,
            domains_M=domains_M,
            block_weights_GM=weights_GBS.reshape(micro_batches, blocks, -1).sum(axis=-1),
            tokens=ids_GBS.size,
            counted=int(counted),
            load_NK=load_NK,
            digest=digest.hexdigest(),
        )

    def own(self, taker_B: np.ndarray) -> np.ndarray:
        """Return the indices of the sequences that this rank takes, ascending. taker_B: data-parallel index that takes each one."""
        return np.flatnonzero(taker_B == data_rank_of(self.config, self.rank))

    def _plan(
        self, ids_GBS: np.ndarray, domains_GBS: np.ndarray, positions_GBS: np.ndarray, taker_B: np.ndarray
    ) -> tuple[Sequence[RoutingPlan], np.ndarray]:
        """Return this rank's routing plans of the N segments of RRE layers, and the number of tokens of each of K experts in the
        whole batch, [N, K]. Without RRE layers there are no plans, and one row of zeros. taker_B: as in `assemble`."""
        experts = max(self.config.experts, self.config.model.common_experts)  # a segment has one or the other number
        if not self.table.layers:
            return (), np.zeros((1, experts), int)
        experts_NGBS = self.table.route(ids_GBS, domains_GBS, positions_GBS)
        load_NK = np.stack([np.bincount(experts_GBS.ravel(), minlength=experts) for experts_GBS in experts_NGBS])
        return self.planner.plan(experts_NGBS, taker_B), load_NK

    def _check_rows(self, rows_GBS1: np.ndarray, ids_GBS1: np.ndarray, domains_B: np.ndarray) -> None:
        """Raise DataError for the first token without a row, which is -1. domains_B: domain of each sequence, for the message."""
        missing_rows = np.argwhere(rows_GBS1 < 0)
        if len(missing_rows):
            g, b, s = missing_rows[0]
            domain = self.domains[int(domains_B[b])]
            raise DataError(
                f"domain {domain.name}: token id {ids_GBS1[g, b, s]} has no row in embedding slot "
                f"{self.domains.slot_names[domain.slot]!r}; the text was prepared for other slots, remove the folder and run "
                "prepare-data again"
            )


class Lookahead:
    """Iterator over the training batches after a data position, each with the next batch, whose experts can be read ahead. A
    thread assembles the batches while a step computes."""

    def __init__(self, batches: BatchLoader, cursor: Cursor):
        self._batches = batches
        self._cursor = deepcopy(cursor)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._futures: deque[Future[tuple[Batch, Cursor]]] = deque()

    def take(self) -> tuple[Batch, Cursor, Batch]:
        """Return the next batch, the data position after it, and the following batch. If the following batch has an error, the next
        one is returned in its place, and the call that should return it next raises the error, one of `BatchLoader.next`."""
        while len(self._futures) < 3:  # the two batches to return, and one for the next call
            self._futures.append(self._thread.submit(self._make))
        batch, cursor = self._futures.popleft().result()
        following = self._futures[0]
        return batch, cursor, batch if following.exception() else following.result()[0]

    def _make(self) -> tuple[Batch, Cursor]:
        batch = self._batches.next(self._cursor)
        return batch, deepcopy(self._cursor)


def _sample_indices(micro_batches: int, sequences: int, blocks: int) -> np.ndarray:
    """Return the index [G, B] of each sequence in the list of an update's samples, in which all samples of a block are together.
    sequences: number of sequences B of a micro-batch, which has equally many of each block."""
    index_MGQ = np.arange(micro_batches * sequences).reshape(blocks, micro_batches, -1)
    return index_MGQ.swapaxes(0, 1).reshape(micro_batches, sequences)


def documents_and_positions(ids: np.ndarray, eot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each token's document number in its sequence and its position in that document, int32 [..., S], both from 0. ids:
    token ids, [..., S]. eot: id of the last token of a document."""
    is_first = np.zeros(ids.shape, bool)  # of its document; the first of a sequence needs no mark
    is_first[..., 1:] = ids[..., :-1] == eot
    documents = np.cumsum(is_first, axis=-1)
    places = np.arange(ids.shape[-1])
    document_starts = np.maximum.accumulate(np.where(is_first, places, 0), axis=-1)
    return documents.astype(np.int32), (places - document_starts).astype(np.int32)


def draws_of(seed: int, samples: np.ndarray) -> np.ndarray:
    """Return the dropout seeds of samples for `CounterDropout`, int32 [*, 4]: run seed and sample number, two 32-bit words each.
    samples: number of each sample in the order in which the run takes samples, int64 [*]."""
    numbers = np.stack([np.full(samples.shape, seed % (1 << 64), np.uint64), samples.astype(np.uint64)], axis=-1)
    words = np.stack([numbers & 0xFFFFFFFF, numbers >> 32], axis=-1)  # low word first, on any machine
    return words.astype(np.uint32).view(np.int32).reshape(*samples.shape, 4)
