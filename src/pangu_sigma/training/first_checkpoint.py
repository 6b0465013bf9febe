"""Run folder that starts from given weights: created atomically, with a checkpoint of step 0."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.checkpoint import CheckpointError, UnhealthyState
from pangu_sigma.checkpoint.not_finite import describe
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.saver import Saver, bytes_of
from pangu_sigma.config import ConfigError
from pangu_sigma.data.order import Cursor
from pangu_sigma.errors import argument, in_words
from pangu_sigma.sealed import commit
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.health import Health
from pangu_sigma.training.start import Progress


def check_absent(output: Path) -> None:
    """Raise ConfigError if the folder or file to be created exists already."""
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists; choose another path with {argument('--output')}, or remove it first")


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder that the `with` block fills; it is renamed to `folder` if the block succeeds, else removed. Raises
    ConfigError if it cannot be made, or if `folder` exists, before the block or after it."""
    check_absent(folder)
    # in the nearest folder that exists: a block that fails leaves no new parent
    ancestor = next(path for path in folder.absolute().parents if path.exists())
    try:
        temporary = tempfile.TemporaryDirectory(dir=ancestor, prefix=f".{folder.name}-")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {in_words(error, folder)}; choose another folder") from error
    with temporary as unfinished:
        path = Path(unfinished) / folder.name
        path.mkdir()
        try:
            yield path
        except OSError as error:
            error.filename = error.filename or str(folder)  # the error of a write to a full disk names no file
            raise
        check_absent(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        commit(path, folder)


def write_step_0(run: StoredRun, files: Files, cursor: Cursor | None = None) -> None:
    """Write a checkpoint of step 0 that training starts from. files: files of the checkpoint, with the weights. cursor: position in
    the text, None for its beginning. Raises CheckpointError if weights are not finite."""
    config = run.config
    start = cursor or Cursor([0] * len(config.domains))
    health = Health(config.train, [domain.name for domain in config.domains]).state()
    total = bytes_of(files)
    try:
        with (
            Bar(total=total, desc="writing", unit="B", unit_scale=True) as bar,
            # keeps 1 checkpoint, and moves the bar after each chunk
            Saver(run.checkpoints, run.identity, 1, lambda: bar.update(min(_CHUNK, total - bar.n))) as saver,
        ):
            saver.save(0, files, {**Progress(0, 0, start).state(), "health": health})
    except UnhealthyState as error:
        raise CheckpointError(
            f"the model has values that are not finite: {'; '.join(describe(error.not_finite, run.identity.config))}. No run "
            "begins with them, and nothing was written; name another model, such as an earlier checkpoint of its run"
        ) from error


_CHUNK = 64 << 20
"""Bytes by which the progress bar moves; `Saver` calls back at least that often."""
