from __future__ import annotations

import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.indexed import TokenFile, paths_of, write_tokens
from pangu_sigma.errors import DataError

DOCUMENTS = [[5, 6, 7, 9], [9], [100, 200, 9]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "zh.train", DOCUMENTS)
    return tmp_path / "zh.train"


def test_what_is_written_is_read_and_mindformers_reads_the_same(prefix):
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDataset

    file = TokenFile(prefix, vocabulary=201)
    assert (file.tokens, file.documents, file.lengths.tolist()) == (8, 3, [4, 1, 3])
    assert file.read(0, 8).tolist() == list(chain(*DOCUMENTS))
    dataset = IndexedDataset(str(prefix))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]


@given(st.data())
def test_any_range_is_a_copy_of_the_row_of_all_tokens(tmp_path_factory, data):
    documents = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=5))
    prefix = tmp_path_factory.mktemp("tokens") / "x.y"
    write_tokens(prefix, documents)
    row = list(chain(*documents))
    file = TokenFile(prefix)
    start = data.draw(st.integers(0, len(row)))
    length = data.draw(st.integers(0, len(row) - start))
    tokens = file.read(start, length)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == row[start : start + length]
    tokens[:] = 0
    assert file.read(start, length).tolist() == row[start : start + length]


def test_reading_past_the_end_is_refused(prefix):
    for start, length in ((0, 9), (8, 1), (-1, 2)):
        with pytest.raises(IndexError, match="there are 0 … 8"):
            TokenFile(prefix).read(start, length)


def test_every_truncation_of_either_file_is_noticed(prefix):
    for path in paths_of(prefix):
        content = path.read_bytes()
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(DataError, match=f"{path.name}: .*byte.*run prepare-data again"):
                TokenFile(prefix)
        path.write_bytes(content + b"\0")
        with pytest.raises(DataError, match=f"first difference at byte {len(content)}"):
            TokenFile(prefix)
        path.write_bytes(content)


def test_every_altered_byte_of_the_index_is_noticed(prefix):
    path = paths_of(prefix)[1]
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DataError, match="run prepare-data again"):
            TokenFile(prefix)


def test_ids_outside_the_vocabulary_are_found_with_their_place(prefix):
    with pytest.raises(DataError, match=r"zh\.train\.bin: token 6 \(byte 24\) is 200, not in 0 … 199"):
        TokenFile(prefix, vocabulary=200)
    path = paths_of(prefix)[0]
    path.write_bytes(struct.pack("<i", -5) + path.read_bytes()[4:])
    with pytest.raises(DataError, match=r"token 0 \(byte 0\) is -5"):
        TokenFile(prefix, vocabulary=300)


def test_missing_files_are_one_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.idx: No such file.*run prepare-data first"):
        TokenFile(tmp_path / "none")
