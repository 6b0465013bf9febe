from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint.mapped_file import map_file, release_pages


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pangu_sigma.checkpoint.mapped_file import map_file
maps = [map_file(Path(sys.argv[1])) for _ in range(1100)]
assert all(each[-1] == 255 for each in maps)
"""


def test_more_files_are_mapped_than_the_usual_limit_of_open_files(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path / "file")], check=True)


def test_a_map_is_gone_with_its_last_array(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(1 << 16))
    part = map_file(tmp_path / "file").view(np.float32).reshape(128, -1)[3:, ::2]
    assert not part.any()
    assert "/file" in Path("/proc/self/maps").read_text()
    del part
    assert str(tmp_path / "file") not in Path("/proc/self/maps").read_text()


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
