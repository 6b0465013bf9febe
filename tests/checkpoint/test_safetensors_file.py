"""safetensors files written and read without copies: the library must agree, and memory must be let go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from pangu_sigma.checkpoint import lazy
from pangu_sigma.checkpoint import safetensors_file as module
from pangu_sigma.checkpoint.parts import Part, SavedArray, copy_part
from pangu_sigma.checkpoint.safetensors_file import map_arrays, write_arrays
from pangu_sigma.sealed import DamagedFile, fingerprint

DTYPES = [np.dtype(name) for name in module._DTYPES.values()]

ARRAYS = st.dictionaries(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    ),
    max_size=6,
)
rule = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        there = found[name]
        assert (there.dtype, there.shape, there.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def header_of(path: Path) -> tuple[int, dict]:
    """Where the arrays begin, and the JSON header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length, json.loads(content[8 : 8 + length])


@rule
@given(arrays=ARRAYS)
def test_arrays_of_every_dtype_and_shape_come_back_here_and_in_the_library(
    tmp_path: Path, arrays: dict[str, np.ndarray]
):
    write_arrays(tmp_path / "ours", arrays)
    assert_same(map_arrays(tmp_path / "ours"), arrays)
    assert_same(load_file(tmp_path / "ours"), arrays)
    save_file(arrays, tmp_path / "theirs", {"some": "metadata"})
    assert_same(map_arrays(tmp_path / "theirs"), arrays)


@rule
@given(arrays=ARRAYS)
def test_the_arrays_begin_at_a_multiple_of_64_and_each_at_one_of_its_elements(
    tmp_path: Path, arrays: dict[str, np.ndarray]
):
    write_arrays(tmp_path / "file", arrays)
    start, header = header_of(tmp_path / "file")
    assert start % 64 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % arrays[name].itemsize == 0
        assert map_arrays(tmp_path / "file")[name].flags.aligned


def test_memory_can_be_let_go_after_every_chunk_and_every_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lazy, "_CHUNK", 100)
    sizes, file = [], tmp_path / "file"
    arrays = {"a": np.arange(60, dtype=np.float32), "b": np.ones(3, np.uint8)}  # 240 and 3 bytes
    monkeypatch.setattr("builtins.open", lambda *a: open_unbuffered(*a))
    write_arrays(file, arrays, after_chunk=lambda name, values: sizes.append(file.stat().st_size))
    start, _ = header_of(file)
    assert [size - start for size in sizes] == [100, 200, 240, 243]
    assert_same(load_file(file), arrays)


def open_unbuffered(path: Path, mode: str):
    return path.open(mode, buffering=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["a"].update(shape=[3]), "invalid shape, data type, or offset"),
        (lambda header: header["a"].update(shape=[5]), "invalid shape, data type, or offset"),
        (lambda header: header["a"].update(dtype="F8_E5M2", shape=[16]), "a is F8_E5M2"),
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_damaged(tmp_path: Path, change, message: str):
    write_arrays(tmp_path / "file", {"a": np.zeros(4, np.float32)})
    start, header = header_of(tmp_path / "file")
    change(header)
    text = json.dumps(header).encode().ljust(start - 8)
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(DamagedFile, match=message):
        map_arrays(tmp_path / "file")
    for length in (4, 20, start + 15):
        os.truncate(tmp_path / "file", length)
        with pytest.raises(DamagedFile):
            map_arrays(tmp_path / "file")


@rule
@given(
    array=st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
)
def test_a_mapped_array_is_copied_in_blocks(tmp_path: Path, array: np.ndarray):
    write_arrays(tmp_path / "file", {"a": array})
    target, rows = np.ones_like(array), []
    everything = Part.everything(array.shape)
    mapped = SavedArray(everything, map_arrays(tmp_path / "file")["a"])
    copy_part(mapped, target, everything, lambda: rows.append(len(rows)))
    assert target.tobytes() == array.tobytes()
    assert len(rows) == (1 if array.ndim and array.size else 0)  # a row of a larger array, or so many bytes
    copy_part(SavedArray(everything, array), target := np.ones_like(array), everything)  # one that is not mapped
    assert target.tobytes() == array.tobytes()


def test_what_was_written_is_what_its_fingerprint_says(tmp_path: Path):
    arrays = {"a": np.arange(5000, dtype=np.float32), "turned": np.ones((3, 4)).T, "none": np.empty((0, 2), np.int32)}
    seen: dict[str, list[np.ndarray]] = {}
    take = lambda name, values: seen.setdefault(name, []).append(values)  # noqa: E731
    found = write_arrays(tmp_path / "file", arrays, {"some": "metadata"}, take)
    assert found == fingerprint(tmp_path / "file")
    assert {name: np.concatenate(values).tobytes() for name, values in seen.items()} == {
        name: arrays[name].tobytes() for name in ("a", "turned")
    }
