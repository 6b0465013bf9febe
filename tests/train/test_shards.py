"""Arrays in a file are the arrays that were written, for us and for the safetensors library."""

from __future__ import annotations

import json
import mmap
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load_file, save_file

from pangu_sigma.train import shards as module
from pangu_sigma.train.shards import copy_mapped, map_shard, write_shard

DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint16", "uint8", "bool"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda n: n != "__metadata__")
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays_of.arrays(dtype, SHAPES))


def nothing() -> None:
    pass


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        one = found[name]
        assert (one.dtype, one.shape, one.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


@settings(deadline=None, max_examples=80)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=6))
def test_what_is_written_is_what_is_mapped_and_what_the_library_reads(arrays: dict[str, np.ndarray]):
    """Bit for bit: all dtypes, shapes with no element and with no dimension, NaN, names in any script."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        write_shard(path, arrays, nothing)
        assert_same(map_shard(path), arrays)
        assert_same(load_file(path), arrays)


def test_an_array_without_elements_may_lie_on_the_border_of_a_page(tmp_path: Path):
    """At the end of the file there is nothing to map."""
    arrays = {"a": np.ones(3000, np.uint8), "b": np.zeros((3, 0), np.float32)}
    write_shard(tmp_path / "a", arrays, nothing)
    arrays["a"] = np.ones(3000 + mmap.PAGESIZE - (tmp_path / "a").stat().st_size, np.uint8)
    write_shard(tmp_path / "a", arrays, nothing)
    assert (tmp_path / "a").stat().st_size == mmap.PAGESIZE
    assert_same(map_shard(tmp_path / "a"), arrays)


@settings(deadline=None, max_examples=40)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=6), metadata=st.none() | st.just({"format": "np"}))
def test_a_file_of_the_library_is_mapped(arrays: dict[str, np.ndarray], metadata: dict[str, str] | None):
    with tempfile.TemporaryDirectory() as folder:
        save_file(arrays, Path(folder) / "shard", metadata)
        assert_same(map_shard(Path(folder) / "shard"), arrays)


@settings(deadline=None, max_examples=60)
@given(names=st.sets(NAMES, max_size=9))
def test_the_first_array_begins_at_a_multiple_of_64(names: set[str]):
    """So do all whose predecessors fill multiples of 64, as those of experts do."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        write_shard(path, {name: np.zeros((2, 16), np.float32) for name in names}, nothing)
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        assert (8 + length) % 64 == 0
        assert length < 64 * 3 + len(names) * 200
        assert [e["data_offsets"][0] % 64 for e in header.values()] == [0] * len(names)
        assert path.stat().st_size == 8 + length + 128 * len(names)


def test_writing_to_a_mapped_array_changes_memory_and_not_the_file(tmp_path: Path):
    write_shard(tmp_path / "a", {"x": np.arange(5000, dtype=np.float32), "y": np.array(3, np.int32)}, nothing)
    before = (tmp_path / "a").read_bytes()
    mapped = map_shard(tmp_path / "a")
    mapped["x"][...] = -1
    mapped["y"][...] = 9
    assert (mapped["x"] == -1).all()
    for array in mapped.values():
        array.flush()
    del mapped
    assert (tmp_path / "a").read_bytes() == before
    assert map_shard(tmp_path / "a")["y"] == 3


def test_an_array_that_is_mapped_outlives_its_file_and_its_siblings(tmp_path: Path):
    write_shard(tmp_path / "a", {"x": np.arange(5000), "y": np.ones(3)}, nothing)
    x = map_shard(tmp_path / "a")["x"]
    (tmp_path / "a").unlink()
    assert (x == np.arange(5000)).all()


def test_arrays_with_strides_keep_their_values(tmp_path: Path):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    parts = {"turned": array.T, "part": array[:, ::2, 1], "back": array[::-1]}
    write_shard(tmp_path / "a", parts, nothing)
    assert_same(map_shard(tmp_path / "a"), parts)


def test_memory_can_be_let_go_after_every_piece_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_CHUNK", 64)
    arrays = {"a": np.arange(40, dtype=np.float32), "b": np.arange(8, dtype=np.float64), "c": np.zeros(0, np.int32)}
    pieces: list[int] = []
    write_shard(tmp_path / "a", arrays, lambda: pieces.append(1))
    assert len(pieces) == 3 + 1
    assert_same(map_shard(tmp_path / "a"), arrays)


@pytest.mark.parametrize("kept", [0, 5, 40, 200])
def test_a_file_that_is_cut_off_is_a_value_error(tmp_path: Path, kept: int):
    write_shard(tmp_path / "a", {"x": np.arange(5000)}, nothing)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:kept])
    with pytest.raises(ValueError):
        map_shard(tmp_path / "a")


@settings(deadline=None, max_examples=40)
@given(array=ARRAYS)
def test_a_copy_is_the_array_and_lets_go_after_every_row(array: np.ndarray):
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "a", {"x": array}, nothing)
        rows: list[int] = []
        target = np.ones_like(array)
        copy_mapped(map_shard(Path(folder) / "a")["x"], target, lambda: rows.append(1))
    assert target.tobytes() == array.tobytes()
    assert len(rows) == (len(array) if array.ndim else 0)


def test_a_mapped_array_is_over_a_map_that_can_be_let_go(tmp_path: Path):
    """Otherwise a copy would fill the memory with what it reads."""
    write_shard(tmp_path / "a", {"x": np.zeros((4, 4096), np.float32)}, nothing)
    x = map_shard(tmp_path / "a")["x"]
    assert isinstance(x.base, mmap.mmap)
    x[0, 0] = 5
    copy_mapped(x, np.empty(x.shape, x.dtype), nothing)
    assert x[0, 0] == 0, "a page that was written is read from the file again"
