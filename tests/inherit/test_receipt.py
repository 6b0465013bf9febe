from __future__ import annotations

import json
from dataclasses import asdict

from pangu_sigma.inherit.equality import Agreement
from pangu_sigma.inherit.receipt import LINEAGE_FILE, Receipt, SlotReceipt
from pangu_sigma.sealed import check_folder, seal_folder

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
    slots=[SlotReceipt("zh", "alpha", rows=100, copied=90, new=10, lost=929)],
    unused={"optimizer.step": "Adam's state", "rng_state": "random state", "moment": "Adam's state"},
    activation="fast_gelu",
    parent_activation="tanh",
    options={"moments": True},
    agreement={
        "zh": Agreement("今天\n天气", 16, 0.0, 0.08, 0.0125, 38, 22),
        "en": Agreement("the cat", 16, 0.0, texts=38),
    },
    notes=["each upper FFN is 6 experts"],
)


def test_it_is_kept_and_people_read_where_everything_came_from_and_how_equal_it_is(tmp_path):
    seal_folder(tmp_path, [], {"format": 2})
    RECEIPT.save(tmp_path)
    assert check_folder(tmp_path, "")["files"].keys() == {LINEAGE_FILE}
    kept = json.loads((tmp_path / LINEAGE_FILE).read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(asdict(RECEIPT))) | {"manifest": kept["manifest"]}
    assert repr(RECEIPT).splitlines() == [
        "parent           released/alpha (mindspore), hash ab12",
        "copied           1,234,567 parameters",
        "replicated       890 parameters",
        "rows copied      10 parameters",
        "rows drawn anew  2 parameters",
        "unused           2 (Adam's state); 1 (random state)",
        "GELU             fast_gelu, as the configuration asks (model.activation); the parent's is tanh",
        "slot zh          90 of 100 rows copied from slot alpha, 10 drawn anew; 929 of the parent's tokens have no row",
        "domain zh        largest |Δlogit| 0.08 with fast_gelu, which costs +0.0125 nats, 0 with the parent's tanh; "
        "16 tokens: '今天 天气'",
        "text of zh       22 of 38 samples of held-out text are cut into other tokens than the parent's",
        "domain en        largest |Δlogit| 0; 16 tokens: 'the cat'",
        "text of en       all 38 samples of held-out text are cut into the parent's tokens",
        "note             each upper FFN is 6 experts",
    ]
