from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.checkpoint.checkpoint import whole_array
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.lazy import release_pages
from pangu_sigma.checkpoint.parts import Part, SavedArray
from pangu_sigma.checkpoint.safetensors_file import map_arrays, write_arrays


def cut(values: np.ndarray) -> list[SavedArray]:
    """An array as three parts: rows 0 and 3, and the others in two boxes of columns."""
    whole = values.shape
    rest = ((1, 3), (4, whole[0]))
    others = np.r_[1:3, 4 : whole[0]]
    return [
        SavedArray(Part(whole, ((0, 1), (3, 4)), (0, 0)), values[[0, 3]]),
        SavedArray(Part(whole, rest, (0, 0)), values[others, :2]),
        SavedArray(Part(whole, rest, (2, 0)), values[others, 2:]),
    ]


def test_parts_of_several_ranks_are_one_array_and_each_row_of_it():
    values = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    saved = cut(values)
    assert (whole_array(saved, "w1").read() == values).all()
    for number in range(6):
        assert (whole_array(saved, "w1").part(number, "w1").read() == values[number]).all()


def test_a_part_that_is_in_no_file_is_named():
    saved = cut(np.ones((6, 5, 4), np.float32))[:2]
    assert whole_array(saved, "w1").part(3, "w1").read().all()
    with pytest.raises(CheckpointError, match=r"w1\[2\] has 8 of 20 values; a file is missing"):
        whole_array(saved, "w1").part(2, "w1").read()


def test_a_mapped_array_is_read_again_after_its_memory_was_given_back(tmp_path):
    values = np.arange(1 << 16, dtype=np.float32).reshape(4, -1)
    write_arrays(tmp_path / "file", {"a": values}, lambda: None)
    saved = [SavedArray.whole(map_arrays(tmp_path / "file")["a"])]
    release_pages(saved[0].values[1:])
    assert (whole_array(saved, "a").read() == values).all()
    assert (whole_array(saved, "a").part(2, "a").read() == values[2]).all()
