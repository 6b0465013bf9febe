"""Fixtures of all tests. Nothing here imports MindSpore until a test asks for it, so that pure tests stay fast."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore in graph mode on the CPU, as the project uses it."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """What prepare-data makes of three domains of generated text. Read only."""
    from helpers.tiny import tiny_config, write_text

    from pangu_sigma.data.prepare import prepare

    folder = tmp_path_factory.mktemp("tiny")
    write_text(folder / "text.jsonl")
    prepare(tiny_config(folder / "prepared"), [folder / "text.jsonl"], folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """The folder of a whole run on that data, trained once for all tests. Read only: copy the folder to change it."""
    from helpers.tiny import tiny_config

    from pangu_sigma.train.loop import train

    path = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(tiny_data), path)
    return path


@pytest.fixture(scope="session")
def tiny_export(tiny_run, tmp_path_factory) -> Path:
    """That run as an exported model. Read only."""
    from pangu_sigma.convert.mindir import export_mindir

    return export_mindir(tiny_run, tmp_path_factory.mktemp("exports") / "tiny")
