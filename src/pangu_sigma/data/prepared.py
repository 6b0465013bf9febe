"""Reader of a prepared data folder. What is read is verified against the hashes of the manifest; an error names the file.

Small files are verified when they are opened, token files as they are read (`token_files.TokenFile`): an `.idx` whole, and of each
`.bin` the folder has the hashes of its chunks, in a file beside it, which is read with the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.indexed import hashes_of_file, token_shards
from pangu_sigma.data.manifest import MANIFEST_FILE, FileRecord, load_manifest
from pangu_sigma.data.token_files import Opener, TokenFile, Tokens, opener
from pangu_sigma.errors import DataError
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sealed import DamagedFile, fingerprint, verify
from pangu_sigma.text.tokenizer import Tokenizer

TOKENIZER_NAME, FREQUENCIES_NAME, QUARANTINE_NAME = "tokenizer", "frequencies.npy", "quarantine.jsonl"
"""Names of files and folders in a prepared data folder."""
SPLITS = ("train", "held_out")
HASHES_ENDING = ".hashes"
"""End of the name of the file with the hashes of a `.bin`'s chunks: `zh.train.hashes` of `zh.train.bin`."""

_FIX = "the prepared data is damaged or is of another preparation, run prepare-data again"


_KEYS = {
    "english_pieces": "vocabulary",
    "text_key": "data",
    "domain_of": "data",
    "reader": "data",
    "max_mib_per_domain": "data",
    "held_out": "data",
    "max_overlap": "data",
    "boilerplate_documents": "data",
    "max_boilerplate": "data",
    "min_held_out_tokens": "data",
    "max_held_out_tokens": "data",
    "near_duplicates": "data",
}
"""Keys that decide how text is prepared → their section."""
_DOMAIN_KEYS = ("name", "format", "language", "slot", "held_out", "max_overlap", "min_held_out_tokens")
"""Such keys of a domain, in the order of the manifest."""


class PreparedData:
    """Prepared data folder, written by `prepare-data`, with its `manifest`.

    Raises DataError for a manifest that is missing, damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)

    def require_domains(self, config: Config) -> None:
        """Raise ConfigError if a domain of a configuration has no tokens here."""
        names, files = [domain.name for domain in config.domains], self.manifest.files
        if not all(token_shards(f"{name}.train", files) for name in names):
            there = dict.fromkeys(name.partition(".")[0] for name in files if ".train." in name)
            raise ConfigError(
                f"data.path={self.folder} holds domains {', '.join(there)}, this configuration has {', '.join(names)}; set "
                "data.path to data of these domains, or run prepare-data with this configuration and another data.path"
            )

    def tokens(self, domain: str, split: str, vocabulary: int) -> Tokens:
        """Open the tokens of a domain and split. vocabulary: number of ids V; reading a chunk with another id raises DataError.

        Raises DataError if a `.bin` is missing or has another size than was written. Its content is verified as it is read.
        """
        name = f"{domain}.{split}"
        shards = token_shards(name, self.manifest.files) or [name]  # which is then missed by name
        return Tokens([self._token_file(shard, vocabulary) for shard in shards])

    def _token_file(self, shard: str, vocabulary: int) -> TokenFile:
        return TokenFile(
            self.folder / shard,
            vocabulary,
            self._record(f"{shard}.bin").bytes,
            partial(self._chunk_hashes, shard),
            opened=self._opened,
            index_hash=self._record(f"{shard}.idx").xxh3_128,
        )

    @cached_property
    def _opened(self) -> Opener:
        return opener()

    def _chunk_hashes(self, shard: str) -> bytes:
        """Return the hashes of the chunks of a shard, end to end. Raises DataError if their file is damaged."""
        self.verify(f"{shard}{HASHES_ENDING}")
        return (self.folder / f"{shard}{HASHES_ENDING}").read_bytes()

    def frequencies(self) -> np.ndarray:
        """Return the count of every token id in the training text of each domain, [D, V] int64. Raises DataError for damage."""
        file = self.folder / FREQUENCIES_NAME
        self.verify(FREQUENCIES_NAME)
        try:
            return np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file}: cannot be read: {error}; run prepare-data again") from error

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer that encoded the text. Raises DataError if a file of it differs from the manifest."""
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
        """Check size and hash of the file `name` against the manifest. Raises DataError if they differ."""
        recorded = self._record(name)
        try:
            verify(self.folder / name, {"bytes": recorded.bytes, "xxh3_128": recorded.xxh3_128}, _FIX)
        except DamagedFile as error:
            raise DataError(str(error)) from error

    def verify_all(self) -> None:
        """Check size and hash of every file against the manifest, which must have all tokens that it counts. Raises DataError if
        they differ."""
        files = self.manifest.files
        for name, domain in self.manifest.domains.items():
            for split, counts in (("train", domain.train), ("held_out", domain.held_out)):
                tokens = sum(files[f"{each}.bin"].bytes for each in token_shards(f"{name}.{split}", files)) // 4
                if tokens != counts.tokens:
                    raise DataError(
                        f"{self.folder}: the files of {name}.{split} have {tokens:,} tokens, {counts.tokens:,} were counted; {_FIX}"
                    )
        for name in self.manifest.files:
            self.verify(name)

    def _record(self, name: str) -> FileRecord:
        if name not in self.manifest.files:
            raise DataError(
                f"{self.folder / name}: is not among the files of {MANIFEST_FILE}; run prepare-data again with this configuration"
            )
        return self.manifest.files[name]


