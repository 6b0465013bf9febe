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
            NotWritable, match=rf"^output {folder}: {tmp_path / 'file'} is a file and no folder; name another path"
        ):
            check_folder_writable(folder, "--output")


def test_a_link_to_nowhere_is_told_as_what_it_is(tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("link", "loop", "link/run"):
        with pytest.raises(
            NotWritable, match=rf"^output {tmp_path / name}: .* is a link to nowhere; remove it, or name"
        ):
            check_folder_writable(tmp_path / name, "--output")


def test_a_folder_of_the_kernel_is_refused():
    with pytest.raises(
        NotWritable, match=r"^output /proc/run: cannot write into /proc: .*; name another path with output"
    ):
        check_folder_writable(Path("/proc/run"), "--output")


def test_a_name_that_cannot_be_is_refused(tmp_path: Path):
    for name in ("a\0b", "a" * 400):
        with pytest.raises(NotWritable, match="cannot write into"):
            check_folder_writable(tmp_path / name / "b", "--output")


def test_a_file_needs_its_folder(tmp_path: Path):
    check_file_writable(tmp_path / "a.json", "--json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotWritable, match=rf"json .*: the folder {tmp_path / 'none'} is not there; make it"):
        check_file_writable(tmp_path / "none" / "a.json", "--json")
    with pytest.raises(NotWritable, match="is a folder"):
        check_file_writable(tmp_path, "--json")
    check_file_writable(Path("/dev/stdout"), "--json")


def test_json_over_an_existing_file_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(NotWritable, match=r"config\.yaml exists; choose another path with json, or remove it: nothing"):
        check_file_writable(tmp_path / "config.yaml", "--json")
    check_file_writable(Path("/dev/null"), "--json")
