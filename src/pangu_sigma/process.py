"""Limits of Python's garbage collection in this process, and the environment of the Python processes that it starts.

Most objects stay: MindSpore and MindFormers alone have 340,000. MindSpore asks for a full collection before each compilation, and
Python collects everything once more when the process ends. Of a training of 30 steps these were 1.8 of 16.4 seconds of processor
time, and 1.1 seconds of its end (our choice).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection in a `with` statement: imports create thousands of objects, none of them garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Limit garbage collection in a `with` statement to objects created in it (gc.freeze).

    Existing garbage is freed first; older objects that become garbage meanwhile are freed at its end. If objects are frozen
    already, nothing is changed, because older and newer frozen objects could not be told apart.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def child_environment() -> dict[str, str]:
    """Return the environment of this process, changed so that Python processes import nothing from the working folder, which may be
    anybody's. Python puts that folder in front of its library for `-m` and `-c`, unless PYTHONSAFEPATH is set. An empty entry of
    PYTHONPATH, which CANN's set_env.sh leaves, means the working folder, too."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return environment
