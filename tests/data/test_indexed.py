from __future__ import annotations

import errno
import os
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.indexed import CHUNK_BYTES, TokenFile, hashes_of_chunks, paths_of, write_tokens
from pangu_sigma.errors import DataError

DOCUMENTS = [[5, 6, 7, 9], [9], [100, 200, 9]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "zh.train", DOCUMENTS)
    return tmp_path / "zh.train"


def test_what_is_written_is_read_and_mindformers_reads_and_writes_the_same(prefix):
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    theirs = paths_of(prefix.with_name("theirs"))
    builder = IndexedDatasetBuilder(str(theirs[0]), dtype=np.int32)
    for ids in DOCUMENTS:
        builder.add_document(np.array(ids, np.int32), [len(ids)])
    builder.finalize(str(theirs[1]))
    assert [path.read_bytes() for path in paths_of(prefix)] == [path.read_bytes() for path in theirs]
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


def test_missing_files_are_one_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.idx: No such file.*run prepare-data first"):
        TokenFile(tmp_path / "none")


def test_an_unreadable_file_is_no_missing_one(prefix, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"zh\.train\.bin: Permission denied; change its permissions"):
        TokenFile(prefix)


def chunks_of(path: Path, size: int) -> list[str]:
    content = path.read_bytes()
    return [xxhash.xxh3_128_hexdigest(content[at : at + size]) for at in range(0, len(content), size)]


def test_a_chunk_is_verified_when_it_is_first_read_from_and_only_then(tmp_path):
    write_tokens(tmp_path / "a", [list(range(100))])
    path = paths_of(tmp_path / "a")[0]
    file = TokenFile(tmp_path / "a", 100, chunks_of(path, 16), 16)  # four tokens each
    content = bytearray(path.read_bytes())
    content[4 * 50] ^= 1
    path.write_bytes(content)
    assert file.read(0, 48).tolist() == list(range(48))
    assert file.read(52, 48).tolist() == list(range(52, 100))
    for start, length in ((48, 1), (51, 1), (40, 20), (0, 100)):
        with pytest.raises(
            DataError, match=r"a\.bin: bytes 192 … 207 are not what prepare-data wrote.*prepare-data again"
        ):
            file.read(start, length)


@given(st.data())
def test_with_chunks_of_any_size_a_read_gives_the_right_tokens_or_refuses(tmp_path_factory, data):
    row = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "x", [row])
    path = paths_of(folder / "x")[0]
    size = 4 * data.draw(st.integers(1, 50))
    chunks = chunks_of(path, size)
    content, at = bytearray(path.read_bytes()), data.draw(st.integers(0, 4 * len(row) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    file = TokenFile(folder / "x", 1 << 31, chunks, size)
    start = data.draw(st.integers(0, len(row)))
    length = data.draw(st.integers(0, len(row) - start))
    first, last = 4 * start // size, (4 * (start + length) - 1) // size
    if length and first <= at // size <= last:
        with pytest.raises(DataError, match="are not what prepare-data wrote"):
            file.read(start, length)
    else:
        assert file.read(start, length).tolist() == row[start : start + length]


def test_ids_outside_the_vocabulary_are_found_with_their_place(prefix):
    path = paths_of(prefix)[0]
    with pytest.raises(DataError, match=r"zh\.train\.bin: token 6 \(byte 24\) is 200, not in 0 … 199"):
        TokenFile(prefix, 200, hashes_of_chunks(path)).read(0, 1)
    path.write_bytes(struct.pack("<i", -5) + path.read_bytes()[4:])
    with pytest.raises(DataError, match=r"token 0 \(byte 0\) is -5"):
        TokenFile(prefix, 300, hashes_of_chunks(path)).read(0, 1)


def test_the_hashes_are_those_of_a_mebibyte_each(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(CHUNK_BYTES) + b"\1")
    assert hashes_of_chunks(path) == chunks_of(path, 1 << 20)


def test_an_open_file_is_closed_with_its_reader(prefix):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        TokenFile(prefix).read(0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
