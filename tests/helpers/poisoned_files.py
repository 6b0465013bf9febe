"""Parquet files, JSON arrays and compressed files in which a record or the file itself is bad, made by the test; it is known where.

Poisoned lines, and files compressed by gzip, are in experiments/chaos/poisoned.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
from helpers.record_files import packed, text_of

from experiments.chaos.poisoned import GOOD


@dataclass(frozen=True)
class Case:
    """A poisoned file. documents: number of good records in it. reason, line, offset: of its only rejected line. error: words of
    the one error instead. cut_from: all of its text, if it is a stream of MANY that was cut: it gives the first records."""

    name: str
    content: bytes
    documents: int = 0
    reason: str = ""
    line: int = 0
    offset: int = 0
    error: str = ""
    cut_from: bytes = b""


MANY = [b'{"domain": "zh", "text": "%d"}' % (number * number) for number in range(2_000)]


def _cut(name: str, share: float) -> Case:
    text = text_of(name, MANY)
    content = packed(name, text)
    reason = "cut stream" if name.endswith((".gz", ".zst")) else "not JSON"
    return Case(name, content[: int(share * len(content))], reason=reason, cut_from=text)


def _table(texts: object, domains: object) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"domain": domains, "text": texts}), sink)
    return sink.getvalue().to_pybytes()


def _parquet() -> dict[str, Case]:
    offsets = pyarrow.array([0, 1, 3, 4], pyarrow.int32()).buffers()[1]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"a\xff\xfeb")])
    good, kinds = _table(["a", "b"], ["zh", "zh"]), "text missing or not a string"
    rows = {
        "broken UTF-8": (broken, ["zh"] * 3, "not UTF-8"),
        "null": (["a", None, "b"], ["zh"] * 3, kinds),
        "blanks": (["a", " \u3000", "b"], ["zh"] * 3, "empty text"),
        "an unknown domain": (["a", "c", "b"], ["zh", "fr", "zh"], "unknown domain"),
        "no domain": (["a", "c", "b"], ["zh", None, "zh"], "domain missing or not a string"),
    }
    refused = {
        "without its end": good[:-1],
        "cut to half": good[: len(good) // 2],
        "empty": b"",
        "JSON": GOOD,
        "with rubbish after it": good + b"rubbish",
    }
    return {
        **{
            f"{name} in a.parquet": Case("a.parquet", _table(texts, domains), 2, reason, 2, 1)
            for name, (texts, domains, reason) in rows.items()
        },
        **{
            f"a.parquet {name}": Case("a.parquet", content, error="cannot be read as Parquet")
            for name, content in refused.items()
        },
        "a.parquet without rows": Case("a.parquet", _table(*[pyarrow.array([], "string")] * 2), 0, "empty file", 1, 0),
    }


def _streams() -> dict[str, Case]:
    cases = {
        f"{name} cut to {share:.0%}": _cut(name, share)
        for share in (0.4, 0.9)
        for name in ("a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst")
    }
    for name in ("a.jsonl.zst", "a.json.zst", "a.json.gz"):
        ends = name.rpartition(".")[0][1:]
        damaged = rf"stream is damaged .* or, if it is not compressed, name it \*\{ends}$"
        cases[f"{name}: only blanks"] = Case(name, packed(name, b"\n \r\n"), 0, "empty file", 1, 0)
        cases[f"{name}: not compressed"] = Case(name, GOOD, error=damaged)
        cases[f"{name}: rubbish after it"] = Case(name, packed(name, text_of(name, [GOOD])) + b"rubbish", error=damaged)
    return cases | {
        "an array in an object": Case(
            "a.json", b'{"RECORDS": [' + GOOD + b"]}", 0, "domain missing or not a string", 1, 0
        ),
        "a quotation mark too much": Case("a.json", b'[{"a": "b"c"},' + GOOD + b"]", 0, "not JSON", 1, 1),
        "an array in lines": Case("a.jsonl", b"[" + GOOD + b"]\n" + GOOD, 1, "not a JSON object", 1, 0),
    }


CASES = _parquet() | _streams()
"""Poisoned files by what is wrong with them."""
