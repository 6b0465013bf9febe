"""A run of its own for tests that train."""

from __future__ import annotations

import pytest

from experiments.tiny import tiny_config


@pytest.fixture(scope="package")
def trainer(graph_mode, tiny_data, tmp_path_factory):
    """A run of its own, with dropout, that tests advance step by step."""
    from pangu_sigma.training.loop import Trainer
    from pangu_sigma.training.start import start_run

    config = tiny_config(tiny_data, model={**tiny_config(tiny_data).model.model_dump(), "dropout": 0.2})
    return Trainer(start_run(tmp_path_factory.mktemp("trainer") / "run", config))
