"""Preparation that goes on from what is there: a vocabulary to keep (`vocabulary.keep`), and new domains alone, whose folders are
added to prepared data (`prepare-data --extend`).

Of the old domains only the rows are read, and nothing is changed. Token ids stay, and every slot keeps its rows, to which tokens of
the new domains are added; so runs that were trained on the old domains go on as before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import domains_in, load_manifest, read_manifest
from pangu_sigma.data.prepare.stage import stage_folder, staged
from pangu_sigma.data.prepared import QUARANTINE_NAME, TOKENIZER_NAME, PreparedData
from pangu_sigma.domains import Domain, Domains, domains_of, matching_slot
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import DamagedFile, commit, unsealed, write_atomically
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import Vocabulary, matching_ids, special_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptVocabulary:
    """Vocabulary that a preparation keeps: tokenizer and domains of the run or the prepared data in the folder `run`. has_all_rows:
    True if a slot of the same name keeps all rows, whatever domains are prepared."""

    run: Path
    tokenizer: Tokenizer
    domains: Domains
    has_all_rows: bool = False

    @classmethod
    def of(cls, config: Config) -> KeptVocabulary | None:
        """Load the vocabulary of the run that `vocabulary.keep` names; None without this key. Raises ConfigError if it is no
        run."""
        if config.vocabulary.keep is None:
            return None
        run = Path(config.vocabulary.keep)
        try:
            body = unsealed(run / "configuration.json", "name another folder")
            return cls(run, Tokenizer.load(run / TOKENIZER_NAME), domains_of(parse_config(body["config"])))
        except (ConfigError, DataError, DamagedFile) as error:
            raise ConfigError(f"vocabulary.keep={run}: is no run folder ({error}); name one") from error

    def ids(self, vocabulary: Vocabulary, domains: Domains, slot: int) -> list[int]:
        """Return the token ids of `vocabulary` whose rows a slot of `domains` keeps, in the order of the old slot's rows.

        The old slot is the run's slot of the same name, or else its only slot. A row is kept if text in a language of both slots
        can contain its token, or if the token is a special one of the slot."""
        old_slot = matching_slot(domains.slot_names[slot], self.domains.slot_names)
        if old_slot is None:
            return []
        rows_R = self.tokenizer.slot_rows[old_slot]
        old_ids = rows_R[rows_R >= 0].tolist()
        name, old_name = domains.slot_names[slot], self.domains.slot_names[old_slot]
        if self.has_all_rows and name == old_name:
            return old_ids  # ids of prepared data do not change when domains are added
        usable_ids = vocabulary.producible(domains.languages(slot) & self.domains.languages(old_slot))
        usable_ids.update(special_ids(domains.in_slot(slot)))
        new_of_old = {old: new for new, old in enumerate(matching_ids(self.tokenizer.vocabulary, vocabulary).tolist())}
        kept_ids = [new_of_old[old] for old in old_ids if new_of_old.get(old) in usable_ids]
        logger.info("slot %s keeps %s rows of slot %s of %s", name, f"{len(kept_ids):,}", old_name, self.run)
        return kept_ids


def extension_of(config: Config) -> tuple[Config, KeptVocabulary]:
    """Return the two arguments of `prepare` that add domains: the configuration of the domains that data.path lacks, and the
    vocabulary of the others, which is kept. Raises ConfigError if data.path does not go with the configuration, DataError if it is
    damaged."""
    path = Path(config.data.path)
    if moves_domains(path):  # an earlier command was ended before it had moved all its domains
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
    old_domains = [  # their experts and weights do not matter here
        Domain(n, name, form, language, slots.index(slot), 0, 0, 1.0)
        for n, (name, form, language, slot, *_) in enumerate(data.manifest.config["domains"])
    ]
    vocabulary = KeptVocabulary(path, data.tokenizer(), Domains(old_domains, slots), has_all_rows=True)
    names = ", ".join(domain.name for domain in new_domains)
    logger.info("preparing %s; the other domains in %s stay as they are", names, path)
    new_data = config.data.model_copy(update={"phases": []})  # which may name old domains
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


def moves_domains(output: Path) -> bool:
    """Return True if a command was ended while it moved domains into `output`: the stage has a complete folder, and `output` has
    content."""
    return any(output.glob("*")) and (stage_folder(output) / "write/output" / QUARANTINE_NAME).exists()


def add_domains(folder: Path, output: Path) -> None:
    """Move the folders of domains in `folder` to the prepared data `output`, and add their unusable lines to the file there. A call
    that was ended can be repeated. Raises OSError, and DataError before anything is moved if token ids differ."""
    models = load_manifest(output).models
    for name in domains_in(folder):
        if read_manifest(folder / name).models != models:
            raise DataError(f"{folder / name}: it has other token ids than {output}; remove {folder.parents[1]}")
    lines, quarantine = (folder / QUARANTINE_NAME).read_bytes(), output / QUARANTINE_NAME
    earlier_lines = quarantine.read_bytes() if quarantine.exists() else b""
    if not earlier_lines.endswith(lines):  # else an earlier call was ended after this
        write_atomically(quarantine, earlier_lines + lines)
    for name in domains_in(folder):
        commit(folder / name, output / name)
