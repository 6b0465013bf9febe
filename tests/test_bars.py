"""Progress is a bar in a terminal, a few lines in a file, and nothing where it was not asked for."""

from __future__ import annotations

import io
import sys
import time

import pytest

from pangu_sigma.bars import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that bars see, in seconds; a test moves it."""
    now = [time.time()]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def count(clock: list[float], seconds: float, **options) -> str:
    """What 100 updates write to standard error, `seconds` in all, with a nested bar."""
    with Bar(total=100, desc="count", **options) as bar, Bar(total=100, desc="inner", leave=False) as inner:
        for _ in range(100):
            clock[0] += seconds / 100
            inner.update()
            bar.update()
    return sys.stderr.getvalue()


def test_bars_into_a_file_are_a_few_lines_and_none_before_ten_seconds(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert count(clock, 5) == ""
    written = count(clock, 60, leave=False)
    assert "\r" not in written and "\x1b" not in written
    assert all(line.startswith(("count:", "inner:")) for line in written.splitlines())
    assert 4 <= written.count("count:") <= 6


def test_bars_in_a_terminal_are_bars_and_quiet_shows_none(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert count(clock, 60).count("\r") > 50
    monkeypatch.setattr(Bar, "quiet", True)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert count(clock, 60) == ""
