from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.checkpoint.lazy import map_file
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign import file_tensors as module
from pangu_sigma.foreign.file_tensors import FileTensor, WholeTensor, map_tensor, npy_source, path_in_folder


def written(folder: Path, values: np.ndarray, name: str = "a") -> FileTensor:
    """Values in a file, at an odd byte."""
    (folder / name).write_bytes(b"x" + np.ascontiguousarray(values).tobytes())
    return map_tensor(folder / name, name, values.dtype.name, values.shape, map_file(folder / name)[1:])


def blocks(values: np.ndarray, rows: int, columns: int, folder: Path) -> list[FileTensor]:
    found = []
    for i, some in enumerate(np.split(values, rows, 0)):
        for j, one in enumerate(np.split(some, columns, 1)):
            at = (i * one.shape[0], j * one.shape[1])
            found.append(replace(written(folder, one, f"{i}_{j}"), corner=at))
    return found


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(["float16", "float32"]), st.booleans(), st.integers(1, 200)
)
def test_blocks_are_joined_and_transposed_whatever_the_slices(
    tmp_path_factory, rows, columns, dtype, transposed, length
):
    folder = tmp_path_factory.mktemp("stored")
    values = np.random.default_rng(0).standard_normal((rows * 4, columns * 5)).astype(dtype)
    fragments = blocks(values, rows, columns, folder)
    kept, module._SLICE = module._SLICE, length
    try:
        found = WholeTensor(values.shape, fragments[::-1]).lazy_array("w", transposed)
        wanted = values.T if transposed else values
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(found.read(), wanted)
        np.testing.assert_array_equal(found.read(), wanted)  # every time anew
    finally:
        module._SLICE = kept


def test_reading_takes_little_more_than_the_tensor(tmp_path: Path):
    values = np.ones((8192, 2048), np.float32)  # 64 MB
    fragments = blocks(values, 4, 2, tmp_path)
    del values
    for transposed in (False, True):
        tracemalloc.start()
        whole = WholeTensor((8192, 2048), fragments).lazy_array("w", transposed).read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.25 * whole.nbytes
    tracemalloc.start()
    for _ in WholeTensor((8192, 2048), fragments).lazy_array("w", transposed=True).content():
        pass
    assert tracemalloc.get_traced_memory()[1] < 0.2 * whole.nbytes
    tracemalloc.stop()


def test_fragments_that_overlap_leave_gaps_or_reach_out_are_refused(tmp_path: Path):
    one = written(tmp_path, np.zeros((2, 4), np.float32))
    for corners in ([(0, 0), (0, 0)], [(0, 0)], [(0, 0), (3, 0)], [(0, 0), (1, 1)]):
        with pytest.raises(LayoutError, match="do not fill w of shape"):
            WholeTensor((4, 4), [replace(one, corner=corner) for corner in corners]).lazy_array("w")


def test_types_are_refused_by_name(tmp_path: Path):
    wide = written(tmp_path, np.zeros((2, 4), np.float64), "wide")
    with pytest.raises(LayoutError, match=r"wide \(w\) is float64; convert it to one of float32, float16, bfloat16"):
        WholeTensor.from_part(wide).lazy_array("w")
    one, half = written(tmp_path, np.zeros(2, np.float32), "one"), written(tmp_path, np.zeros(2, np.float16), "half")
    with pytest.raises(LayoutError, match=r"half is float16, .*one is float32"):
        WholeTensor((4,), [one, replace(half, corner=(2,))]).lazy_array("w")


def test_a_twin_that_differs_is_refused_when_the_tensor_is_read(tmp_path: Path):
    one, other = np.zeros(4, np.float32), np.array([0, 0, 0.5, 0], np.float32)
    first, second = written(tmp_path, one, "one"), written(tmp_path, other, "other")
    np.testing.assert_array_equal(replace(WholeTensor.from_part(first), twin=first).lazy_array("w").read(), one)
    with pytest.raises(LayoutError, match="other is not equal to one"):
        replace(WholeTensor.from_part(first), twin=second).lazy_array("w").read()


@pytest.mark.parametrize("kind", ["float32", "int64"])
@pytest.mark.parametrize("sizes", [(-1,), (1 << 50, 1 << 50), (float("nan"),), ("a",), (1 << 32, 1 << 32), (1,) * 99])
def test_sizes_that_cannot_be_are_refused(sizes: tuple, kind: str):
    with pytest.raises(LayoutError, match=r"w has the shape .* cannot have"):
        map_tensor(Path("a"), "w", kind, sizes, np.zeros(8, np.uint8))


def test_a_small_view_that_is_read_as_a_large_tensor_is_refused():
    content = np.zeros(8, np.uint8)
    assert map_tensor(Path("a"), "w", "float32", (2,), content, 0, (0,)).shape == (2,)
    for shape, strides in (((3,), (0,)), ((1 << 31, 4), (0, 0)), ((2, 2), (1, 1)), ((2,), (2,)), ((2,), (-1,))):
        with pytest.raises(LayoutError, match=r"w has the shape .* its 8 bytes cannot have"):
            map_tensor(Path("a"), "w", "float32", shape, content, 0, strides)


@pytest.mark.parametrize(
    "name", ["../b", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "c:x", 3, None, "x" * 300]
)
def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path: Path, name: object):
    with pytest.raises(LayoutError, match="not a name in this folder"):
        path_in_folder(tmp_path, name, "a file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([print], object), "Python objects"),
        (np.zeros((2, 2), np.int32), "it holds int32"),
        (np.zeros((2, 2), ">f4"), "it holds >f4"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), "Fortran"),
        (b"", "no array of NumPy"),
        (b"\x93NUMPY\1\0\xff\xff", "no array of NumPy"),
        (b"\x93NUMPY\1\0\x10\0{'a': __import__}", "no array of NumPy"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, content: object, message: str):
    if isinstance(content, bytes):
        (tmp_path / "a.npy").write_bytes(content)
    else:
        np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(LayoutError, match=message):
        npy_source(tmp_path / "a.npy")


def test_an_array_that_is_cut_short_is_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(LayoutError, match="cut short"):
        npy_source(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(content.replace(b"(20, 30)", b"(9, 9e9)"))
    with pytest.raises(LayoutError, match=r"no array of NumPy|shape"):
        npy_source(tmp_path / "a.npy")
