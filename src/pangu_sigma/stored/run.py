"""Runs on the disk: a run folder, whose model is its newest intact checkpoint, and the folder of one checkpoint."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.checkpoint import Checkpoint, CheckpointError, Identity, load_checkpoint, newest_checkpoint
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import ROUTING_FILE, TOKENIZER_FOLDER
from pangu_sigma.checkpoint.run_folder import CHECKPOINTS, LINEAGE_FILE, run_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.sealed import SEAL, check_folder, fingerprint
from pangu_sigma.stored.model import LINEAGE_FIX, Kind, Listed, StoredModel, read_lineage


class StoredRun(StoredModel):
    """Run folder, which is read as a model and which training writes to. checkpoint: newest intact checkpoint, loaded when
    weights, step or data_hash are first used. checkpoints: path of the folder of all checkpoints.

    Raises ConfigError for a missing file of the run. Properties raise DamagedFile for a file that differs from what was written,
    and CheckpointError if no checkpoint is whole.
    """

    kind: Kind = "run"

    def __init__(self, path: Path, verified: bool = True, text_hash: str | None = None):
        """text_hash: content hash of the prepared text that training reads; None for a run that is only read."""
        super().__init__(path, verified)
        self.text_hash = text_hash
        for name in (ROUTING_FILE, TOKENIZER_FOLDER):
            if self.kind == "run" and not (path / name).exists():  # the folder of a checkpoint has neither
                raise ConfigError(f"{path} is not a run folder: it has no {name}; {self.fix}")

    @property
    def fix(self) -> str:
        """Advice to the user for a damaged file of the run folder."""
        return "take it from a copy, or, together with seal.json, from a run that `train` begins with the same keys and data"

    @cached_property
    def config(self) -> Config:
        return run_config(self.path)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def newest(self) -> Checkpoint | None:
        """Newest whole checkpoint, by its seal and the sizes of its files; None if the run has saved none yet."""
        return newest_checkpoint(self.checkpoints, verified=False)

    @property
    def identity(self) -> Identity:
        """Hashes and configuration that a checkpoint must have to belong to this run."""
        return Identity(self.tokenizer.hash, self.table.hash, self.config.model_dump(mode="json"), self.text_hash)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Newest intact checkpoint of this run. Raises CheckpointError without one."""
        newest = newest_checkpoint(self.checkpoints, self.identity, verified=self._verified)
        if newest is None:
            raise CheckpointError(f"{self.checkpoints} holds no checkpoint; train the run, or wait for its first one")
        return newest

    @cached_property
    def step(self) -> int:
        return self.checkpoint.step

    @cached_property
    def data_hash(self) -> str | None:
        return self.checkpoint.identity.data_hash

    @cached_property
    def hash(self) -> str:
        return str(fingerprint(self.checkpoint.path / SEAL)["xxh3_128"])

    @property
    def hashes(self) -> dict[str, str]:
        return {"tokenizer": self.tokenizer.hash, "routing table": self.table.hash}

    @cached_property
    def lineage(self) -> dict[str, Any] | None:
        """As in `StoredModel`. Raises DamagedFile also if the seal lists the file and it is missing."""
        if (self.path / SEAL).exists():
            check_folder(self.path, LINEAGE_FIX, LINEAGE_FILE)
        return read_lineage(self.path)

    def array(self, shard: str, name: str) -> LazyArray | None:
        return self.checkpoint.array(shard, name)

    def listed(self) -> Listed:
        """Return (shard, name, whole shape, dtype) of each array, from the first of its saved parts."""
        first_parts = ((key, parts[0]) for key, parts in self.checkpoint.parts.items())
        return ((*key, saved_part.part.whole, saved_part.values.dtype.name) for key, saved_part in first_parts)


class StoredCheckpoint(StoredRun):
    """Model in the folder of one checkpoint inside a run."""

    kind: Kind = "checkpoint"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.path, verified=self._verified)

    @cached_property
    def config(self) -> Config:
        return parse_config(self.checkpoint.identity.config)

    @property
    def hashes(self) -> dict[str, str]:
        identity = self.checkpoint.identity
        data = {"data": identity.data_hash} if identity.data_hash else {}
        return {"tokenizer": identity.vocabulary_hash, "routing table": identity.routing_hash, **data}
