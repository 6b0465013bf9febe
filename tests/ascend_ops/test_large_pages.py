from __future__ import annotations

import numpy as np

from ascend_ops.large_pages import LargePages


def test_arrays_are_zeros_of_their_own_and_begin_at_cache_lines():
    room = LargePages()
    arrays = [room.zeros(shape, dtype) for shape, dtype in (((3, 5), "float32"), ((7,), "int8"), ((0, 4), "float16"))]
    arrays += [room.zeros((9 << 20,)), room.zeros((2, 2))]  # larger than what is taken of the system at a time
    assert all(array.ctypes.data % 64 == 0 and not array.any() for array in arrays)
    for number, array in enumerate(arrays):
        array[...] = number + 1
    del room
    assert [np.unique(array).tolist() for array in arrays] == [[1], [2], [], [4], [5]]
