from __future__ import annotations

import json

from pangu_sigma.inherit.equality import Agreement
from pangu_sigma.inherit.receipt import LINEAGE_FILE, Receipt, SlotReceipt, format_receipt

RECEIPT = Receipt(
    parent="released/alpha",
    layout="mindspore",
    parent_step=None,
    parent_hash="ab12",
    parameters={
        "copied": 1_234_567,
        "replicated": 890,
        "rows copied": 10,
        "rows drawn anew": 2,
        "rows without a token": 0,
    },
    copies=6,
    slots=[SlotReceipt("zh", "alpha", rows=100, copied=90, new=10)],
    unused={"optimizer.step": "Adam's state", "rng_state": "random state", "moment": "Adam's state"},
    activation="fast_gelu",
    parent_activation="tanh",
    heads_known=False,
    activation_known=False,
    options={"noise": 0.0, "reinit_ratio": 0.0, "moments": False},
    agreement={
        "zh": Agreement("今天\n天气", 16, 0.0, activation_nats=0.0125),
        "en": Agreement("the cat", 16, 0.0, 2.5e-6),
    },
)


def test_it_is_kept_with_every_number(tmp_path):
    RECEIPT.save(tmp_path)
    kept = json.loads((tmp_path / LINEAGE_FILE).read_text(encoding="utf-8"))
    assert kept["parent_hash"] == "ab12"
    assert kept["slots"] == [{"name": "zh", "parent_slot": "alpha", "rows": 100, "copied": 90, "new": 10}]
    assert kept["agreement"]["en"] == {
        "text": "the cat",
        "tokens": 16,
        "exact": 0.0,
        "fast": 2.5e-6,
        "activation_nats": None,
    }


def test_people_read_where_everything_came_from_what_was_assumed_and_how_equal_it_is():
    assert format_receipt(RECEIPT).splitlines() == [
        "parent           released/alpha (mindspore), hash ab12",
        "copied           1,234,567 parameters",
        "replicated       890 parameters",
        "rows copied      10 parameters",
        "rows drawn anew  2 parameters",
        "experts          each upper FFN is 6 experts",
        "unused           2 (Adam's state); 1 (random state)",
        "heads            the parent's files do not say how many; taken from the configuration",
        "GELU             fast_gelu; the parent's tanh, assumed: its files do not say it (--activation)",
        "slot zh          90 of 100 rows copied from slot alpha, 10 drawn anew",
        "domain zh        largest |Δlogit| 0, the other GELU costs +0.0125 nats; 16 tokens: '今天 天气'",
        "domain en        largest |Δlogit| 0, 2.5e-06 by the graph, which adds in another order; 16 tokens: 'the cat'",
    ]
