"""A run folder: everything that training leaves behind, and all that evaluation, generation and export need.

config.yaml        the resolved tree
tokenizer/         what the model's ids mean
routing.npz        the routing tables
checkpoints/       see checkpoint/checkpoint.py
metrics.jsonl, tensorboard/, report/
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.checkpoint.checkpoint import LATEST, Checkpoint, Identity, load_checkpoint
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.parallel.ranks import ALONE, Ranks
from pangu_sigma.rre.table import RoutingTable, draw_tables

CONFIG_FILE = "config.yaml"
ROUTING_FILE = "routing.npz"
TOKENIZER_FOLDER = "tokenizer"
"""Names of what a run folder and an exported model both have."""


@dataclass(frozen=True)
class RunFolder:
    """An open run folder."""

    path: Path
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def identity(self) -> Identity:
        return Identity(self.tokenizer.hash, self.table.hash, self.config.model_dump(mode="json"))

    @classmethod
    def create(cls, path: Path, config: Config, ranks: Ranks = ALONE) -> RunFolder:
        """Start a run: copy the tokenizer of the prepared data, draw the tables. An existing folder of the same tables is reused.

        ranks: all of them call this; rank 0 writes, into a folder that all of them see.
        Raises ConfigError when the folder holds a run with another vocabulary or other routing tables, RankError when a rank has
        another configuration or other prepared data than rank 0.
        """
        with ranks.together(f"reading {config.data.path}"):
            tokenizer, table = read_prepared(config)
        sections = {key: json.dumps(value) for key, value in config.model_dump(mode="json").items()}
        ranks.agree({**sections, "vocabulary": tokenizer.hash, "routing table": table.hash})
        run = cls(path, config, tokenizer, table)
        with ranks.together(f"writing {path}"):
            if ranks.first:
                run._write()
        return run

    @property
    def latest(self) -> Path | None:
        """The folder of the checkpoint that the run calls its newest; None if it has saved none yet."""
        file = self.checkpoints / LATEST
        return self.checkpoints / file.read_text(encoding="utf-8").strip() if file.exists() else None

    def newest_checkpoint(self, ranks: Ranks = ALONE) -> Checkpoint | None:
        """The newest whole checkpoint of this run, verified; None if the run has saved none yet.

        ranks: all of them call this, and all get the same checkpoint.
        Raises CheckpointError when no checkpoint is whole, or when they belong to another vocabulary or routing table.
        """
        return load_checkpoint(self.checkpoints, self.identity, ranks) if self.latest else None

    def _write(self) -> None:
        if (self.path / ROUTING_FILE).exists():
            old = self.open(self.path)
            if (old.tokenizer.hash, old.table.hash) != (self.tokenizer.hash, self.table.hash):
                raise ConfigError(
                    f"{self.path} holds a run with another vocabulary or other routing tables; choose another folder with --run, "
                    "or remove it"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        prepared = Path(self.config.data.path).absolute()
        data = self.config.data.model_copy(update={"path": str(prepared)})  # the run opens from any folder
        config = self.config.model_copy(update={"data": data})
        (self.path / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
        shutil.copytree(prepared / TOKENIZER_FOLDER, self.path / TOKENIZER_FOLDER, dirs_exist_ok=True)
        self.table.save(self.path / ROUTING_FILE)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises ConfigError when `path` is none."""
        for name in (CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER):
            if not (path / name).exists():
                raise ConfigError(f"{path} is not a run folder: it has no {name}; pass a folder that `train` wrote")
        config = load_config(path / CONFIG_FILE)
        return cls(path, config, Tokenizer.load(path / TOKENIZER_FOLDER), RoutingTable.load(path / ROUTING_FILE))


def read_prepared(config: Config) -> tuple[Tokenizer, RoutingTable]:
    """The tokenizer of the prepared data, and the tables drawn for it.

    Raises ConfigError when the tokenizer was made for other slots, DataError when there is none.
    """
    prepared = PreparedData(Path(config.data.path))
    tokenizer = prepared.tokenizer()
    if tokenizer.slot_rows.shape != (config.slots, config.model.slot_rows):
        raise ConfigError(
            f"data.path={config.data.path}: its tokenizer has {tokenizer.slot_rows.shape[0]} slots of "
            f"{tokenizer.slot_rows.shape[1]} rows, this configuration has {config.slots} of {config.model.slot_rows}; "
            "run prepare-data with this configuration"
        )
    table = draw_tables(
        config.routing,
        config.model.rre_layers,
        len(config.domains),
        tokenizer.size,
        config.model.experts_per_domain,
        prepared.frequencies() if config.routing.table == "balanced" else None,
    )
    return tokenizer, table
