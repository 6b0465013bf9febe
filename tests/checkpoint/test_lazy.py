from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.safetensors_file import map_arrays, write_arrays
from pangu_sigma.sealed import fingerprint


def test_a_file_of_lazy_arrays_is_that_of_the_same_arrays_byte_for_byte(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    whole = {"copies": np.stack([rows.T] * 3), "none": np.zeros((5, 7), np.float32), "one": rows}
    lazy = {
        "copies": LazyArray((3, 6, 4), np.dtype(np.float32), lambda: (rows.T for _ in range(3))),
        "none": LazyArray.zeros((5, 7), np.float32),
        "one": LazyArray.of(rows),
    }
    recorded = write_arrays(tmp_path / "lazy", lazy, lambda: None)
    assert recorded == write_arrays(tmp_path / "whole", whole, lambda: None) == fingerprint(tmp_path / "lazy")
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "whole").read_bytes()
    for name, values in map_arrays(tmp_path / "lazy").items():
        assert (values == whole[name]).all(), name
        assert (lazy[name].read() == whole[name]).all(), name


def test_zeros_take_no_room_in_a_file(tmp_path):
    write_arrays(tmp_path / "file", {"zeros": LazyArray.zeros((1 << 24,), np.float32)}, lambda: None)
    status = (tmp_path / "file").stat()
    assert status.st_size > 1 << 26
    assert status.st_blocks * 512 < 1 << 20
    assert not map_arrays(tmp_path / "file")["zeros"].any()


def test_content_that_is_not_what_the_shape_says_is_refused(tmp_path):
    short = LazyArray((3, 2), np.dtype(np.float32), lambda: [np.zeros((2, 2), np.float32)], "shard 7: word table")
    with pytest.raises(ValueError, match=r"shard 7: word table: 4 of 6 values"):
        write_arrays(tmp_path / "file", {"short": short}, lambda: None)
