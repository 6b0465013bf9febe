"""Settings of a whole process: MindSpore's device and mode, garbage collection, environment of children. This module loads without
MindSpore, because mistakes are reported before MindSpore is imported. Garbage collection is limited because most objects stay: in
a training of 30 steps full collections took 1.8 of 16.4 seconds of processor time."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pangu_sigma.errors import UserError

mindspore_lock = threading.RLock()
"""Lock to hold while graphs are built, compiled or run: MindSpore works in any thread, but crashes in two at once."""


def use_cpu(seed: int = 0) -> None:
    """Set MindSpore to the CPU and graph mode; PyNative is some thirty times slower. seed: seed of initialisers and dropout."""
    import mindspore as ms

    refuse_compile_cache()
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.set_seed(seed)


def refuse_compile_cache() -> None:
    """Raise UserError if MindSpore's compile cache is on. MindSpore 2.9 finds a cached graph by its place in the order in which a
    process compiles, and compares the text of the entry script alone: a resumed run takes the graph of the evaluation for its step,
    and a changed key, such as `train.optimizer.clip_norm`, keeps its old value without a word."""
    import mindspore as ms

    if os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1" or ms.get_context("enable_compile_cache"):
        cause = "by MS_COMPILER_CACHE_ENABLE=1 or set_context(enable_compile_cache=True)"
        raise UserError(f"MindSpore's compile cache is on, {cause}: it confuses graphs; switch it off")


@contextmanager
def plain_graphs() -> Iterator[None]:
    """Compile graphs in a `with` statement without MindSpore's auto-parallel, which expects a training step's inputs and stages."""
    import mindspore as ms

    before = {name: ms.get_auto_parallel_context(name) for name in ("parallel_mode", "pipeline_stages")}
    ms.set_auto_parallel_context(parallel_mode="stand_alone", pipeline_stages=1)
    try:
        yield
    finally:
        ms.set_auto_parallel_context(**before)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection in a `with` statement, such as for imports, which create thousands of objects and no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Limit garbage collection in a `with` statement to objects created in it (gc.freeze). Existing garbage is freed first; older
    objects that become garbage meanwhile can be freed after it. If objects are frozen already, nothing is changed, because
    gc.unfreeze would unfreeze these, too."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def recorded_signals(*numbers: signal.Signals) -> Iterator[list[signal.Signals]]:
    """Yield a list to which the signals `numbers` are appended as they arrive in a `with` statement, instead of ending the process.
    A signal that is ignored, as under `nohup`, stays ignored. Outside of the main thread, where Python does not let anybody handle
    signals, the list stays empty."""
    received, is_main_thread = list[signal.Signals](), threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if is_main_thread}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda arrived, _frame: received.append(signal.Signals(arrived)))
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def child_environment() -> dict[str, str]:
    """Return this process's environment, changed so that Python processes import nothing from the working folder, which may be
    anybody's. Python puts that folder in front of its library for `-m` and `-c`, unless PYTHONSAFEPATH is set. An empty entry of
    PYTHONPATH, which CANN's set_env.sh leaves, means the working folder, too."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return environment
