"""What the configuration may ask of the worker. That it changes no bit: test_exactness.py, tests/ascend_ops/test_adam_worker.py."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.toy import toy_config

from pangu_sigma.config import ConfigError
from pangu_sigma.ecss.store import make_store
from pangu_sigma.ecss.worker import WorkerUpdate


@pytest.mark.parametrize(
    ("ecss", "said"),
    [
        ({"enabled": False, "update": "worker"}, "update=worker needs enabled=true"),
        ({"update": "step", "update_cores": 2}, "update_cores=2 needs update=worker or auto"),
    ],
)
def test_a_worker_that_nothing_would_use_is_refused(ecss: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        toy_config(ecss=ecss)


def test_cores_that_were_not_divided_are_told(caplog: pytest.LogCaptureFixture):
    config = toy_config(ecss={"update": "worker", "update_cores": 1})
    WorkerUpdate(config, make_store(config))
    assert "ecss.update_cores=1: only `train` divides the cores" in caplog.text
