"""Manifest of prepared data: sources, statistics and files of its domains, and how they were prepared.

Each domain is a folder with a sealed manifest.json of its own, so that a domain is added to others as that folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from pangu_sigma.errors import DataError
from pangu_sigma.sealed import DamagedFile, sealed, unsealed, write_atomically

MANIFEST_FILE = "manifest.json"
DATA_FORMAT = 8
"""Format version of a domain's folder; others are refused."""

_FIX = "remove the folder and run prepare-data again"


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
    folded: number of characters that normalisation changed (`Tokenizer.changed_by_normalisation`)."""

    documents: int
    tokens: int
    bytes: int
    unknown: int
    folded: int


class OverlapRecord(_Record):
    """Overlap of a domain's held-out text with its training text, measured in n-grams, called windows (prepare/held_out.py).

    window: number of tokens of a window. windows: number of windows in the held-out text. share: fraction of them that also occur
    in the training text and touch no boilerplate. boilerplate: fraction of the tokens that are in boilerplate, windows that occur
    in more than data.boilerplate_documents documents.
    wanted: number of held-out documents that the fraction held_out asks for. max_overlap, min_tokens: the domain's limits.
    passed_over, passed_over_tokens: number of candidates for the held-out text that are trained on, because they repeat other
    documents, and number of their tokens.
    boilerplate_windows: number of different boilerplate windows in the candidates."""

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


class InputCounts(_Record):
    """Counts of the text of a domain in the input.

    offered: number of documents read. Each is kept or counted in one of: duplicates (copies of an earlier document of the domain),
    near_duplicates (of an earlier document of any domain), too_long (longer than data.max_mib_per_domain by itself), over_limit
    (left out because other documents fill that limit).
    offered_bytes, left_out_bytes: UTF-8 bytes of all documents read, and of the documents too long or over the limit."""

    offered: int
    duplicates: int
    near_duplicates: int
    too_long: int
    over_limit: int
    offered_bytes: int
    left_out_bytes: int


class DomainRecord(InputCounts):
    """Statistics of a domain in the manifest.

    rows: number of rows in use in the domain's embedding slot. unigram_entropy: baseline that a model must beat, in nats per
    held-out token: loss of a unigram model with the training counts plus ½ for every row of the slot.
    shift, shift_deviation: how much this loss is above that of as much text drawn at random from the domain, and the standard
    deviation of such draws, in nats.
    files: size in bytes of every other file of the domain's folder, by name, but for `hashes`. hashes: hash of the file `hashes`,
    which has the hashes of all chunks of these files."""

    slot: str
    rows: int
    train: SplitCounts
    held_out: SplitCounts
    unigram_entropy: float
    shift: float
    shift_deviation: float
    sources: list[Source]
    overlap: OverlapRecord
    files: dict[str, int] = {}
    hashes: str = ""


class NearDuplicatesRecord(_Record):
    """Search for near-duplicates. pairs: number of pairs that were compared. groups: groups of near-duplicates, of which one
    document stays. lost: documents dropped, by the domain that lost them "to" the one whose document stays. examples: pairs of the
    document that stays and one that was dropped, shortened."""

    pairs: int
    groups: int
    lost: dict[str, int]
    examples: list[tuple[str, str]]

    def __add__(self, other: NearDuplicatesRecord) -> NearDuplicatesRecord:
        """Return the sum of the records of two searches, which read different texts."""
        lost = dict(Counter(self.lost) + Counter(other.lost))
        sums = {key: getattr(self, key) + getattr(other, key) for key in ("pairs", "groups", "examples")}
        return NearDuplicatesRecord(lost=lost, **sums)


class FileRecord(_Record):
    """Size and content hash of a file in the manifest."""

    bytes: int
    xxh3_128: str


class Manifest(_Record):
    """Manifest of prepared data: of one domain, as its folder has it, or of several.

    config: settings, inputs and versions that decide the content. fingerprint: sha256 of `config`.
    models: size and hash of the tokenizer's models, by name. vocabulary_size: number of their token ids V.
    quarantined: number of unusable lines, by reason. examples: file, offset and detail of the first unusable line, by reason.
    near_duplicates: None if they were not searched. These three tell of all text that was prepared together."""

    fingerprint: str
    models: dict[str, FileRecord]
    vocabulary_size: int
    domains: dict[str, DomainRecord]
    quarantined: dict[str, int]
    config: dict[str, Any]
    format: int = DATA_FORMAT
    examples: dict[str, str] = {}
    near_duplicates: NearDuplicatesRecord | None = None

    @property
    def content_hash(self) -> str:
        """Hash of the data of the domains, in their order."""
        return xxhash.xxh3_128_hexdigest(" ".join(record.hashes for record in self.domains.values()).encode())

    def settings(self, name: str) -> list[Any]:
        """Return the settings that the domain `name` was prepared with: its name, format, language, slot, and limits."""
        settings_of: dict[str, list[Any]] = {values[0]: values for values in self.config["domains"]}
        return settings_of[name]

    def save(self, folder: Path) -> None:
        """Write manifest.json, with its own hash, into the folder of each domain below `folder`. Raises OSError."""
        for name, record in self.domains.items():
            domain_manifest = self.model_copy(update={"domains": {name: record}})
            write_atomically(folder / name / MANIFEST_FILE, sealed(domain_manifest.model_dump(mode="json")))


def load_manifest(path: Path, names: Sequence[str] | None = None) -> Manifest:
    """Load the manifests of domains in the folder `path`, and merge them into one manifest, in the order of `names`; None: of all.

    Every manifest has the quarantined lines and near-duplicates of the whole preparation of its domain, so these are added once for
    each preparation. `config` is the first domain's, except for the settings of domains and the number of rows of a slot.
    Raises DataError if a manifest is missing, damaged or of another format, or if the domains have different token ids."""
    refuse_older(path)
    if not (names := domains_in(path) if names is None else names):
        raise DataError(
            f"{path}: no folder in it has a {MANIFEST_FILE}; run prepare-data first, or set data.path to that"
        )
    manifests = {name: read_manifest(path / name) for name in names}
    first = manifests[names[0]]
    for name, manifest in manifests.items():
        if manifest.models != first.models:
            raise DataError(f"{path / name}: it has other token ids than {path / names[0]}; prepare both together")
    preparations = {manifest.fingerprint: manifest for manifest in manifests.values()}.values()
    searches = [manifest.near_duplicates for manifest in preparations if manifest.near_duplicates is not None]
    rows = max(manifest.config.get("slot_rows", 0) for manifest in preparations)
    return first.model_copy(
        update={
            "domains": {name: manifest.domains[name] for name, manifest in manifests.items()},
            "config": first.config | {"domains": [manifests[name].settings(name) for name in names], "slot_rows": rows},
            "quarantined": dict(sum((Counter(manifest.quarantined) for manifest in preparations), Counter[str]())),
            "examples": {reason: text for manifest in preparations for reason, text in manifest.examples.items()},
            "near_duplicates": reduce(add, searches) if searches else None,
        }
    )


def domains_in(path: Path) -> list[str]:
    """Return the names of the domains in a folder of prepared data: domains that were prepared together are in the order of their
    configuration. Raises DataError if a manifest is damaged or of another format."""
    names = sorted(file.parent.name for file in path.glob(f"*/{MANIFEST_FILE}"))
    configured_names = (values[0] for name in names for values in read_manifest(path / name).config["domains"])
    return [name for name in dict.fromkeys(configured_names) if name in names]  # not all may be in this folder


def refuse_older(path: Path) -> None:
    """Raise DataError for prepared data of an older format, which had one manifest for all domains."""
    if (path / MANIFEST_FILE).exists():
        raise DataError(
            f"{path / MANIFEST_FILE}: data of format 5 or older, this version reads {DATA_FORMAT}; prepare the text again, with "
            "another data.path. Version 0.1.0 reads format 5 up to commit 677a3e74, and formats 3 and 4 up to commit ab9cf900"
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in the folder of a domain. Raises DataError if it is missing, damaged or of another format."""
    file = folder / MANIFEST_FILE
    if not file.exists():
        fix = _FIX if folder.is_dir() else "run prepare-data first, or set data.path to that"
        raise DataError(f"{file}: No such file or directory; {fix}")
    try:
        tree = unsealed(file, f"the folder is damaged, {_FIX}")
        if tree.get("format") != DATA_FORMAT:
            raise DataError(f"{file}: data format {tree.get('format')}, this version reads {DATA_FORMAT}; {_FIX}")
        manifest = Manifest.model_validate(tree)
        if [*manifest.domains] != [folder.name]:
            names = ", ".join(manifest.domains)
            raise DataError(f"{file}: is that of domain {names}; give the folder its name back")
        manifest.settings(folder.name)  # raises LookupError or TypeError for a `config` of another form
    except DamagedFile as error:
        raise DataError(str(error)) from error
    except (ValidationError, LookupError, TypeError) as error:
        raise DataError(
            f"{file}: damaged: its records have another form than data format {DATA_FORMAT}; {_FIX}"
        ) from error
    return manifest
