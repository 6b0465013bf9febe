"""What cannot be written is known before the work, and asking leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_sigma.writable import NotWritable, check_file_writable, check_folder_writable


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path):
    check_folder_writable(tmp_path / "a" / "b", "--output")
    check_folder_writable(tmp_path, "--output")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_refused_by_name(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            NotWritable,
            match=rf"^output {folder}: cannot write into {tmp_path / 'file'}: Not a directory; name another path",
        ):
            check_folder_writable(folder, "--output")


def test_a_link_to_nowhere_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("link", "loop", "link/run"):
        with pytest.raises(
            NotWritable, match=rf"^output {tmp_path / name}: cannot write into {tmp_path}/l.*; name another"
        ):
            check_folder_writable(tmp_path / name, "--output")


def test_a_folder_of_the_kernel_is_refused():
    with pytest.raises(
        NotWritable, match=r"^output /proc/run: cannot write into /proc: .*; name another path with output"
    ):
        check_folder_writable(Path("/proc/run"), "--output")


def test_a_name_that_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(NotWritable, match=r"cannot write into .*: File name too long"):
        check_folder_writable(tmp_path / ("a" * 400) / "b", "--output")


def test_a_file_needs_its_folder(tmp_path: Path):
    check_file_writable(tmp_path / "a.json", "--json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        NotWritable, match=rf"json {tmp_path}/none/a\.json: No such file or directory; name another file"
    ):
        check_file_writable(tmp_path / "none" / "a.json", "--json")
    with pytest.raises(NotWritable, match="it is a folder, or this user may not write it; name another"):
        check_file_writable(tmp_path, "--json")
    check_file_writable(Path("/dev/stdout"), "--json")


def test_json_over_an_existing_file_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(NotWritable, match=r"config\.yaml exists; choose another path with json, or remove it: nothing"):
        check_file_writable(tmp_path / "config.yaml", "--json")
    check_file_writable(Path("/dev/null"), "--json")
