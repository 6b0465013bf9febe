from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.record_files import read_whole
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.poisoned import GOOD, POISONED_FILES, POISONED_LINES, PoisonedFile
from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Document, Rejected


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def line(**record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def test_good_lines_become_documents_in_order(tmp_path, domains):
    file = write(
        tmp_path / "a.jsonl",
        b"\xef\xbb\xbf" + line(domain="zh", text="你好"),
        b"",
        line(domain="bilingual", text={"en": "hello", "zh": "你好"}, extra=1),
        line(domain="bilingual", text="你好 hello"),
        line(domain="bilingual", text=[{"zh": "你", "en": "you"}, {"en": "good", "zh": "好"}]),
    )
    items = list(read_whole(file, domains))
    assert [(item.domain, item.text) for item in items] == [
        ("zh", "你好"),
        ("bilingual", (("en", "hello"), ("zh", "你好"))),
        ("bilingual", "你好 hello"),
        ("bilingual", (("zh", "你"), ("en", "you"), ("en", "good"), ("zh", "好"))),
    ]
    assert items[1].bytes == 5 + 6
    assert items[0].segments == (("", "你好"),)


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (b'{"domain": "zh", "text": "\xff"}', "not UTF-8", "byte 26"),
        (
            "你".encode("gb18030"),
            "not UTF-8",
            "convert it with `iconv -f … -t UTF-8`, or name a compressed file *.jsonl.gz",
        ),
        (b"{", "not JSON", "a line holds a whole object, as `jq -c .` writes it"),
        (b" [", "not JSON", "`jq -c '.[]' FILE > lines.jsonl` makes lines of an array"),
        (b'["zh"]', "not a JSON object", "holds ['zh']; `jq -c '.[]' FILE > lines.jsonl` makes lines of an array"),
        (
            line(text="x", Domain="zh"),
            "domain missing or not a string",
            "or a reader; the keys are 'text', 'Domain'",
        ),
        (line(text="x", domain="fr"), "unknown domain", "'fr'; text is prepared for zh, en, bilingual, code"),
        (line(domain="zh"), "text missing or not a string", "'KEY'} or a reader; the keys are 'domain'"),
        (line(domain="bilingual", text={"zh": "你", "en": ""}), "empty text", "text.en"),
        (line(domain="bilingual", text=[{"zh": "你"}, "x"]), "wrong sides", "this is 'x'"),
        (b'{"domain": "zh", "text": "ab\\ud800"}', "not Unicode text", "character 2"),
    ],
)
def test_bad_lines_are_rejected_with_their_place(tmp_path, domains, bad, reason, detail):
    good = line(domain="zh", text="好")
    items = list(read_whole(write(tmp_path / "a.jsonl", good, bad, good), domains))
    assert [type(item) for item in items] == [Document, Rejected, Document]
    rejected = items[1]
    assert (rejected.file, rejected.line, rejected.offset) == (str(tmp_path / "a.jsonl"), 2, len(good) + 1)
    assert rejected.reason == reason
    assert detail in rejected.detail


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_any_bytes_are_either_documents_or_rejected(tmp_path_factory, domains, chunks):
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(
        b"\n".join([GOOD, *chunks])
    )  # a good line first: the first bytes of a file may name another format
    first, *others = read_whole(path, domains)
    assert isinstance(first, Document)
    for item in others:
        assert isinstance(item, Rejected)
        assert item.offset <= len(path.read_bytes())


def test_a_poisoned_line_is_quarantined_with_its_place_and_nothing_else_is(tmp_path, domains):
    for case in POISONED_LINES:
        path = write(tmp_path / "a.jsonl", GOOD, case.line, GOOD)
        before, item, after = read_whole(path, domains)
        assert isinstance(before, Document) and isinstance(after, Document), case.name
        assert (item.file, item.offset, item.reason) == (str(path), len(GOOD) + 1, case.reason), case.name
        assert 0 < len(item.detail) < 300


@pytest.mark.parametrize("case", POISONED_FILES, ids=lambda case: case.name)
def test_a_poisoned_file_is_quarantined_or_refused(tmp_path, domains, case: PoisonedFile):
    path = tmp_path / case.file
    path.write_bytes(case.content)
    if case.error:
        with pytest.raises(DataError, match=f"input .*{case.error}"):
            list(read_whole(path, domains))
    else:
        *good, last = read_whole(path, domains)
        assert all(isinstance(item, Document) for item in good)
        assert (type(last), last.reason) == (Rejected, case.reason)


@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_a_changed_line_is_rejected_or_gives_what_json_says(tmp_path_factory, domains, at, change):
    good = line(domain="bilingual", text={"en": "hello", "zh": "你好"}, id=[1, {"a": 2}])
    at %= len(good)
    path = tmp_path_factory.mktemp("changed") / "a.jsonl"
    path.write_bytes(good[:at] + change + good[at + len(change) :])
    for item in read_whole(path, domains):
        if isinstance(item, Document):
            record = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
            text = record["text"]
            assert item.domain == record["domain"]
            assert item.text == (tuple(text.items()) if isinstance(text, dict) else text)
