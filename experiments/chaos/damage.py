"""Files of a checkpoint, an export, prepared data and a run folder, damaged one at a time: found before use, and named."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.chaos.cases import TRAIN, Case, command, configuration, data, once
from experiments.chaos.runs import newest, opened_whole
from pangu_sigma.config_file import load_config
from pangu_sigma.data.batches import open_samples
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import UserError
from pangu_sigma.stored.open import open_model

COUNTS = {"flipped": 200, "cut": 50, "deleted": 20, "emptied": 20, "swapped": 20}
"""How many files are damaged in each way; the four kinds of folders take turns."""


def cases(work: Path, full: bool) -> Sequence[Case]:
    """All of them, also in the short form: each takes less than a second."""
    whole = once(work, "damage", partial(_whole, work))
    return [
        Case(f"{how}_{kind}_{number}", partial(_check, whole, how, kind, number))
        for how, count in COUNTS.items()
        for number in range(count if full else max(len(_READ), count // 2))
        for kind in [list(_READ)[number % len(_READ)]]
    ]


def _whole(work: Path, folder: Path) -> None:
    """A run of three checkpoints, its data and its export."""
    shutil.copytree(data(work), folder / "data")
    config = configuration(folder, folder / "data")
    for arguments in ([str(config), "--output", str(folder / "run")],):
        status, said = command([*TRAIN, *arguments])
        assert status == 0, said
    export = [*TRAIN[:-1], "export", str(folder / "run"), "--output", str(folder / "export")]
    status, said = command(export)
    assert status == 0, said


def _check(whole: Path, how: str, kind: str, number: int, folder: Path) -> str:
    rng = np.random.default_rng([number, list(COUNTS).index(how)])
    root = whole / _FOLDERS[kind]
    files = sorted(path for path in root.rglob("*") if path.is_file() and _is_read(kind, path.relative_to(root)))
    file = files[int(rng.integers(len(files)))]
    others = [path for path in files if path.suffix == file.suffix and path.read_bytes() != file.read_bytes()]
    with _damaged(file, how, rng, others), _warnings() as said:
        try:
            found = _READ[kind](whole)
        except UserError as error:
            found = str(error)
    assert found is not None or said, f"{file.relative_to(whole)} {how}: used without a word"
    text = f"{found} {' '.join(said)}"
    assert file.name in text, f"{file.relative_to(whole)} {how}: not named in {text[:300]!r}"
    return ""


@contextlib.contextmanager
def _damaged(file: Path, how: str, rng: np.random.Generator, others: list[Path]) -> Iterator[None]:
    """The file, damaged; as it was at the end."""
    content = file.read_bytes()
    try:
        match how:
            case "flipped":
                at = int(rng.integers(len(content)))
                file.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
            case "cut":
                file.write_bytes(content[: int(rng.integers(len(content)))])
            case "deleted":
                file.unlink()
            case "emptied":
                file.write_bytes(b"")
            case "swapped" if others:
                file.write_bytes(others[int(rng.integers(len(others)))].read_bytes())
            case "swapped":
                file.write_bytes(bytes(len(content)))
        yield
    finally:
        file.write_bytes(content)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged in the block."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


def _read_checkpoint(whole: Path) -> str | None:
    """Falls back by name from the newest checkpoint."""
    return "the one before" if newest(whole / "run").step < 6 else None


def _read_export(whole: Path) -> str | None:
    opened_whole(whole / "export", "export")
    return None


def _read_data(whole: Path) -> str | None:
    """Opens the prepared data, and reads every sample of both splits once and the lengths of documents, which reports need."""
    config, prepared = load_config(whole / "config.yaml"), PreparedData(whole / "data")
    tokenizer, _ = prepared.tokenizer(), prepared.frequencies()
    for split in ("train", "held_out"):
        samples = open_samples(config, whole / "data", split, tokenizer.size)
        for position, count in enumerate(samples.counts):
            for number in range(count):
                samples.read(position, number)
        for domain in prepared.manifest.domains:
            _ = prepared.tokens(domain, split, tokenizer.size).lengths
    return None


def _read_run(whole: Path) -> str | None:
    run = open_model(whole / "run", "run")
    _ = run.config, run.tokenizer, run.table
    return None


_READ: dict[str, Callable[[Path], str | None]] = {
    "checkpoint": _read_checkpoint,
    "export": _read_export,
    "data": _read_data,
    "run": _read_run,
}
"""What reads each kind of folder. None: nothing was noticed."""

_FOLDERS = {"checkpoint": "run/checkpoints/step_00000006", "export": "export", "data": "data", "run": "run"}


def _is_read(kind: str, path: Path) -> bool:
    """True for the files that a reader of this kind of folder needs; the others say nothing to it."""
    if kind == "run":
        return path.parts[0] in ("configuration.json", "tokenizer", "routing.npz", "seal.json")
    unread = {"data": ("quarantine.jsonl",), "export": ("README.md",)}
    return path.name not in unread.get(kind, ())
