from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers.record_files import read_whole, write_records

from pangu_sigma.errors import DataError
from pangu_sigma.text import parquet
from pangu_sigma.text.documents import Document
from pangu_sigma.text.inputs import InputUnit, read_unit
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.parquet import parquet_rows, row_group_cuts

ROWS = [{"domain": "zh", "text": f"第{i}章", "id": i} for i in range(100)]


def table(folder: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("size", [1, 300, 1_000, 1 << 62])
def test_row_groups_are_in_one_unit_each(tmp_path, size):
    path = write_records(tmp_path / "a.parquet", ROWS, row_group=10)
    cuts = row_group_cuts(path, size)
    assert (cuts[0], cuts[-1]) == (0, 10)
    assert cuts == sorted(set(cuts))
    assert len(cuts) == {1: 11, 1 << 62: 2}.get(size, len(cuts))
    groups = pyarrow.parquet.ParquetFile(path).metadata
    sizes = [sum(groups.row_group(g).total_byte_size for g in range(*pair)) for pair in pairwise(cuts)]
    assert all(each >= size for each in sizes[:-1])


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    path = write_records(tmp_path / "a.parquet", ROWS, row_group=10)
    assert list(parquet_rows(path, 2, 3, ["text"]))[:2] == [(20, {"text": "第20章"}), (21, {"text": "第21章"})]
    assert list(parquet_rows(path, 9, 10, None))[-1] == (99, ROWS[-1])


def test_a_value_that_is_no_text_is_rejected_with_its_row(tmp_path, domains):
    (item,) = read_whole(table(tmp_path, domain=["zh"], text=[{"zh": "a"}]), domains)
    assert item.reason == "text missing or not a string"
    assert str(item).startswith(f"{tmp_path / 'a.parquet'}:1 (row 1): ") and "text is {'zh': 'a'}" in item.detail


def test_objects_in_columns_are_sides_or_hold_keys(tmp_path, domains):
    path = table(
        tmp_path, domain=["bilingual"], text=[{"en": "cat", "zh": "猫"}], meta=[{"source": "en", "body": "dog"}]
    )
    assert read_whole(path, domains)[0].text == (("en", "cat"), ("zh", "猫"))
    (item,) = read_whole(path, domains, Layout("meta.body", {"*": "en"}))
    assert (item.domain, item.text) == ("en", "dog")


def test_a_missing_column_is_one_error(tmp_path, domains):
    path = table(tmp_path, text=["a"], source=["zh"])
    with pytest.raises(
        DataError, match=r"a\.parquet: there is no column 'domain'; the columns are 'text', 'source': name the one"
    ):
        read_whole(path, domains)
    assert len(read_whole(path, domains, Layout(domain_of={"*": "zh"}))) == 1
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(DataError, match="there are several columns 'text'"):
        read_whole(path, domains, Layout(domain_of={"*": "zh"}))


def test_a_file_that_changed_is_one_error(tmp_path, domains):
    path = write_records(tmp_path / "a.parquet", ROWS, row_group=10)
    with pytest.raises(DataError, match="was changed while it was read"):
        list(read_unit(InputUnit(path, 10, 11), Layout(), domains))


def test_flipped_bits_are_documents_rejected_or_an_error(tmp_path, domains):
    path = write_records(tmp_path / "a.parquet", ROWS[:20])
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :])
        try:
            read_whole(path, domains)
        except DataError as error:
            assert "a.parquet" in str(error)


def test_text_that_is_too_long_is_rejected(tmp_path, domains, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_LINE_BYTES", 100)
    long, good = read_whole(table(tmp_path, domain=["zh", "zh"], text=["好" * 50, "好"]), domains)
    assert (long.reason, long.line) == ("line too long", 1)
    assert isinstance(good, Document)


def test_a_text_that_a_dictionary_repeats_is_not_unfolded_at_once(tmp_path, domains):
    """1,000 rows of 1 MB in a file of 1 kB; a good part of a second, so only a few rows are looked at."""
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000), pyarrow.array(["x" * (1 << 20)]))
    path = table(tmp_path, domain=["zh"] * 1_000, text=values)
    reader = read_unit(InputUnit(path, 0, 1), Layout(), domains)
    before = pyarrow.total_allocated_bytes()
    next(reader)
    assert pyarrow.total_allocated_bytes() - before < 64 << 20
