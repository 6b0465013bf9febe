"""A domain's files as they are read: any range over any shards, every read verified, no file left open."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data import token_files
from pangu_sigma.data.token_files import (
    CHUNK_BYTES,
    HASHES_NAME,
    Tokens,
    VerifiedFile,
    paths_of,
    token_shards,
    write_hashes,
    write_tokens,
)
from pangu_sigma.errors import DataError

DOCUMENTS = [[5, 6, 7, 9], [9], [100, 200, 9]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "train", DOCUMENTS)
    return tmp_path / "train"


def verified(path: Path) -> VerifiedFile:
    """A file whose chunks have the hashes that they have now."""
    content, size = path.read_bytes(), token_files.CHUNK_BYTES
    hashes = (xxhash.xxh3_64_digest(content[at : at + size]) for at in range(0, len(content), size))
    return VerifiedFile(path, len(content), b"".join(hashes))


def shards(folder: Path, name: str = "train", vocabulary: int = 1 << 31) -> Tokens:
    """The shards in a folder as one, with the content that they have now."""
    names = token_shards(name, [path.name for path in folder.iterdir()])
    return Tokens([tuple(map(verified, paths_of(folder / shard))) for shard in names], vocabulary)  # type: ignore[misc]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@given(st.data())
def test_any_range_is_a_copy_of_the_row_of_all_tokens(tmp_path_factory, data):
    documents = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=9))
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "train", documents, data.draw(st.integers(1, 50)))
    row = list(chain(*documents))
    tokens = shards(folder)
    assert tokens.tokens == len(row)
    assert tokens.lengths.tolist() == [len(ids) for ids in documents]
    for _ in range(4):
        start = data.draw(st.integers(0, len(row)))
        length = data.draw(st.integers(0, len(row) - start))
        ids = tokens.read(start, length)
        assert ids.dtype == np.int32
        assert ids.tolist() == row[start : start + length]
        ids[:] = 0
        assert tokens.read(start, length).tolist() == row[start : start + length]


def test_reading_past_the_end_is_refused(prefix):
    for start, length in ((0, 9), (8, 1), (-1, 2)):
        with pytest.raises(IndexError, match="there are 0 … 8"):
            shards(prefix.parent).read(start, length)


def test_every_truncation_is_noticed(prefix):
    for path in paths_of(prefix):
        content, file = path.read_bytes(), verified(path)
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(DataError, match=rf"train\.{path.suffix[1:]}: .*byte {size};.*run prepare-data again"):
                VerifiedFile(path, len(content), b"")
            with pytest.raises(DataError, match=rf"ends at byte {size}, {len(content)} were there before"):
                file.read()
        path.write_bytes(content + bytes(4))
        with pytest.raises(DataError, match=f"were written; first difference at byte {len(content)}"):
            VerifiedFile(path, len(content), b"")


def test_an_unreadable_file_is_no_missing_one(prefix, monkeypatch):
    tokens = shards(prefix.parent)

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"train\.bin: Permission denied; change its permissions"):
        tokens.read(0, 1)


@given(st.data())
def test_with_chunks_of_any_size_a_read_gives_the_right_tokens_or_refuses(tmp_path_factory, data):
    row = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "train", [row])
    path = paths_of(folder / "train")[0]
    size = 4 * data.draw(st.integers(1, 50))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "CHUNK_BYTES", size)
        tokens = shards(folder)
        content, at = bytearray(path.read_bytes()), data.draw(st.integers(0, 4 * len(row) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        start = data.draw(st.integers(0, len(row)))
        length = data.draw(st.integers(0, len(row) - start))
        first, last = 4 * start // size, (4 * (start + length) - 1) // size
        if length and first <= at // size <= last:
            with pytest.raises(DataError, match="are not what prepare-data wrote"):
                tokens.read(start, length)
        else:
            assert tokens.read(start, length).tolist() == row[start : start + length]


def test_ids_outside_the_vocabulary_are_found_with_their_place(prefix):
    with pytest.raises(DataError, match=r"train\.bin: token 6 is 200, not in 0 … 199"):
        shards(prefix.parent, vocabulary=200).read(2, 6)
    path = paths_of(prefix)[0]
    path.write_bytes(np.array([-5], "<i4").tobytes() + path.read_bytes()[4:])
    with pytest.raises(DataError, match="token 0 is -5"):
        shards(prefix.parent, vocabulary=300).read(0, 1)


def test_a_file_that_changes_is_verified_again_whatever_its_times_say(prefix):
    path, tokens = paths_of(prefix)[0], shards(prefix.parent)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert tokens.read(0, 3).tolist() == [5, 6, 7]
    with path.open("r+b") as file:
        file.write(b"\1")
    os.utime(path, ns=times)
    with pytest.raises(DataError, match="are not what prepare-data wrote"):
        tokens.read(0, 3)


def test_threads_read_the_same_and_no_file_stays_open(tmp_path):
    rng = np.random.default_rng(0)
    write_tokens(tmp_path / "train", [rng.integers(0, 1000, 50) for _ in range(40)], 200)
    tokens, row = shards(tmp_path), shards(tmp_path).read(0, 2_000)
    assert len(tokens.shards) == 40
    starts = rng.integers(0, 1_800, (8, 300))

    def right(own: np.ndarray) -> bool:
        return all((tokens.read(at, 200) == row[at : at + 200]).all() for at in own.tolist())

    before = open_files()
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right, starts))
    assert open_files() == before


def test_the_hashes_are_those_of_an_eighth_of_a_mebibyte_each_in_the_order_of_names(tmp_path):
    (tmp_path / "b").write_bytes(b"\2")
    (tmp_path / "a.bin").write_bytes(bytes(1 << 17) + b"\1")
    (tmp_path / "manifest.json").touch()
    parts = (bytes(CHUNK_BYTES), b"\1", b"\2")
    expected = b"".join(map(xxhash.xxh3_64_digest, parts))
    for _ in range(2):  # the file of hashes has none itself
        sizes, whole = write_hashes(tmp_path)
        assert sizes == {"a.bin": (1 << 17) + 1, "b": 1}
        assert (tmp_path / HASHES_NAME).read_bytes() == expected
        assert whole == xxhash.xxh3_128_hexdigest(expected)
