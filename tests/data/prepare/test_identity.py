"""One folder, byte by byte, of files of every format, with near-duplicates, whoever makes it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from data.prepare.stages.test_executors import CHINESE, limited, prints, small  # noqa: F401
from helpers.texts import ENGLISH

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.data.prepare.stages.executors import ShareDone

pytestmark = pytest.mark.slow


def cleaned() -> Config:
    data = limited().data.model_copy(
        update={
            "memory_gib": 5.0,
            "near_duplicates": 0.7,
        }
    )
    return limited().model_copy(update={"data": data})


def lines_of_text() -> list[str]:
    """Lines of all domains, some too short, some copies with a few more words, some broken."""
    rng = random.Random(3)
    words, records = [word for text in ENGLISH for word in text.split(" ")], list[dict]()
    for number in range(300):
        some = "".join(rng.choices(CHINESE, k=rng.randint(5, 200)))
        other = " ".join(rng.choices(words, k=rng.randint(5, 100))) + f" mail a{number}@mail.org"
        records += [{"domain": "zh", "text": some}, {"domain": "bilingual", "text": {"zh": some + "好", "en": other}}]
        records += [{"domain": domain, "text": other} for domain in ("en", "code")]
    records += [
        record | {"text": f"{record['text']} and more"} for record in records[::9] if "zh" not in record["text"]
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    for at in range(10, len(lines), 97):
        lines.insert(at, "{")
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with a fifth of the lines in each format."""
    folder, lines = tmp_path_factory.mktemp("formats"), lines_of_text()
    parts = [lines[first::5] for first in range(5)]
    whole = [[json.loads(line) for line in part if line != "{"] for part in parts]
    (folder / "sub").mkdir()
    (folder / "a.jsonl").write_text("\n".join(parts[0]))
    (folder / "sub" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(parts[1]).encode()))
    with pa.CompressedOutputStream(str(folder / "c.jsonl.zst"), "zstd") as stream:
        stream.write("\n".join(parts[2]).encode())
    (folder / "sub" / "d.json.gz").write_bytes(gzip.compress(json.dumps(whole[3], ensure_ascii=False).encode()))
    rows = [record for record in whole[4] if isinstance(record["text"], str)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "e.parquet", row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pangu_sigma.data.prepare.prepare.block_size", lambda _: 16 << 10)
        manifest = prepare(cleaned(), [folder], out)
    assert manifest.quarantined["not JSON"] > 5
    for record in manifest.domains.values():
        assert record.near_duplicates > 10
    return prints(out)


@pytest.mark.parametrize("workers", [2, 5])
def test_by_several_processes(folder, alone, tmp_path, workers):
    prepare(cleaned(), [folder], tmp_path / "out", Options(workers))
    assert prints(tmp_path / "out") == alone


def test_in_three_shares_through_all_passes(folder, alone, tmp_path):
    out, said = tmp_path / "out", list[str]()
    while not (said and all(text.startswith("all passes are done") for text in said[-3:])):
        assert len(said) < 60
        for number in (1, 0, 2):
            with pytest.raises(ShareDone) as done:
                prepare(cleaned(), [folder], out, Options(1, f"{number}/3"))
            said.append(str(done.value))
    prepare(cleaned(), [folder], out, Options(1, merge=True))
    assert prints(out) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
