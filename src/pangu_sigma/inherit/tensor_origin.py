"""Tensors of a child of a dense parent: origin and values of each, read one tensor at a time.

    parent, L + N dense layers                child, L dense + N RRE layers
    attention, LayerNorm, positions       →   the same, one to one
    FFN of the lower L layers             →   the same
    FFN of the upper N layers             →   every expert of that layer, an equal copy; without a gate the sum is unchanged.
                                              Of P segments each has the P-th part of the units, in order, and the first the
                                              output bias b2
    embedding rows                        →   rows of the same tokens in every slot; tokens the parent lacks are drawn anew
    none                                  →   rows for pairs of tokens (`model.rows`), none met: they are 0, so x + scale · 0 = x

Our choice where the paper is silent: rows of new tokens are drawn from N(0, model.init_std), and Adam starts from nothing.

Shape suffixes: R rows of a slot, H hidden, K experts of a segment, F inner units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import xxhash

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, OPTIMIZER, WEIGHTS
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import argument
from pangu_sigma.inherit.parent import ParentWords, parent_slot
from pangu_sigma.model.arrays import FIRST_ROW_SCALE, row_scale_shapes
from pangu_sigma.sections import ModelConfig
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.text.tokenizer import Tokenizer

_ROWS_BYTES = 64 << 20
"""Number of bytes of an embedding table's rows that are computed at a time."""


@dataclass(frozen=True)
class TensorOrigin:
    """Origin of a tensor of a new run (child) in the files of its dense parent.

    kind: copied, transposed, joined (as the parent's layout needs it), replicated (to K experts), rows (of the same tokens), begun
        (scale of `model.rows`, which the parent lacks).
    made_from: tensors of the parent's files.
    """

    shard: str
    name: str
    shape: tuple[int, ...]
    kind: str
    made_from: str


@dataclass(frozen=True)
class SlotRows:
    """Rows of an embedding slot of a new run (child). ids_R: token id of each row. parent_R: row of the parent's whole table that
    it is copied from. -1: none.

    lost: tokens of the parent's slot that have no row in this slot, although text of its domains can contain them."""

    name: str
    parent_slot: str
    ids_R: np.ndarray
    parent_R: np.ndarray
    lost: Sequence[str] = ()

    @property
    def used(self) -> int:
        """Number of rows with a token."""
        return int((self.ids_R >= 0).sum())

    @property
    def copied(self) -> int:
        """Number of rows with a token that are copied from the parent; rows without a token may be copied, too."""
        return int(((self.parent_R >= 0) & (self.ids_R >= 0)).sum())


