"""What tests of benchmarks share."""

from __future__ import annotations

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module")
def programs_can_run() -> None:
    """Programs can be isolated here; otherwise tests that run them are skipped, with the reason."""
    try:
        Sandbox()
    except ConfigError as error:
        pytest.skip(str(error))
