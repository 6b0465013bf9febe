"""Fixtures of all tests. Nothing here imports MindSpore until a test asks for it, so that pure tests stay fast.

`run_scripts/test.sh` gives the files of tests to two processes (pytest-xdist): most of the time is MindSpore's compilation of
graphs, which has one thread. The process that first needs a run or an export makes it; the other one waits.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("on a busy machine", settings.default, deadline=None)  # two processes share the cores
settings.load_profile("on a busy machine")

LONG = [
    "training/test_loop.py",
    "npu/plan/test_compile.py",
    "convert/test_mindir.py",
    "finetune/test_tuning.py",
    "ranks/test_launch.py",
    "ranks/test_ranks_train.py",
    "training/test_step.py",
    "ecss/test_exactness.py",
    "ascend_ops/test_ascendc_mutations.py",
    "training/test_health.py",
    "test_mindformers_adapter.py",
    "test_pages.py",
    "npu/test_step.py",
    "test_cli.py",
    "test_api.py",
    "training/test_start.py",
    "npu/test_backend.py",
    "training/test_rows.py",
    "training/test_phases.py",
]
"""Files that take longest, longest first: they begin first, so that no process is left alone with one of them at the end. A process
gets its next file when two tests are left, so files of a single long test must not be among the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first; the order of all others, and inside a file, stays."""
    order = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="module", autouse=True)
def _freeze_live_objects() -> None:
    """MindSpore looks for garbage among all objects of Python before each compilation: a sixth of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore in graph mode on the CPU, as the project uses it."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make) -> a folder that make(folder) fills, once for all processes of this run of tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)

    def filled(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = shared / name, shared / f"{name}.complete"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # the folder of a process that failed
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def tiny_data(made_once) -> Path:
    """What prepare-data makes of three domains of generated text. Read only."""
    from experiments.tiny import prepare_tiny

    return made_once("tiny_data", prepare_tiny) / "prepared"


@pytest.fixture(scope="session")
def tiny_run(tiny_data, made_once) -> Path:
    """The folder of a whole run on that data, trained once for all tests. Read only: copy the folder to change it."""
    from experiments.tiny import tiny_config
    from pangu_sigma.training.loop import train

    return made_once("tiny_run", lambda folder: train(tiny_config(tiny_data), folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def segmented_run(tiny_data, made_once) -> Path:
    """A whole run on that data with two own and two common segments of three experts, trained for a few steps. Read only."""
    from experiments.tiny import tiny_config
    from pangu_sigma.training.loop import train

    model = {"segments": ["own", "own", "common", "common"], "common_experts": 3}
    steps = {"steps": 4, "eval_interval": 4, "checkpoint_interval": 4}
    config = tiny_config(tiny_data, model=model, train=steps)
    return made_once("segmented_run", lambda folder: train(config, folder / "run")) / "run"


@pytest.fixture(scope="session")
def rows_run(tiny_data, made_once) -> Path:
    """A whole run on that data with rows of both orders and kinds, trained for a few steps. Read only."""
    from experiments.tiny import TINY_ROWS, tiny_config
    from pangu_sigma.training.loop import train

    steps = {"steps": 8, "eval_interval": 8, "checkpoint_interval": 8}
    config = tiny_config(tiny_data, model={"rows": TINY_ROWS}, train=steps)
    return made_once("rows_run", lambda folder: train(config, folder / "run")) / "run"


@pytest.fixture(scope="session")
def drawn_segmented_run(tiny_data, made_once) -> Path:
    """The folder of a run with drawn weights, whose RRE layers have two own and two common segments. Read only."""
    from helpers.dense_runs import write_dense_run

    from experiments.tiny import tiny_config

    segments = {"segments": ["own", "own", "common", "common"], "common_experts": 3}
    config = tiny_config(tiny_data, model=segments, routing={"table": "balanced", "seed": 3})
    return made_once("drawn_segmented_run", lambda folder: write_dense_run(config, folder / "run")) / "run"


@pytest.fixture(scope="session")
def tiny_export(tiny_run, made_once) -> Path:
    """That run as an exported model. Read only."""
    from pangu_sigma.convert.mindir import export_mindir

    return made_once("tiny_export", lambda folder: export_mindir(tiny_run, folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def tiny_graph(graph_mode, tiny_export):
    """Its graph, an `ExportedGraph`, loaded and compiled once for a process."""
    from pangu_sigma.generate.graph.exported import ExportedGraph
    from pangu_sigma.stored.open import open_model

    return ExportedGraph.load(open_model(tiny_export, "export"))
