"""`bench tokenizer` reports a ratio only of tokenizers that give the same ids."""

from __future__ import annotations

import pytest

from experiments.bench import tokenizer
from pangu_sigma.errors import DataError

TEXTS = [f"第{i}个句子，Python {i}.5%\n　“你好”\r\n🙂龘" for i in range(25)]


def test_the_row_has_every_field_and_counts_all_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "_chinese_text", lambda: TEXTS)
    (row,) = [row.as_dict() for row in tokenizer.run(peers=True)]
    megabytes = sum(len(text.encode()) for text in TEXTS) / 1e6
    assert row["case"] == f"{megabytes:.1f} MB zh, ids equal"
    assert (row["bench"], row["peer"], row["unit"]) == ("tokenizer", tokenizer.PEER, "MB/s")
    assert row["ratio"] > 0 and row["runs"] >= 9


def test_no_ratio_when_an_id_differs():
    encoders = {
        "ours": lambda texts: [[1, 2] for _ in texts],
        "peer": lambda texts: [[1, 2 + ("第7个" in text)] for text in texts],
    }
    with pytest.raises(DataError, match="peer gives other ids for '第7个"):
        tokenizer.compare_encoders(TEXTS, encoders)
