"""Text to measure a model on that is not prepared: `evaluate --input`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config
from pangu_sigma.config_file import Override, changed, key_of
from pangu_sigma.data.manifest import read_manifest
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError, argument, warn_without_effect
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import input_units, read_unit
from pangu_sigma.text.layout import Layout

logger = logging.getLogger(__name__)

_RECORD_KEYS = ("data.text_key", "data.domain_of")
"""Keys that say how records are read."""


def read_documents(
    config: Config, files: list[Path], domain: str | None, overrides: Sequence[Override] = (), reader: str | None = None
) -> list[Document]:
    """Read the documents of files or folders, as `prepare-data` does with section `data` of a model's configuration.

    domain: domain of all records; None if each record names its own. overrides: values of the keys that say how records are read;
    other keys have no effect, which a warning says. reader: as in `Layout`. If no record has the text key of the model's
    configuration, the key `text` is read, with a warning. Lines that cannot be used are left out with a warning. Raises the errors
    of `Layout.of` and `input_units`, and DataError if no line can be used.
    """
    for key in map(key_of, overrides):
        if ".".join(key.split(".")[:2]) not in _RECORD_KEYS:
            warn_without_effect(f"{argument('--set', 'overrides')} {key}", f"text is read by {', '.join(_RECORD_KEYS)}")
    for reader_of_run in [] if reader else _readers_of_run(config, domain):
        logger.warning(
            "text of the run was read by %s, and these records are read as they are; to read them by it, add %s",
            *(reader_of_run, argument(f"--reader {reader_of_run}", f"reader={reader_of_run!r}")),
        )
    layout, domains = Layout.of(changed(config, overrides), reader), domains_of(config)
    if domain is not None:
        layout = replace(layout, domain_of={"*": domains.named(domain).name})
    documents, rejected = _read(files, layout, domains)
    if not documents and not overrides and layout.text_key != "text" and layout.reader is None:
        documents, other_rejected = _read(files, replace(layout, text_key="text"), domains)
        if documents:
            logger.warning("no record has the key %s of the run's text; the key text is read", layout.text_key)
            rejected = other_rejected
    if rejected:
        lines = "\n".join(map(str, rejected[:3]))
        logger.warning("%d lines cannot be used, and are left out of the loss; the first:\n%s", len(rejected), lines)
    if not documents:
        lacks_domain = any(line.detail.startswith("no key 'domain'") for line in rejected)
        fix = f"; say with {argument('--domain')} which domain reads them" if lacks_domain else ""
        reason = f"; the first: {rejected[0]}{fix}" if rejected else ""
        raise DataError(f"{', '.join(map(str, files))}: no line can be used{reason}")
    return documents


def _readers_of_run(config: Config, domain: str | None) -> list[str]:
    """Return the readers by which the prepared text of a run was read: of one domain, or of all, which may have been prepared one
    after another. A domain whose text is not there is left out."""
    names, readers = [domain] if domain else [entry.name for entry in config.domains], set[str]()
    for name in names:
        with suppress(DataError):
            readers |= {read_manifest(Path(config.data.path) / name).config["reader"][0]} - {None}  # None: no reader
    return sorted(readers)


def _read(files: Sequence[Path], layout: Layout, domains: Domains) -> tuple[list[Document], list[Rejected]]:
    """Return the documents of files or folders, and the lines that cannot be used."""
    documents, rejected = list[Document](), list[Rejected]()
    for unit in Bar(input_units(files, 64 << 20), desc="reading", unit="part"):
        for item in read_unit(unit, layout, domains):
            (documents if isinstance(item, Document) else rejected).append(item)  # type: ignore[arg-type]
    return documents, rejected
