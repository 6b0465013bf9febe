"""Vocabulary that a preparation keeps of a run (`vocabulary.keep`): its English pieces, and the rows of its embedding slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepared import TOKENIZER_NAME
from pangu_sigma.domains import Domains, domains_of, matching_slot
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import DamagedFile, unsealed
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import Vocabulary, parent_ids, special_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptVocabulary:
    """Vocabulary that a preparation keeps: tokenizer and domains of the run or the prepared data in the folder `run`."""

    run: Path
    tokenizer: Tokenizer
    domains: Domains

    @classmethod
    def of(cls, config: Config) -> KeptVocabulary | None:
        """Load the vocabulary that a configuration keeps; None if it keeps none. Raises ConfigError if the folder is no run."""
        if config.vocabulary.keep is None:
            return None
        run = Path(config.vocabulary.keep)
        try:
            body = unsealed(run / "configuration.json", "name another folder")
            return cls(run, Tokenizer.load(run / TOKENIZER_NAME), domains_of(parse_config(body["config"])))
        except (ConfigError, DataError, DamagedFile) as error:
            raise ConfigError(f"vocabulary.keep={run}: is no run folder ({error}); name one") from error

    @property
    def english_model(self) -> Path:
        """Path of the model with the run's English pieces."""
        return self.run / TOKENIZER_NAME / "english.model"

    def ids(self, vocabulary: Vocabulary, domains: Domains, slot: int) -> list[int]:
        """Return the ids of `vocabulary` whose rows a slot keeps, in the order of the run's rows.

        The run's rows: of its slot of the same name, or else of its only slot. A row is kept if text in a language of both
        slots can contain its token, or if every slot has that token.
        """
        source = matching_slot(domains.slot_names[slot], self.domains.slot_names)
        if source is None:
            return []
        producible = vocabulary.producible(domains.languages(slot) & self.domains.languages(source))
        producible.update(special_ids(domains.in_slot(slot)))
        new_of_old = {old: new for new, old in enumerate(parent_ids(self.tokenizer.vocabulary, vocabulary).tolist())}
        rows_R = self.tokenizer.slot_rows[source]
        kept_ids = [new_of_old[old] for old in rows_R[rows_R >= 0].tolist() if new_of_old.get(old) in producible]
        names = domains.slot_names[slot], self.domains.slot_names[source]
        logger.info("slot %s keeps %s rows of slot %s of %s", names[0], f"{len(kept_ids):,}", names[1], self.run)
        return kept_ids
