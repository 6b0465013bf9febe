"""Tensors of a run that is made of a trained Σ: whole experts and whole rows are copied, bit for bit.

    of the parent                             in the child
    attention, LayerNorm, dense FFNs,      →  the same, with their Adam state
      positions, common segments
    experts of a domain                    →  the same, or equal copies; with moments and step counts where it is the same domain
    rows of a slot                         →  rows of the same tokens, with moments where it is the same slot
    rows of entries of `model.rows`        →  common ones, and own ones of the same domain, with Adam state; no others
    loss scale, number of updates          →  the same

Experts and rows that the parent lacks, of new domains, come from a dense parent, or are drawn. Values are read when they are
written, an expert at a time.

Shape suffixes: K experts of an own segment, R rows of a slot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.mapped_file import release_pages
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER, write_model_files
from pangu_sigma.checkpoint.parts import EXPERTS, OPTIMIZER, ROWS
from pangu_sigma.config import Config
from pangu_sigma.data.order import Cursor
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.inherit.equality import Agreement
from pangu_sigma.inherit.receipt import Receipt, ReceiptKind, SlotReceipt, count_met_rows, count_rows
from pangu_sigma.inherit.tensor_origin import SlotRows, ffn_source, table_rows
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.training.first_checkpoint import write_step_0


@dataclass(frozen=True)
class SlotSource:
    """Source of an embedding slot of a new run. rows: rows that are copied. own: True if the slot is one of the trained run, so
    that its rows keep their Adam state. alpha: True if the rows are copied from a dense model instead."""

    rows: SlotRows
    own: bool = True
    alpha: bool = False


@dataclass
class ChildTensors:
    """Tensors of a new run (child) that is made of the trained run `parent`; `compose` calls `find` to write a checkpoint.

    experts_K: number of the parent's expert that each expert of an own segment is copied from, -1 for none. own_K: True for experts
    that keep moments and step count. alpha: dense model that gives experts and rows that `parent` lacks; None if they are drawn.
    origins: domain of the child → domain of the parent that it is, or is made of.
    """

    parent: StoredModel
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    slots: list[SlotSource]
    experts_K: np.ndarray
    own_K: np.ndarray
    alpha: StoredModel | None = None
    origins: dict[str, str] = field(default_factory=dict)

    def find(self, shard: str, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        """Return the child's array `name` of a checkpoint shard, or None if the parent has none."""
        found = self.parent.array(shard, name)
        if found is None:
            return None
        if shard.startswith(EXPERTS):
            number = int(shard.removeprefix(EXPERTS))
            own = self.config.model.routed[number] == "own"
            return self._experts(found, number, name, shape) if own else found
        if shard.startswith(ROWS):
            return self._met_rows(found, shard, name)
        if name.partition(".")[0] == "embedding":
            return LazyArray(shape, found.dtype, partial(self._rows, found, shard == OPTIMIZER), name)
        return found

    def _met_rows(self, found: LazyArray, shard: str, name: str) -> LazyArray:
        """Return an array of the rows of an entry that were met: of an own entry those of domains of the parent, renumbered."""
        entry = self.config.model.rows[int(shard.removeprefix(ROWS))]
        stored_keys = self.parent.array(shard, "keys")
        if entry.kind == "common" or stored_keys is None:
            return found
        keys_U, its = stored_keys.read(), [domain.name for domain in self.parent.config.domains]
        parts: list[tuple[slice, int]] = []
        for number, domain in enumerate(self.config.domains):
            if domain.name in its:
                before = its.index(domain.name)
                first, end = np.searchsorted(keys_U, [before * entry.rows, (before + 1) * entry.rows]).tolist()
                parts.append((slice(first, end), (number - before) * entry.rows))

        def content() -> Iterator[np.ndarray]:
            values = found.read()
            for part, more in parts:
                yield values[part] + more if name == "keys" else values[part]
            release_pages(values)

        shape = (sum(part.stop - part.start for part, _ in parts), *found.shape[1:])
        return LazyArray(shape, found.dtype, content, name)

    def _rows(self, table: LazyArray, state: bool) -> Iterator[np.ndarray]:
        """Yield rows of the embedding table, or with `state` those of an Adam moment, which are zero in a new slot."""
        own, std = table.read(), 0.0 if state else self.config.model.init_std
        for number, slot in enumerate(self.slots):
            values, rows_R = own, slot.rows.parent_R
            if state and not slot.own:
                rows_R = np.full_like(rows_R, -1)
            elif slot.alpha and self.alpha is not None:
                values = self.alpha.tensors["embedding"].read()
            yield from table_rows(values, rows_R, np.random.default_rng([self.config.seed, number]), std)
            release_pages(own)

    def _experts(self, stored: LazyArray, segment: int, name: str, shape: tuple[int, ...]) -> LazyArray:
        from pangu_sigma.model.pangu_sigma import FFN_TENSORS

        row_of = stored.row
        assert row_of is not None
        weight = name in FFN_TENSORS
        number_K = self.experts_K if weight else np.where(self.own_K, self.experts_K, -1)

        def content() -> Iterator[np.ndarray]:
            for expert, number in enumerate(number_K.tolist()):
                if number >= 0:
                    row = np.atleast_1d(row_of(number))
                    yield row
                    release_pages(row)
                elif weight:
                    yield self._new_expert(segment, name, expert, shape[1:])
                else:
                    yield np.zeros(shape[1:] or 1, stored.dtype)

        return LazyArray(shape, stored.dtype, content, name)

    def _new_expert(self, segment: int, name: str, expert: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return a tensor of an expert that the run lacks: the dense parent's, or drawn as a new run draws it, but by another
        generator: the distribution is the same, the values are not. segment: its number among those of all RRE layers."""
        model = self.config.model
        if self.alpha is not None:
            source, units = ffn_source(model, segment, name)
            return np.asarray(self.alpha.tensors[source].read()[units], np.float32)
        if name not in ("w1", "w2"):
            return np.zeros(shape, np.float32)
        domain, local = divmod(expert, model.experts_per_domain)
        local = 0 if model.expert_init == "replicated" else local
        what = f"{self.config.domains[domain].name} {name}".encode()
        draw = np.random.default_rng([self.config.seed, segment, local, *what])
        std = model.init_std / (np.sqrt(2 * model.layers) if name == "w2" else 1.0)
        return draw.standard_normal(shape, np.float32) * np.float32(std)


def write_child(path: Path, child: ChildTensors, data_hash: str | None, cursor: Cursor | None = None) -> StoredRun:
    """Write a child as a run folder with a checkpoint of step 0. data_hash: content hash of the child's text. cursor: position in
    it, None for its beginning. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        child.tokenizer.save(Path(temporary) / TOKENIZER_FOLDER)
        write_model_files(path, child.config, Path(temporary) / TOKENIZER_FOLDER, child.table)
    run = StoredRun(path, text_hash=data_hash)
    write_step_0(run, compose(child.config, child.find), cursor)
    return open_model(path, "run")


def experts_of(domain: Domain) -> np.ndarray:
    """Return the numbers of a domain's experts in a layer, such as 4, 5."""
    return domain.first_expert + np.arange(domain.experts)


WARM = (
    "Adam's moments, the experts' step counts and the loss scale are the parent's; steps are counted from 0, with the run's own "
    "schedule and warm-up (train.optimizer)"
)
"""Note in the receipt about the optimizer state of a run that is made of a trained one."""


SHARED = "common segments are copied whole with their tables, as attention is, because all domains share their experts"
"""Note in the receipt of a run that is made of a trained one with common segments."""


def child_receipt(
    kind: ReceiptKind,
    child: ChildTensors,
    agreement: dict[str, Agreement],
    domains: dict[str, str],
    notes: Sequence[str] = (),
    trains: bool = True,
) -> Receipt:
    """Return the receipt of a run made of a trained one. domains: what became of each domain, for people. trains: False for an
    exported model, which has no optimizer."""
    parent, activation = child.parent, child.config.model.activation
    rows = [slot.rows for slot in child.slots]
    return Receipt(
        kind=kind,
        parent=str(parent.path),
        layout="run",
        parent_step=parent.step,
        parent_hash=parent.hash,
        parameters=parameters_by_kind(child),
        slots=[SlotReceipt.of(slot) for slot in rows],
        activation=activation,
        parent_activation=activation,
        agreement=agreement,
        parent_parameters=parent.config.num_params().total,
        domains=domains,
        rows=count_met_rows(child.config, child.find, parent),
        notes=[*([WARM] if trains else []), *([SHARED] if parent.config.model.common_experts else []), *notes],
        parent_lineage=parent.lineage,
    )


def parameters_by_kind(child: ChildTensors) -> dict[str, int]:
    """Count the parameters of a child of a trained run by origin."""
    config = child.config
    count, table = config.num_params(), config.slots * config.model.slot_rows * config.model.hidden
    old = {domain.name for domain in child.parent.config.domains}
    scales = config.model.layers if config.model.rows and not child.parent.config.model.rows else 0
    found = {"copied": count.total - len(config.domains) * config.domain_experts - table - scales, "begun": scales}
    for domain in domains_of(config):
        source = child.origins.get(domain.name)
        if source:
            kind = "experts copied" if domain.name in old else f"experts copied from domain {source}"
        else:
            kind = "experts copied from the dense parent" if child.alpha else "experts drawn anew"
        found[kind] = found.get(kind, 0) + config.domain_experts
    return found | count_rows([slot.rows for slot in child.slots], table, config.model.hidden)
