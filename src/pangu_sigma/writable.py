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
    option = argument(option)
    fix = f"name another path with {option}"
    existing = folder.absolute()
    try:
        if "\0" in str(folder):
            raise ValueError("a name has no null byte")
        while not existing.exists():
            if existing.is_symlink():
                raise NotWritable(f"{option} {folder}: {existing} is a link to nowhere; remove it, or {fix}")
            existing = existing.parent
        # permissions do not tell: root may do everything, but not on a read-only or full file system, or in /proc
        with tempfile.TemporaryDirectory(prefix=".pangu_sigma-", dir=existing):
            pass
    except NotADirectoryError:
        raise NotWritable(f"{option} {folder}: {existing} is a file and no folder; {fix}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotWritable(f"{option} {folder}: cannot write into {existing}: {reason}; {fix}") from error


def refuse_link(path: Path) -> None:
    """Raise NotWritable for a link in the place of a file or folder of our own: what it names may be somebody else's."""
    if path.is_symlink():
        raise NotWritable(
            f"{path} is a link, and what it names would be written; put the link's target there, or remove it"
        )


def check_file_writable(file: Path, option: str) -> None:
    """Raise NotWritable unless `file` can be made: its folder exists, and it does not. A device may exist, such as /dev/stdout."""
    named = argument(option)
    fix = f"name another file with {named}"
    if file.is_dir():
        raise NotWritable(f"{named} {file}: is a folder; {fix}")
    if file.is_file() and not file.is_relative_to("/dev"):
        raise NotWritable(f"{file} exists; choose another path with {named}, or remove it: nothing is replaced")
    if not file.parent.is_dir():
        raise NotWritable(f"{named} {file}: the folder {file.parent} is not there; make it, or {fix}")
    if not file.exists():
        check_folder_writable(file.parent, option)
    elif not os.access(file, os.W_OK):
        raise NotWritable(f"{named} {file}: may not be written by this user; {fix}")
