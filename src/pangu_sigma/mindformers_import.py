"""Import of MindFormers without its side effects: log files in the working directory and warnings of missing packages."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.garbage import gc_disabled


@contextmanager
def quiet_mindformers() -> Iterator[None]:
    """Silence MindFormers while a `with` statement imports from it. Import it only where needed, because that takes seconds."""
    os.environ.setdefault("LOG_MF_PATH", str(Path(tempfile.gettempdir()) / "mindformers_log"))
    logging.disable(logging.WARNING)
    try:
        with gc_disabled():
            yield
    finally:
        logging.disable(logging.NOTSET)