def preparation_settings(config: Config) -> dict[str, Any]:
    """Return the values of the keys that decide how text is prepared, as the manifest records them."""
    return {
        "domains": [[getattr(domain, key) for key in _DOMAIN_KEYS] for domain in config.domains],
        **{key: getattr(config, section).model_dump()[key] for key, section in _KEYS.items()},
    }


def unlike_prepared(config: Config) -> list[str]:
    """Return a sentence for each such key whose value differs from that which the data of a configuration were prepared with."""
    there, here = load_manifest(Path(config.data.path)).config, preparation_settings(config)
    pairs = [(f"{section}.{key}", here[key], there.get(key, here[key])) for key, section in _KEYS.items()]
    domains = {values[0]: values for values in there.get("domains", here["domains"])}
    pairs.append(("domains", [values[0] for values in here["domains"]], [*domains]))
    for number, values in enumerate(here["domains"]):
        names = [f"domains.{number}.{key}" for key in _DOMAIN_KEYS]
        pairs += zip(names, values, domains.get(values[0], values), strict=True)
    return [
        f"{key}={_text(value)}: {config.data.path} was prepared with {_text(prepared)}; run prepare-data again to use it"
        for key, value, prepared in pairs
        if value != prepared
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_frequencies(folder: Path, domains: int, vocabulary: int) -> np.ndarray:
    """Return the token counts [D, V] of the training text of a prepared data folder. Raises DataError for another shape."""
    counts = PreparedData(folder).frequencies()
    if counts.shape != (domains, vocabulary):
        raise DataError(
            f"{folder / FREQUENCIES_NAME}: has the shape {counts.shape}, {domains} domains and {vocabulary} ids need "
            f"{(domains, vocabulary)}; run prepare-data with this configuration"
        )
    return counts


def unigram_nats(counts_V: np.ndarray, slot_R: np.ndarray) -> np.ndarray:
    """Return the unigram loss of each id in nats, float64 [V], from counts plus ½ for every row in use; infinity for an id without
    a row.

    counts_V: token counts of the training text. slot_R: id of each row of the slot, -1 for a row without one.
    """
    used = slot_R[slot_R >= 0]
    smoothed = counts_V[used] + 0.5
    nats_V = np.full(len(counts_V), np.inf)
    nats_V[used] = -np.log(smoothed / smoothed.sum())
    return nats_V


def read_prepared_tokenizer(config: Config) -> Tokenizer:
    """Load the tokenizer of a configuration's prepared data.

    Raises ConfigError if a domain is missing or the tokenizer was made for other embedding slots, DataError if the data is
    missing or damaged.
    """
    prepared = Path(config.data.path)
    if not prepared.exists():
        began = "" if prepared.is_absolute() else f", below {Path.cwd()}"
        raise DataError(
            f"data.path={config.data.path} is not there{began}; run prepare-data first, or, if it was moved, set data.path"
        )
    data = PreparedData(prepared)
    data.require_domains(config)
    tokenizer = data.tokenizer()
    if tokenizer.slot_rows.shape != (config.slots, config.model.slot_rows):
        raise ConfigError(
            f"data.path={config.data.path}: its tokenizer has {tokenizer.slot_rows.shape[0]} slots of "
            f"{tokenizer.slot_rows.shape[1]} rows, this configuration has {config.slots} of {config.model.slot_rows}; "
            "run prepare-data with this configuration"
        )
    return tokenizer


def drawn_tables(config: Config, tokenizer: Tokenizer) -> RoutingTable:
    """Draw the routing tables of a configuration for a tokenizer's ids; balanced tables use token counts of the prepared text."""
    return draw_tables(
        config.routing,
        config.model.rre_layers,
        len(config.domains),
        tokenizer.size,
        config.model.experts_per_domain,
        PreparedData(Path(config.data.path)).frequencies() if config.routing.table == "balanced" else None,
        config.model.segments,
        config.model.common_experts,
        config.model.rows,
    )


def file_records(folder: Path, known: Collection[str] = ()) -> dict[str, FileRecord]:
    """Return size and hash of every file below a folder, by relative path; the manifest is left out. Raises OSError.

    The hashes of each `.bin`'s chunks are written to a file beside it, over an earlier one. Each file is read once.
    known: relative paths of files to leave out, whose records are known.
    """
    records = {}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    names = [file.relative_to(folder).as_posix() for file in files if file.suffix != HASHES_ENDING]
    for name in Bar([name for name in names if name not in known], desc="hashing", unit="file"):
        file = folder / name
        if file.suffix != ".bin":
            records[name] = FileRecord(**fingerprint(file))
            continue
        whole, chunks = hashes_of_file(file)
        records[name] = FileRecord(bytes=file.stat().st_size, xxh3_128=whole)
        file.with_suffix(HASHES_ENDING).write_bytes(chunks)
        records[name.removesuffix(".bin") + HASHES_ENDING] = FileRecord(
            bytes=len(chunks), xxh3_128=xxhash.xxh3_128_hexdigest(chunks)
        )
    return records
