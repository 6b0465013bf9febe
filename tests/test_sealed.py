"""Sealed files and folders: whole, or refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pangu_sigma.sealed import (
    LINE_HASH,
    SEAL,
    UNFINISHED,
    DamagedFile,
    check_folder,
    seal_folder,
    sealed,
    sealed_line,
    unsealed,
    unsealed_line,
    write_atomically,
)

FIX = "copy it again"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "one.bin").write_bytes(bytes(range(64)))
    (tmp_path / "inner/two.txt").write_text("two")
    seal_folder(tmp_path, ["one.bin", "inner/two.txt"], {"format": 2})
    return tmp_path


def test_a_sealed_folder_gives_back_its_facts(folder):
    assert check_folder(folder, FIX)["format"] == 2


@pytest.mark.parametrize("name", ["one.bin", "inner/two.txt", SEAL])
def test_every_flipped_bit_and_every_missing_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(DamagedFile, match=f"{name}.*{FIX}"):
            check_folder(folder, FIX)
    for short in (content[:-1], b""):
        (folder / name).write_bytes(short)
        with pytest.raises(DamagedFile, match=name):
            check_folder(folder, FIX)
    (folder / name).unlink()
    with pytest.raises(DamagedFile, match=f"{name}: No such file"):
        check_folder(folder, FIX)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"3", b"[" * 100_000, b'{"a": 1}', b'{"a": NaN}', b'{"a": 1e999}']
)
def test_what_was_never_sealed_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"x\.json: (is not the JSON that was written|its content does not match)"):
        unsealed(tmp_path / "x.json", FIX)


def test_an_equal_tree_has_equal_bytes():
    assert sealed({"a": 1, "b": [2.5]}) == sealed({"b": [2.5], "a": 1})


def test_a_record_keeps_the_order_of_its_keys_and_may_hold_nan(tmp_path):
    (tmp_path / "x.json").write_bytes(sealed({"b": float("nan"), "a": {"d": 2, "c": "é"}}, record=True))
    body = unsealed(tmp_path / "x.json", FIX)
    assert (list(body), list(body["a"])) == (["b", "a"], ["d", "c"])


def test_a_sealed_line_is_json_and_every_flipped_bit_of_it_is_told():
    body = {"kind": "步", "loss": 2.5, "text": ', "xxh3": "0"}', "load": [[1, 2]]}
    line = sealed_line(body).encode()
    assert {**body, LINE_HASH: json.loads(line)[LINE_HASH]} == json.loads(line)
    line = line.removesuffix(b"\n")
    assert unsealed_line(line) == body
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFile):
            unsealed_line(bytes(flipped))
    for end in range(len(line)):
        with pytest.raises(DamagedFile):
            unsealed_line(line[:end])


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    write_atomically(file, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pangu_sigma.sealed.sync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/config\.yaml'"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_link_under_the_name_of_what_is_being_written_is_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / f"{UNFINISHED}config.yaml").symlink_to("mine")
    write_atomically(tmp_path / "config.yaml", b"new")
    assert ((tmp_path / "config.yaml").read_bytes(), (tmp_path / "mine").read_bytes()) == (b"new", b"mine")
    assert not (tmp_path / "config.yaml").is_symlink()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        *(
            ({name: {"bytes": 1, "xxh3_128": "0"}}, "is no file of this folder")
            for name in ("../a", "/a", "b/../a", "a\0")
        ),
        *((files, "lists no files") for files in (None, [])),
        *(({"a": recorded}, "has no fingerprint of a") for recorded in (None, {"bytes": 1})),
    ],
)
def test_a_seal_that_names_no_files_of_its_folder_is_refused(tmp_path, files, message):
    (tmp_path / SEAL).write_bytes(sealed({"files": files}))
    with pytest.raises(DamagedFile, match=message):
        check_folder(tmp_path, FIX)


def test_a_pipe_in_place_of_a_file_is_damage_and_no_wait(tmp_path):
    (tmp_path / "a").write_text("a")
    seal_folder(tmp_path, ["a"], {})
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    with pytest.raises(DamagedFile, match="No such file"):
        check_folder(tmp_path, "restore it")


def test_a_sealed_folder_is_flushed_with_the_names_in_the_folders_inside(tmp_path, monkeypatch):
    """A power cut keeps a file's bytes and forgets its name, unless the folder that has the name is flushed, too."""
    flushed: list[Path] = []
    monkeypatch.setattr("pangu_sigma.sealed.sync", flushed.append)
    (tmp_path / "tokenizer").mkdir()
    for name in ("a", "tokenizer/b"):
        (tmp_path / name).write_text("x")
    seal_folder(tmp_path, ["a", "tokenizer/b"], {})
    assert {tmp_path / "a", tmp_path / "tokenizer" / "b", tmp_path / "tokenizer", tmp_path} <= {*flushed}
