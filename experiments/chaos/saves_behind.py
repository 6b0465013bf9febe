"""Compare checkpoints that are written behind a training with those that are written at once, as a program: folder, number, data.

With prepared data it trains the tiny configuration and saves after every step, both ways; it prints how many are the same bits and
ends with status 1 if any is not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.config import Config
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run


def same_saves(config: Config, folder: Path, count: int) -> list[bool]:
    """True for each of `count` steps whose checkpoint, written while the next steps were taken, is the one of a run that waited."""
    behind, at_once = (
        Trainer(
            start_run(
                folder / name, config.model_copy(update={"train": config.train.model_copy(update=_many(count, waits))})
            )
        )
        for name, waits in (("behind", True), ("at_once", False))
    )
    for trainer in (behind, at_once):
        with trainer.saver:
            for _ in range(count):
                trainer.advance()
                trainer.save_in_turn(last=False)
    return [_files(behind, step) == _files(at_once, step) for step in range(1, count + 1)]


def _many(count: int, behind: bool) -> dict:
    return {"steps": count, "checkpoint_interval": 1, "keep_checkpoints": count, "async_save": behind}


def _files(trainer: Trainer, step: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of a checkpoint's arrays, and its state; its facts name the configuration, in which the two differ."""
    folder = trainer.run.checkpoints / f"step_{step:08d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}, load_checkpoint(folder).state


def main() -> int:
    """Compare, and print the count."""
    folder, count, data = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    same = same_saves(tiny_config(data), folder, count)
    print(f"{sum(same)} of {count} states that were saved behind the training are those saved at once")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
