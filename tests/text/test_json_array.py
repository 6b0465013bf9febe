from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.record_files import packed, read_whole
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.poisoned import GOOD, POISONED_LINES
from pangu_sigma.text import json_array
from pangu_sigma.text.documents import Document, Rejected, RejectedLine, items_of, json_value

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)


def written(folder: Path, content: bytes, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(packed(name, content))
    return path


def elements(path: Path) -> list[Any]:
    """Each element with its offset; rejected ones as they are."""
    return list(items_of(path, json_array.json_array(path), lambda line, at: (json_value(line), at)))


@given(
    st.lists(st.one_of(VALUES, st.text(alphabet='\\"[]{},', max_size=20)), min_size=1, max_size=6),
    st.sampled_from([None, 0, 3, "\t"]),
    st.booleans(),
    st.integers(1, 9),
    st.sampled_from(["a.json", "a.json.zst"]),
)
def test_elements_are_those_of_pythons_parser(tmp_path_factory, values, indent, ascii_only, block, name):
    """The oracle is json.loads of the whole array; blocks of 1 … 9 bytes end anywhere."""
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path = written(tmp_path_factory.mktemp("array"), content + b" \n", name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_BLOCK_BYTES", block)
        found = elements(path)
    assert [value for value, _ in found] == values
    decoder = json.JSONDecoder()
    for value, at in found:
        assert decoder.raw_decode(content[at:].decode("utf-8", "surrogatepass"))[0] == value


@given(st.binary(max_size=60), st.integers(1, 9))
def test_any_bytes_are_either_elements_or_rejected(tmp_path_factory, content, block):
    path = written(tmp_path_factory.mktemp("bytes"), b"[" + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_BLOCK_BYTES", block)

        for item in elements(path):
            if isinstance(item, Rejected):
                assert 0 <= item.offset <= len(content) + 1
            else:
                text = content[item[1] - 1 :].decode("utf-8", "surrogateescape")
                assert json.dumps(json.JSONDecoder().raw_decode(text)[0]) == json.dumps(item[0])


@pytest.mark.parametrize(
    ("content", "documents", "reason", "line", "offset", "detail"),
    [
        (b"", 0, "empty file", 1, 0, "there is nothing in it"),
        (b" \n\t", 0, "empty file", 1, 0, "there are only blanks in it"),
        (b"[]", 0, "empty file", 1, 1, "there is no element in the array"),
        (b" [ \n ] ", 0, "empty file", 1, 5, "there is no element in the array"),
        (b"[", 0, "not JSON", 1, 1, "Expecting value"),
        (b"[" + GOOD, 1, "not JSON", 2, len(GOOD) + 1, "the array has no end"),
        (b"[" + GOOD + b"," + GOOD[:9], 1, "not JSON", 2, len(GOOD) + 2, "; 9 bytes from here on are not read"),
        (b"[" + GOOD + b",", 1, "not JSON", 2, len(GOOD) + 2, "Expecting value"),
        (b"[" + GOOD + b"] [" + GOOD + b"]", 1, "not a JSON array", 2, len(GOOD) + 3, "join arrays"),
        (b"[" + GOOD + b"]]", 1, "not a JSON array", 2, len(GOOD) + 2, "; 1 bytes from here on are not read"),
        (b"[" + GOOD + b",]", 1, "not JSON", 2, len(GOOD) + 2, "Expecting value; 1 bytes"),
        (b"[" + GOOD + b",," + GOOD + b"]", 1, "not JSON", 2, len(GOOD) + 2, f"; {len(GOOD) + 2} bytes from here on"),
        (b"[" + GOOD + b"},  " + GOOD + b"]", 1, "not JSON", 2, len(GOOD) + 1, "',' or ']' expected, not '}'"),
        (b'["a, b", ' + GOOD + b"]", 1, "not a JSON object", 1, 1, "the line holds 'a, b'"),
        (b"[[" + GOOD + b"]]", 0, "not a JSON object", 1, 1, "the line holds [{"),
        ("[]".encode("utf-16"), 0, "not a JSON array", 1, 0, "the file begins with '\\xff'"),
        (b"7", 0, "not a JSON array", 1, 0, "the file begins with '7', not with '['"),
        (b"\xef\xbbx", 0, "not a JSON array", 1, 0, r"begins with '\xef'"),
    ],
)
def test_what_is_no_array_of_objects_is_named_with_its_place(
    tmp_path, domains, content, documents, reason, line, offset, detail
):
    items = read_whole(written(tmp_path, content), domains)
    assert sum(isinstance(item, Document) for item in items) == documents
    (item,) = [item for item in items if isinstance(item, Rejected)]
    assert (item.reason, item.line, item.offset) == (reason, line, offset)
    assert detail in item.detail


@pytest.mark.parametrize("case", POISONED_LINES, ids=lambda case: case.name)
def test_a_poisoned_element_costs_no_other_unless_it_is_no_json(tmp_path, domains, case):
    items = read_whole(written(tmp_path, b"[" + GOOD + b"," + case.line + b"," + GOOD + b"]"), domains)
    assert isinstance(items[0], Document)
    *_, bad = [item for item in items if isinstance(item, Rejected)]
    assert len(GOOD) + 2 <= bad.offset <= len(GOOD) + 2 + len(case.line)
    if bad.reason == "not JSON":
        assert bad is items[-1] and bad.detail.endswith(" bytes from here on are not read")
    else:
        assert bad.reason == case.reason
        assert bad is items[1] and isinstance(items[2], Document)


def test_a_byte_order_mark_and_objects_without_an_array_are_read(tmp_path, domains):
    assert len(read_whole(written(tmp_path, b"\xef\xbb\xbf [" + GOOD + b"]"), domains)) == 1
    lines = b"\xef\xbb\xbf" + GOOD + b"\n{\n" + GOOD + b"\n"
    items = read_whole(written(tmp_path, lines), domains)
    assert [getattr(item, "line", 0) for item in items] == [0, 2, 0]


def test_a_long_element_is_left_out_and_one_without_end_ends_the_reading_in_bounded_memory(
    tmp_path, domains, monkeypatch
):
    monkeypatch.setattr(json_array, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(json_array, "_BLOCK_BYTES", 7)
    long, endless = (b'{"domain": "zh", "text": "' + b'\\\\\\"]},[{' * count + b'"}' for count in (120, 1_000))
    path = written(tmp_path, b"[ " + long + b" , " + GOOD + b",\n" + endless + b"," + GOOD + b"]")
    items = read_whole(path, domains)
    assert [getattr(item, "reason", "") for item in items] == ["line too long", "", "not JSON"]
    assert items[0].detail.startswith(f"{len(long):,} bytes")
    assert items[2].line == 3 and "or an element is longer than 1,000 bytes" in items[2].detail
    assert path.read_bytes()[items[2].offset :].startswith(endless)


def test_the_number_of_elements_is_returned(tmp_path):
    def parse(line: bytes, at: int) -> Any:
        raise RejectedLine("no", "at all")

    path = written(tmp_path, b"[1, 2,\n3]")
    reader = items_of(path, json_array.json_array(path), parse)
    assert [(item.line, item.offset) for item in (next(reader), next(reader), next(reader))] == [(1, 1), (2, 4), (3, 7)]
    with pytest.raises(StopIteration) as end:
        next(reader)
    assert end.value.value == 3


@pytest.mark.parametrize("number", ["1.5", "-12e+3", "7E-2", "0.25e1", "10"])
def test_a_number_may_go_on_in_the_next_block(tmp_path, monkeypatch, number):
    path = written(tmp_path, f"[{number}, {number}]".encode(), "a.json")
    for block in range(1, 12):
        monkeypatch.setattr(json_array, "_BLOCK_BYTES", block)
        assert [value for value, _ in elements(path)] == [json.loads(number)] * 2
