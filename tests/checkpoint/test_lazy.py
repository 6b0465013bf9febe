from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint.lazy import LazyArray, map_file, release_pages
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
    recorded = write_arrays(tmp_path / "lazy", lazy)
    assert recorded == write_arrays(tmp_path / "whole", whole) == fingerprint(tmp_path / "lazy")
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "whole").read_bytes()
    for name, values in map_arrays(tmp_path / "lazy").items():
        assert (values == whole[name]).all(), name
        assert (lazy[name].read() == whole[name]).all(), name


def test_zeros_take_no_room_in_a_file(tmp_path):
    write_arrays(tmp_path / "file", {"zeros": LazyArray.zeros((1 << 24,), np.float32)})
    status = (tmp_path / "file").stat()
    assert status.st_size > 1 << 26
    assert status.st_blocks * 512 < 1 << 20
    assert not map_arrays(tmp_path / "file")["zeros"].any()


def test_content_that_is_not_what_the_shape_says_is_refused(tmp_path):
    short = LazyArray((3, 2), np.dtype(np.float32), lambda: [np.zeros((2, 2), np.float32)], "shard 7: word table")
    with pytest.raises(ValueError, match=r"shard 7: word table: 4 of 6 values"):
        write_arrays(tmp_path / "file", {"short": short})


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pangu_sigma.checkpoint.lazy import map_file
maps = [map_file(Path(sys.argv[1])) for _ in range(1100)]
assert all(each[-1] == 255 for each in maps)
"""


def test_more_files_are_mapped_than_the_usual_limit_of_open_files(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path / "file")], check=True)


def test_what_is_written_is_memory_alone(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(5))
    map_file(tmp_path / "file")[:] = 1
    assert (tmp_path / "file").read_bytes() == bytes(5)


def test_memory_is_given_back_and_what_was_written_beside_it_stays(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(16 << 20))
    content = map_file(tmp_path / "file")
    content[:3], content[-3:] = 7, 7
    part = content[5:-11]
    before = resident()
    part[:] = 1
    assert resident() - before > 15 << 20
    release_pages(part)
    assert resident() - before < 1 << 20
    assert (content[:3] == 7).all()
    assert (content[-3:] == 7).all()
    assert not content[4096:-4096].any(), "it is read again"
    release_pages(np.ones(3))
    release_pages(content[:0])


def test_an_empty_file_is_an_empty_array_and_a_missing_one_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    assert not len(map_file(tmp_path / "file"))
    with pytest.raises(OSError, match="No such file"):
        map_file(tmp_path / "gone")
    with pytest.raises(OSError, match="Is a directory"):
        map_file(tmp_path)
