"""Preparation of new domains alone, whose folders are added to prepared data (`prepare-data --extend`).

Of the old domains only the rows are read, and nothing is changed. Token ids are those that are there, and every slot keeps its
rows, to which tokens of the new domains are added; so runs that were trained on the old domains go on as before. Text of a new
domain is compared with its own domain only, as in any preparation.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import Manifest, domains_in, load_manifest, read_manifest
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.prepare import ONE_PROCESS, Options, prepare, preview, refuse_own_output
from pangu_sigma.data.prepare.stages.stage import stage_folder
from pangu_sigma.data.prepared import QUARANTINE_NAME, PreparedData
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import commit, write_atomically
from pangu_sigma.text.vocabulary import Vocabulary
from pangu_sigma.writable import folder_lock

logger = logging.getLogger(__name__)


class _WholeVocabulary(KeptVocabulary):
    """Vocabulary of prepared data, of which a slot of the same name keeps all rows, whatever domains are prepared now."""

    def ids(self, vocabulary: Vocabulary, domains: Domains, slot: int) -> list[int]:
        name = domains.slot_names[slot]
        if name not in self.domains.slot_names:
            return super().ids(vocabulary, domains, slot)
        rows_R = self.tokenizer.slot_rows[self.domains.slot_names.index(name)]
        return [int(token) for token in rows_R[rows_R >= 0]]


@dataclass(frozen=True)
class _Extension:
    """What a configuration adds to the domains in its data.path. old: names of its domains that are there. kept: their vocabulary.
    added: the configuration of the new domains alone."""

    old: list[str]
    kept: KeptVocabulary
    added: Config

    @classmethod
    def of(cls, config: Config) -> _Extension:
        """Examine data.path, after the move that a killed extension had begun. Raises ConfigError if it does not go with the
        configuration, DataError if it is damaged."""
        path = Path(config.data.path)
        _move(path)
        try:
            data = PreparedData(path)
        except DataError as error:
            raise type(error)(
                f"{argument('--extend')}: set data.path to prepared data that gets more domains. {error}"
            ) from error
        new_domains = [domain for domain in config.domains if domain.name not in data.manifest.domains]
        _refuse(config, data, bool(new_domains))
        slots = list(dict.fromkeys(record.slot for record in data.manifest.domains.values()))
        domains = [
            Domain(n, name, form, language, slots.index(slot), 0, 0, 1.0)
            for n, (name, form, language, slot, *_) in enumerate(data.manifest.config["domains"])
        ]
        kept = _WholeVocabulary(path, data.tokenizer(), Domains(domains, slots))
        data_config = config.data.model_copy(update={"phases": [], "path": str(_folder_of(path))})
        old = [domain.name for domain in config.domains if domain not in new_domains]
        return cls(old, kept, config.model_copy(update={"domains": new_domains, "data": data_config}))


def _refuse(config: Config, data: PreparedData, has_new: bool) -> None:
    """Raise ConfigError if a configuration changes a domain of prepared data, or its vocabulary, or adds no domain."""
    for domain in config.domains:
        if domain.name not in data.manifest.domains:
            continue
        prepared, configured = data.manifest.settings(domain.name)[1:4], [domain.format, domain.language, domain.slot]
        if configured != prepared:
            raise ConfigError(
                f"{argument('--extend')}: domain {domain.name} has format, language and slot {', '.join(prepared)} in {data.folder}"
                f", and {', '.join(configured)} in the configuration; its text is not prepared again, so keep them"
            )
        rows = len(data.rows(domain.name))
        if rows > config.model.slot_rows:
            raise ConfigError(
                f"{argument('--extend')}: slot {domain.slot} has {rows} rows in {data.folder}, which do not fit "
                f"model.slot_rows={config.model.slot_rows}; raise it"
            )
    if not has_new:
        raise ConfigError(
            f"data.path={data.folder} has all domains of the configuration; leave {argument('--extend')} out"
        )
    if config.vocabulary.english_model is not None:
        raise ConfigError(
            f"{argument('--extend')}: the English pieces of {data.folder} are kept, because its text is not prepared again; leave "
            f"out vocabulary.english_model={config.vocabulary.english_model}"
        )


def added_domains(config: Config) -> list[Domain]:
    """Return the domains of a configuration that its data.path lacks. Raises as `prepare_extension` does."""
    return list(domains_of(_Extension.of(config).added))


def preview_extension(config: Config, inputs: list[Path], options: Options = ONE_PROCESS) -> tuple[Manifest, list[str]]:
    """Examine text of the domains that data.path lacks, as `preview` does, and write nothing but a stage."""
    refuse_own_output(inputs, Path(config.data.path))
    extension = _Extension.of(config)
    return preview(extension.added, inputs, options, extension.kept)


def prepare_extension(config: Config, inputs: list[Path], options: Options = ONE_PROCESS) -> Manifest:
    """Prepare the domains of a configuration that its data.path lacks, and add their folders to it. Return the manifest of all.

    inputs: text of the new domains; lines of old domains are quarantined, because their text is not read. After a kill, the same
    call goes on. Raises ConfigError for a configuration that changes old domains, DataError for damage.
    """
    path = Path(config.data.path)
    refuse_own_output(inputs, path)
    extension = _Extension.of(config)
    names = [domain.name for domain in extension.added.domains]
    logger.info("preparing %s; %s in %s stay as they are", ", ".join(names), ", ".join(extension.old), path)
    prepare(extension.added, inputs, _folder_of(path), options, extension.kept)
    _move(path)
    return load_manifest(path, [domain.name for domain in config.domains])


def _folder_of(path: Path) -> Path:
    """Return the folder in which the extension of prepared data is prepared."""
    return path.with_name(f".{path.name}.extension")


def _move(path: Path) -> None:
    """Move the domains of an extension to prepared data, with its unusable lines, if it is complete.

    After a kill the next call ends the move. Raises DataError for errors of the file system and for other token ids, NotWritable if
    another process moves.
    """
    extension, quarantine = _folder_of(path), path / QUARANTINE_NAME
    if not extension.exists():
        return
    models, stage = load_manifest(path).models, stage_folder(extension)
    try:
        with folder_lock(extension):
            for name in domains_in(extension):
                if read_manifest(extension / name).models != models:
                    raise DataError(f"{extension / name}: it has other token ids than {path}; remove it")
            # after a kill its lines may be there already, and its own file may be gone
            lines, earlier_lines = (
                file.read_bytes() if file.exists() else b"" for file in (extension / QUARANTINE_NAME, quarantine)
            )
            if not earlier_lines.endswith(lines):
                write_atomically(quarantine, earlier_lines + lines)
            for name in domains_in(extension):
                commit(extension / name, path / name)
            if stage.exists():  # the kill came before its removal
                with folder_lock(stage):
                    shutil.rmtree(stage)
            shutil.rmtree(extension)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; call again when it can be written") from error
