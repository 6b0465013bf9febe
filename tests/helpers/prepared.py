"""Prepared data made of token files, and into other prepared data: changed and sealed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.data.indexed import index_of, read_lengths
from pangu_sigma.data.manifest import Manifest, load_manifest
from pangu_sigma.data.prepared import file_records
from pangu_sigma.text.tokenizer import Tokenizer


def seal(folder: Path) -> Path:
    """Give loose token files a manifest, which says no more than their hashes."""
    nothing: dict[str, Any] = {"domains": {}, "quarantined": {}, "config": {}}
    empty = Manifest(fingerprint="", vocabulary_hash="", vocabulary_size=0, **nothing)
    empty.model_copy(update={"files": file_records(folder)}).save(folder)
    return folder


def reseal(folder: Path, **changes: Any) -> None:
    """Make the files of a folder, as they are now, its content. changes: fields of the manifest."""
    manifest = load_manifest(folder).model_copy(update=changes)
    manifest.model_copy(update={"files": file_records(folder)}).save(folder)


def exchange_lengths(index: Path) -> None:
    """Give the first document of an `.idx` a token less and the second one more: an index that follows from its lengths."""
    lengths = read_lengths(index)
    lengths[:2] += np.array([-1, 1], "<i4")
    index.unlink()  # it may be a hard link
    index.write_bytes(index_of(lengths))


def change_vocabulary(folder: Path) -> None:
    """Give two tokens of a tokenizer folder each other's row; the data around it are then those of this vocabulary."""
    models = [(folder / f"{name}.model").read_bytes() for name in ("pangu_alpha", "english")]
    rows = Tokenizer.load(folder).slot_rows.copy()
    rows[0, [10, 11]] = rows[0, [11, 10]]
    other = Tokenizer(*models, rows)
    other.save(folder)
    reseal(folder.parent, vocabulary_hash=other.hash)
