"""A prepared data folder, opened: what it gives out is what `prepare-data` wrote, or it raises with the name of the file.

Small files are verified when they are asked for, token files as they are read (`indexed.TokenFile`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.data.indexed import CHUNK_BYTES, TokenFile, hashes_of_chunks, paths_of
from pangu_sigma.data.manifest import MANIFEST_FILE, FileRecord, load_manifest
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import DamagedFile, fingerprint, verify

TOKENIZER_NAME, FREQUENCIES_NAME, QUARANTINE_NAME = "tokenizer", "frequencies.npy", "quarantine.jsonl"
SPLITS = ("train", "held_out")

_FIX = "the prepared data is damaged or is of another preparation, run prepare-data again"


class PreparedData:
    """The files of a folder that `prepare-data` wrote.

    Raises DataError as `load_manifest`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)

    def tokens(self, domain: str, split: str, vocabulary: int) -> TokenFile:
        """The text of a domain. vocabulary: V. Raises DataError as `TokenFile`, and when it is not the text of this folder."""
        prefix = self.folder / f"{domain}.{split}"
        data, index = paths_of(prefix)
        self.verify(index.name)
        record = self._record(data.name)
        return TokenFile(prefix, vocabulary, record.chunks, record.chunk_bytes)

    def frequencies(self) -> np.ndarray:
        """Occurrences of every id in the training text, [D, V] int64. Raises DataError."""
        file = self.folder / FREQUENCIES_NAME
        self.verify(FREQUENCIES_NAME)
        try:
            return np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file}: cannot be read: {error}; run prepare-data again") from error

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text was encoded with. Raises DataError."""
        folder = self.folder / TOKENIZER_NAME
        for name in self.manifest.files:
            if name.startswith(f"{TOKENIZER_NAME}/"):
                self.verify(name)
        tokenizer = Tokenizer.load(folder)
        if tokenizer.hash != self.manifest.vocabulary_hash:
            raise DataError(
                f"{folder}: its hash is {tokenizer.hash[:12]}…, {MANIFEST_FILE} says {self.manifest.vocabulary_hash[:12]}…; {_FIX}"
            )
        return tokenizer

    def verify(self, name: str) -> None:
        """Raise DataError unless a file is the one that was written."""
        recorded = self._record(name)
        try:
            verify(self.folder / name, {"bytes": recorded.bytes, "xxh3_128": recorded.xxh3_128}, _FIX)
        except DamagedFile as error:
            raise DataError(str(error)) from error

    def verify_all(self) -> None:
        """Raise DataError unless every file is as it was written."""
        for name in self.manifest.files:
            self.verify(name)

    def _record(self, name: str) -> FileRecord:
        if name not in self.manifest.files:
            raise DataError(
                f"{self.folder / name}: is not among the files of {MANIFEST_FILE}; run prepare-data again with this configuration"
            )
        return self.manifest.files[name]


def read_frequencies(folder: Path, domains: int, vocabulary: int) -> np.ndarray:
    """Token counts [D, V] of the training text in a folder that `prepare-data` wrote. Raises DataError if they do not fit."""
    found = PreparedData(folder).frequencies()
    if found.shape != (domains, vocabulary):
        raise DataError(
            f"{folder / FREQUENCIES_NAME}: has the shape {found.shape}, {domains} domains and {vocabulary} ids need "
            f"{(domains, vocabulary)}; run prepare-data with this configuration"
        )
    return found


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and hashes of every file in a folder and its folders, by path, the manifest excepted. Raises OSError."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE):
        chunks = hashes_of_chunks(file) if file.suffix == ".bin" else []
        record = FileRecord(**fingerprint(file), chunks=chunks, chunk_bytes=CHUNK_BYTES if chunks else 0)
        found[file.relative_to(folder).as_posix()] = record
    return found
