from __future__ import annotations

import errno
import os

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.training.first_checkpoint import check_absent, unfinished_folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="half"), unfinished_folder(tmp_path / "run") as folder:
        (folder / "file").touch()
        raise RuntimeError("half")
    assert list(tmp_path.iterdir()) == []
    with unfinished_folder(tmp_path / "run") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "run").exists()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["file"]


def test_what_is_there_already_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with pytest.raises(ConfigError, match="run exists; choose another path with output"):
        check_absent(tmp_path / "run")
    with pytest.raises(ConfigError, match="was made meanwhile"), unfinished_folder(tmp_path / "run"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_made_and_a_full_disk_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/run cannot be written"), unfinished_folder(tmp_path / "file" / "run"):
        pass
    with pytest.raises(OSError, match="No space left") as refused, unfinished_folder(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert refused.value.filename == str(tmp_path / "run")
