from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.foreign.layout import npy_source, plain_name
from pangu_sigma.foreign.names import counterparts

A = Path("a")


def test_layers_are_counted_and_one_that_is_left_out_is_named():
    rules = counterparts("huggingface", A, ["h.0.x", "h.1.x", "h.1.y", "other"])
    assert {rule.ours.split(".")[1] for rule in rules.values() if rule.ours.startswith("layers.")} == {"0", "1"}
    with pytest.raises(LayoutError, match="2 layers and none of index 1"):
        counterparts("huggingface", A, ["h.0.x", "h.999999999999.x"])


@pytest.mark.parametrize(
    "name", ["../b", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "c:x", 3, None, "x" * 300]
)
def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path: Path, name: object):
    with pytest.raises(LayoutError, match="no name of a file in this folder"):
        plain_name(tmp_path, name, "a file")


def test_a_name_in_the_folder_must_be_there(tmp_path: Path):
    (tmp_path / "a.bin").touch()
    assert plain_name(tmp_path, "a.bin", "a file") == tmp_path / "a.bin"
    with pytest.raises(LayoutError, match=r"b\.bin, which is not there"):
        plain_name(tmp_path, "b.bin", "a file")


def test_an_array_of_numpy_is_a_source(tmp_path: Path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    np.save(tmp_path / "a.npy", values)
    source = npy_source(tmp_path / "a.npy")
    np.testing.assert_array_equal(source.assembled("a").read(), values)


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
