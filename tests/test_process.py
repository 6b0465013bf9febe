"""What holds for a whole process. No garbage stays, nor a change in how Python looks for it. A child imports what is installed, and
not what lies where the user stands. A signal is recorded, and ends nothing. What ranks sum is another graph than the step; graphs
of a cache are not taken."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import pytest
from helpers.small_clusters import MODEL_CONFIGS
from helpers.strangers import strangers

from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.errors import UserError
from pangu_sigma.mindformers_adapter import quiet_mindformers
from pangu_sigma.npu.context import target_ascend
from pangu_sigma.npu.plan.cann_stub import ascend_environment
from pangu_sigma.process import child_environment, gc_disabled, gc_frozen, recorded_signals, use_cpu


class Node:
    """Garbage that only a search finds, once nobody else holds it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """As in a process of its own; conftest.py freezes what a file of tests begins with."""
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.freeze()


def test_older_objects_are_searched_before_and_after_the_block_only_and_newer_ones_in_it():
    garbage, node = Node(), Node()
    before, older = weakref.ref(garbage), weakref.ref(node)
    del garbage
    with gc_frozen():
        assert before() is None
        del node
        newer = weakref.ref(Node())
        gc.collect()
        assert older() is not None and newer() is None
    gc.collect()
    assert older() is None


@pytest.mark.parametrize("block", [gc_frozen, gc_disabled, quiet_mindformers])
def test_an_error_leaves_python_as_it_was(block):
    with pytest.raises(KeyError), block():
        raise KeyError
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_what_somebody_set_before_stays():
    gc.freeze()
    gc.disable()
    try:
        with gc_frozen(), gc_disabled():
            pass
        assert gc.get_freeze_count() > 0 and not gc.isenabled()
    finally:
        gc.enable()


SAYS = "import argparse, json, sys; print(json.dumps(sys.path))"


@pytest.mark.parametrize("before", [None, "", ":", "{}:", ":{}:", "::{}"])
def test_a_child_imports_nothing_from_the_working_folder(tmp_path, monkeypatch, before):
    ran, named = strangers(tmp_path / "here"), str(tmp_path / "named")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before.format(named))
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SAYS!r}])"]
    done = subprocess.run(command, cwd=tmp_path / "here", env=child_environment(), capture_output=True, text=True)
    assert (done.stderr, ran()) == ("", [])
    path = json.loads(done.stdout)
    assert not {"", str(tmp_path / "here")} & {*path}
    assert (named in path) == (before is not None and "{}" in before)
    assert {name for name, value in child_environment().items() if os.environ.get(name) != value} <= {
        "PYTHONPATH",
        "PYTHONSAFEPATH",
    }


SCRIPT = Path(__file__).parent / "helpers" / "sum_beside_the_step.py"


def test_a_sum_compiles_beside_a_step_of_stages(tmp_path: Path):
    small = ["model.dense_layers=1", "model.rre_layers=1", "model.seq_length=32", "model.slot_rows=256"]
    axes = ["parallel={stages: 2, data: 2, tensor: 2}", "train.accumulation=2", "train.compute_dtype=float16"]
    config = load_config(MODEL_CONFIGS / "sigma_tiny.yaml", [*small, *axes])
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "config.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=ascend_environment(8, 4), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "compiled", done.stderr[-2000:]


@pytest.mark.parametrize("by", ["variable", "context"])
def test_graphs_are_not_taken_from_the_cache_of_mindspore(by: str, monkeypatch: pytest.MonkeyPatch):
    """It once gave a resumed run the graph of the evaluation, and a run with another limit of the norm the old limit."""
    if by == "variable":
        monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    else:
        monkeypatch.setattr(ms, "get_context", {"enable_compile_cache": True}.get)
    for use in (use_cpu, target_ascend):
        with pytest.raises(UserError, match=r"MS_COMPILER_CACHE_ENABLE=1 .*; switch it off"):
            use()


def test_a_signal_is_recorded_and_ends_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with recorded_signals(signal.SIGTERM) as signals:
        assert signals == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_has_its_old_meaning_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), recorded_signals(signal.SIGTERM):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with recorded_signals(signal.SIGHUP) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with recorded_signals(signal.SIGTERM) as signals:
            seen.append((signal.getsignal(signal.SIGTERM), signals))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, [])]
    assert signal.getsignal(signal.SIGTERM) is before
