"""Runs of any size, made without training: their values are drawn while they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import ROWS
from pangu_sigma.config import Config
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.training.first_checkpoint import unfinished_folder, write_step_0
from pangu_sigma.training.start import start_run

_DRAWN = 1 << 20


def write_dense_run(config: Config, folder: Path, std: float = 0.1) -> Path:
    """A run folder of `config` whose checkpoint of step 0 has weights from N(0, std), the same million of them again and again.

    Experts, if it has some, differ from each other. Of rows, if it has some, every other one was met.
    """
    drawn = np.random.default_rng(0).standard_normal(_DRAWN).astype(np.float32) * np.float32(std)

    def find(shard: str, name: str, shape: tuple[int, ...]) -> LazyArray | None:
        if shard.startswith(ROWS) and name == "keys":
            stored = config.stored_rows(config.model.rows[int(shard.removeprefix(ROWS))])
            return LazyArray.of(np.arange(1, stored, 2))
        if shard != "dense" and name not in FFN_TENSORS and not (shard.startswith(ROWS) and name == "weight"):
            return None
        size = int(np.prod(shape))
        start = sum(f"{shard} {name}".encode()) % 1000  # so that tensors of one shape differ

        def content():
            left, at = size, start
            while left:
                values = drawn[at : at + left]
                yield values
                left, at = left - len(values), 0

        return LazyArray(shape, np.dtype(np.float32), content)

    with unfinished_folder(folder) as fresh:
        run = start_run(fresh, config)
        write_step_0(run, compose(run.config, find))
    return folder
