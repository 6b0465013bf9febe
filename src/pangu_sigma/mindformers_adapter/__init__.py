"""Adapter to MindFormers: the classes that `mindformers.Trainer` needs to train PanGu-Σ from a YAML in MindFormers' style.

The YAML's output_dir is a run folder of this project: `pangu-sigma evaluate`, `generate` and `export` read it, and training resumes
from its newest checkpoint, whichever of the two trainers wrote it.

`python -m pangu_sigma.mindformers_adapter CONFIG` trains (__main__.py shows the calls); registration.py is for MindFormers' own run
entry.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.process import gc_disabled


@contextmanager
def quiet_mindformers() -> Iterator[None]:
    """Import from MindFormers in a `with` statement without its side effects: log files in the working directory, and warnings of
    missing packages."""
    os.environ.setdefault("LOG_MF_PATH", str(Path(tempfile.gettempdir()) / "mindformers_log"))
    logging.disable(logging.WARNING)
    try:
        with gc_disabled():  # because of the import
            yield
    finally:
        logging.disable(logging.NOTSET)


def register() -> None:
    """Register the adapter's classes with MindFormers under their names, which a YAML gives as `type`."""
    with quiet_mindformers():
        from pangu_sigma.mindformers_adapter import trainer  # noqa: F401 (which imports the others)
