"""A thin layer over the calls that change files: it counts them, and lets one of them fail or the process die there."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGING = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""Functions of `os` that are counted, beside every open and write of a stream."""


class Killed(BaseException):
    """The process is dead; nothing catches this, and nothing that is called later happens."""


class FileCalls:
    """The calls so far, by name; `fail(number, name)` is asked before each and may raise."""

    def __init__(self, fail: Callable[[int, str], None] = lambda number, name: None):
        self.names: list[str] = []
        self._fail = fail

    def before(self, name: str) -> None:
        """Count a call, which the layer is about to make."""
        self.names.append(name)
        self._fail(len(self.names) - 1, name)

    @contextmanager
    def __call__(self) -> Iterator[FileCalls]:
        """The layer is in force inside this block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._counting(name, getattr(os, name)))
            opened = io.open
            for module in (builtins, io):
                patch.setattr(module, "open", lambda *args, **options: self._open(opened, *args, **options))
            yield self

    def _counting(self, name: str, call: Callable) -> Callable:
        def counted(*args: Any, **options: Any) -> Any:
            self.before(name)
            return call(*args, **options)

        return counted

    def _open(self, opened: Callable, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return opened(file, mode, *args, **options)
        self.before("open for writing")
        return _Stream(opened(file, mode, *args, **options), self)


class _Stream:
    """A stream whose writes are counted; a write that fails has written half of its bytes."""

    def __init__(self, stream: Any, calls: FileCalls):
        self._stream, self._calls = stream, calls

    def write(self, content: Any) -> int:
        try:
            self._calls.before("write")
        except BaseException:
            self._stream.write(content[: len(content) // 2])
            raise
        return self._stream.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def killed_at(call: int) -> FileCalls:
    """The process dies at this call."""

    def fail(number: int, name: str) -> None:
        if number >= call:
            raise Killed

    return FileCalls(fail)


def refused_at(call: int, code: int = errno.EIO, for_good: bool = False) -> FileCalls:
    """The call is an error of the disk; for_good: so is every later one that needs room."""

    def fail(number: int, name: str) -> None:
        needs_room = name in ("open for writing", "write", "mkdir", "fsync")
        if number == call or (for_good and number > call and needs_room):
            raise OSError(code, os.strerror(code))

    return FileCalls(fail)


def killed_after(calls: int, work: Callable[[], object]) -> bool:
    """Do some work that is killed after so many calls. Returns True if it had more to do."""
    try:
        with killed_at(calls)():
            work()
    except Killed:
        return True
    return False
