"""The manifest of a prepared data folder, manifest.json: its content, what that was made from, and what became of the text.

It is sealed with its own hash and has size and content hash of every other file of the folder. The number of the format stands in
the file FORMAT too, so that a manifest that was lost, or replaced by one without hashes, is damage and not age.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from pangu_sigma.errors import DataError
from pangu_sigma.sealed import DamagedFile, as_json, sealed, unsealed, write_atomically

MANIFEST_FILE, FORMAT_FILE = "manifest.json", "FORMAT"
DATA_FORMAT = 2
"""Version of the folder. Format 1 has no content hashes; a reader refuses a later one."""

_FIX = "the folder is damaged, run prepare-data again"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """A source of text. sha256: that of the archive or file; None for the library of the running Python."""

    name: str
    version: str
    licence: str
    sha256: str | None


class SplitCounts(_Record):
    """Counts of one split of a domain: documents, tokens (<eot> and tags included), bytes of UTF-8, and <unk> tokens.

    folded: characters that do not come back as written (`Tokenizer.changed_by_normalisation`); None: data of an earlier version.
    """

    documents: int
    tokens: int
    bytes: int
    unknown: int
    folded: int | None = None


class OverlapRecord(_Record):
    """What the held-out text of a domain has in common with its training text, in windows (data/overlap.py).

    window: tokens of a window. windows: number of them in the held-out text. share: fraction of them that stands in the training
    text. by_hash_alone: what that would be if no document were passed over.
    wanted: number of documents that data.held_out asks for.
    passed_over, passed_over_tokens: documents, and tokens of theirs, that are trained on because they repeat others.
    """

    window: int
    windows: int
    share: float
    by_hash_alone: float
    wanted: int
    passed_over: int
    passed_over_tokens: int


class DomainRecord(_Record):
    """The record of a domain.

    rows: number of rows in use of its slot.
    unigram_entropy: nats per token that the training frequencies, plus ½ for every row of the slot, need for the
    held-out tokens: what a model must beat.
    offered, duplicates, too_long, over_limit: documents that came in, exact copies left out, documents that are longer than
    data.max_mib_per_domain by themselves, documents left out because others fill it. What is offered is one of these or is kept.
    offered_bytes, left_out_bytes: UTF-8 of all documents that came in, and of those that are too long or over the limit.
    None: not recorded, in data of format 1.
    overlap: None in data of an earlier version, which held out documents that repeat others.
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
    over_limit: int | None = None
    offered_bytes: int | None = None
    left_out_bytes: int | None = None
    overlap: OverlapRecord | None = None


class FileRecord(_Record):
    """Size and content hash of a file.

    chunks: hash of every `chunk_bytes` bytes of a token file, so that each is verified when first read; the last may be shorter.
    """

    bytes: int
    xxh3_128: str
    chunk_bytes: int = 0
    chunks: list[str] = []


class Manifest(_Record):
    """The record of the whole folder.

    fingerprint: sha256 of everything that decides its content. config: that itself.
    quarantined: number of unusable lines by reason. examples: file, offset and detail of the first line of each reason.
    files: every other file of the folder, by its path in it.
    """

    fingerprint: str
    vocabulary_hash: str
    vocabulary_size: int
    domains: dict[str, DomainRecord]
    quarantined: dict[str, int]
    config: dict[str, Any]
    format: int = 1
    examples: dict[str, str] = {}
    files: dict[str, FileRecord] = {}

    @property
    def content_hash(self) -> str | None:
        """A hash over the fingerprints of token files and frequencies; None for data of format 1, which has none."""
        content = {
            name: record.xxh3_128
            for name, record in self.files.items()
            if name.endswith((".bin", ".idx")) or name == "frequencies.npy"
        }
        return xxhash.xxh3_128_hexdigest(as_json(content)) if content else None

    def save(self, folder: Path) -> None:
        """Write it, sealed. Raises OSError."""
        write_atomically(folder / MANIFEST_FILE, sealed(self.model_dump(mode="json")))


def load_manifest(path: Path) -> Manifest:
    """The manifest of a prepared data folder, of any format up to this one; DataError when there is none or it is damaged."""
    file = path / MANIFEST_FILE
    try:
        tree = json.loads(file.read_bytes())
        if _is_sealed(path, tree):
            tree = unsealed(file, _FIX)
        manifest = Manifest.model_validate(tree)
    except FileNotFoundError as error:
        first = _FIX if (path / FORMAT_FILE).exists() else "run prepare-data first, or set data.path to its output"
        raise DataError(f"{file}: {error.strerror}; {first}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from error
    except DamagedFile as error:
        raise DataError(str(error)) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{file}: damaged: {_first_line(error)}; run prepare-data again") from error
    if manifest.format > DATA_FORMAT:
        raise DataError(
            f"{file}: data format {manifest.format}, this version reads 1 … {DATA_FORMAT}; use the version that wrote it"
        )
    return manifest


def _is_sealed(path: Path, tree: Any) -> bool:
    """True unless the folder is of format 1, whose manifest has neither a format nor a seal."""
    return (path / FORMAT_FILE).exists() or (isinstance(tree, dict) and "format" in tree)


def _first_line(error: Exception) -> str:
    """What is wrong, in one line: pydantic writes several."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return str(error)
