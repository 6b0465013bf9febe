"""Receipt of an inheritance, extension, extraction or fine-tuning: counts of parameters, kept in the run as `lineage.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pangu_sigma.checkpoint.parts import ROWS
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.errors import argument
from pangu_sigma.sealed import add_to_seal, sealed, write_atomically

if TYPE_CHECKING:  # the command line reads this file before MindSpore is loaded
    from pangu_sigma.checkpoint.compose import Find
    from pangu_sigma.config import Config
    from pangu_sigma.inherit.equality import Agreement, Cutting
    from pangu_sigma.inherit.tensor_origin import Child, SlotRows, TensorOrigin
    from pangu_sigma.stored.model import StoredModel


ReceiptKind = Literal["inherit", "extend", "extract", "finetune"]
"""The command that wrote a receipt."""


@dataclass(frozen=True)
class SlotReceipt:
    """Row counts of an embedding slot in a `Receipt`. rows: rows in use. copied: rows copied from the parent. new: the others.

    lost: number of the parent's tokens that have no row in the slot, although text of its domains can contain them.
    """

    name: str
    parent_slot: str
    rows: int
    copied: int
    new: int
    lost: int = 0

    @classmethod
    def of(cls, slot: SlotRows) -> SlotReceipt:
        """Count the rows of a slot of the new run."""
        return cls(slot.name, slot.parent_slot, slot.used, slot.copied, slot.used - slot.copied, len(slot.lost))


@dataclass(frozen=True)
class RowCount:
    """Size of the rows of all entries of `model.rows` of one kind in a `Receipt`: those that were met, in child and parent, and the
    bytes of the child's weights of them."""

    rows: int
    parent_rows: int
    bytes: int


def count_met_rows(config: Config, find: Find, parent: StoredModel) -> dict[str, RowCount]:
    """Count the rows of a child that were met, by kind. find: its arrays, as `compose` takes them."""
    counts: dict[str, RowCount] = {}
    for e, entry in enumerate(config.model.rows):
        shard, had = f"{ROWS}{e}", counts.get(entry.kind, RowCount(0, 0, 0))
        its, own = parent.array(shard, "keys"), find(shard, "keys", ())
        rows = 0 if own is None else own.size
        parent_rows = had.parent_rows + (0 if its is None else its.size)
        counts[entry.kind] = RowCount(had.rows + rows, parent_rows, had.bytes + 4 * entry.width * rows)
    return counts


@dataclass(frozen=True)
class Receipt:
    """Receipt: record in a run (child) of the model that it was made of (parent). Numbers count parameters of the child.

    kind: inherit, extend, extract or finetune.
    parent, layout, parent_step: path of the parent, file format of the parent, step of the parent's checkpoint or None.
    parent_hash: hash of the values of the parent's tensors; for a sparse parent, that of its manifest, which has the files' hashes.
    parameters: number of parameters, by origin. copies: number of experts made of each upper FFN, in an own segment.
    common_copies: the same in a common segment. segments: kinds of a layer's segments; empty for one. slots: rows of each slot.
    unused: tensors of the parent that the child lacks, with the reason. activation, parent_activation: form of GELU of child and
    parent. heads_known, activation_known: False if the parent's files do not record it, so that a configured value was used.
    options: arguments of `inherit`. agreement: differences of logits, by domain. domains: what became of each domain.
    rows: numbers of rows for pairs of tokens (`model.rows`) that were met, by kind of their entries, and bytes of their weights; {}
    for a model without rows.
    parent_parameters: parameters of the parent. notes: remarks for people. parent_lineage: content of the parent's lineage.json.
    """

    parent: str
    layout: str
    parent_step: int | None
    parent_hash: str
    parameters: dict[str, int]
    activation: str
    parent_activation: str
    copies: int = 0
    common_copies: int = 0
    segments: list[str] = field(default_factory=list)
    slots: list[SlotReceipt] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    heads_known: bool = True
    activation_known: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    kind: ReceiptKind = "inherit"
    parent_parameters: int | None = None
    domains: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parent_lineage: dict[str, Any] | None = None
    rows: dict[str, RowCount] = field(default_factory=dict)

    def __repr__(self) -> str:
        return format_receipt(self)

    def save(self, folder: Path) -> None:
        """Write the receipt into a run folder or an export, and add it to the seal. Raises OSError."""
        write_atomically(folder / LINEAGE_FILE, sealed(asdict(self), record=True))
        add_to_seal(folder, LINEAGE_FILE)


