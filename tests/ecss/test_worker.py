"""What the configuration may ask of the worker. That it changes no bit: test_exactness.py, tests/ascend_ops/test_adam_worker.py."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.toy import toy_config

from pangu_sigma.config import ConfigError


@pytest.mark.parametrize(
    ("ecss", "said"),
    [
        ({"enabled": False, "update": "worker"}, "update=worker needs enabled=true"),
    ],
)
def test_a_worker_that_nothing_would_use_is_refused(ecss: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        toy_config(ecss=ecss)
