"""What a run says of its origin and of its fine-tuning is as it was written, or said to be damaged."""

from __future__ import annotations

import pytest

from pangu_sigma.sealed import DamagedFile, sealed
from pangu_sigma.stored.model import read_lineage, read_tuning_result

LINEAGE = {
    "kind": "finetune",
    "parent": "/runs/甲",
    "parent_step": 80,
    "parent_hash": "3f0a",
    "options": {"task": "qa"},
}
RESULT = {"task": "qa", "best": {"step": 8, "loss": 3.25}, "losses": {"before": 5.5, "after": 3.25}}


@pytest.mark.parametrize(
    ("read", "name", "body"),
    [(read_lineage, "lineage.json", LINEAGE), (read_tuning_result, "finetune/result.json", RESULT)],
    ids=["lineage", "result"],
)
def test_a_flipped_bit_of_any_byte_is_told(tmp_path, read, name, body):
    assert read(tmp_path) is None
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    whole = sealed(body, record=True)
    file.write_bytes(whole)
    assert read(tmp_path) == body
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedFile, match=name):
            read(tmp_path)
