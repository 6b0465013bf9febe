"""A dense model becomes the step 0 of a sparse run: `descent.py` says how, this file does it, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.run_folder import RunFolder, read_prepared_tokenizer
from pangu_sigma.checkpoint.save import save_checkpoint
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.samples import open_samples
from pangu_sigma.errors import DataError
from pangu_sigma.inherit.descent import Child, check_child, slot_rows
from pangu_sigma.inherit.equality import agreements
from pangu_sigma.inherit.parent import Parent
from pangu_sigma.inherit.receipt import Receipt, make_receipt
from pangu_sigma.inherit.variation import Variation
from pangu_sigma.train.health import Health
from pangu_sigma.train.progress import Progress


def plan_inheritance(parent: Parent, config: Config, variation: Variation, moments: bool = False) -> Child:
    """The child of `parent`, and none of its values read. Without prepared text it has no rows yet.

    Raises ConfigError when it differs from the parent in a key that must be equal, or when there is nothing to carry over.
    """
    check_child(parent, config, moments)
    try:
        slots = slot_rows(parent, config, read_prepared_tokenizer(config))
    except DataError:
        slots = None
    return Child(parent, config, slots, variation, moments)


def inherit(
    parent: Parent, config: Config, folder: Path, variation: Variation | None = None, moments: bool = False
) -> Receipt:
    """Make `folder` a run of `config` whose step 0 answers as `parent`.

    The folder appears whole or not at all, and `train` goes on from it. variation: how experts differ from the parent's FFN; by
    default they do not. moments: True to carry Adam's state over. Raises ConfigError when `folder` exists or as
    `plan_inheritance`; DataError without prepared text; LayoutError, CheckpointError for a parent that cannot be read.
    """
    check_absent(folder)
    child = plan_inheritance(parent, config, variation or Variation(seed=config.seed), moments)
    if child.slots is None:
        read_prepared_tokenizer(config)  # raises what is wrong
    with new_run(folder, config) as run:
        write_step_0(run, compose(run.config, child.find))
        agreement = agreements(parent.model, child.slots or [], run.path)
        receipt = make_receipt(child, agreement)
        receipt.save(run.path)
    return receipt


def check_absent(folder: Path, option: str = "--run") -> None:
    """Raise ConfigError if a folder that is to be made is there. option: that names it."""
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another folder with {option}")


@contextmanager
def new_run(folder: Path, config: Config) -> Iterator[RunFolder]:
    """A new run folder to be filled. Raises DataError without prepared text, or with less than a sample of it."""
    with new_folder(folder) as path:
        run = RunFolder.create(path, config)
        open_samples(run.config, Path(run.config.data.path), "train", run.tokenizer.size)
        yield run


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """What a new folder is called until the block ends well; then it has its name, else what is there of it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        path = Path(unfinished) / folder.name
        yield path
        try:
            path.rename(folder)
        except OSError as error:
            raise ConfigError(
                f"{folder} was made by somebody else meanwhile ({error.strerror}); choose another folder"
            ) from error


def write_step_0(run: RunFolder, files: Files) -> None:
    """Write the checkpoint that training goes on from at step 0."""
    config = run.config
    start = Cursor([0] * len(config.domains))
    health = Health(config.train, [domain.name for domain in config.domains]).state()
    total = sum(array.values.nbytes for arrays in files.values() for array in arrays.values())
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, disable=None) as bar:
        save_checkpoint(
            run.checkpoints,
            0,
            files,
            {**Progress(0, 0, start).state(), "health": health},
            run.identity,
            config.train.keep_checkpoints,
            lambda: bar.update(min(_CHUNK, total - bar.n)),
        )


_CHUNK = 64 << 20
"""Bytes by which the progress bar moves: a save calls back after at most so many."""
