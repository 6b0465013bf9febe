"""Preparation of new domains alone, whose folders are added to prepared data (`prepare-data --extend`).

Of the old domains only the rows are read, and nothing is changed. Token ids are those that are there, and every slot keeps its
rows, to which tokens of the new domains are added; so runs that were trained on the old domains go on as before. Text of a new
domain is compared with its own domain only, as in any preparation.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import Manifest, load_manifest
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.prepare import ONE_PROCESS, Options, add_domains, moves_domains, prepare, preview
from pangu_sigma.data.prepare.stages.stage import staged
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class _WholeVocabulary(KeptVocabulary):
    """Vocabulary of prepared data, of which a slot of the same name keeps all rows, whatever domains are prepared now."""

    def ids(self, vocabulary: Vocabulary, domains: Domains, slot: int) -> list[int]:
        name = domains.slot_names[slot]
        if name not in self.domains.slot_names:
            return super().ids(vocabulary, domains, slot)
        rows_R = self.tokenizer.slot_rows[self.domains.slot_names.index(name)]
        return [int(token) for token in rows_R[rows_R >= 0]]


def _extension_of(config: Config) -> tuple[Config, KeptVocabulary]:
    """Return the configuration of the domains that data.path lacks, and the vocabulary that they keep. Raises ConfigError if
    data.path does not go with the configuration, DataError if it is damaged."""
    path = Path(config.data.path)
    if moves_domains(path):
        with staged(path, removed=True) as stage:
            add_domains(stage.path("write/output"), path)
    try:
        data = PreparedData(path)
    except DataError as error:
        raise DataError(
            f"{argument('--extend')}: set data.path to prepared data that gets more domains. {error}"
        ) from error
    new_domains = [domain for domain in config.domains if domain.name not in data.manifest.domains]
    _check_only_adds(config, data)
    slots = list(dict.fromkeys(record.slot for record in data.manifest.domains.values()))
    domains = [
        Domain(n, name, form, language, slots.index(slot), 0, 0, 1.0)
        for n, (name, form, language, slot, *_) in enumerate(data.manifest.config["domains"])
    ]
    vocabulary = _WholeVocabulary(path, data.tokenizer(), Domains(domains, slots))
    new_data = config.data.model_copy(update={"phases": []})
    return config.model_copy(update={"domains": new_domains, "data": new_data}), vocabulary


def _check_only_adds(config: Config, data: PreparedData) -> None:
    """Raise ConfigError if a configuration changes a domain of prepared data, or its vocabulary, or adds no domain."""
    old_domains = [domain for domain in config.domains if domain.name in data.manifest.domains]
    for domain in old_domains:
        _, form, language, slot, *_ = data.manifest.settings(domain.name)
        if (domain.format, domain.language, domain.slot) != (form, language, slot):
            raise ConfigError(
                f"{argument('--extend')}: domain {domain.name} has format, language and slot {form}, {language}, {slot} in "
                f"{data.folder}, and {domain.format}, {domain.language}, {domain.slot} in the configuration; its text is not "
                "prepared again, so keep them"
            )
        rows = len(data.rows(domain.name))
        if rows > config.model.slot_rows:
            raise ConfigError(
                f"{argument('--extend')}: slot {domain.slot} has {rows} rows in {data.folder}, which do not fit "
                f"model.slot_rows={config.model.slot_rows}; raise it"
            )
    if len(old_domains) == len(config.domains):
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
    return list(domains_of(_extension_of(config)[0]))


def preview_extension(config: Config, inputs: list[Path], options: Options = ONE_PROCESS) -> tuple[Manifest, list[str]]:
    """Examine text of the domains that data.path lacks, as `preview` does, and write nothing but a stage."""
    new_config, vocabulary = _extension_of(config)
    return preview(new_config, inputs, options, vocabulary)


def prepare_extension(config: Config, inputs: list[Path], options: Options = ONE_PROCESS) -> Manifest:
    """Prepare the domains of a configuration that its data.path lacks, and add their folders to it. Return the manifest of all.

    inputs: text of the new domains; lines of old domains are quarantined, because their text is not read. After a kill, the same
    call goes on. Raises ConfigError for a configuration that changes old domains, DataError for damage.
    """
    path = Path(config.data.path)
    new_config, vocabulary = _extension_of(config)
    new_names = [domain.name for domain in new_config.domains]
    logger.info("preparing %s; the other domains in %s stay as they are", ", ".join(new_names), path)
    prepare(new_config, inputs, path, options, vocabulary)
    return load_manifest(path, [domain.name for domain in config.domains])
