"""Lines and files of text that no one may train on: each is quarantined with the reason that stands here, or refused by one error.

Their domains are zh and bilingual.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Poisoned:
    """A line that is quarantined. reason: as in `Rejected`."""

    name: str
    line: bytes
    reason: str


@dataclass(frozen=True)
class PoisonedFile:
    """A whole file. reason: that of its only rejected line; error: what the one error says, for a file that is refused."""

    name: str
    file: str
    content: bytes
    reason: str = ""
    error: str = ""


GOOD = json.dumps({"domain": "zh", "text": "好好学习"}, ensure_ascii=False).encode()


def _line(**record: Any) -> bytes:
    return json.dumps(record).encode()


def _raw(text: bytes) -> bytes:
    return b'{"domain": "zh", "text": "a' + text + b'b"}'


_NOT_UTF8 = {
    "a byte that never occurs": b"\xff",
    "an overlong NUL": b"\xc0\x80",
    "a lone continuation": b"\x80",
    "a cut character": b"\xe4\xbd",
    "an encoded surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "a lead byte of five": b"\xf8\x88\x80\x80\x80",
    "Latin-1": b"caf\xe9",
    "GBK": "你好".encode("gbk"),
    "Big5": "你好".encode("big5"),
}
_NOT_JSON = {
    **{
        f"cut after {size} bytes": GOOD[:size]
        for size in (1, 2, 9, 10, 15, 16, 17, 24, 26, len(GOOD) - 2, len(GOOD) - 1)
    },
    "single quotes": b"{'domain': 'zh', 'text': 'a'}",
    "a comma too much": b'{"domain": "zh", "text": "a",}',
    "a comment": b'{"domain": "zh", "text": "a"} // note',
    "two objects": GOOD + GOOD,
    "an array and more": b"[1] 2",
    "plain text": "今天天气不错".encode(),
    "a raw NUL": _raw(b"\0"),
    "a raw tab": _raw(b"\t"),
    "a raw escape": _raw(b"\x1b[0m"),
    "old line ends": GOOD + b"\r" + GOOD,
    "an unknown escape": _raw(b"\\x41"),
    "a short escape": _raw(b"\\u12"),
    "a byte order mark inside": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16-be").replace(b"\n", b""),
    "nested arrays": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested in a good line": b'{"domain": "zh", "text": "a", "meta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": b'{"domain": "zh", "text": "a", "id": ' + b"9" * 5_000 + b"}",
    "YAML": b"domain: zh",
    "CSV": b"zh,text",
}
_NOT_OBJECTS = {
    "a list": b'["zh", "a"]',
    "a string": b'"zh"',
    "a number": b"7",
    "a huge float": b"1e999",
    "not a number": b"NaN",
    "null": b"null",
    "true": b"true",
}
_TYPES: dict[str, Any] = {
    "null": None,
    "a number": 1,
    "a float": 1.5,
    "true": True,
    "a list": ["zh"],
    "an object": {"a": "zh"},
}
_UNKNOWN = {
    "empty": "",
    "upper case": "ZH",
    "a blank before": " zh",
    "a blank after": "zh ",
    "a newline after": "zh\n",
    "a NUL after": "zh\0",
    "full width": "\uff5a\uff48",
    "a zero-width joiner": "z\u200dh",
    "another language": "fr",
    "a list of two": "zh,en",
    "a path": "../zh",
    "a surrogate": "zh\ud800",
    "very long": "zh" * 500_000,
}
_EMPTY = {
    "nothing": "",
    "a blank": " ",
    "tabs and newlines": "\n\t\r\n",
    "an ideographic blank": "\u3000",
    "zero width": "\u200b\u200d\u2060",
    "a byte order mark": "\ufeff",
    "a NUL": "\0",
    "controls": "\x01\x07\x7f\x85",
    "line separators": "\u2028\u2029",
}
_SURROGATES = {
    "high": "a\\ud800",
    "low": "\\udc00b",
    "reversed": "\\udc00\\ud800",
    "high twice": "\\ud83d\\ud83d\\ude00",
}
_SIDES: dict[str, tuple[Any, str]] = {
    "none": ({}, "wrong sides"),
    "an unknown one": ({"zh": "你", "fr": "toi"}, "wrong sides"),
    "upper case": ({"ZH": "你", "EN": "you"}, "wrong sides"),
    "one empty": ({"zh": "你", "en": ""}, "empty text"),
    "one missing its text": ({"zh": "你", "en": None}, "text missing or not a string"),
    "a number": ({"zh": 1, "en": "one"}, "text missing or not a string"),
    "an object": ({"zh": {"text": "你"}, "en": "you"}, "text missing or not a string"),
    "a list": ([["zh", "你"]], "wrong sides"),
    "half a pair": ({"zh": "你\ud800", "en": "you"}, "not Unicode text"),
}
POISONED_LINES = [
    *(Poisoned(f"not UTF-8: {name}", _raw(content), "not UTF-8") for name, content in _NOT_UTF8.items()),
    *(Poisoned(f"not JSON: {name}", content, "not JSON") for name, content in _NOT_JSON.items()),
    *(Poisoned(f"not an object: {name}", content, "not a JSON object") for name, content in _NOT_OBJECTS.items()),
    Poisoned("no domain", _line(text="a"), "domain missing or not a string"),
    *(
        Poisoned(f"domain: {name}", _line(domain=value, text="a"), "domain missing or not a string")
        for name, value in _TYPES.items()
    ),
    *(Poisoned(f"domain: {name}", _line(domain=value, text="a"), "unknown domain") for name, value in _UNKNOWN.items()),
    Poisoned("no text", _line(domain="zh"), "text missing or not a string"),
    *(
        Poisoned(f"text: {name}", _line(domain="zh", text=value), "text missing or not a string")
        for name, value in _TYPES.items()
    ),
    *(Poisoned(f"empty: {name}", _line(domain="zh", text=value), "empty text") for name, value in _EMPTY.items()),
    *(Poisoned(f"surrogate: {name}", _raw(text.encode()), "not Unicode text") for name, text in _SURROGATES.items()),
    *(
        Poisoned(f"sides: {name}", _line(domain="bilingual", text=value), reason)
        for name, (value, reason) in _SIDES.items()
    ),
]
"""Lines of a file; none of them has a newline in it."""


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


_PACKED = gzip.compress(b"\n".join(GOOD.replace("好好".encode(), f"{i * i}".encode()) for i in range(300)), mtime=0)

POISONED_FILES = [
    PoisonedFile("an empty file", "a.jsonl", b"", reason="empty file"),
    PoisonedFile("an empty gzip file", "a.jsonl.gz", b"", reason="empty file"),
    PoisonedFile("no gzip", "a.jsonl.gz", GOOD, error="gzip stream is damaged"),
    *(
        PoisonedFile(f"gzip cut to {share:.0%}", "a.jsonl.gz", _PACKED[: int(share * len(_PACKED))], "cut stream")
        for share in (0.3, 0.6, 0.9)
    ),
    PoisonedFile("gzip without its end", "a.jsonl.gz", _PACKED[:-4], reason="cut stream"),
    PoisonedFile("rubbish after gzip", "a.jsonl.gz", _PACKED + b"rubbish", error="gzip stream is damaged"),
    PoisonedFile("another checksum", "a.jsonl.gz", _flipped(_PACKED, len(_PACKED) - 7), error="gzip stream is damaged"),
    PoisonedFile("another length", "a.jsonl.gz", _flipped(_PACKED, len(_PACKED) - 3), error="gzip stream is damaged"),
    *(
        PoisonedFile(
            f"a bit flipped at {share:.0%}",
            "a.jsonl.gz",
            _flipped(_PACKED, int(share * len(_PACKED))),
            error="gzip stream is damaged",
        )
        for share in (0.4, 0.5, 0.7, 0.8)
    ),
    PoisonedFile("no such suffix", "a.txt", GOOD, error=r"must end in \.jsonl"),
]
"""Files as a whole. The bilingual and Chinese lines in those that are packed are good ones."""
