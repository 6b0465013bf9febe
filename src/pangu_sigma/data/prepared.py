"""Reader of prepared data. What is read is verified against the hashes that the manifest of its domain seals; errors name the file.

    <domain>/train.{bin,idx} held_out.{bin,idx}    token files; shards of them if they are large (token_files.py)
    <domain>/frequencies.npy rows.npy              int64 [V] counts of the training tokens, int32 token ids of its slot's rows
    <domain>/hashes manifest.json                  hashes of the chunks of these files (token_files.py), and the seal
    tokenizer/                                     models of the token ids, which all domains share
    quarantine.jsonl                               input lines that could not be used

A configuration names the domains, and nothing is read of others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import MANIFEST_FILE, load_manifest
from pangu_sigma.data.token_files import HASH_BYTES, HASHES_NAME, Tokens, VerifiedFile, chunks_of, token_shards
from pangu_sigma.errors import DataError, argument, in_words
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sealed import DamagedFile, verify
from pangu_sigma.text.tokenizer import MODELS, Tokenizer

TOKENIZER_NAME, QUARANTINE_NAME = "tokenizer", "quarantine.jsonl"
"""Names in the folder of prepared data."""
FREQUENCIES_NAME, ROWS_NAME = "frequencies.npy", "rows.npy"
"""Names in the folder of a domain."""
SPLITS = ("train", "held_out")

_FIX = "the prepared data is damaged or is of another preparation; remove the folder and run prepare-data again"

_KEYS = {"english_pieces": "vocabulary"} | dict.fromkeys(
    [
        *("text_key", "domain_of", "max_mib_per_domain", "near_duplicates", "held_out", "max_overlap"),
        *("boilerplate_documents", "max_boilerplate", "min_held_out_tokens", "max_held_out_tokens"),
    ],
    "data",
)
"""Keys that decide how text is prepared → their section."""
DOMAIN_KEYS = ("name", "format", "language", "slot", "held_out", "max_overlap", "min_held_out_tokens")
"""Such keys of a domain, in the order of the manifest (`Manifest.settings`)."""


class PreparedData:
    """Prepared data of a run's domains, which `prepare-data` wrote. manifest: manifest of these domains."""

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """names: domains, in this order; None: all that are there. Raises ConfigError for a domain that is not there, DataError for
        a manifest that is missing, damaged or of another format."""
        if problem := missing_domains(folder, names or ()):
            raise ConfigError(problem)
        self.folder, self.manifest = folder, load_manifest(folder, names)
        self._domain_and_hashes = "", b""  # content of the file `hashes` of the domain that was read last

    def file(self, domain: str, name: str) -> VerifiedFile:
        """Open a file of a domain's folder, with the hashes of its chunks: the file `hashes` has the hashes of all files, end to
        end in the order of names. Raises DataError if the file is missing, or has another size than was written."""
        path, files = self.folder / domain / name, self.manifest.domains[domain].files
        if name not in files:
            raise DataError(
                f"{path}: is not among the files of {MANIFEST_FILE}; remove the folder and run prepare-data again"
            )
        begin = sum(HASH_BYTES * chunks_of(size) for other_name, size in files.items() if other_name < name)
        end = begin + HASH_BYTES * chunks_of(files[name])
        return VerifiedFile(path, files[name], self._hashes_of(domain)[begin:end])

    def _hashes_of(self, domain: str) -> bytes:
        """Return the content of a domain's file `hashes`. It is read again if the last call asked for another domain. Raises
        DataError for a missing or damaged file."""
        if domain != self._domain_and_hashes[0]:
            path = self.folder / domain / HASHES_NAME
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(in_words(error, path, "remove the folder and run prepare-data again")) from error
            if xxhash.xxh3_128_hexdigest(content) != self.manifest.domains[domain].hashes:
                raise DataError(f"{path}: its content hash is not what was written; {_FIX}")
            self._domain_and_hashes = domain, content
        return self._domain_and_hashes[1]

    def tokens(self, domain: str, split: str, vocabulary: int) -> Tokens:
        """Open the tokens of a domain and split. vocabulary: number of ids V; reading an id >= V raises DataError. Raises DataError
        if a file is missing or has another size than was written. The content is verified when it is read."""
        # without any shard, `file` raises the error, which names the file of the split
        shards = token_shards(split, self.manifest.domains[domain].files) or [split]
        files = [(self.file(domain, f"{shard}.bin"), self.file(domain, f"{shard}.idx")) for shard in shards]
        return Tokens(files, vocabulary)

    def frequencies(self) -> np.ndarray:
        """Return the count of every token id in the training text of each domain, [D, V] int64. Raises DataError for damage."""
        return np.stack([self._array(domain, FREQUENCIES_NAME) for domain in self.manifest.domains])

    def tokenizer(self, config: Config | None = None) -> Tokenizer:
        """Return the tokenizer that encoded the text, with the embedding slots of a configuration; None: of the preparation.

        Each domain was prepared with a list of token ids, the rows of its slot. A slot gets the longest list of its domains. Raises
        ConfigError if another list of the slot is not the beginning of the longest, or if a list has more than `model.slot_rows`
        ids, and DataError for a damaged file."""
        slots = {name: record.slot for name, record in self.manifest.domains.items()}
        row_limit = self.manifest.config["slot_rows"]
        if config is not None:
            slots, row_limit = {domain.name: domain.slot for domain in config.domains}, config.model.slot_rows
        ids_of_slot: dict[str, np.ndarray] = {}
        for name, slot in slots.items():
            rows_R = self.rows(name)
            slot_R = ids_of_slot.setdefault(slot, rows_R)
            if len(rows_R) > row_limit or (rows_R[: len(slot_R)] != slot_R[: len(rows_R)]).any():
                raise ConfigError(
                    f"data.path={self.folder}: domain {name} was prepared with {len(rows_R)} rows, which do not fit slot {slot} "
                    f"of model.slot_rows={row_limit}, or its other domains; raise it, or run prepare-data with this configuration"
                )
            ids_of_slot[slot] = max(slot_R, rows_R, key=len)
        # -1 marks a row without a token
        slot_rows = [np.pad(ids_R, (0, row_limit - len(ids_R)), constant_values=-1) for ids_R in ids_of_slot.values()]
        alpha, english = (self._model(name) for name in MODELS)
        return Tokenizer(alpha, english, np.stack(slot_rows))

    def rows(self, domain: str) -> np.ndarray:
        """Return the token id of each row that a domain was prepared with in its slot, int32. Raises DataError for damage."""
        return self._array(domain, ROWS_NAME)

    def _array(self, domain: str, name: str) -> np.ndarray:
        return np.asarray(np.load(io.BytesIO(self.file(domain, name).read())))

    def _model(self, name: str) -> bytes:
        """Return the content of a model of the tokenizer. Raises DataError if it is not what was written."""
        file = self.folder / TOKENIZER_NAME / name
        try:
            verify(file, self.manifest.models[name].model_dump(), _FIX)
        except DamagedFile as error:
            raise DataError(str(error)) from error
        return file.read_bytes()

    def verify_all(self) -> None:
        """Read and verify all files. Raises DataError for damage, and for another number of tokens than the manifest has."""
        for name, record in self.manifest.domains.items():
            for split, counts in zip(SPLITS, (record.train, record.held_out), strict=True):
                if (tokens := self.tokens(name, split, self.manifest.vocabulary_size).tokens) != counts.tokens:
                    raise DataError(
                        f"{self.folder / name}: the files of {split} have {tokens:,} tokens, {counts.tokens:,} were counted; {_FIX}"
                    )
            for file in Bar(record.files, desc=f"verifying {name}", unit="file"):
                self.file(name, file).check()
        self.tokenizer()  # verifies its models


