"""Format of a checkpoint: names of its files, version of the layout, identity of its run, and errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.not_finite import NotFinite, describe
from pangu_sigma.errors import UserError
from pangu_sigma.sealed import ITS_VERSION, DamagedFile, unsealed

FORMAT = 2
"""Format version of a checkpoint; others are refused."""
LATEST = "LATEST"
MANIFEST = "manifest.json"
STATE = "state.json"
UNHEALTHY = "unhealthy.json"
"""Manifest of a saved state with NaN or infinity; the other name keeps it from being read as a checkpoint."""
PARTS = "parts"
"""Metadata key of a checkpoint's file: part of the whole array that each saved array is (parts.py); arrays not listed are whole."""
CHECKPOINT_NAME = re.compile(r"step_(\d{8,18})")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ANOTHER = "use another checkpoint"


class CheckpointError(UserError, RuntimeError):
    """Error of a checkpoint that cannot be written or read; the message names the file, the problem and the fix."""


class DamagedCheckpoint(CheckpointError):
    """Error of a checkpoint in which a file differs from what was saved."""


class UnhealthyState(UserError, RuntimeError):
    """Error of a save whose weights or moments hold NaN or infinity: no checkpoint was made. All ranks raise it.

    step: step of the state. found: arrays of all ranks with NaN or infinity. folder: folder in which the state is kept for
    inspection; None if that failed. way_on: advice to the user, which names the checkpoint to go back to.
    """

    def __init__(self, step: int, found: list[NotFinite], config: dict[str, Any], folder: Path | None, way_on: str):
        self.step, self.found, self.folder = step, found, folder
        kept = f"; the state is kept in {folder} for looking at" if folder else ""
        super().__init__(
            f"the state after step {step} has values that are not finite and was not saved as a checkpoint: "
            f"{describe(found, config)}{kept}. {way_on} If it comes back, lower train.optimizer.peak_lr, or use other data."
        )


@dataclass(frozen=True)
class Identity:
    """Vocabulary, routing table, configuration and data that a checkpoint belongs to.

    With another vocabulary or routing table the same weights have another meaning; with other data the run is another run.
    config: the resolved configuration as a plain tree (`Config.model_dump(mode="json")`).
    data_hash: content hash of the prepared data (`Manifest.content_hash`); None if unknown or not trained.
    """

    vocabulary_hash: str
    routing_hash: str
    config: dict[str, Any]
    data_hash: str | None = None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint's directory. Raises CheckpointError for another format, DamagedCheckpoint for damage."""
    file = path / MANIFEST
    try:
        body = unsealed(file, ANOTHER)
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: checkpoint format {body.get('format')}, this version reads {FORMAT}; {ITS_VERSION}"
        )
    if not _is_manifest(body):
        raise DamagedCheckpoint(f"{file}: does not say what a manifest says; {ANOTHER}")
    return body


def _is_manifest(body: dict[str, Any]) -> bool:
    """Return True if a manifest has every key that is read, and no file of it is outside the folder."""
    files, identity = body.get("files"), body.get("identity")
    if type(body.get("step")) is not int or not isinstance(files, dict) or not isinstance(identity, dict):
        return False
    return (
        identity.keys() == {each.name for each in fields(Identity)}
        and STATE in files
        and all(FILE_NAME.fullmatch(name) for name in files)
        and all(isinstance(each, dict) and {"bytes", "xxh3_128"} <= each.keys() for each in files.values())
    )
