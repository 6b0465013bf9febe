from __future__ import annotations

import errno
import os

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.training.first_checkpoint import unfinished_folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="half"), unfinished_folder(tmp_path / "new" / "run") as folder:
        (folder / "file").touch()
        raise RuntimeError("half")
    assert list(tmp_path.iterdir()) == []
    with unfinished_folder(tmp_path / "new" / "run") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "new").exists()
    assert [file.name for file in (tmp_path / "new" / "run").iterdir()] == ["file"]


def test_what_is_there_already_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    exists = "(run|other) exists; choose another path with output"
    with pytest.raises(ConfigError, match=exists), unfinished_folder(tmp_path / "run"):
        pytest.fail("the folder is refused before anything is done")
    with pytest.raises(ConfigError, match=exists), unfinished_folder(tmp_path / "other"):
        (tmp_path / "other").mkdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "run"]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_and_a_full_disk_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/run cannot be written"), unfinished_folder(tmp_path / "file" / "run"):
        pass
    with pytest.raises(OSError, match="No space left") as refused, unfinished_folder(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert refused.value.filename == str(tmp_path / "run")
