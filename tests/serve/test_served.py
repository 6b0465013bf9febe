"""Limits have names, and a wrong one is said."""

from __future__ import annotations

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import override, validated
from pangu_sigma.serve.served import Limits


def limits(*changes: str) -> Limits:
    return validated(Limits, override({}, changes))


def test_changes_come_by_name():
    assert limits() == Limits()
    assert limits("waiting=3", "lanes=1", "waiting=4") == Limits(waiting=4, lanes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("xyz=1", r"^xyz: unknown key \(value 1\); allowed here: lanes, waiting,"),
        ("lanes=0", "^lanes: 0 is not allowed: it must be greater than or equal to 1$"),
        ("lanes=1.5", "^lanes: 1.5 is not allowed: it must be a whole number$"),
        ("lanes=", "^lanes: None is not allowed: it must be a whole number$"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        limits(change)
