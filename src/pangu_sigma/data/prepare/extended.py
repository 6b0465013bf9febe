"""Preparation of the text of new domains alone, for a configuration that adds them to others (`prepare-data --extend`).

The token files of the old domains are hard links to those of the old folder, or copies on another file system; their text is not
needed. The vocabulary is the old folder's: ids do not change, every slot keeps its rows, and rows that are left go to tokens of the
new domains. So held-out text, counts and ids of old domains stay as they were; text of a new domain is compared with its own domain
only, as in any preparation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import EXTENDS, MANIFEST_FILE, FileRecord, Manifest
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.prepare import ONE_PROCESS, Options, prepare, preview
from pangu_sigma.data.prepare.subset import link
from pangu_sigma.data.prepared import FREQUENCIES_NAME, QUARANTINE_NAME, TOKENIZER_NAME, PreparedData, file_records
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import commit
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class _WholeVocabulary(KeptVocabulary):
    """Vocabulary of a prepared folder, of which a slot of the same name keeps all rows, whatever domains are prepared now."""

    def ids(self, vocabulary: Vocabulary, domains: Domains, slot: int) -> list[int]:
        name = domains.slot_names[slot]
        if name not in self.domains.slot_names:
            return super().ids(vocabulary, domains, slot)
        rows_R = self.tokenizer.slot_rows[self.domains.slot_names.index(name)]
        return [int(each) for each in rows_R[rows_R >= 0]]


@dataclass(frozen=True)
class _Extension:
    """Prepared folder `old`, and what a configuration adds to it. names: its domains, in the order of its token counts.

    added: the configuration of the new domains alone, whose text goes to a folder of its own first.
    """

    old: PreparedData
    names: list[str]
    kept: KeptVocabulary
    added: Config

    @classmethod
    def of(cls, config: Config, folder: Path) -> _Extension:
        """Examine the folder. Raises ConfigError if it does not go with the configuration, DataError if it is damaged."""
        if not (folder / MANIFEST_FILE).exists():
            what = "is not there" if not folder.exists() else "is not prepared data, which has a manifest.json"
            raise DataError(f"{argument('--extend')} {folder} {what}; name the data.path of a run")
        try:
            old = PreparedData(folder)
        except DataError as error:
            raise type(error)(f"{argument('--extend')} {folder}: name the data.path of a run. {error}") from error
        recorded = old.manifest.config["domains"]
        names = [each[0] for each in recorded]
        _refuse(config, folder, recorded)
        new = [domain for domain in config.domains if domain.name not in names]
        slots = list(dict.fromkeys(each[3] for each in recorded))
        domains = [
            Domain(n, name, form, language, slots.index(slot), 0, 0, 1.0)
            for n, (name, form, language, slot, *_) in enumerate(recorded)
        ]
        kept = _WholeVocabulary(folder, old.tokenizer(), Domains(domains, slots))
        path = Path(config.data.path)
        data = config.data.model_copy(update={"path": str(path.with_name(f".{path.name}.added")), "phases": []})
        return cls(old, names, kept, config.model_copy(update={"domains": new, "data": data}))


def _refuse(config: Config, folder: Path, recorded: list[list[Any]]) -> None:
    """Raise ConfigError if the configuration changes a domain of the folder, or its vocabulary, or adds no domain."""
    option, by_name = f"{argument('--extend')} {folder}", {domain.name: domain for domain in config.domains}
    for name, *was in recorded:
        if name not in by_name:
            raise ConfigError(
                f"{option} has domain {name}, the configuration has not: add it, or extract a smaller model"
            )
        now = [getattr(by_name[name], key) for key in ("format", "language", "slot")]
        if now != was[:3]:
            raise ConfigError(
                f"{option}: domain {name} has format, language and slot {', '.join(was[:3])} there, and {', '.join(now)} in the "
                "configuration; its text is not prepared again, so keep them"
            )
    if len(recorded) == len(by_name):
        raise ConfigError(f"{option} has all domains of the configuration; leave {argument('--extend')} out")
    if config.vocabulary.english_model is not None:
        raise ConfigError(
            f"{option}: its English pieces are kept, because its text is not prepared again; leave out "
            f"vocabulary.english_model={config.vocabulary.english_model}"
        )


def added_domains(config: Config, old: Path) -> list[Domain]:
    """Return the domains of a configuration that the folder `old` lacks. Raises as `prepare_extension` does."""
    return list(domains_of(_Extension.of(config, old).added))


def preview_extension(
    config: Config, inputs: list[Path], old: Path, options: Options = ONE_PROCESS
) -> tuple[Manifest, list[str]]:
    """Examine text of the domains that the folder `old` lacks, as `preview` does, and write nothing."""
    extension = _Extension.of(config, old)
    with _keys_of(config, extension.added):
        manifest, problems = preview(extension.added, inputs, options, extension.kept)
    return manifest, [_renumbered(problem, config, extension.added) for problem in problems]


def prepare_extension(
    config: Config, inputs: list[Path], old: Path, output: Path, options: Options = ONE_PROCESS
) -> Manifest:
    """Prepare the domains of a configuration that the prepared folder `old` lacks, and write `output` with all of them.

    inputs: text of the new domains; lines of old domains are quarantined, because their text is not read. After a kill, the same
    call goes on. Raises ConfigError for a configuration that changes old domains, or if `output` exists, DataError for damage.
    """
    extension = _Extension.of(config, old)
    if output.exists():
        raise ConfigError(
            f"data.path={output} exists, and {argument('--extend')} makes a new folder; choose another path, or remove it first"
        )
    new, kept = ", ".join(domain.name for domain in extension.added.domains), ", ".join(extension.names)
    logger.info("preparing %s; %s stay as they are in %s", new, kept, old)
    added = Path(extension.added.data.path)
    with _keys_of(config, extension.added):
        prepare(extension.added, inputs, added, options, extension.kept)
    manifest = join(config, extension.old, PreparedData(added), output)
    shutil.rmtree(added)
    return manifest


@contextmanager
def _keys_of(config: Config, added: Config) -> Iterator[None]:
    """Let errors of a `with` block name the keys of the whole configuration."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(_renumbered(str(error), config, added)) from error


