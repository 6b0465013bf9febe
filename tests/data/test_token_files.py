"""Token files as they are read: any range over any shards, chunks verified when they are first read, few files open."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data import token_files
from pangu_sigma.data.indexed import hashes_of_file, paths_of, token_shards, write_tokens
from pangu_sigma.data.token_files import TokenFile, Tokens, opener
from pangu_sigma.errors import DataError

DOCUMENTS = [[5, 6, 7, 9], [9], [100, 200, 9]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "zh.train", DOCUMENTS)
    return tmp_path / "zh.train"


def chunks_of(path: Path, size: int) -> bytes:
    content = path.read_bytes()
    return b"".join(xxhash.xxh3_128_digest(content[at : at + size]) for at in range(0, len(content), size))


def verified(prefix: Path, size: int, vocabulary: int = 1 << 31) -> TokenFile:
    """A token file whose chunks of `size` bytes have the hashes that they have now."""
    chunks = chunks_of(paths_of(prefix)[0], size)
    return TokenFile(prefix, vocabulary, None, lambda: chunks, size)


def shards(folder: Path, name: str = "x.y", most: int | None = None) -> Tokens:
    """The shards in a folder as one; most: number of them that are open."""
    opened = opener() if most is None else lru_cache(most)(token_files._Opened)
    names = token_shards(name, [path.name for path in folder.iterdir()])
    return Tokens([TokenFile(folder / shard, opened=opened) for shard in names])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_written_is_read(prefix):
    file = TokenFile(prefix, vocabulary=201)
    assert (file.tokens, file.lengths.tolist()) == (8, [4, 1, 3])
    assert file.read(0, 8).tolist() == list(chain(*DOCUMENTS))


@given(st.data())
def test_any_range_is_a_copy_of_the_row_of_all_tokens(tmp_path_factory, data):
    documents = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=9))
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "x.y", documents, data.draw(st.integers(1, 50)))
    row = list(chain(*documents))
    tokens = shards(folder, most=data.draw(st.integers(1, 3)))
    assert tokens.tokens == len(row)
    assert [length for shard in tokens.shards for length in shard.lengths.tolist()] == [len(ids) for ids in documents]
    for _ in range(4):
        start = data.draw(st.integers(0, len(row)))
        length = data.draw(st.integers(0, len(row) - start))
        ids = tokens.read(start, length)
        assert ids.dtype == np.int32
        assert ids.tolist() == row[start : start + length]
        ids[:] = 0
        assert tokens.read(start, length).tolist() == row[start : start + length]


def test_reading_past_the_end_is_refused(prefix):
    file = TokenFile(prefix)
    for start, length in ((0, 9), (8, 1), (-1, 2)):
        for tokens in (file, Tokens([file])):
            with pytest.raises(IndexError, match="there are 0 … 8"):
                tokens.read(start, length)


def test_every_truncation_of_the_ids_is_noticed(prefix):
    path = paths_of(prefix)[0]
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"zh\.train\.bin: .*byte {size};.*run prepare-data again"):
            TokenFile(prefix, size=len(content))
        with pytest.raises(DataError, match=r"zh\.train\.bin: .*byte.*run prepare-data again"):
            assert TokenFile(prefix).lengths is None
    path.write_bytes(content + bytes(4))
    with pytest.raises(DataError, match=f"has 36 bytes, 32 were written; first difference at byte {len(content)}"):
        TokenFile(prefix, size=len(content))
    with pytest.raises(DataError, match=f"has 36 bytes, 8 tokens need 32; first difference at byte {len(content)}"):
        assert TokenFile(prefix).lengths is None


def test_every_altered_byte_of_the_index_is_noticed(prefix):
    path = paths_of(prefix)[1]
    content = path.read_bytes()
    for at, bit in product(range(len(content)), (1, 64, 128)):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        with pytest.raises(DataError, match="run prepare-data again"):
            assert TokenFile(prefix).lengths is None
    path.write_bytes(b"\xff" * len(content))
    with pytest.raises(DataError, match="run prepare-data again"):
        assert TokenFile(prefix).lengths is None


def test_missing_files_are_one_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.bin: No such file.*run prepare-data first"):
        TokenFile(tmp_path / "none")


def test_an_unreadable_file_is_no_missing_one(prefix, monkeypatch):
    file = TokenFile(prefix)

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"zh\.train\.bin: Permission denied; change its permissions"):
        file.read(0, 1)


def test_a_chunk_is_verified_when_it_is_first_read_from_and_only_then(tmp_path):
    write_tokens(tmp_path / "a", [list(range(100))])
    path = paths_of(tmp_path / "a")[0]
    file = verified(tmp_path / "a", 16, 100)  # four tokens each
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
    file = verified(folder / "x", size)
    content, at = bytearray(path.read_bytes()), data.draw(st.integers(0, 4 * len(row) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
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
        verified(prefix, 1 << 20, 200).read(0, 1)
    path.write_bytes(struct.pack("<i", -5) + path.read_bytes()[4:])
    with pytest.raises(DataError, match=r"token 0 \(byte 0\) is -5"):
        verified(prefix, 1 << 20, 300).read(0, 1)


def test_an_open_file_is_closed_with_its_reader(prefix):
    before = open_files()
    for _ in range(20):
        TokenFile(prefix).read(0, 1)
    assert open_files() == before


def test_a_file_that_was_closed_in_between_is_verified_again_only_if_it_changed(tmp_path):
    write_tokens(tmp_path / "x.y", [[1, 2, 3, 4], [5, 6, 7, 8]], 16)
    opened, asked = lru_cache(1)(token_files._Opened), []
    files = []
    for shard in ("x.y.00000", "x.y.00001"):
        hashes = hashes_of_file(tmp_path / f"{shard}.bin")[1]
        files.append(TokenFile(tmp_path / shard, chunks=lambda hashes=hashes: hashes, opened=opened))
    files[0]._verify_chunk = lambda *arguments: (asked.append(1), TokenFile._verify_chunk(files[0], *arguments))
    tokens = Tokens(files)
    for _ in range(3):
        assert tokens.read(2, 4).tolist() == [3, 4, 5, 6]
    assert len(asked) == 1, "the one of two files that is open changes with every read"
    (tmp_path / "x.y.00000.bin").write_bytes(np.array([1, 2, 3, 5], "<i4").tobytes())
    with pytest.raises(DataError, match=r"x\.y\.00000\.bin: bytes 0 … 15 are not what prepare-data wrote"):
        tokens.read(0, 8)


def test_threads_read_the_same_through_fewer_files_than_they_use(tmp_path):
    rng = np.random.default_rng(0)
    write_tokens(tmp_path / "x.y", [rng.integers(0, 1000, 50) for _ in range(40)], 200)
    tokens, row = shards(tmp_path, most=2), shards(tmp_path).read(0, 2_000)
    assert len(tokens.shards) == 40
    starts = rng.integers(0, 1_800, (8, 300))

    def right(own: np.ndarray) -> bool:
        return all((tokens.read(at, 200) == row[at : at + 200]).all() for at in own.tolist())

    before = open_files()
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right, starts))
    assert open_files() <= before + 2


_LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from pangu_sigma.data.prepared import PreparedData
prepared = PreparedData(Path(sys.argv[1]))
tokens = [prepared.tokens(f"d{number}", "train", 1 << 31) for number in range(4)]
assert sum(len(each.shards) for each in tokens) == 1_200
rng = np.random.default_rng(0)
for number, at in zip(rng.integers(0, 4, 5_000).tolist(), rng.integers(0, 595, 5_000).tolist()):
    assert tokens[number].read(at, 5).tolist() == list(range(at, at + 5))
print(len(list(Path("/proc/self/fd").iterdir())))
"""


def test_twelve_hundred_shards_are_read_where_256_files_may_be_open(tmp_path):
    from helpers.prepared import seal

    for number in range(4):
        write_tokens(tmp_path / f"d{number}.train", np.arange(600).reshape(300, 2), 8)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(seal(tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50


def test_an_eighth_of_the_files_that_may_be_open_is_taken(monkeypatch):
    for allowed, most in ((256, 32), (20, 8), (1 << 20, 1_024), (resource.RLIM_INFINITY, 1_024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed))
        assert opener().cache_parameters()["maxsize"] == most  # type: ignore[attr-defined]
