"""A new run (child) that is made of another model (parent): a recipe over rows, by which every tensor is read one at a time.

    of the parent                    in the child
    attention, LayerNorm,            the same
      dense FFNs, positions
    experts of a segment             each is the copy of one, or drawn. A dense parent has one expert in a layer, its FFN: of P
                                     segments each has the P-th part of the units, in order, and the first the output bias b2.
                                     Without a gate the sum is unchanged
    rows of a slot                   rows of the same tokens; others are drawn from N(0, model.init_std)
    rows of entries of `model.rows`  common ones, and own ones of the same domain; all others are 0, so x + scale · 0 = x
    Adam state, loss scale           the same for what keeps it; zero for copies in new places, and for what is drawn

Values are copied bit for bit. All of this is our choice where the paper is silent.

Shape suffixes: K experts of an own segment, R rows of a slot, U rows of an entry that were met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.lazy import LazyArray, release_pages
from pangu_sigma.checkpoint.model_files import write_model_files
from pangu_sigma.checkpoint.parts import EXPERTS, LOSS_SCALE, OPTIMIZER, ROWS, WEIGHTS
from pangu_sigma.config import Config
from pangu_sigma.data.order import Cursor
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.inherit.equality import compare
from pangu_sigma.inherit.parent import look_up, table_rows
from pangu_sigma.inherit.receipt import SHARED, Receipt, ReceiptKind, SlotReceipt, receipt_of
from pangu_sigma.model.arrays import ffn_shapes
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sections import ModelConfig
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import matching_ids
from pangu_sigma.training.first_checkpoint import write_step_0

_FFN = ffn_shapes(1, 1)
_ROWS_BYTES = 64 << 20
"""Number of bytes of an embedding table's rows that are computed at a time."""


@dataclass(frozen=True)
class SlotRows:
    """Rows of an embedding slot of a child. ids_R: token id of each row. parent_R: row of the parent's whole table that it is a
    copy of. -1: none. warm: True if the rows keep the parent's Adam state. lost: tokens of the parent's slot that have no row in
    this slot, although text of its domains can contain them."""

    name: str
    parent_slot: str
    ids_R: np.ndarray
    parent_R: np.ndarray
    warm: bool = True
    lost: Sequence[str] = ()

    @property
    def counts(self) -> SlotReceipt:
        """Numbers of rows: all, copied and new ones. Rows without a token are not counted, though they may be copied."""
        has_token_R = self.ids_R >= 0
        used, copied = int(has_token_R.sum()), int((has_token_R & (self.parent_R >= 0)).sum())
        return SlotReceipt(self.name, self.parent_slot, used, copied, used - copied, len(self.lost))


