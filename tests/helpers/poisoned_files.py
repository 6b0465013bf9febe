"""Poisoned files of every format, made by the test: in each a record or the file itself is bad, and it is known where."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
from helpers.record_files import packed, text_of

from experiments.chaos.poisoned import GOOD


@dataclass(frozen=True)
class Case:
    """A poisoned file. documents: number of good records in it. reason, line, offset: of its only rejected line. error: words of
    the one error instead. at_most: True if a stream that was cut gives up to so many documents, at least one. cut_from: all of its
    text, if it was one of MANY."""

    name: str
    content: bytes
    documents: int = 0
    reason: str = ""
    line: int = 0
    offset: int = 0
    error: str = ""
    at_most: bool = False
    cut_from: bytes = b""


def _record(text: bytes = b'"a"', domain: bytes = b'"zh"', more: bytes = b"") -> bytes:
    return b'{"domain": ' + domain + b', "text": ' + text + more + b"}"


RECORDS = {
    "broken UTF-8": (_record(b'"a\xff"'), "not UTF-8"),
    "GBK": (_record('"你好"'.encode("gbk")), "not UTF-8"),
    "a raw NUL": (_record(b'"a\0b"'), "not JSON"),
    "NUL alone": (_record(b'"\\u0000"'), "empty text"),
    "half a surrogate pair": (_record(b'"a\\ud800"'), "not Unicode text"),
    "nested JSON": (_record(b'{"a": [{"b": "c"}]}'), "text missing or not a string"),
    "nested very deeply": (_record(more=b', "meta": ' + b"[" * 50_000 + b"]" * 50_000), "not JSON"),
    "an unknown domain": (_record(domain=b'"fr"'), "unknown domain"),
    "a number": (_record(b"7"), "text missing or not a string"),
    "null": (_record(b"null"), "text missing or not a string"),
    "no text": (b'{"domain": "zh"}', "text missing or not a string"),
    "no domain": (b'{"text": "a"}', "domain missing or not a string"),
    "a domain that is a list": (_record(domain=b'["zh"]'), "domain missing or not a string"),
    "blanks": (_record('" \u3000\\n"'.encode()), "empty text"),
    "single quotes": (b"{'domain': 'zh', 'text': 'a'}", "not JSON"),
    "a list": (b'["zh", "a"]', "not a JSON object"),
}
"""Records as JSON, and why they are rejected. Their brackets match, so that an array goes on after them."""

_CARRIERS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.zst")
MANY = [_record(f'"{number * number}"'.encode()) for number in range(2_000)]


def _in_the_middle(name: str) -> list[tuple[str, Case]]:
    cases = []
    for what, (record, reason) in RECORDS.items():
        content, documents = text_of(name, [GOOD, record, GOOD]), 2
        if ".jsonl" not in name:  # in an array what is no JSON ends the reading
            documents = 1 if reason == "not JSON" else 2
        case = Case(name, packed(name, content), documents, reason, 2, content.index(record))
        cases.append((f"{what} in {name}", case))
    return cases


def _cut(name: str, share: float) -> tuple[str, Case]:
    text = text_of(name, MANY)
    content = packed(name, text)
    reason = "cut stream" if name.endswith((".gz", ".zst")) else "not JSON"
    case = Case(name, content[: int(share * len(content))], len(MANY), reason, at_most=True, cut_from=text)
    return f"{name} cut to {share:.0%}", case


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def _table(texts: object, domains: object) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"domain": domains, "text": texts}), sink)
    return sink.getvalue().to_pybytes()


def _parquet() -> list[tuple[str, Case]]:
    offsets = pyarrow.array([0, 1, 3, 4], pyarrow.int32()).buffers()[1]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"a\xff\xfeb")])
    whole, kinds = _table(["a", "b"], ["zh", "zh"]), "text missing or not a string"
    rows = {
        "broken UTF-8": (broken, ["zh"] * 3, "not UTF-8"),
        "null": (["a", None, "b"], ["zh"] * 3, kinds),
        "NUL alone": (["a", "\0", "b"], ["zh"] * 3, "empty text"),
        "blanks": (["a", " \u3000", "b"], ["zh"] * 3, "empty text"),
        "an unknown domain": (["a", "c", "b"], ["zh", "fr", "zh"], "unknown domain"),
        "no domain": (["a", "c", "b"], ["zh", None, "zh"], "domain missing or not a string"),
    }
    refused = {
        "without its end": whole[:-1],
        "cut to half": whole[: len(whole) // 2],
        "rubbish": b"rubbish" * 100,
        "empty": b"",
        "JSON": GOOD,
        "with rubbish after it": whole + b"rubbish",
    }
    return [
        *(
            (f"{what} in a.parquet", Case("a.parquet", _table(texts, domains), 2, reason, 2, 1))
            for what, (texts, domains, reason) in rows.items()
        ),
        *(
            (f"a.parquet {what}", Case("a.parquet", content, error="cannot be read as Parquet"))
            for what, content in refused.items()
        ),
        ("a.parquet of one column", Case("a.parquet", _other_column(), error="there is no column 'text'")),
        (
            "a.parquet without rows",
            Case("a.parquet", _table(*[pyarrow.array([], "string")] * 2), 0, "empty file", 1, 0),
        ),
    ]


def _other_column() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"]}), sink)
    return sink.getvalue().to_pybytes()


def _streams() -> list[tuple[str, Case]]:
    lines = text_of("a.jsonl", MANY)
    gzipped = gzip.compress(lines, mtime=0)
    cases = [_cut(name, share) for share in (0.4, 0.9) for name in (*_CARRIERS, "a.json.gz")]
    for name in (*_CARRIERS, "a.json.gz"):
        cases.append((f"{name}: empty", Case(name, b"", 0, "empty file", 1, 0)))
        cases.append((f"{name}: only blanks", Case(name, packed(name, b"\n \r\n"), 0, "empty file", 1, 0)))
        if name.endswith((".gz", ".zst")):
            damaged = f"stream is damaged .* or, if it is not compressed, name it \\*\\{'.jsonl' if 'jsonl' in name else '.json'}$"
            cases.append((f"{name}: not compressed", Case(name, GOOD, error=damaged)))
            good = packed(name, text_of(name, [GOOD]))
            cases.append((f"{name}: rubbish after it", Case(name, good + b"rubbish", error=damaged)))
    cases += [
        ("another checksum", Case("a.jsonl.gz", _flipped(gzipped, len(gzipped) - 7), error="gzip stream is damaged")),
        ("another length", Case("a.jsonl.gz", _flipped(gzipped, len(gzipped) - 3), error="gzip stream is damaged")),
        ("a flipped bit", Case("a.jsonl.gz", _flipped(gzipped, len(gzipped) // 2), error="gzip stream is damaged")),
        (
            "an array in an object",
            Case("a.json", b'{"RECORDS": [' + GOOD + b"]}", 0, "domain missing or not a string", 1, 0),
        ),
        ("a quotation mark too much", Case("a.json", b'[{"a": "b"c"},' + GOOD + b"]", 0, "not JSON", 1, 1)),
        ("an array in lines", Case("a.jsonl", b"[" + GOOD + b"]\n" + GOOD, 1, "not a JSON object", 1, 0)),
        ("UTF-16 lines", Case("a.jsonl", GOOD.decode().encode("utf-16-le"), 0, "not JSON", 1, 0)),
        ("old line ends", Case("a.jsonl", GOOD + b"\r" + GOOD, 0, "not JSON", 1, 0)),
        ("a byte order mark inside", Case("a.jsonl", GOOD + b"\n\xef\xbb\xbf" + GOOD, 1, "not JSON", 2, len(GOOD) + 1)),
    ]
    return cases


CASES: dict[str, Case] = dict(
    [*(case for name in _CARRIERS for case in _in_the_middle(name)), *_parquet(), *_streams()]
)
"""Poisoned files by what is wrong with them."""
