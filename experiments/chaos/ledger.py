"""The cases that are done: one JSON object a line, written as soon as a case ends, so that a killed program loses one case.

Results belong to the code that gave them: with other sources the file has another name, and everything is done again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CaseResult:
    """The result of a case. why: what did not hold; empty if all did. note: a figure that the table shows."""

    row: str
    case: str
    seconds: float
    why: str
    note: str


class Ledger:
    """The results of one row in a work folder."""

    def __init__(self, work: Path, row: str):
        self._file = work / f"results_{sources_hash()}" / f"{row}.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def results(self) -> dict[str, CaseResult]:
        """Results by case; a line that a kill cut off is none."""
        found = {}
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []:
            try:
                result = CaseResult(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[result.case] = result
        return found

    def add(self, result: CaseResult) -> None:
        """Write down a result, on a line of its own whatever a kill left of the line before."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(asdict(result), ensure_ascii=False) + "\n")


def sources_hash() -> str:
    """Hash of every file that decides what a case shows; documents do not."""
    digest = hashlib.sha256()
    for folder, pattern in (
        ("src", "*"),
        ("ascend_ops", "*"),
        ("experiments/chaos", "*.py"),
        ("experiments", "tiny.py"),
    ):
        for file in sorted((_ROOT / folder).rglob(pattern)):
            if file.is_file() and file.suffix not in (".md", ".png", ".pyc"):
                digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
