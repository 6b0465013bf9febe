"""Numbers of a prepared data folder, for its report: shares, lengths, fertility, frequent tokens, expected load of experts.

Of the token files only the indices are read: everything about tokens follows from their counts in the training text. All files that
are read are verified.

Shape suffixes: D domains, V vocabulary, E experts of a domain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.data.manifest import DomainRecord, Manifest
from pangu_sigma.data.prepared import FREQUENCIES_NAME, QUARANTINE_NAME, SPLITS, PreparedData
from pangu_sigma.errors import DataError
from pangu_sigma.rre.table import draw_tables, shares_of_experts
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.text.documents import Rejected
from pangu_sigma.text.tokenizer import Tokenizer

EXPERT_COUNTS = (4, 8, 16, 32)
"""Numbers of experts of a domain for which the load is computed: the folder does not say how many a model has."""
_DRAWS = 4
"""Number of tables over which the load is averaged."""
_FREQUENT = 10
"""Number of most frequent tokens that are named."""
_EXAMPLES = 3
"""Number of quarantined lines that are shown for each reason."""


@dataclass(frozen=True)
class DomainNumbers:
    """Numbers of one domain. record: its entry in the manifest.

    lengths: tokens of each document of both splits, int32. characters: number of characters that the training tokens decode to.
    frequent: most frequent tokens of the training text as (text, count). distinct: number of different tokens in it.
    load: table → tokens of the most loaded expert over its fair share, for each number of EXPERT_COUNTS.
    """

    name: str
    language: str
    record: DomainRecord
    lengths: np.ndarray
    characters: int
    frequent: list[tuple[str, int]]
    distinct: int
    load: dict[str, list[float]]

    @property
    def tokens(self) -> int:
        """Number of tokens of both splits."""
        return self.record.train.tokens + self.record.held_out.tokens

    @property
    def unknown(self) -> float:
        """Fraction of the tokens of both splits that are <unk>."""
        return (self.record.train.unknown + self.record.held_out.unknown) / max(1, self.tokens)

    @property
    def per_character(self) -> float:
        """Fertility: tokens per character of the training text, <eot> and tags included."""
        return self.record.train.tokens / max(1, self.characters)

    @property
    def per_byte(self) -> float:
        """Fertility: tokens per byte of the training text as it was given."""
        return self.record.train.tokens / max(1, self.record.train.bytes)

    @property
    def fates(self) -> dict[str, int]:
        """What became of the documents offered: numbers of those kept, and of those left out by reason."""
        record = self.record
        return {
            "kept": record.train.documents + record.held_out.documents,
            "filtered": sum(record.filtered.values()),
            "exact copies": record.duplicates,
            "near-duplicates": record.near_duplicates,
            "too long": record.too_long,
            "over the limit": record.over_limit,
        }

    def length(self, percent: float) -> float:
        """Return the number of tokens that this percentage of the documents do not exceed."""
        return float(np.percentile(self.lengths, percent)) if len(self.lengths) else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values; of the lengths some percentiles."""
        return {
            "language": self.language,
            "slot": self.record.slot,
            "tokens": self.tokens,
            "documents": len(self.lengths),
            "lengths": {f"{percent}%": self.length(percent) for percent in (5, 25, 50, 75, 95, 100)},
            "tokens_per_character": self.per_character,
            "tokens_per_byte": self.per_byte,
            "unknown": self.unknown,
            "frequent": [list(pair) for pair in self.frequent],
            "distinct": self.distinct,
            "load": self.load,
            "offered": self.record.offered,
            "fates": self.fates,
            "filtered": self.record.filtered,
        }


@dataclass(frozen=True)
class PreparedNumbers:
    """Numbers of a prepared data folder. domains: in the order of its token counts. examples: lines of the quarantine by reason."""

    folder: Path
    manifest: Manifest
    domains: list[DomainNumbers]
    examples: dict[str, list[str]]

    @property
    def tokens(self) -> int:
        """Number of tokens of all domains and splits."""
        return sum(domain.tokens for domain in self.domains)

    def slots(self) -> dict[str, dict[str, float]]:
        """Return the fertility and the fraction of <unk> tokens of the text of each embedding slot."""
        found: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(domain.record.slot for domain in self.domains):
            inside = [domain for domain in self.domains if domain.record.slot == name]
            tokens = sum(domain.record.train.tokens for domain in inside)
            found[name] = {
                "rows": inside[0].record.rows,
                "tokens_per_character": tokens / max(1, sum(domain.characters for domain in inside)),
                "tokens_per_byte": tokens / max(1, sum(domain.record.train.bytes for domain in inside)),
                "unknown": sum(d.unknown * d.tokens for d in inside) / max(1, sum(d.tokens for d in inside)),
            }
        return found

    def filtered(self) -> dict[str, dict[str, int]]:
        """Return for each filter the number of documents that it dropped in each domain."""
        return _by_name({domain.name: domain.record.filtered for domain in self.domains})

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values."""
        return {
            "folder": str(self.folder),
            "content_hash": self.manifest.content_hash,
            "tokens": self.tokens,
            "experts": list(EXPERT_COUNTS),
            "domains": {
                each.name: each.as_dict() | {"share": each.tokens / max(1, self.tokens)} for each in self.domains
            },
            "slots": self.slots(),
            "near_duplicates": near.model_dump() if (near := self.manifest.near_duplicates) else None,
            "quarantined": self.manifest.quarantined,
            "examples": self.examples,
        }


def _by_name(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Turn domain → name → count into name → domain → count, without zeros."""
    names = sorted({name for some in counts.values() for name, count in some.items() if count})
    return {name: {domain: some[name] for domain, some in counts.items() if some.get(name)} for name in names}


