"""Limits have names, and a wrong one is said."""

from __future__ import annotations

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.serve.served import Limits


def test_changes_come_by_name():
    assert Limits.changed([]) == Limits()
    assert Limits.changed(["lanes=1000000000000"]) == Limits(lanes=10**12), "the most that a refusal names"
    assert Limits.changed(["waiting=3", "lanes=1", "waiting=4"]) == Limits(waiting=4, lanes=1)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="there is no limit 'frobs'; there are lanes, waiting,"):
        Limits.changed(["frobs=1"])
    for number in ("", "0", "-1", "1.5", "²", "1000000000001", "9" * 20):
        with pytest.raises(ConfigError, match=f"'{number}' is not a whole number from 1 to 1000000000000"):
            Limits.changed([f"waiting={number}"])
