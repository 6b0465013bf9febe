"""Report of prepared data: a table, and a picture of each domain's tokens and of the load to expect of its experts.

Only the indices of token files are read: all numbers follow from the tokens' counts in the training text. Files are verified.

Shape suffixes: D domains, V vocabulary, E experts of a domain.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.bars import Bar
from pangu_sigma.data.prepare.overview import format_overview
from pangu_sigma.data.prepared import SPLITS, PreparedData
from pangu_sigma.errors import DataError
from pangu_sigma.results import aligned
from pangu_sigma.rre.table import draw_tables, shares_of_experts
from pangu_sigma.sealed import write_atomically
from pangu_sigma.sections import RoutingConfig

EXPERTS = 16
"""Number of experts of a domain for which the load is computed: that of the paper and of every shipped configuration."""
_DRAWS = 4
"""Number of tables over which the load is averaged."""
_TABLES = ("random", "balanced")
_COLUMNS = {
    "tokens": "{tokens:,}",
    "share": "{share:.1%}",
    "documents": "{documents:,}",
    "median": "{median:,.0f}",
    "longest": "{longest:,}",
    "/char": "{tokens_per_character:.3f}",
    "/byte": "{tokens_per_byte:.3f}",
    "unknown": "{unknown:.3%}",
    "load": "{load[random]:.2f} / {load[balanced]:.2f}",
}
"""Title of each column of the table → how a domain's numbers are shown in it."""


def report_prepared(folder: Path) -> tuple[dict[str, Any], str]:
    """Draw the picture of a prepared data folder, `<folder>.report.png` beside it; return the folder's numbers and their table.

    Raises DataError for a file that is missing or damaged, and if the picture cannot be written.
    """
    data, target, png = PreparedData(folder), folder.resolve(), io.BytesIO()
    numbers = measure_prepared(data)
    file = target.with_name(f"{target.name}.report.png")
    draw_prepared(numbers).savefig(png, dpi=110)
    try:
        write_atomically(file, png.getvalue())
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror or error}; make {file.parent} writable") from error
    text = "\n".join([_format_table(numbers), f"picture: {file}", "", format_overview(data.manifest)])
    return numbers | {"report": str(file)}, text


def measure_prepared(data: PreparedData) -> dict[str, Any]:
    """Return the numbers of prepared data as plain values. Raises DataError for a file that is missing or damaged.

    load: kind of routing table → tokens of the most loaded of a domain's EXPERTS experts, over a fair share.
    """
    tokenizer, counts_DV = data.tokenizer(), data.frequencies()
    characters_V = np.array([_character_count(surface) for surface in tokenizer.vocabulary.surfaces])
    settings_with_counts = [*zip(data.manifest.config["domains"], counts_DV, strict=True)]
    domains: dict[str, dict[str, Any]] = {}
    # the settings of a domain begin with its name, format and language
    for (name, _, language, *_), counts_V in Bar(settings_with_counts, desc="measuring", unit="domain"):
        record = data.manifest.domains[name]
        lengths = np.concatenate([data.tokens(name, split, tokenizer.size).lengths for split in SPLITS])
        tokens = record.train.tokens + record.held_out.tokens
        domains[name] = {
            "language": language,
            "slot": record.slot,
            "tokens": tokens,
            "documents": len(lengths),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
            "tokens_per_character": record.train.tokens / max(1, int(counts_V @ characters_V)),
            "tokens_per_byte": record.train.tokens / max(1, record.train.bytes),
            "unknown": (record.train.unknown + record.held_out.unknown) / max(1, tokens),
            "load": {table: expected_load(counts_V, table, EXPERTS) for table in _TABLES},
        }
    total = sum(row["tokens"] for row in domains.values())
    for row in domains.values():
        row["share"] = row["tokens"] / max(1, total)
    facts = {"folder": str(data.folder), "content_hash": data.manifest.content_hash}
    return facts | {"tokens": total, "experts": EXPERTS, "domains": domains}


def expected_load(counts_V: np.ndarray, table: str, experts: int) -> float:
    """Return the tokens of a domain's most loaded expert over a fair share, the mean over _DRAWS routing tables.

    counts_V: token counts of the domain. table: "random" or "balanced". experts: number of experts of the domain.
    """
    if not counts_V.any():  # no tokens: no expert has more than a fair share
        return 1.0
    # a layer has a table of its own
    tables = draw_tables(RoutingConfig(table=table), _DRAWS, 1, len(counts_V), experts, counts_V[None])
    shares = [shares_of_experts(*tables.of_segment(layer), counts_V[None]) for layer in range(_DRAWS)]
    return float(np.mean([share_1E.max() * experts for share_1E in shares]))


def _character_count(surface: bytes) -> int:
    """Return the number of characters that begin in a token's UTF-8 bytes: a byte 10xxxxxx continues a character."""
    return sum(byte & 0xC0 != 0x80 for byte in surface)


def _format_table(numbers: dict[str, Any]) -> str:
    """Format the result of `measure_prepared` as a table of the domains with notes."""
    domains = numbers["domains"]
    rows = [["domain", *_COLUMNS]]
    rows += [[name, *(cell.format(**row) for cell in _COLUMNS.values())] for name, row in domains.items()]
    notes = (
        "median, longest: tokens of a document. /char, /byte: tokens per character and per byte (fertility)",
        f"load: of the most loaded expert of a domain over its fair share, {' / '.join(_TABLES)} tables, if the model has "
        f"{EXPERTS} experts a domain",
    )
    return "\n".join([*aligned(rows, "<>"), *notes])


def draw_prepared(numbers: dict[str, Any]) -> Figure:
    """Draw the tokens of each domain, and the load of its most loaded expert with random and with balanced tables."""
    names, domains = [*numbers["domains"]], [*numbers["domains"].values()]
    figure = Figure(figsize=(10, 2.0 + 0.3 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(names, [domain["tokens"] for domain in domains])
    left.set(xlabel="tokens", title=f"{numbers['tokens']:,} tokens")
    left.invert_yaxis()
    for table, mark in zip(_TABLES, "oD", strict=True):
        right.plot([domain["load"][table] for domain in domains], names, mark, label=table)
    right.axvline(1.0, color="black", linestyle="--")
    right.set(xlabel="times its fair share", title=f"Most loaded of {EXPERTS} experts, by routing.table (dashed: even)")
    right.legend()
    return figure
