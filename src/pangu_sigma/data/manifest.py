"""The manifest of a prepared data folder, manifest.json: its content, and what that was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pangu_sigma.errors import DataError


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """A source of text. sha256: that of the archive or file; None for the library of the running Python."""

    name: str
    version: str
    licence: str
    sha256: str | None


class SplitCounts(_Record):
    """Counts of one split of a domain: documents, tokens (<eot> and tags included), bytes of UTF-8, and <unk> tokens."""

    documents: int
    tokens: int
    bytes: int
    unknown: int


class DomainRecord(_Record):
    """The record of a domain.

    rows: number of rows in use of its slot.
    unigram_entropy: nats per token that the training frequencies, plus ½ for every row of the slot, need for the
    held-out tokens: what a model must beat.
    offered, duplicates, too_long: documents that came in, exact copies left out, documents that are longer than
    data.max_mib_per_domain by themselves.
    """

    slot: str
    rows: int
    offered: int
    duplicates: int
    too_long: int
    train: SplitCounts
    held_out: SplitCounts
    unigram_entropy: float
    sources: list[Source]


class Manifest(_Record):
    """The record of the whole folder.

    fingerprint: sha256 of everything that decides its content. config: that itself.
    """

    fingerprint: str
    vocabulary_hash: str
    vocabulary_size: int
    domains: dict[str, DomainRecord]
    quarantined: dict[str, int]
    config: dict[str, Any]

    @property
    def content_hash(self) -> str | None:
        """Hash of everything that training reads of the folder; None for data that was prepared without hashes."""
        return None

    def save(self, folder: Path) -> None:
        (folder / "manifest.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_manifest(path: Path) -> Manifest:
    """The manifest of a prepared data folder; DataError when there is none or it is damaged."""
    file = path / "manifest.json"
    try:
        return Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; run prepare-data first, or set data.path to its output") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: damaged: {error}; run prepare-data again") from error
