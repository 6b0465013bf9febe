from __future__ import annotations

import json

from pangu_sigma.inherit.receipt import LINEAGE_FILE, Receipt, SlotReceipt, format_receipt

RECEIPT = Receipt(
    parent="runs/alpha",
    parent_step=40,
    copied=1_234_567,
    replicated=890,
    copies=6,
    slots=[SlotReceipt("zh", "main", rows=100, copied=90, new=10)],
    tokens_compared=32,
    logit_difference={"zh": 2.5e-6, "en": 0.0},
)


def test_it_is_kept_with_every_number(tmp_path):
    RECEIPT.save(tmp_path)
    kept = json.loads((tmp_path / LINEAGE_FILE).read_text(encoding="utf-8"))
    assert kept["parent_step"] == 40
    assert kept["slots"] == [{"name": "zh", "parent_slot": "main", "rows": 100, "copied": 90, "new": 10}]
    assert kept["logit_difference"] == {"zh": 2.5e-6, "en": 0.0}


def test_people_read_where_everything_came_from_and_how_equal_it_is():
    assert format_receipt(RECEIPT).splitlines() == [
        "parent      runs/alpha, step 40",
        "copied      1,234,567 parameters",
        "replicated  890 parameters of upper FFNs, each to 6 experts",
        "slot zh     90 of 100 rows copied from slot main, 10 drawn anew",
        "domain zh   largest difference to the parent's logits 2.5e-06, 32 tokens",
        "domain en   largest difference to the parent's logits 0, 32 tokens",
    ]
