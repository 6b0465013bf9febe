from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.manifests import manifest as made

from pangu_sigma.data.manifest import Manifest, NearDuplicatesRecord, Source, load_manifest
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import sealed


@pytest.fixture
def manifest() -> Manifest:
    return made(sources=[Source(name="诗", version="1.0", licence="MIT", sha256=None)])


def save(manifest: Manifest, folder: Path) -> None:
    for name in manifest.domains:
        (folder / name).mkdir()
    manifest.save(folder)


def test_each_domain_has_its_own_and_they_are_read_as_one(manifest: Manifest, tmp_path: Path):
    save(manifest, tmp_path)
    assert load_manifest(tmp_path, ["zh", "en"]) == load_manifest(tmp_path) == manifest
    assert [*load_manifest(tmp_path, ["en"]).domains] == ["en"]
    assert load_manifest(tmp_path, ["en"]).config["domains"] == [["en"]]
    tree = json.loads((tmp_path / "zh" / "manifest.json").read_bytes())
    assert [*tree["domains"]] == ["zh"]
    assert tree["domains"]["zh"]["sources"][0]["name"] == "诗"
    assert tree["domains"]["zh"]["train"] == {
        "documents": 90,
        "tokens": 1_000,
        "bytes": 5 << 20,
        "unknown": 1,
        "folded": 700,
    }


def test_what_is_said_of_two_preparations_is_added_up(manifest: Manifest, tmp_path: Path):
    near = NearDuplicatesRecord(pairs=3, groups=2, lost={"en": 2}, examples=[("a", "b")])
    manifest = manifest.model_copy(update={"quarantined": {"not JSON": 2}, "near_duplicates": near})
    save(manifest, tmp_path)
    changes = {
        "fingerprint": "2",
        "quarantined": {"not JSON": 1, "empty text": 4},
        "examples": {"empty text": "b.jsonl:1"},
    }
    law = manifest.model_copy(
        update={
            **changes,
            "domains": {"law": manifest.domains["en"]},
            "config": {"domains": [["law"]], "slot_rows": 700},
        }
    )
    save(law, tmp_path)
    both = load_manifest(tmp_path)
    assert [*both.domains] == ["zh", "en", "law"]
    assert both.quarantined == {"not JSON": 3, "empty text": 4}
    assert both.examples == {"not JSON": "a.jsonl:3: what", "empty text": "b.jsonl:1"}
    assert both.config == manifest.config | {"domains": [["zh"], ["en"], ["law"]], "slot_rows": 700}
    assert both.near_duplicates == NearDuplicatesRecord(pairs=6, groups=4, lost={"en": 4}, examples=[("a", "b")] * 2)
    assert load_manifest(tmp_path, ["law"]).quarantined == law.quarantined


def test_a_folder_without_one_was_not_prepared(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"no folder in it has a manifest\.json; run prepare-data first, or set data\.path"
    ):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match=r"zh/manifest\.json: No such file.*run prepare-data first, or set data\.path"):
        load_manifest(tmp_path, ["zh"])


@pytest.mark.parametrize("change", ["cut", "a key less", "a key more", "another type", "not UTF-8", "no settings"])
def test_a_damaged_one_is_refused_with_its_name(manifest: Manifest, tmp_path: Path, change: str):
    save(manifest, tmp_path)
    file = tmp_path / "zh" / "manifest.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    record = tree["domains"]["zh"]
    match change:
        case "a key less":
            del record["rows"]
        case "a key more":
            record["columns"] = 1
        case "another type":
            record["rows"] = "many"
        case "no settings":
            tree["config"]["domains"] = [["en"]]
    del tree["manifest"]
    content = sealed(tree)
    content = content[: len(content) // 2] if change == "cut" else content
    file.write_bytes(content.replace(b"MIT", b"\xff") if change == "not UTF-8" else content)
    with pytest.raises(DataError, match=r"manifest\.json: .*damaged.*run prepare-data again") as refused:
        load_manifest(tmp_path, ["zh"])
    assert str(file) in str(refused.value)