@dataclass
class Child:
    """Tensors of a new run (child) that inherits from the dense model `parent`; `compose` calls `find` to write a checkpoint.

    slots: rows of the child's embedding slots; None if no text is prepared yet, so that only the origin of each tensor is known.
    hashes: hashes of the parent's tensors that were read so far, by name.
    """

    parent: StoredModel
    config: Config
    slots: list[SlotRows] | None
    moments: bool = False
    hashes: dict[str, str] = field(default_factory=dict)

    def find(self, shard: str, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        """Return the child's array `name` of a checkpoint shard, or None for Adam state that starts from zero."""
        from pangu_sigma.model.pangu_sigma import FFN_TENSORS

        if shard == WEIGHTS and name in self.parent.tensors:
            table = self._read(name)
            if name != "embedding":
                return table
            return LazyArray(shape, table.dtype, partial(self._rows, table, self.config.model.init_std), table.origin)
        if shard.startswith(EXPERTS) and name in FFN_TENSORS:
            return self._experts(int(shard.removeprefix(EXPERTS)), name, shape)
        return self._state(shard, name, shape) if self.moments else None

    def descents(self) -> Iterator[TensorOrigin]:
        """Yield the origin of every weight of the child, dense ones first."""
        model, child = self.parent, self.config.model
        upper = [f"layers.{i}.ffn." for i in range(child.dense_layers, child.layers)]
        for name, tensor in model.tensors.items():
            layer = next((n for n, at in enumerate(upper) if name.startswith(at)), None)
            source, _, how = model.made_from.get(name, "copied").rpartition(": ")
            source = source or tensor.origin or name
            if layer is not None:
                how = "replicated"
                tensor_name = name.removeprefix(upper[layer])
                whole = tensor_name == "b2"
                for s, kind in enumerate(child.segments[: 1 if whole else None]):
                    number, rows = child.segments_of(layer)[s], child.hidden if whole else child.segment_ffn
                    shape = (self.config.stored_experts(kind), rows, *tensor.shape[1:])
                    cut = "" if rows == tensor.shape[0] else f", units {s * rows} … {(s + 1) * rows - 1}"
                    yield TensorOrigin(f"{EXPERTS}{number}", tensor_name, shape, how, source + cut)
            elif name == "embedding":
                shape = (self.config.slots * self.config.model.slot_rows, tensor.shape[1])
                yield TensorOrigin(WEIGHTS, name, shape, "rows", source)
            else:
                yield TensorOrigin(WEIGHTS, name, tensor.shape, how, source)
        for name, shape in row_scale_shapes(child.layers if child.rows else 0).items():
            yield TensorOrigin(WEIGHTS, name, shape, "begun", f"none: {FIRST_ROW_SCALE}, of rows that are 0")

    def parent_hash(self) -> str:
        """Return a hash over the values of all tensors of the parent, as stored; tensors not read yet are read now."""
        digest = xxhash.xxh3_128()
        for name in sorted(self.parent.tensors):
            if name not in self.hashes:
                for _ in self._values(name):
                    pass
            digest.update(f"{name} {self.hashes[name]}\n".encode())
        return digest.hexdigest()

    def _read(self, name: str) -> LazyArray:
        tensor = self.parent.tensors[name]
        return LazyArray(tensor.shape, np.dtype(np.float32), partial(self._values, name), tensor.origin or name)

    def _values(self, name: str) -> Iterator[np.ndarray]:
        """Yield the values of a tensor of the parent in float32, and record their hash as stored."""
        digest = xxhash.xxh3_128()
        for values in self.parent.tensors[name].content():
            contiguous = np.ascontiguousarray(values)
            digest.update(contiguous.reshape(-1).view(np.uint8).data)
            yield contiguous.astype(np.float32, copy=False)
        self.hashes[name] = digest.hexdigest()

    def _experts(self, segment: int, name: str, shape: tuple[int, ...]) -> LazyArray:
        at, units = ffn_source(self.config.model, segment, name)
        source = self._read(at)

        def content() -> Iterator[np.ndarray]:
            value = source.read()[units]
            for _ in range(shape[0]):
                yield value

        return LazyArray(shape, source.dtype, content, source.origin)

    def _rows(self, table: LazyArray, std: float) -> Iterator[np.ndarray]:
        """Yield the rows of the child's embedding table. std: standard deviation of new rows; 0: they are zeros."""
        values = table.read()
        assert self.slots is not None
        for number, slot in enumerate(self.slots):
            yield from table_rows(values, slot.parent_R, np.random.default_rng([self.config.seed, number]), std)

    def _state(self, shard: str, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        """Return Adam state of the parent: moments as the weights, and its number of updates for each expert."""
        if shard == OPTIMIZER and name == "step":
            return self.parent.array(OPTIMIZER, "step")
        if shard == OPTIMIZER:
            found = self.parent.array(OPTIMIZER, name)
            if found is None or not name.startswith("embedding."):
                return found
            return LazyArray(shape, found.dtype, partial(self._rows, found, 0.0), found.origin)
        if not shard.startswith(EXPERTS):
            return None
        if name == "step":
            step = self.parent.array(OPTIMIZER, "step")
            return None if step is None else LazyArray(shape, step.dtype, lambda: [np.repeat(step.read(), shape[0])])
        at, units = ffn_source(self.config.model, int(shard.removeprefix(EXPERTS)), name)
        found = self.parent.array(OPTIMIZER, at)
        if found is None:
            return None
        return LazyArray(shape, found.dtype, lambda: (found.read()[units] for _ in range(shape[0])), found.origin)


def ffn_source(model: ModelConfig, segment: int, name: str) -> tuple[str, slice]:
    """Return the tensor of a dense parent that experts of a segment are copies of, and which of its rows: their inner units, in
    order; all of b2. segment: its number among those of all RRE layers. name: of the tensor, or of a moment such as w1.moment."""
    layer, s = model.in_layer(segment)
    first = s * model.segment_ffn
    units = slice(None) if name.startswith("b2") else slice(first, first + model.segment_ffn)
    return f"layers.{model.dense_layers + layer}.ffn.{name}", units


def table_rows(values: np.ndarray, rows_R: np.ndarray, draw: np.random.Generator, std: float) -> Iterator[np.ndarray]:
    """Yield the rows `rows_R` of an embedding table, some at a time. A row of number -1 is new: it is drawn from a normal
    distribution of standard deviation `std`, or is zero if std is 0. values: the table."""
    hidden = values.shape[1]
    at_once = max(1, _ROWS_BYTES // (4 * hidden))
    for first in range(0, len(rows_R), at_once):
        rows = rows_R[first : first + at_once]
        new = np.zeros((len(rows), hidden), np.float32)
        if std:
            new = draw.standard_normal((len(rows), hidden), np.float32) * np.float32(std)
        new[rows >= 0] = values[rows[rows >= 0]]
        yield new


def slot_rows(parent: StoredModel, config: Config, tokenizer: Tokenizer) -> list[SlotRows]:
    """Return the rows of each embedding slot of a new run of `config`. Raises ConfigError for a slot that the parent lacks."""
    slots, words, domains = [], ParentWords(parent), domains_of(config)
    for slot, name in enumerate(domains.slot_names):
        source, ids_R = parent_slot(name, words.slots), tokenizer.slot_rows[slot]
        rows_R = words.rows(source, tokenizer.vocabulary, ids_R)
        lost = words.lost(source, tokenizer.vocabulary, ids_R[ids_R >= 0], domains.languages(slot))
        slots.append(SlotRows(name, words.slots[source], ids_R, rows_R, lost))
    return slots


def check_rows(parent: StoredModel, config: Config, slots: Sequence[SlotRows]) -> None:
    """Raise ConfigError if `slots` lack rows of the parent run's slots, because the same text would be cut into other tokens."""
    problems = [
        f"slot {slot.name}: {len(slot.lost):,} tokens of the parent's slot {slot.parent_slot} ("
        f"{', '.join(map(repr, slot.lost[:5]))}) have no row"
        for slot in slots
        if slot.lost
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ConfigError(
            f"data.path={config.data.path}: text would be cut into other tokens than {parent.path} cuts it:\n  {listed}\n"
            f"keep them: pangu-sigma prepare-data CONFIG --set vocabulary.keep={parent.path}, with a larger model.slot_rows or "
            f"slots of their own for what is new; or accept the loss with {argument('--drop-rows')}"
        )


def check_child(parent: StoredModel, config: Config, moments: bool) -> None:
    """Raise ConfigError, which names the key, if a run of `config` cannot inherit from `parent`. moments: also Adam state."""
    for key in ("hidden", "ffn", "heads", "seq_length", "layers"):
        has, wants = getattr(parent.sizes, key), getattr(config.model, key)
        if has is not None and has != wants:
            name = "dense_layers + rre_layers" if key == "layers" else key
            raise ConfigError(
                f"model.{name} is {wants}, the parent's is {has}; they must be equal: change the child's configuration"
            )
    if moments and parent.array(OPTIMIZER, "step") is None:
        raise ConfigError(f"{parent.path}: has no Adam state; leave {argument('--moments')} out")
    if moments and config.ecss.moments != "float32":
        raise ConfigError(f"{argument('--moments')} carries float32 moments over; use ecss.moments=float32")
    for name in domains_of(config).slot_names:
        parent_slot(name, ParentWords(parent).slots)