def _renumbered(message: str, config: Config, added: Config) -> str:
    """Return a message about the added domains alone with the numbers that they have in the whole configuration."""
    numbers = {str(n): config.domains.index(domain) for n, domain in enumerate(added.domains)}
    return re.sub(r"\bdomains\.(\d+)\.", lambda found: f"domains.{numbers[found[1]]}.", message)


def join(config: Config, old: PreparedData, added: PreparedData, output: Path) -> Manifest:
    """Write the domains of two prepared folders of the same ids to the folder `output`, atomically, and return its manifest.

    Files are hashed where they were made. A `.bin` is compared by its size here, and each chunk is verified when it is first read;
    the other token files are small, and verified.
    Raises DataError if a file is damaged or missing, if ids or rows of `old` are not those of `added`, or if `output` cannot be
    written.
    """
    tokenizer = _joined_tokenizer(config, old, added)
    names = [domain.name for domain in config.domains]
    holder = {name: data for data in (old, added) for name in data.manifest.domains}
    with _appearing(output) as folder:
        files: dict[str, FileRecord] = {}
        for name in names:
            files |= _link_tokens(holder[name], name, folder)
        counts = {
            each[0]: row
            for data in (old, added)
            for each, row in zip(data.manifest.config["domains"], data.frequencies(), strict=True)
        }
        np.save(folder / FREQUENCIES_NAME, np.stack([counts[name] for name in names]))
        tokenizer.save(folder / TOKENIZER_NAME)
        added.verify(QUARANTINE_NAME)
        shutil.copyfile(added.folder / QUARANTINE_NAME, folder / QUARANTINE_NAME)
        files |= file_records(folder, files)
        manifest = _manifest(old.manifest, added.manifest, names, tokenizer, files)
        manifest.save(folder)
    return manifest


def _link_tokens(data: PreparedData, name: str, folder: Path) -> dict[str, FileRecord]:
    """Link the token files of a domain into a folder, and return their records."""
    found = {}
    for path, record in data.manifest.files.items():
        if not path.startswith((f"{name}.train.", f"{name}.held_out.")):
            continue
        source = data.folder / path
        if not path.endswith(".bin"):
            data.verify(path)
        elif (size := source.stat().st_size) != record.bytes:
            raise DataError(f"{source}: has {size} bytes, {record.bytes} were written; prepare all text again")
        link(source, folder / path)
        found[path] = record
    return found


def _joined_tokenizer(config: Config, old: PreparedData, added: PreparedData) -> Tokenizer:
    """Return the tokenizer with the slots of both folders: those of `added`, and those that only `old` has."""
    had, has = old.tokenizer(), added.tokenizer()
    if had.vocabulary.pieces != has.vocabulary.pieces:
        raise DataError(f"{added.folder}: its token ids are not those of {old.folder}; prepare the text of all domains")
    slots_of = [list(dict.fromkeys(each[3] for each in data.manifest.config["domains"])) for data in (old, added)]
    rows = np.full((config.slots, config.model.slot_rows), -1, np.int32)
    for slot, name in enumerate(domains_of(config).slot_names):
        before_R = had.slot_rows[slots_of[0].index(name)] if name in slots_of[0] else np.empty(0, np.int32)
        now_R = has.slot_rows[slots_of[1].index(name)] if name in slots_of[1] else before_R
        if len(now_R) > rows.shape[1] or not np.isin(before_R, [*now_R, -1]).all():
            raise DataError(
                f"slot {name}: its {len(before_R)} rows in {old.folder} do not fit model.slot_rows={rows.shape[1]}; raise it"
            )
        rows[slot, : len(now_R)] = now_R
    return had.with_rows(rows)


def _manifest(
    old: Manifest, added: Manifest, names: list[str], tokenizer: Tokenizer, files: dict[str, FileRecord]
) -> Manifest:
    origin = {"fingerprint": old.fingerprint, "content_hash": old.content_hash}
    settings = {each[0]: each for manifest in (old, added) for each in manifest.config["domains"]}
    whole = {EXTENDS: origin, "added": added.fingerprint, "domains": [settings[name] for name in names]}
    return Manifest(
        fingerprint=hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest(),
        vocabulary_hash=tokenizer.hash,
        vocabulary_size=tokenizer.size,
        domains={name: (old.domains | added.domains)[name] for name in names},
        quarantined=added.quarantined,
        examples=added.examples,
        near_duplicates=added.near_duplicates,
        config=added.config | whole,
        files=files,
    )


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """Make a folder to be filled in the block; it is `output` if the block succeeds, and is removed if it fails."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
            folder = Path(unfinished) / output.name
            folder.mkdir()
            yield folder
            commit(folder, output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror or error}; choose another data.path") from error
