"""Manifest of a prepared data folder, manifest.json: sources, statistics of each domain, and size and hash of every other file.

The manifest contains a hash of itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from pangu_sigma.errors import DataError
from pangu_sigma.sealed import DamagedFile, as_json, sealed, unsealed, write_atomically

MANIFEST_FILE = "manifest.json"
DATA_FORMAT = 5
"""Format version of a prepared data folder; others are refused. Version 0.1.0 wrote 4, with counts of private data."""

EXTENDS = "extends"
"""Key of a manifest's `config`: fingerprint and content hash of the folder that was extended (`prepare-data --extend`)."""

_FIX = "the folder is damaged, run prepare-data again"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """Source of training text in the manifest. sha256: hash of the archive or file; None for text of Python's standard library."""

    name: str
    version: str
    licence: str
    sha256: str | None


class SplitCounts(_Record):
    """Statistics of one split of a domain: documents, tokens (<eot> and tags included), bytes of UTF-8, and <unk> tokens.

    folded: number of characters that normalisation changed (`Tokenizer.changed_by_normalisation`).
    """

    documents: int
    tokens: int
    bytes: int
    unknown: int
    folded: int


class OverlapRecord(_Record):
    """Overlap of a domain's held-out text with its training text, measured in n-grams, called windows (see `overlap`).

    window: number of tokens of a window. windows: number of windows in the held-out text. share: fraction of them that also occur
    in the training text and touch no boilerplate. boilerplate: fraction of the tokens that are in boilerplate, windows that occur
    in more than data.boilerplate_documents documents.
    wanted: number of held-out documents that the fraction held_out asks for. max_overlap, min_tokens: the domain's limits.
    passed_over, passed_over_tokens: number of candidates for the held-out text that are trained on, because they repeat other
    documents, and number of their tokens.
    boilerplate_windows: number of different boilerplate windows in the candidates.
    """

    window: int
    windows: int
    boilerplate: float
    share: float
    wanted: int
    max_overlap: float
    min_tokens: int
    passed_over: int
    passed_over_tokens: int
    boilerplate_windows: int


class DomainRecord(_Record):
    """Statistics of a domain in the manifest.

    rows: number of rows in use in the domain's embedding slot. unigram_entropy: baseline that a model must beat, in nats per
    held-out token: loss of a unigram model with the training counts plus ½ for every row of the slot.
    shift, shift_deviation: how much this loss is above that of as much text drawn at random from the domain, and the standard
    deviation of such draws, in nats.
    offered: number of documents read. Each is kept or counted in one of: duplicates (exact copies), near_duplicates (of an earlier
    document of any domain), too_long (one document longer than data.max_mib_per_domain), over_limit (left out because other
    documents fill that limit).
    offered_bytes, left_out_bytes: UTF-8 bytes of all documents read, and of the documents too long or over the limit.
    """

    slot: str
    rows: int
    offered: int
    duplicates: int
    too_long: int
    train: SplitCounts
    held_out: SplitCounts
    unigram_entropy: float
    shift: float
    shift_deviation: float
    sources: list[Source]
    over_limit: int
    offered_bytes: int
    left_out_bytes: int
    overlap: OverlapRecord
    near_duplicates: int


class NearDuplicatesRecord(_Record):
    """Search for near-duplicates. pairs: pairs of documents that were compared. passed_over: pairs that were not, of texts that
    very many documents share. groups: groups of near-duplicates, of which one document stays. lost: documents dropped, by the
    domain that lost them "to" the one whose document stays. examples: pairs of the document that stays and one that was dropped,
    shortened.
    """

    pairs: int
    passed_over: int
    groups: int
    lost: dict[str, int]
    examples: list[tuple[str, str]]


class FileRecord(_Record):
    """Size and content hash of a file in the manifest."""

    bytes: int
    xxh3_128: str


class Manifest(_Record):
    """Manifest of a prepared data folder.

    config: settings, inputs and versions that decide the content of the folder. fingerprint: sha256 of `config`.
    quarantined: number of unusable lines, by reason. examples: file, offset and detail of the first unusable line, by reason.
    near_duplicates: None if they were not searched.
    files: size and hash of every other file of the folder, by relative path.
    """

    fingerprint: str
    vocabulary_hash: str
    vocabulary_size: int
    domains: dict[str, DomainRecord]
    quarantined: dict[str, int]
    config: dict[str, Any]
    format: int = DATA_FORMAT
    examples: dict[str, str] = {}
    files: dict[str, FileRecord] = {}
    near_duplicates: NearDuplicatesRecord | None = None

    @property
    def content_hash(self) -> str:
        """Hash of the data: over the hashes of the token files and of the file of token counts."""
        content = {
            name: record.xxh3_128
            for name, record in self.files.items()
            if name.endswith((".bin", ".idx")) or name == "frequencies.npy"
        }
        return xxhash.xxh3_128_hexdigest(as_json(content))

    def save(self, folder: Path) -> None:
        """Write manifest.json, with its own hash, into a folder. Raises OSError."""
        write_atomically(folder / MANIFEST_FILE, sealed(self.model_dump(mode="json")))


def load_manifest(path: Path) -> Manifest:
    """Load the manifest of a prepared data folder. Raises DataError if it is missing, damaged or of another format."""
    file = path / MANIFEST_FILE
    if not file.exists():
        raise DataError(f"{file}: No such file or directory; run prepare-data first, or set data.path to that")
    try:
        tree = unsealed(file, _FIX)
        if tree.get("format") != DATA_FORMAT:
            raise DataError(
                f"{file}: data format {tree.get('format')}, this version reads {DATA_FORMAT}; run prepare-data again. Version "
                "0.1.0 (commit ab9cf900) reads formats 3 and 4"
            )
        return Manifest.model_validate(tree)
    except DamagedFile as error:
        raise DataError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise DataError(f"{file}: damaged: {where}: {first['msg']}; run prepare-data again") from error
