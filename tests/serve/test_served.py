"""Limits have names, and a wrong one is said."""

from __future__ import annotations

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.serve.served import Limits


def test_changes_come_by_name():
    assert Limits.changed([]) == Limits()
    assert Limits.changed(["lanes=1000000000000"]) == Limits(lanes=10**12), "the most that a refusal names"
    assert Limits.changed(["n=3", "lanes=1", "n=4"]) == Limits(n=4, lanes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("frobs=1", "there is no limit 'frobs'; there are lanes, waiting,"),
        ("n", "'' is not a whole number"),
        ("n=0", "'0' is not a whole number from 1"),
        ("n=-1", "'-1'"),
        ("n=1.5", "'1.5'"),
        ("n=²", "'²'"),
        ("n=1000000000001", "is not a whole number from 1 to 1000000000000"),
        ("n=" + "9" * 20, "9"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Limits.changed([change])
