"""Loss of a model on any text, which need not be prepared: its own decoder, without MindSpore and without the corpus.

Documents are encoded as for training, and those of a domain are read one after another, each with its <eot>, in samples of
model.seq_length tokens, as held-out text is: the first token of a document has no loss. The last sample may be shorter. Rows
without a token have no probability, as in an export; training gives them one, so its loss is higher where a slot has such rows.

Shape suffixes: S tokens of a sample, R rows of a slot, V vocabulary, U samples.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, changed, key_of
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument, without_effect
from pangu_sigma.evaluate.held_out.run import DomainFigures, figures_with_perplexity
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.score import token_losses
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import input_units, read_unit
from pangu_sigma.text.layout import Layout
from pangu_sigma.training.log.losses import HeldOutLoss

logger = logging.getLogger(__name__)

_SHOWN = 3
"""Maximum number of lines that cannot be used that the log shows."""

_OF_RECORDS = ("text_key", "domain_of", "reader")
"""Keys of section `data` that say how records are read."""


def read_documents(
    config: Config, files: Sequence[Path], domain: str | None, overrides: Sequence[Override] = ()
) -> list[Document]:
    """Read the documents of files or folders, as `prepare-data` does with section `data` of a model's configuration.

    domain: domain of all records; None: each says its own. overrides: of the keys that say how records are read; other keys are
    warned of. If no record has the text key of the model's configuration, the key `text` is read, with a warning. Lines that
    cannot be used are left out with a warning. Raises ConfigError as `Layout.of`, DataError if no line can be used, and as
    `input_units`.
    """
    for key in map(key_of, overrides):
        if key.split(".")[:2] not in [["data", name] for name in _OF_RECORDS]:
            known = ", ".join(f"data.{name}" for name in _OF_RECORDS)
            without_effect(f"{argument('--set', 'overrides')} {key}", f"the text is read by {known}")
    layout, domains = Layout.of(changed(config, overrides)), domains_of(config)
    if domain is not None:
        layout = replace(layout, domain_of={"*": domains.named(domain).name})
    documents, rejected = _read(files, layout, domains)
    if not documents and not overrides and layout.text_key != "text" and layout.reader is None:
        documents, others = _read(files, replace(layout, text_key="text"), domains)
        if documents:
            logger.warning("no record has the key %s of the run's text; the key text is read", layout.text_key)
            rejected = others
    if rejected:
        shown = "\n".join(str(line) for line in rejected[:_SHOWN])
        logger.warning("%d lines cannot be used, and are left out of the loss; the first:\n%s", len(rejected), shown)
    if not documents:
        named = ", ".join(map(str, files))
        label = next((each for each in rejected if each.detail.startswith("no key 'domain'")), None)
        fix = f"; say with {argument('--domain')} which domain reads them" if label else ""
        raise DataError(f"{named}: no line can be used" + (f"; the first: {rejected[0]}{fix}" if rejected else ""))
    return documents


def _read(files: Sequence[Path], layout: Layout, domains: Domains) -> tuple[list[Document], list[Rejected]]:
    """Return the documents of files or folders, and the lines that cannot be used."""
    documents, rejected = list[Document](), list[Rejected]()
    for unit in Bar(input_units(files, 64 << 20), desc="reading", unit="part"):
        for item in read_unit(unit, layout, domains):
            (documents if isinstance(item, Document) else rejected).append(item)  # type: ignore[arg-type]
    return documents, rejected


def evaluate_documents(engine: Engine, documents: Iterable[Document]) -> DomainFigures:
    """Measure the loss of each domain on documents. Returns `HeldOutLoss.figures` and perplexity by domain; "unigram" is None,
    because the training text is not read. Raises ConfigError for a domain without a token."""
    decoder = engine.decoder
    domains, streams = domains_of(decoder.config), defaultdict[str, list[int]](list)
    for document in documents:
        streams[document.domain] += decoder.tokenizer.sample(document, domains.named(document.domain))
    return {
        name: figures_with_perplexity(_loss(engine, domains.named(name), np.array(streams[name])))
        for name in (domain.name for domain in domains)
        if name in streams
    }


def _loss(engine: Engine, domain: Domain, ids: np.ndarray) -> HeldOutLoss:
    length, decoder = engine.decoder.config.model.seq_length, engine.decoder
    bytes_V = np.array([len(surface) for surface in decoder.tokenizer.vocabulary.surfaces])
    if len(ids) < 2:
        raise ConfigError(f"a text of domain {domain.name} has no tokens; give at least one character")
    units = []
    for first in Bar(range(0, len(ids) - 1, length), desc=domain.name, unit="sample"):
        sample = ids[first : first + length + 1]
        logits_SR = engine.logits(domain, sample[:-1].tolist(), len(sample) - 1)
        nats_S = token_losses(logits_SR, decoder.tokenizer.rows(sample[1:], domain))
        counted_S = sample[:-1] != decoder.tokenizer.eot  # nothing before it tells how the next document begins
        units.append((nats_S[counted_S].sum(), counted_S.sum(), bytes_V[sample[1:][counted_S]].sum()))
    nats_U, tokens_U, bytes_U = np.array(units, float).T
    digest = xxhash.xxh3_128_hexdigest(ids.astype("<i4").tobytes())
    return HeldOutLoss(nats_U, tokens_U, bytes_U, np.nan, digest)
