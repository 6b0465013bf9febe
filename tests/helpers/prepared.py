"""Prepared data made of token files, and into other prepared data: changed and sealed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers.manifests import manifest

from pangu_sigma.data.manifest import domains_in, read_manifest
from pangu_sigma.data.prepared import ROWS_NAME
from pangu_sigma.data.token_files import index_of, lengths_of, write_hashes


def seal(folder: Path) -> Path:
    """Give folders of loose token files manifests, of which no more is true than the hashes."""
    for path in folder.iterdir():
        record = manifest().domains["zh"].model_copy(update=_files(path))
        config = {"domains": [[path.name, "text", "en", "slot"]], "slot_rows": 1}
        manifest().model_copy(update={"domains": {path.name: record}, "config": config}).save(folder)
    return folder


def reseal(folder: Path, **changes: Any) -> None:
    """Make the files of all domains, as they are now, their content. changes: fields of their manifests."""
    for name in domains_in(folder):
        old = read_manifest(folder / name)
        record = old.domains[name].model_copy(update=_files(folder / name))
        old.model_copy(update={"domains": {name: record}, **changes}).save(folder)


def _files(folder: Path) -> dict[str, Any]:
    return dict(zip(("files", "hashes"), write_hashes(folder), strict=True))


def exchange_lengths(index: Path) -> None:
    """Give the first document of an `.idx` a token less and the second one more: an index that follows from its lengths."""
    lengths = lengths_of(index.read_bytes()).copy()
    lengths[:2] += np.array([-1, 1], "<i4")
    index.write_bytes(index_of(lengths))


def change_vocabulary(folder: Path) -> None:
    """Give two tokens of prepared data each other's row: the data are then those of this vocabulary."""
    for name in domains_in(folder):
        rows_R = np.load(folder / name / ROWS_NAME)
        rows_R[[10, 11]] = rows_R[[11, 10]]
        np.save(folder / name / ROWS_NAME, rows_R)
    reseal(folder)