def make_receipt(child: Child, agreement: dict[str, Agreement]) -> Receipt:
    """Return the receipt of an inherited run, after all tensors of `child` were read. agreement: logits' differences, by domain."""
    model = child.parent
    return Receipt(
        parent=str(model.path),
        layout=model.layout,
        parent_step=model.step,
        parent_hash=child.parent_hash(),
        parameters=count_by_kind(child),
        copies=child.config.experts if child.config.model.rre_layers else 0,
        common_copies=child.config.model.common_experts,
        segments=[*child.config.model.segments] if len(child.config.model.segments) > 1 else [],
        slots=[SlotReceipt.of(slot) for slot in child.slots or ()],
        unused={each.name: each.reason for each in model.unused},
        activation=child.config.model.activation,
        parent_activation=model.sizes.activation,
        heads_known=model.sizes.heads is not None,
        activation_known=model.activation_known,
        options={"moments": child.moments},
        agreement=agreement,
        rows=count_met_rows(child.config, child.find, model),
    )


def count_by_kind(child: Child) -> dict[str, int]:
    """Count a new run's parameters by origin. With prepared text, embedding rows count as copied, drawn, or without a token."""
    counts: Counter[str] = Counter()
    for descent in child.descents():
        size = math.prod(descent.shape)
        if descent.kind != "rows" or child.slots is None:
            counts[descent.kind] += size
            continue
        counts.update(count_rows(child.slots, size, descent.shape[-1]))
    return dict(counts)


def count_rows(slots: Sequence[SlotRows], size: int, hidden: int) -> dict[str, int]:
    """Count the parameters of an embedding table by the origin of the rows. size, hidden: parameters of the table, and of a row."""
    copied, used = sum(slot.copied for slot in slots) * hidden, sum(slot.used for slot in slots) * hidden
    return {"rows copied": copied, "rows drawn anew": used - copied, "rows without a token": size - used}


def format_receipt(receipt: Receipt) -> str:
    """Format a receipt as a table for people."""
    step = "" if receipt.parent_step is None else f", step {receipt.parent_step}"
    rows = [("parent", f"{receipt.parent} ({receipt.layout}{step}), hash {receipt.parent_hash}")]
    if receipt.parent_parameters is not None:
        sizes = f"{receipt.parent_parameters:,} before, {sum(receipt.parameters.values()):,} after"
        rows.append(("parameters", sizes))
    rows += [(kind, f"{count:,} parameters") for kind, count in receipt.parameters.items() if count]
    rows += [(f"domain {name}", what) for name, what in receipt.domains.items()]
    if receipt.copies:
        rows.append(("experts", _format_copies(receipt)))
    if "moments" in receipt.options:
        rows.append(
            ("Adam", "its moments are the parent's" if receipt.options["moments"] else "starts with zero state")
        )
    if receipt.unused:
        reasons = Counter(receipt.unused.values())
        rows.append(("unused", "; ".join(f"{n} ({reason})" for reason, n in reasons.items())))
    if not receipt.heads_known:
        rows.append(("heads", "the parent's files do not say how many; taken from the configuration"))
    if receipt.kind == "inherit":
        rows.append(("GELU", _format_activation(receipt)))
    rows += [(f"slot {slot.name}", _format_slot(slot)) for slot in receipt.slots]
    rows += [(f"{kind} rows", _format_rows(count)) for kind, count in receipt.rows.items()]
    for name, each in receipt.agreement.items():
        rows.append((f"domain {name}", _format_agreement(each, receipt)))
        if each.cutting is not None:
            rows.append((f"text of {name}", _format_cutting(each.cutting)))
    rows += [("note", each) for each in receipt.notes]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _format_copies(receipt: Receipt) -> str:
    if not receipt.segments:
        return f"each upper FFN is {receipt.copies} experts"
    numbers = {"own": receipt.copies, "common": receipt.common_copies}
    parts = [f"{numbers[kind]} {kind}" for kind in receipt.segments]
    return f"each upper FFN is cut into {len(parts)} segments of {', '.join(parts)} experts"