def missing_domains(folder: Path, names: Sequence[str]) -> str:
    """Return a message if the prepared data in a folder lack one of these domains, or ""; also "" if there are no prepared data."""
    prepared = sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST_FILE}"))
    if not prepared or all((folder / name).is_dir() for name in names):
        return ""
    return (
        f"data.path={folder} holds domains {', '.join(prepared)}, this configuration has {', '.join(names)}; run prepare-data "
        f"with {argument('--extend')} to add the missing ones, or choose another data.path"
    )


def preparation_settings(config: Config) -> dict[str, Any]:
    """Return the values of the keys that decide how text is prepared, as the manifest records them."""
    return {
        "domains": [[getattr(domain, key) for key in DOMAIN_KEYS] for domain in config.domains],
        **{key: getattr(config, section).model_dump()[key] for key, section in _KEYS.items()},
    }


def unlike_prepared(config: Config) -> list[str]:
    """Return a sentence for each key that decides how text is prepared, and whose value has changed since the preparation."""
    settings, path = preparation_settings(config), Path(config.data.path)
    triples: list[tuple[str, Any, Any]] = []  # key, value in the configuration, value of the preparation
    for number, values in enumerate(settings["domains"]):
        manifest = load_manifest(path, [values[0]])
        prepared = settings | manifest.config
        triples += [(f"{section}.{key}", settings[key], prepared[key]) for key, section in _KEYS.items()]
        keys = [f"domains.{number}.{key}" for key in DOMAIN_KEYS]
        triples += zip(keys, values, manifest.settings(values[0]), strict=True)
    sentences = [
        f"{key}={_text(value)}: {path} was prepared with {_text(old)}; remove the folder and run prepare-data again to use it"
        for key, value, old in triples
        if value != old
    ]
    return list(dict.fromkeys(sentences))  # domains that were prepared together differ in the same keys


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def is_prepared(path: Path) -> bool:
    """Return True for a folder that `prepare-data` wrote, also in an older format."""
    return (path / TOKENIZER_NAME).is_dir() and any([*path.glob(MANIFEST_FILE), *path.glob(f"*/{MANIFEST_FILE}")])


