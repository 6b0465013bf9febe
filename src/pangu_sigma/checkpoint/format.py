"""Format of a checkpoint: names of its files, what is said of it, and errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from pangu_sigma.checkpoint.not_finite import NotFinite, describe
from pangu_sigma.errors import UserError
from pangu_sigma.sealed import ITS_VERSION, SEAL, DamagedFile, read_seal, verify

FORMAT = 3
"""Format version of a checkpoint; others are refused."""
STATE = "state.json"
"""File of the facts of a checkpoint (`Facts`)."""
UNHEALTHY = "unhealthy.json"
"""File of the facts of a saved state with NaN or infinity, which has neither STATE nor a seal, and is not a checkpoint."""
PARTS = "parts"
"""Metadata key of a checkpoint's file: part of the whole array that each saved array is (parts.py); arrays not listed are whole."""
CHECKPOINT_NAME = re.compile(r"step_(\d{8,18})")
ANOTHER = "use another checkpoint"
OF_FORMAT_2 = (
    "is of format 2, this version reads 3: use 0.1.0 up to commit d8fd62a8, which wrote it, or begin in another folder"
)
"""What is said of checkpoints with LATEST and manifest.json."""


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
        named = describe(found, config) + ([f"the state is kept in {folder} for looking at"] if folder else [])
        super().__init__(
            f"the state after step {step} has values that are not finite and was not saved as a checkpoint: {'; '.join(named)}. "
            f"{way_on} If it comes back, lower train.optimizer.peak_lr, or use other data."
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

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Facts:
    """Everything that a checkpoint says besides its arrays. state: counters, random state, position in the data."""

    step: int
    identity: Identity
    state: dict[str, Any]
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_FACTS = TypeAdapter(Facts)


def read_facts(folder: Path) -> tuple[Facts, dict[str, Any]]:
    """Read the facts of a checkpoint's folder. Returns them and the fingerprints of all its files by name, unverified so far.

    Raises CheckpointError for another format, DamagedCheckpoint for damage.
    """
    if (folder / "manifest.json").exists():
        raise CheckpointError(f"{folder} {OF_FORMAT_2}")
    if (folder / UNHEALTHY).exists():
        raise DamagedCheckpoint(f"{folder} holds values that are not finite, and is no checkpoint; name one beside it")
    file = folder / STATE
    try:
        files = read_seal(folder, ANOTHER)["files"]
        if STATE not in files:
            raise DamagedFile(f"{folder / SEAL}: does not list {STATE}; {ANOTHER}")
        verify(file, files[STATE], ANOTHER)
        content = file.read_bytes()
        if (found := json.loads(content)["format"]) != FORMAT:
            raise CheckpointError(f"{file}: checkpoint format {found}, this version reads {FORMAT}; {ITS_VERSION}")
        facts = _FACTS.validate_json(content)
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # the file has its hash, and is not what a save writes
        raise DamagedCheckpoint(f"{file}: does not say what a save writes; {ANOTHER}") from error
    named = CHECKPOINT_NAME.fullmatch(folder.name)
    if named and int(named[1]) != facts.step:
        raise DamagedCheckpoint(f"{file}: is of step {facts.step}, which its folder's name does not say; {ANOTHER}")
    return facts, files
