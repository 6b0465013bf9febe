"""Check that output files and folders can be written, before hours of work depend on them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pangu_sigma.errors import UserError, argument


class NotWritable(UserError):
    """Error of a file or folder that cannot be written; the message names the path, the reason and the option to change."""


def check_folder_writable(folder: Path, option: str) -> None:
    """Raise NotWritable unless `folder` can be created, or exists and can be written into; nothing is left behind.

    option: command-line option that gave the path, for messages, such as "--output".
    """
    named, absolute = argument(option), folder.absolute()
    existing = absolute
    try:
        existing = next(each for each in (absolute, *absolute.parents) if each.is_symlink() or each.exists())
        # permissions do not tell: root may do everything, but not on a read-only or full file system, or in /proc
        with tempfile.TemporaryDirectory(prefix=".pangu_sigma-", dir=existing):
            pass
    except OSError as error:
        why = f"cannot write into {existing}: {error.strerror}; name another path with {named}"
        raise NotWritable(f"{named} {folder}: {why}") from error


def refuse_link(path: Path) -> None:
    """Raise NotWritable for a link in the place of a file or folder of our own: what it names may be somebody else's."""
    if path.is_symlink():
        raise NotWritable(f"{path} is a link, whose target would be written; put the target there, or remove it")


def check_file_writable(file: Path, option: str) -> None:
    """Raise NotWritable unless `file` can be made: its folder exists, and it does not. A device may exist, such as /dev/stdout."""
    named = argument(option)
    if file.is_file() and not file.is_relative_to("/dev"):
        raise NotWritable(f"{file} exists; choose another path with {named}, or remove it: nothing is replaced")
    try:
        if not file.exists():
            file.touch()
            file.unlink()
        elif file.is_dir() or not os.access(file, os.W_OK):
            raise OSError(0, "it is a folder, or this user may not write it")
    except OSError as error:
        raise NotWritable(f"{named} {file}: {error.strerror}; name another file with {named}") from error