@dataclass
class Child:
    """Recipe of a new run (child) from `parent`; `compose` calls `find` to write its checkpoint.

    own_K: number of the parent's expert that each expert of an own segment is a copy of; -1: it is drawn. warm_K: True for experts
    of own segments that keep moments and step count. warm: True if Adam state is kept at all. answers: as in `compare`. sources:
    domain of the child → domain of a sparse parent that has its experts. parameters, domains, notes, options: of the receipt;
    without parameters they are counted by origin.
    """

    kind: ReceiptKind
    parent: StoredModel
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    slots: list[SlotRows]
    own_K: np.ndarray
    warm_K: np.ndarray
    warm: bool = True
    answers: dict[str, Domain] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls,
        kind: ReceiptKind,
        parent: StoredModel,
        config: Config,
        tokenizer: Tokenizer,
        table: RoutingTable,
        sources: dict[str, str],
        slots_of: str | None = None,
    ) -> Child:
        """Return the recipe of a run that is made of a run.

        sources: domain of the child → domain of the parent whose experts it has; the experts of other domains are drawn. slots_of:
        domain of the parent whose slot gives the rows of new slots; None: they are drawn."""
        domains, old, size = domains_of(config), domains_of(parent.config), config.model.experts_per_domain
        source_experts = {name: old.named(source).first_expert + np.arange(size) for name, source in sources.items()}
        own_K = np.concatenate([source_experts.get(domain.name, np.full(size, -1)) for domain in domains])
        warm_K = np.repeat([sources.get(domain.name) == domain.name for domain in domains], size)
        old_id_V = matching_ids(parent.tokenizer.vocabulary, tokenizer.vocabulary)
        slots = [
            _slot_of_run(parent, name, ids_R, look_up(old_id_V, ids_R), slots_of)
            for name, ids_R in zip(domains.slot_names, tokenizer.slot_rows, strict=True)
        ]
        child = cls(kind, parent, config, tokenizer, table, slots, own_K, warm_K, sources=sources)
        for name, source in sources.items():
            parent_domain, domain = old.named(source), domains.named(name)
            # a domain answers as its source if it has the experts, the slot and the rows of the source; own rows of others are 0
            lacks_rows = name != source and any(entry.kind == "own" for entry in config.model.rows)
            if not lacks_rows and slots[domain.slot].parent_slot == old.slot_names[parent_domain.slot]:
                child.answers[name] = replace(parent_domain, language=domain.language)
        child.notes = [SHARED] if parent.config.model.common_experts else []
        return child

    def find(self, shard: str, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        """Return the child's array `name` of a checkpoint's shard; None for state (Adam's, loss scale) that begins anew."""
        is_weight = shard == WEIGHTS or shard.startswith(ROWS) or name in _FFN
        if not is_weight and (not self.warm or (shard == LOSS_SCALE and self.kind == "inherit")):
            return None
        if shard.startswith(EXPERTS):
            return self._experts(int(shard.removeprefix(EXPERTS)), name, shape)
        array = self.parent.array(shard, name)
        if array is None:
            return None
        if shard.startswith(ROWS):
            return self._met_rows(array, shard, name)
        array = _in_float32(array) if is_weight else array
        if name.partition(".")[0] == "embedding":
            return LazyArray(shape, array.dtype, partial(self._slot_rows, array, not is_weight), array.origin)
        return array

    def _experts(self, segment: int, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        """Return a tensor of all experts of a segment, [experts, …]; None if the parent has no such array. Experts without a parent
        are drawn, and their Adam state is zero. segment: its number over all RRE layers."""
        stack, is_weight = self._parent_experts(segment, name), name in _FFN
        if stack is None:
            return None
        parent_K = np.arange(shape[0]) % stack.shape[0]  # of common experts: all of the parent's, or its FFN
        if self.config.model.routed[segment] == "own":
            parent_K = self.own_K if is_weight else np.where(self.warm_K, self.own_K, -1)
        row_of = stack.row
        assert row_of is not None

        def content() -> Iterator[np.ndarray]:
            """Yield the rows of the experts: each is a copy of the parent's, drawn, or zeros."""
            row_number, row = -1, np.empty(0)
            for expert, number in enumerate(parent_K.tolist()):
                if number < 0 and is_weight:
                    yield self._draw(segment, name, expert, shape[1:])
                elif number < 0:
                    yield np.zeros(shape[1:] or 1, stack.dtype)
                else:
                    if number != row_number:  # copies of one expert that follow each other are read once
                        row_number, row = number, np.atleast_1d(row_of(number))
                    yield row
                    release_pages(row)

        return LazyArray(shape, stack.dtype, content, stack.origin)

    def _parent_experts(self, segment: int, name: str) -> LazyArray | None:
        """Return a tensor of the parent's experts of a segment, [experts, …]; None if the parent has no such array.

        A dense parent has one expert: the segment's part of the FFN's units (`ffn_source`), and one step count for all arrays."""
        parent_is_dense = self.kind == "inherit"
        if not parent_is_dense:
            return self.parent.array(f"{EXPERTS}{segment}", name)
        if name == "step":
            return self.parent.array(OPTIMIZER, name)
        dense_name, units = ffn_source(self.config.model, segment, name)
        array = self.parent.array(WEIGHTS if name in _FFN else OPTIMIZER, dense_name)
        if array is None:
            return None
        values = _in_float32(array)
        return LazyArray((1,), values.dtype, values.content, array.origin, row=lambda _: values.read()[units])

    def _draw(self, segment: int, name: str, expert: int, shape: tuple[int, ...]) -> np.ndarray:
        """Draw a tensor of an expert as a new run does, but by another generator: the same distribution, other values."""
        model = self.config.model
        if name not in ("w1", "w2"):  # a bias
            return np.zeros(shape, np.float32)
        domain, local = divmod(expert, model.experts_per_domain)
        local = 0 if model.expert_init == "replicated" else local
        seed_text = f"{self.config.domains[domain].name} {name}".encode()
        draw = np.random.default_rng([self.config.seed, segment, local, *seed_text])
        std = model.init_std / (np.sqrt(2 * model.layers) if name == "w2" else 1.0)
        return draw.standard_normal(shape, np.float32) * np.float32(std)

    def _slot_rows(self, parent_table: LazyArray, is_state: bool) -> Iterator[np.ndarray]:
        """Yield the child's embedding table in chunks, with copied and drawn rows. is_state: True for a moment: new rows are 0."""
        values, std = parent_table.read(), np.float32(self.config.model.init_std)
        chunk = max(1, _ROWS_BYTES // (4 * values.shape[1]))
        for number, slot in enumerate(self.slots):
            generator = np.random.default_rng([self.config.seed, number])
            # all rows are drawn, then copies overwrite most; without new rows that would be in vain, and slow in a large table
            draws = not is_state and (slot.parent_R < 0).any()
            for first in range(0, len(slot.parent_R), chunk):
                parent_rows = slot.parent_R[first : first + chunk]
                shape = len(parent_rows), values.shape[1]
                rows = generator.standard_normal(shape, np.float32) * std if draws else np.zeros(shape, np.float32)
                is_copy = (parent_rows >= 0) & (slot.warm or not is_state)
                rows[is_copy] = values[parent_rows[is_copy]]
                yield rows
            release_pages(values)

    def _met_rows(self, array: LazyArray, shard: str, name: str) -> LazyArray:
        """Return an array of the rows of an entry that tokens met; of an own entry, the rows of the child's domains, with new keys:
        domain d has the keys d·R … (d + 1)·R - 1, ascending. array: the parent's. shard, name: of the array."""
        entry = self.config.model.rows[int(shard.removeprefix(ROWS))]
        stored_keys = self.parent.array(shard, "keys")
        if entry.kind == "common" or stored_keys is None:
            return array
        parent_numbers = {domain.name: number for number, domain in enumerate(self.parent.config.domains)}
        names = [domain.name for domain in self.config.domains]
        pairs = [(number, parent_numbers[name]) for number, name in enumerate(names) if name in parent_numbers]
        ends = np.searchsorted(stored_keys.read(), np.arange(len(parent_numbers) + 1) * entry.rows).tolist()

        def content() -> Iterator[np.ndarray]:
            values = array.read()
            for number, parent in pairs:
                domain_rows = values[ends[parent] : ends[parent + 1]]
                yield domain_rows + (number - parent) * entry.rows if name == "keys" else domain_rows
            release_pages(values)

        rows = sum(ends[parent + 1] - ends[parent] for _, parent in pairs)
        return LazyArray((rows, *array.shape[1:]), array.dtype, content, name)


def _slot_of_run(
    parent: StoredModel, name: str, ids_R: np.ndarray, parent_ids_R: np.ndarray, slots_of: str | None
) -> SlotRows:
    """Return the rows of a child's slot: by token of the parent's slot `name`, or else of the slot of the parent's domain
    `slots_of`; all new if that is None. ids_R, parent_ids_R: token of each row, by the ids of the child and of the parent."""
    domains = domains_of(parent.config)
    has_slot = name in domains.slot_names
    if not has_slot and slots_of is None:
        return SlotRows(name, "", ids_R, np.full_like(ids_R, -1), warm=False)
    slot = domains.slot_names.index(name) if has_slot else domains.named(slots_of or "").slot
    rows_R = table_rows(parent.tokenizer, slot, parent_ids_R)
    if has_slot:  # rows without a token keep their values, too
        parent_slot_R = parent.tokenizer.slot_rows[slot]
        unused = np.flatnonzero((ids_R[: len(parent_slot_R)] < 0) & (parent_slot_R < 0))
        rows_R[unused] = slot * len(parent_slot_R) + unused
    return SlotRows(name, domains.slot_names[slot], ids_R, rows_R, has_slot)


def ffn_source(model: ModelConfig, segment: int, name: str) -> tuple[str, slice]:
    """Return the name of the dense parent's tensor that experts of a segment are copies of, and the slice of its first axis: the
    segment's inner units; all of b2. segment: number over all RRE layers. name: of the tensor, or of a moment like w1.moment."""
    layer, s = model.in_layer(segment)
    first = s * model.segment_ffn
    units = slice(None) if name.startswith("b2") else slice(first, first + model.segment_ffn)
    return f"layers.{model.dense_layers + layer}.ffn.{name}", units


def _in_float32(array: LazyArray) -> LazyArray:
    """Return an array in float32 and in C order, which some files of other projects are not in."""

    def content() -> Iterator[np.ndarray]:
        for values in array.content():
            yield np.ascontiguousarray(values).astype(np.float32, copy=False)

    return LazyArray(array.shape, np.dtype(np.float32), content, array.origin)


def new_run_from(
    child: Child, folder: Path, data_hash: str | None, text: Path | None = None, cursor: Cursor | None = None
) -> Receipt:
    """Write a child as a run folder with a checkpoint of step 0 and a receipt, which compares its logits with the parent's.

    data_hash: content hash of the text that it trains on. text: folder of held-out text to compare logits on; None: tokens are
    drawn. cursor: position in the text, None for its beginning. Raises OSError, and CheckpointError for values that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_model_files(folder, child.config, child.tokenizer, child.table)
    run = StoredRun(folder, text_hash=data_hash)
    write_step_0(run, compose(child.config, child.find), cursor)
    is_copy = child.kind == "finetune"  # all is copied, so there is no difference to measure
    receipt = receipt_of(child, {} if is_copy else compare(run, child.parent, child.answers, text))
    receipt.save(folder)
    return receipt
