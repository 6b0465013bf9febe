"""What an inheritance did, counted: kept in the run folder as `lineage.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pangu_sigma.checkpoint.start_over import LINEAGE_FILE


@dataclass(frozen=True)
class SlotReceipt:
    """One embedding slot of the child. rows: those in use. copied: rows whose token the parent's slot has. new: all others."""

    name: str
    parent_slot: str
    rows: int
    copied: int
    new: int


@dataclass(frozen=True)
class Receipt:
    """The account of one inheritance; numbers count parameters, `logit_difference` is a difference of logits.

    copied: parameters taken over one to one. replicated: parameters of the parent's upper FFNs, each now in `copies` experts.
    slots: what became of the embedding. logit_difference: for each domain of the child, the largest difference between its logits
    and the parent's, over the tokens that both have, on `tokens_compared` drawn tokens.
    """

    parent: str
    parent_step: int
    copied: int
    replicated: int
    copies: int
    slots: list[SlotReceipt]
    tokens_compared: int
    logit_difference: dict[str, float]

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (folder / LINEAGE_FILE).write_text(text + "\n", encoding="utf-8")


def format_receipt(receipt: Receipt) -> str:
    """The receipt as a table for people."""
    rows = [
        ("parent", f"{receipt.parent}, step {receipt.parent_step}"),
        ("copied", f"{receipt.copied:,} parameters"),
        ("replicated", f"{receipt.replicated:,} parameters of upper FFNs, each to {receipt.copies} experts"),
    ]
    rows += [
        (f"slot {s.name}", f"{s.copied:,} of {s.rows:,} rows copied from slot {s.parent_slot}, {s.new:,} drawn anew")
        for s in receipt.slots
    ]
    rows += [
        (
            f"domain {name}",
            f"largest difference to the parent's logits {difference:.2g}, {receipt.tokens_compared} tokens",
        )
        for name, difference in receipt.logit_difference.items()
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