def data_of(config: Config) -> PreparedData:
    """Open the domains of a configuration. Raises as `PreparedData`."""
    return PreparedData(Path(config.data.path), [domain.name for domain in config.domains])


def unigram_nats(counts_V: np.ndarray, slot_R: np.ndarray) -> np.ndarray:
    """Return -log p of each token id in nats, float64 [V], for a unigram model: p is proportional to the count plus ½ for ids with
    a row in an embedding slot; ids without a row get infinity. counts_V: token counts of the training text. slot_R: id of each row
    of the slot, -1 for a row without an id."""
    ids = slot_R[slot_R >= 0]
    smoothed = counts_V[ids] + 0.5
    nats_V = np.full(len(counts_V), np.inf)
    nats_V[ids] = -np.log(smoothed / smoothed.sum())
    return nats_V


def read_prepared_tokenizer(config: Config) -> Tokenizer:
    """Load the tokenizer of a configuration's prepared data. Raises ConfigError if a domain is missing or was prepared with rows
    that do not fit, DataError for missing or damaged data."""
    prepared = Path(config.data.path)
    if not prepared.exists():
        base = "" if prepared.is_absolute() else f" (relative to {Path.cwd()})"
        raise DataError(
            f"data.path={config.data.path} is not there{base}; run prepare-data first, or, if it was moved, set data.path"
        )
    return data_of(config).tokenizer(config)


def refuse_spare_rows(config: Config) -> None:
    """Raise ConfigError if a new run would have slots of more rows than its text was prepared with, and so rows without a token."""
    if config.model.slot_rows > (rows := data_of(config).manifest.config["slot_rows"]):
        raise ConfigError(
            f"data.path={config.data.path} has slots of {rows} rows, this configuration has model.slot_rows="
            f"{config.model.slot_rows}; run prepare-data with this configuration"
        )


def encodes(tokenizer: Tokenizer, prepared: Tokenizer) -> bool:
    """Return True if a run with `tokenizer` can read text that `prepared` encoded: both have the same token ids, and every row of
    the text's slots has the same token id in the run's slots, which may use more rows."""
    run_SR, text_SR = tokenizer.slot_rows, prepared.slot_rows  # -1: a row without a token id
    has_same_ids = tokenizer.vocabulary.pieces == prepared.vocabulary.pieces
    return has_same_ids and run_SR.shape == text_SR.shape and bool(((text_SR < 0) | (text_SR == run_SR)).all())


def drawn_tables(config: Config, tokenizer: Tokenizer) -> RoutingTable:
    """Draw the routing tables of a configuration for a tokenizer's ids; balanced tables need token counts of the prepared text.
    Raises as `PreparedData` if they cannot be read."""
    return draw_tables(
        config.routing,
        config.model.rre_layers,
        len(config.domains),
        tokenizer.size,
        config.model.experts_per_domain,
        data_of(config).frequencies() if config.routing.table == "balanced" else None,
        config.model.segments,
        config.model.common_experts,
        config.model.rows,
    )
