"""Receipt of an inheritance, extension, extraction or fine-tuning: counts of parameters, kept in the run as `lineage.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xxhash

from pangu_sigma.checkpoint.parts import ROWS
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.results import aligned
from pangu_sigma.sealed import add_to_seal, sealed, write_atomically

if TYPE_CHECKING:  # the command line reads this file before MindSpore is loaded
    from pangu_sigma.config import Config
    from pangu_sigma.inherit.child import Child
    from pangu_sigma.inherit.equality import Agreement
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


@dataclass(frozen=True)
class RowCount:
    """Numbers of rows (`model.rows`) of one kind that were met, in child and parent, and bytes of the child's weights of them."""

    rows: int
    parent_rows: int
    bytes: int


@dataclass(frozen=True)
class Receipt:
    """Receipt: record in a run (child) of the model that it was made of (parent). Numbers count parameters of the child.

    parent, layout, parent_step: path of the parent, its file format, and the step of its checkpoint or None. parent_hash: after
    `inherit`, hash of the values of its tensors; else of its checkpoint's manifest, which has the files' hashes.
    parameters: number of parameters, by origin. slots: rows of each slot. unused: tensors of the parent that the child lacks, with
    the reason. activation, parent_activation: form of GELU of child and parent. options: of the command that made the child.
    agreement: differences of logits, by domain. kind: inherit, extend, extract or finetune. domains: what became of each domain.
    rows: numbers of rows (`model.rows`) that were met, by kind of their entries. parent_parameters: parameters of the parent.
    notes: remarks for people. parent_lineage: content of the parent's lineage.json.
    """

    parent: str
    layout: str
    parent_step: int | None
    parent_hash: str
    parameters: dict[str, int]
    activation: str
    parent_activation: str
    slots: list[SlotReceipt] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    kind: ReceiptKind = "inherit"
    parent_parameters: int | None = None
    domains: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parent_lineage: dict[str, Any] | None = None
    rows: dict[str, RowCount] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Format the receipt as a table for people."""
        step = "" if self.parent_step is None else f", step {self.parent_step}"
        rows = [("parent", f"{self.parent} ({self.layout}{step}), hash {self.parent_hash}")]
        if self.parent_parameters is not None:
            sizes = f"{self.parent_parameters:,} before, {sum(self.parameters.values()):,} after"
            rows.append(("parameters", sizes))
        rows += [(kind, f"{count:,} parameters") for kind, count in self.parameters.items() if count]
        rows += [(f"domain {name}", what) for name, what in self.domains.items()]
        if self.unused:
            reasons = Counter(self.unused.values())
            rows.append(("unused", "; ".join(f"{n} ({reason})" for reason, n in reasons.items())))
        if self.kind == "inherit":
            reason = "the parent's"
            if self.activation != self.parent_activation:
                reason = f"as the configuration asks (model.activation); the parent's is {self.parent_activation}"
            rows.append(("GELU", f"{self.activation}, {reason}"))
        rows += [(f"slot {slot.name}", _format_slot(slot)) for slot in self.slots]
        rows += [(f"{kind} rows", _format_rows(count)) for kind, count in self.rows.items()]
        for name, agreement in self.agreement.items():
            rows.append((f"domain {name}", _format_agreement(agreement, self)))
            if agreement.texts:
                rows.append((f"text of {name}", _format_cutting(agreement)))
        rows += [("note", note) for note in self.notes]
        return "\n".join(aligned(rows, "<"))

    def save(self, folder: Path) -> None:
        """Write the receipt into a run folder or an export, and add it to the seal. Raises OSError."""
        write_atomically(folder / LINEAGE_FILE, sealed(asdict(self), record=True))
        add_to_seal(folder, LINEAGE_FILE)


WARM = (
    "Adam's moments, the experts' step counts and the loss scale are the parent's; steps are counted from 0, with the run's own "
    "schedule and warm-up (train.optimizer)"
)
"""Note in the receipt about the optimizer state of a run that is made of a trained one."""
SHARED = "common segments are copied whole with their tables, as attention is, because all domains share their experts"
"""Note in the receipt of a run that is made of a trained one with common segments."""


def receipt_of(child: Child, agreement: dict[str, Agreement]) -> Receipt:
    """Return the receipt of a new run. agreement: differences of logits, by domain."""
    parent, slots, inherits = child.parent, [slot.counts for slot in child.slots], child.kind == "inherit"
    parent_has_rows = not inherits and bool(parent.config.model.rows)
    return Receipt(
        kind=child.kind,
        parent=str(parent.path),
        layout=parent.layout,
        parent_step=parent.step,
        parent_hash=values_hash(parent) if inherits else parent.hash,
        parameters=child.parameters or count_by_origin(child.config, slots, _experts_by_origin(child), parent_has_rows),
        slots=slots,
        unused=dict(parent.unused),
        activation=child.config.model.activation,
        parent_activation=parent.sizes.activation,
        options=child.options,
        agreement=agreement,
        parent_parameters=None if inherits else parent.config.num_params().total,
        domains=child.domains,
        rows=_count_met_rows(child),
        notes=child.notes,
        parent_lineage=parent.lineage,
    )


def values_hash(model: StoredModel) -> str:
    """Return a hash over the values of all tensors, as stored; it is the same in every layout. All of them are read."""
    digest = xxhash.xxh3_128()
    for name in sorted(model.tensors):
        tensor_digest = xxhash.xxh3_128()
        for values in model.tensors[name].content():
            tensor_digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        digest.update(f"{name} {tensor_digest.hexdigest()}\n".encode())
    return digest.hexdigest()


def _count_met_rows(child: Child) -> dict[str, RowCount]:
    """Count the rows of a child that were met, by kind."""
    counts: dict[str, RowCount] = {}
    for e, entry in enumerate(child.config.model.rows):
        count = counts.get(entry.kind, RowCount(0, 0, 0))
        keys = child.find(f"{ROWS}{e}", "keys", ()), child.parent.array(f"{ROWS}{e}", "keys")
        rows, parent_rows = (0 if array is None else array.size for array in keys)
        counts[entry.kind] = RowCount(
            count.rows + rows, count.parent_rows + parent_rows, count.bytes + 4 * entry.width * rows
        )
    return counts


def _experts_by_origin(child: Child) -> Counter[str]:
    """Count the parameters of experts by origin: of all segments if the parent is dense, else of own segments only, because common
    experts are copied as all other weights are, and counted with them."""
    config, counts = child.config, Counter[str]()
    if child.kind == "inherit":
        return Counter(replicated=config.num_params().experts)
    for domain in config.domains:
        source = child.sources.get(domain.name)
        origin = "experts copied" if source == domain.name else f"experts copied from domain {source}"
        counts[origin if source else "experts drawn anew"] += config.domain_experts
    return counts


def count_by_origin(
    config: Config, slots: Sequence[SlotReceipt], experts: Mapping[str, int], parent_has_rows: bool = False
) -> dict[str, int]:
    """Count the parameters of a new run by origin. slots: rows of each slot; none before text is prepared.

    experts: origin → parameters, of experts that are not counted as "copied". parent_has_rows: True if the parent has `model.rows`,
    and so a scale of rows in each layer; the scales of a run whose parent has none are "begun"."""
    model, total = config.model, config.num_params().total
    table = config.slots * model.slot_rows * model.hidden
    new_scales = model.layers if model.rows and not parent_has_rows else 0
    copied, used = (sum(getattr(slot, key) for slot in slots) * model.hidden for key in ("copied", "rows"))
    rows = {"rows copied": copied, "rows drawn anew": used - copied, "rows without a token": table - used}
    copied_weights = total - table - sum(experts.values()) - new_scales
    return {"copied": copied_weights, **experts, "begun": new_scales, **(rows if slots else {"rows": table})}


def _format_slot(slot: SlotReceipt) -> str:
    text = f"{slot.new:,} of {slot.rows:,} rows drawn anew"
    if slot.parent_slot:
        text = f"{slot.copied:,} of {slot.rows:,} rows copied from slot {slot.parent_slot}, {slot.new:,} drawn anew"
    return text + (f"; {slot.lost:,} of the parent's tokens have no row" if slot.lost else "")


def _format_rows(count: RowCount) -> str:
    if not count.parent_rows:
        return "none was met: all are 0, and change no answer"
    return f"{count.rows:,} of {count.parent_rows:,} rows that were met, {count.bytes:,} bytes of weights"


def _format_agreement(agreement: Agreement, receipt: Receipt) -> str:
    """Format the difference of logits: with the child's activation, if it is another one, then with the parent's."""
    parts = [f"{agreement.exact:.2g}"]
    if agreement.own_activation is not None:
        own = f"{agreement.own_activation:.2g} with {receipt.activation}, which costs {agreement.activation_nats:+.4f} nats"
        parts = [own, f"{agreement.exact:.2g} with the parent's {receipt.parent_activation}"]
    text = " ".join(agreement.text.split())[:60]
    return f"largest |Δlogit| {', '.join(parts)}; {agreement.tokens} tokens: {text!r}"


def _format_cutting(cutting: Agreement) -> str:
    if not cutting.other:
        return f"all {cutting.texts} samples of held-out text are cut into the parent's tokens"
    return f"{cutting.other} of {cutting.texts} samples of held-out text are cut into other tokens than the parent's"
