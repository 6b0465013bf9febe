"""Prepared data made into other prepared data: changed and sealed again, or as an earlier version left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pangu_sigma.data.manifest import FORMAT_FILE, MANIFEST_FILE, load_manifest
from pangu_sigma.data.prepared import file_records
from pangu_sigma.data.tokenizer import Tokenizer


def reseal(folder: Path, **changes: Any) -> None:
    """Make the files of a folder, as they are now, its content. changes: fields of the manifest."""
    manifest = load_manifest(folder).model_copy(update=changes)
    manifest.model_copy(update={"files": file_records(folder)}).save(folder)


def as_before_hashes(folder: Path) -> Path:
    """Take from a folder what format 1 did not have."""
    tree = load_manifest(folder).model_dump(mode="json")
    for name in ("format", "files", "examples"):
        del tree[name]
    for record in tree["domains"].values():
        for name in ("over_limit", "offered_bytes", "left_out_bytes"):
            del record[name]
    (folder / MANIFEST_FILE).write_text(json.dumps(tree, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / FORMAT_FILE).unlink()
    return folder


def change_vocabulary(folder: Path) -> None:
    """Give two tokens of a tokenizer folder each other's row; the data around it are then those of this vocabulary."""
    models = [(folder / f"{name}.model").read_bytes() for name in ("pangu_alpha", "english")]
    rows = Tokenizer.load(folder).slot_rows.copy()
    rows[0, [10, 11]] = rows[0, [11, 10]]
    other = Tokenizer(*models, rows)
    other.save(folder)
    reseal(folder.parent, vocabulary_hash=other.hash)
