from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pangu_sigma.data.manifest import DomainRecord, Manifest, OverlapRecord, Source, SplitCounts, load_manifest
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import sealed


@pytest.fixture
def manifest() -> Manifest:
    counts = SplitCounts(documents=3, tokens=40, bytes=120, unknown=1, folded=2)
    domain = DomainRecord(
        slot="zh",
        rows=600,
        offered=5,
        duplicates=1,
        too_long=1,
        train=counts,
        held_out=counts.model_copy(update={"documents": 0}),
        unigram_entropy=4.25,
        shift=0.5,
        shift_deviation=0.25,
        sources=[Source(name="诗", version="1.0", licence="MIT", sha256=None)],
        over_limit=0,
        offered_bytes=400,
        left_out_bytes=0,
        overlap=OverlapRecord(
            window=13,
            windows=9,
            boilerplate=0.5,
            share=0.0,
            wanted=1,
            max_overlap=0.01,
            min_tokens=7,
            passed_over=0,
            passed_over_tokens=0,
            boilerplate_windows=2,
        ),
        near_duplicates=0,
    )
    return Manifest(
        fingerprint="f" * 64,
        vocabulary_hash="v" * 64,
        vocabulary_size=40_000,
        domains={"zh": domain},
        quarantined={"empty text": 2},
        config={"data": {"held_out": 0.1}},
    )


def test_what_was_saved_is_what_is_loaded(manifest: Manifest, tmp_path: Path):
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    tree = json.loads((tmp_path / "manifest.json").read_bytes())
    assert tree["domains"]["zh"]["sources"][0]["name"] == "诗"
    assert tree["domains"]["zh"]["train"] == {"documents": 3, "tokens": 40, "bytes": 120, "unknown": 1, "folded": 2}


def test_a_record_does_not_change(manifest: Manifest):
    with pytest.raises(ValidationError, match="frozen"):
        manifest.domains["zh"].rows = 7


def test_a_folder_without_one_was_not_prepared(tmp_path: Path):
    with pytest.raises(DataError, match=r"manifest\.json: No such file.*run prepare-data first, or set data\.path"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("change", ["cut", "a key less", "a key more", "another type", "not UTF-8"])
def test_a_damaged_one_is_refused_with_its_name(manifest: Manifest, tmp_path: Path, change: str):
    manifest.save(tmp_path)
    file = tmp_path / "manifest.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    record = tree["domains"]["zh"]
    match change:
        case "a key less":
            del record["rows"]
        case "a key more":
            record["columns"] = 1
        case "another type":
            record["rows"] = "many"
    del tree["manifest"]
    content = sealed(tree)
    content = content[: len(content) // 2] if change == "cut" else content
    file.write_bytes(content.replace(b"MIT", b"\xff") if change == "not UTF-8" else content)
    with pytest.raises(DataError, match=r"manifest\.json: .*damaged.*run prepare-data again") as refused:
        load_manifest(tmp_path)
    assert str(file) in str(refused.value)