def _format_activation(receipt: Receipt) -> str:
    known = "" if receipt.activation_known else f", assumed: its files do not say it ({argument('--activation')})"
    if receipt.activation == receipt.parent_activation:
        return f"{receipt.activation}, the parent's{known}"
    asked = "as the configuration asks (model.activation)"
    return f"{receipt.activation}, {asked}; the parent's is {receipt.parent_activation}{known}"


def _format_slot(slot: SlotReceipt) -> str:
    copied = f"{slot.new:,} of {slot.rows:,} rows drawn anew"
    if slot.parent_slot:
        copied = f"{slot.copied:,} of {slot.rows:,} rows copied from slot {slot.parent_slot}, {slot.new:,} drawn anew"
    return copied + (f"; {slot.lost:,} of the parent's tokens have no row" if slot.lost else "")


def _format_rows(count: RowCount) -> str:
    if not count.parent_rows:
        return "none was met: all are 0, and change no answer"
    return f"{count.rows:,} of {count.parent_rows:,} rows that were met, {count.bytes:,} bytes of weights"


def _format_agreement(each: Agreement, receipt: Receipt) -> str:
    parts = [f"{each.exact:.2g}"]
    if each.own_activation is not None:
        other = f"{each.own_activation:.2g} with {receipt.activation}, which costs {each.activation_nats:+.4f} nats"
        parts = [other, f"{each.exact:.2g} with the parent's {receipt.parent_activation}"]
    if each.fast is not None:
        inherits = receipt.kind == "inherit"
        parts.append(
            f"{each.fast:.2g} "
            + ("by the graph, which adds in another order" if inherits else "between the graphs of both")
        )
    return f"largest |Δlogit| {', '.join(parts)}; {each.tokens} tokens: {_short(each.text)}"


def _format_cutting(cutting: Cutting) -> str:
    if not cutting.other:
        return f"all {cutting.texts} samples of held-out text are cut into the parent's tokens"
    delta = "" if cutting.delta is None else f"largest |Δlogit| {cutting.delta:.2g} "
    return (
        f"{cutting.other} of {cutting.texts} samples of held-out text are cut into other tokens than the parent's: {delta}after "
        f"{_short(cutting.example or '')}"
    )


def _short(text: str) -> str:
    return repr(" ".join(text.split())[:60])


def format_mapping(child: Child) -> str:
    """Format the origin of every tensor of the child, with equal layers in one line, and the parent's unused tensors."""
    groups: dict[tuple[str, ...], list[tuple[int, TensorOrigin]]] = {}
    for descent in child.descents():
        layer, name = _layer_of(descent, len(child.config.model.segments))
        groups.setdefault((name, descent.kind, str(descent.shape)), []).append((layer, descent))
    lines = [("child", "layers", "shape", "kind", "parent")]
    for (name, kind, shape), members in groups.items():
        layers = [layer for layer, _ in members]
        span = "" if layers[0] < 0 else f"{layers[0]} … {layers[-1]}" if len(layers) > 1 else str(layers[0])
        more = f" … {members[-1][1].made_from}" if len(members) > 1 else ""
        lines.append((name, span, shape, kind, f"{members[0][1].made_from}{more}"))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    table = [
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]) for line in lines
    ]
    unused = [f"unused: {each.name} ({each.reason})" for each in child.parent.unused]
    counts = [f"{kind}: {count:,} parameters" for kind, count in count_by_kind(child).items() if count]
    if child.slots is None:
        counts.append(
            f"which rows are copied is known when text is prepared: prepare-data, into {child.config.data.path}"
        )
    return "\n".join([*table, *unused, *counts])


def _layer_of(descent: TensorOrigin, segments: int) -> tuple[int, str]:
    """Return a tensor's layer, -1 for none, and its name without the layer; for experts the number of the RRE layer. segments: of
    such a layer."""
    if descent.shard != "dense":
        number, s = divmod(int(descent.shard.rpartition("_")[2]), segments)
        return number, f"{f'segments.{s}.' if s else ''}experts.{descent.name}"
    if descent.name.startswith("layers."):
        _, layer, name = descent.name.split(".", 2)
        return int(layer), name
    return -1, descent.name
