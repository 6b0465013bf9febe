"""Quarantine: the lines of the input that cannot be used, in a file of JSON lines, and a report of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pangu_sigma.text.documents import Rejected

_SHOWN = 3
"""Number of reasons shown with an example, the most frequent ones."""


@dataclass(frozen=True)
class Quarantine:
    """Unusable lines. file: JSON lines, one for each unusable line. counts: number of lines by reason. examples: by reason, place
    and fault of the first line."""

    file: Path
    counts: dict[str, int]
    examples: dict[str, str]


def write_quarantine(file: Path, lines: Iterable[Rejected]) -> Quarantine:
    """Write unusable lines to a file. Raises OSError."""
    counts, examples = Counter[str](), dict[str, str]()
    # names of files may hold bytes that are no text
    with file.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for line in lines:
            counts[line.reason] += 1
            examples.setdefault(line.reason, str(line))
            stream.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
    return Quarantine(file, dict(counts), examples)


def format_reasons(counts: dict[str, int], examples: dict[str, str]) -> str:
    """Return the number of unusable lines, and the most frequent reasons with an example, as lines of text."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    total = sum(counts.values())
    lines = [f"{total:,} {'line is' if total == 1 else 'lines are'} unusable and quarantined:"]
    for reason, count in ranked[:_SHOWN]:
        lines.append(f"  {count:,} × {reason}" + (f", first {examples[reason]}" if reason in examples else ""))
    if others := sum(count for _, count in ranked[_SHOWN:]):
        lines.append(f"  {others:,} × other reasons")
    return "\n".join(lines)
