"""Overview of a preparation: the lines that it cannot use, the table that `prepare-data` prints, and its warnings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_sigma.data.manifest import DomainRecord, Manifest
from pangu_sigma.errors import argument
from pangu_sigma.results import aligned
from pangu_sigma.text.documents import Rejected
from pangu_sigma.text.layout import LEFT_OUT

_MUCH_UNKNOWN, _MANY_COPIES, _MUCH_OVERLAP, _MUCH_BOILERPLATE, _MUCH_SHIFT = 0.005, 0.1, 0.01, 0.5, 0.3
"""Thresholds of the warnings: fraction of <unk> tokens, of exact copies, of held-out windows found in the training text, of
held-out tokens in boilerplate; and nats of the shift, which must also be two standard deviations."""


def write_rejected(file: Path, lines: Iterable[Rejected]) -> tuple[dict[str, int], dict[str, str]]:
    """Write unusable lines to a file of JSON lines. Return two dictionaries: reason → number of lines, and reason → place and fault
    of the first line. Raises OSError."""
    counts, examples = Counter[str](), dict[str, str]()
    # names of files may hold bytes that are no text
    with file.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for line in lines:
            counts[line.reason] += 1
            examples.setdefault(line.reason, str(line))
            stream.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
    return dict(counts), examples


def format_reasons(counts: dict[str, int], examples: dict[str, str]) -> str:
    """Return lines of text: the number of lines that the reader left out, the number of unusable lines, and the reasons, the most
    frequent first. counts: reason → number of lines. examples: reason → place and fault of the first line."""
    faults = Counter(counts)
    left_out, total = faults.pop(LEFT_OUT, 0), faults.total()  # LEFT_OUT is no fault of the text
    lines = [f"{left_out:,} {'line was' if left_out == 1 else 'lines were'} {LEFT_OUT}"] * bool(left_out)
    lines += [f"{total:,} {'line is' if total == 1 else 'lines are'} unusable and quarantined:"] * bool(total)
    for reason, count in faults.most_common():
        lines.append(f"  {count:,} × {reason}" + (f", first {examples[reason]}" if reason in examples else ""))
    return "\n".join(lines)


def _mib(value: int) -> str:
    return f"{value / (1 << 20):,.1f}"


_COLUMNS: dict[str, Callable[[DomainRecord], str]] = {
    "offered": lambda record: f"{record.offered:,}",
    "MiB": lambda record: _mib(record.offered_bytes),
    "copies": lambda record: f"{record.duplicates:,}",
    "near copies": lambda record: f"{record.near_duplicates:,}",
    "too long": lambda record: f"{record.too_long:,}",
    "over limit": lambda record: f"{record.over_limit:,}",
    "kept": lambda record: f"{record.train.documents + record.held_out.documents:,}",
    "MiB kept": lambda record: _mib(record.train.bytes + record.held_out.bytes),
    "held out": lambda record: f"{record.held_out.documents:,}",
    "passed over": lambda record: f"{record.overlap.passed_over:,}",
    "overlap": lambda record: f"{record.overlap.share:.2%}",
    "boilerplate": lambda record: f"{record.overlap.boilerplate:.1%}",
    "shift": lambda record: f"{record.shift:+.2f} ± {record.shift_deviation:.2f}",
    "tokens": lambda record: f"{record.train.tokens + record.held_out.tokens:,}",
    "unknown": lambda record: f"{_unknown(record):.2%}",
    "folded": lambda record: f"{record.train.folded + record.held_out.folded:,}",
}
"""Columns of the table: title → function of a domain's record. They count documents unless the title says something else. `folded`
counts characters that decode to another form, as `，` to `,`. `passed over` documents are trained on because they repeat others or
are mostly boilerplate. `overlap` is the fraction of the held-out text that occurs in the training text. `boilerplate`, the fraction
that stands in many documents of the domain, is not in it. `shift`: see `_SHIFT`."""
_SHIFT = "shift: unigram loss of the held-out text above that of random text of its domain ± its standard deviation, nats per token"


def format_overview(manifest: Manifest) -> str:
    """Return the table of the domains as text, and below it a line about near-duplicates and the reasons of quarantined lines, if
    there are any."""
    records = manifest.domains
    columns = [[title, *map(cell, records.values())] for title, cell in _COLUMNS.items()]
    columns = [column for column in columns if manifest.near_duplicates or column[0] != "near copies"]
    table = [*aligned([*zip(["domain", *records], *columns, strict=True)], "<>"), _SHIFT]
    lines = table if any(record.offered for record in records.values()) else ["no document of any domain is usable"]
    if (near := manifest.near_duplicates) is not None:
        lost = ", ".join(f"{count:,} of {domains}" for domains, count in near.lost.items())
        losses = f"; lost, exact copies among them: {lost}" if lost else ""
        lines.append(f"near-duplicates: {near.groups:,} groups, one document of each stays{losses}")
    if manifest.quarantined:
        lines.append(format_reasons(manifest.quarantined, manifest.examples))
    return "\n".join(lines)


def warnings_of(manifest: Manifest) -> list[str]:
    """Return the warnings about a preparation, each of which begins with the name of its domain."""
    return [
        f"{name}: {warning}"
        for name, record in manifest.domains.items()
        for warning in [*_about_text(record, manifest.config), *_about_held_out(record, manifest.config)]
    ]


def _about_text(record: DomainRecord, config: dict[str, Any]) -> Iterator[str]:
    """Yield the warnings about text of a domain that was left out, and about <unk> tokens. config: `config` of the manifest."""
    if record.left_out_bytes:
        yield (
            f"{_mib(record.left_out_bytes)} of {_mib(record.offered_bytes)} MiB were left out by data.max_mib_per_domain="
            f"{config['max_mib_per_domain']}; raise it, or set it to null for all of {argument('--input')}"
        )
    if (share := record.duplicates / max(1, record.offered)) > _MANY_COPIES:
        yield f"{share:.0%} of the documents are exact copies of others and were left out"
    if (share := _unknown(record)) > _MUCH_UNKNOWN:
        yield (
            f"{share:.2%} of the tokens are <unk>, text that the domain's slot has no row for; raise model.slot_rows, or check "
            "that the domain's language is that of its text"
        )


def _about_held_out(record: DomainRecord, config: dict[str, Any]) -> Iterator[str]:
    """Yield the warnings about a held-out set of another size than asked for, that overlaps the training text, is mostly
    boilerplate, or is unlike its domain. config: `config` of the manifest."""
    overlap, count = record.overlap, record.held_out.documents
    if count != overlap.wanted:
        if count > overlap.wanted:
            reason = f"to have min_held_out_tokens={overlap.min_tokens:,}"
        elif overlap.passed_over:
            reason = (
                f"because the others repeat text of their domain (max_overlap={overlap.max_overlap:g}) or are mostly boilerplate "
                f"(data.max_boilerplate={config['max_boilerplate']:g})"
            )
        else:
            reason = f"to have at most data.max_held_out_tokens={config['max_held_out_tokens']:,}"
        yield f"{count:,} documents are held out, and not {overlap.wanted:,} as held_out says, {reason}"
    if overlap.share > _MUCH_OVERLAP:
        yield (
            f"{overlap.share:.1%} of the held-out text stands in the training text (windows of {overlap.window} tokens), which "
            f"max_overlap={overlap.max_overlap:g} allows: its loss is partly that of text that was trained on"
        )
    if overlap.boilerplate > _MUCH_BOILERPLATE:
        yield (
            f"{overlap.boilerplate:.0%} of the tokens of its held-out text are boilerplate: collapse blanks, and leave out tags "
            "and footers of the source, before preparing"
        )
    if abs(record.shift) > max(_MUCH_SHIFT, 2 * record.shift_deviation):
        yield (
            f"its held-out text is no fair sample of it: its unigram loss is {abs(record.shift):.2f} nats a token "
            f"{'above' if record.shift > 0 else 'below'} that of random documents (± {record.shift_deviation:.2f}), and a model's "
            "loss is likely to be, too; raise data.held_out to hold out more documents"
            f"{', or max_overlap or data.max_boilerplate, up to 1, to pass over fewer' * bool(overlap.passed_over)}"
        )


def _unknown(record: DomainRecord) -> float:
    return (record.train.unknown + record.held_out.unknown) / max(1, record.train.tokens + record.held_out.tokens)