def is_prepared(path: Path) -> bool:
    """Return True if a path is a folder that `prepare-data` or `extract` wrote."""
    return (path / FREQUENCIES_NAME).is_file()


def measure_prepared(folder: Path) -> PreparedNumbers:
    """Return the numbers of a prepared data folder. Raises DataError for a file that is missing or damaged."""
    data = PreparedData(folder)
    tokenizer, counts_DV = data.tokenizer(), data.frequencies()
    listed = data.manifest.config["domains"]
    if counts_DV.shape != (len(listed), tokenizer.size) or {each[0] for each in listed} != data.manifest.domains.keys():
        raise DataError(
            f"{folder / FREQUENCIES_NAME}: has the shape {counts_DV.shape}, the manifest lists {len(listed)} domains and "
            f"{tokenizer.size} ids; run prepare-data again"
        )
    characters_V = np.array([_characters(surface) for surface in tokenizer.vocabulary.surfaces])
    domains = []
    for (name, _, language, *_), counts_V in Bar(
        [*zip(listed, counts_DV, strict=True)], desc="measuring", unit="domain"
    ):
        files = [file for split in SPLITS for file in data.tokens(name, split, tokenizer.size).shards]
        for file in files:
            data.verify(file.path.with_suffix(".idx").name)
        top = np.argsort(-counts_V, kind="stable")[:_FREQUENT]
        domains.append(
            DomainNumbers(
                name,
                language,
                data.manifest.domains[name],
                np.concatenate([file.lengths for file in files]),
                int(counts_V @ characters_V),
                [(_shown(tokenizer, token), int(counts_V[token])) for token in top.tolist() if counts_V[token]],
                int(np.count_nonzero(counts_V)),
                {
                    table: [expected_load(counts_V, table, experts) for experts in EXPERT_COUNTS]
                    for table in ("random", "balanced")
                },
            )
        )
    return PreparedNumbers(folder, data.manifest, domains, _examples(data))


def expected_load(counts_V: np.ndarray, table: str, experts: int) -> float:
    """Return the tokens of the most loaded of a domain's experts over its fair share, the mean over some tables.

    counts_V: token counts of the domain. table: as `routing.table`.
    """
    if not counts_V.any():
        return 1.0
    routing = RoutingConfig(table=table)
    drawn = draw_tables(routing, _DRAWS, 1, len(counts_V), experts, counts_V[None])
    shares = [shares_of_experts(*drawn.of_segment(n), counts_V[None]) for n in range(_DRAWS)]
    return float(np.mean([share_1E.max() * experts for share_1E in shares]))


def _characters(surface: bytes) -> int:
    """Return the number of characters of a token: of its bytes that do not continue a character of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in surface)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """Return a token for people: its text as a literal; of a token without text, or of part of a character, its name."""
    surface = tokenizer.vocabulary.surfaces[token]
    try:
        return repr(surface.decode()) if surface and token != tokenizer.unk else tokenizer.vocabulary.pieces[token]
    except UnicodeDecodeError:
        return tokenizer.vocabulary.pieces[token]


def _examples(data: PreparedData) -> dict[str, list[str]]:
    """Return the first lines and documents of the quarantine of each reason, with file, number, and what is wrong or the text."""
    if QUARANTINE_NAME not in data.manifest.files:
        return {}
    data.verify(QUARANTINE_NAME)
    found: dict[str, list[str]] = {}
    for line in _lines(data.folder / QUARANTINE_NAME):
        shown = found.setdefault(line["reason"], [])
        if len(shown) < _EXAMPLES:
            shown.append(str(Rejected(**line)))
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}; run prepare-data again") from error
