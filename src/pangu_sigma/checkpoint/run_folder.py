"""A run folder: everything that training leaves behind, and all that evaluation, generation and export need.

config.yaml, tokenizer/, routing.npz, seal.json   see model_files.py
checkpoints/                                      see checkpoint.py
metrics.jsonl, tensorboard/, report/
set_aside_1/ …                                    what was there before the run was started over: see start_over.py
LOCK                                              who writes here: lock.py of the ground floor

The folder is the truth about its run: training goes on with what it has, and says what it is told to change (changes.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pangu_sigma.checkpoint.changes import absolute_paths, change_text, changed_keys, refuse_changes, rule_of
from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint, newest_identity
from pangu_sigma.checkpoint.format import Identity
from pangu_sigma.checkpoint.model_files import (
    CONFIG_FILE,
    ROUTING_FILE,
    TOKENIZER_FOLDER,
    read_config,
    read_model_files,
    write_config,
    write_model_files,
)
from pangu_sigma.checkpoint.root import has_checkpoints, latest_checkpoint
from pangu_sigma.checkpoint.start_over import CHECKPOINTS, LINEAGE_FILE, set_aside_lines_without_checkpoint, start_over
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, override, parse_config, read_tree
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import DataError
from pangu_sigma.lock import FolderLock
from pangu_sigma.parallel.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sealed import DamagedFile
from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

WAY_BACK_OF_CONFIG = (
    "change keys with --set; to have it as it was, remove the file: `pangu-sigma train` writes that of the newest checkpoint "
    "again"
)
"""What to do about a config.yaml that is not what was written."""


@dataclass(frozen=True)
class StartOptions:
    """What a user asks for at a start, besides a configuration.

    start_over: True to set aside what the folder has, and begin at step 0. allow_data_change: True to go on with other text than
    that of the checkpoint. lock: False to write also where the file system has no locks.
    """

    start_over: bool = False
    allow_data_change: bool = False
    lock: bool = True


DEFAULT_START = StartOptions()


@dataclass(frozen=True)
class RunFolder:
    """An open run folder.

    data_hash: hash of the prepared text that training reads; None for who does not train.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    data_hash: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def identity(self) -> Identity:
        return Identity(self.tokenizer.hash, self.table.hash, self.config.model_dump(mode="json"), self.data_hash)

    @classmethod
    def create(
        cls, path: Path, config: Config, ranks: Ranks = SINGLE_PROCESS, asked: StartOptions = DEFAULT_START
    ) -> RunFolder:
        """Start a run, or take one up: its folder has the files that it needs, and the configuration that it trains with.

        A new folder gets the tokenizer of the prepared data, and tables drawn for it; so does one that has no checkpoint, of which
        nothing is lost. A run with checkpoints keeps what it has; keys that differ are said, and so are files that were damaged
        and are made again. When this is interrupted, the same call does it all.

        ranks: all of them call this; rank 0 writes, into a folder that all of them see.
        Raises ConfigError for keys that the checkpoints do not go with, other data and a folder that cannot be written,
        DamagedFile for what cannot be made again, RankError when a rank has another configuration or other prepared data.
        """
        given, config = config, absolute_paths(config)
        with ranks.fail_together(f"reading {config.data.path}"):
            prepared, data_hash = read_prepared_tokenizer(given), load_manifest(Path(given.data.path)).content_hash
        sections = {key: json.dumps(value) for key, value in given.model_dump(mode="json").items()}
        ranks.agree({**sections, "vocabulary": prepared.hash, "prepared text": data_hash})
        resumed = False
        with ranks.fail_together(f"taking up {path}"):
            if ranks.first:
                resumed = _take_up(path, config, prepared, data_hash, asked)
        resumed = ranks.any(resumed)
        if resumed:
            with ranks.fail_together(f"reading {path}"):
                tokenizer, table = read_model_files(path, way_back(path))
            return cls(path, config, tokenizer, table, data_hash)
        with ranks.fail_together("drawing the routing tables"):
            table = drawn_tables(config, prepared)
        ranks.agree({"routing table": table.hash})
        with ranks.fail_together(f"writing {path}"):
            if ranks.first and not _holds(path, config, prepared, table):
                _write(path, config, table)
        return cls(path, config, prepared, table, data_hash)

    @property
    def latest(self) -> Path | None:
        """The folder of the newest checkpoint, by its name; None if the run has saved none yet."""
        return latest_checkpoint(self.checkpoints)

    def newest_checkpoint(self, ranks: Ranks = SINGLE_PROCESS) -> Checkpoint | None:
        """The newest whole checkpoint of this run, verified; None if the run has saved none yet.

        ranks: all of them call this, and all get the same checkpoint.
        Raises CheckpointError when no checkpoint is whole, or when they belong to another vocabulary or routing table.
        """
        if not has_checkpoints(self.checkpoints):
            return None
        # `create` has compared the data, and the user may want others
        expected = replace(self.identity, data_hash=None)
        return load_checkpoint(self.checkpoints, expected, ranks)


def run_config(path: Path, overrides: Sequence[Override] = ()) -> Config:
    """The configuration that a run folder has, with some keys changed. A missing one comes from the newest checkpoint.

    Raises ConfigError when `path` is no run, DamagedFile for a config.yaml that was edited by hand or damaged.
    """
    if (path / CONFIG_FILE).exists():
        read_config(path, "run", WAY_BACK_OF_CONFIG)
        return parse_config(read_tree(path / CONFIG_FILE, overrides))
    saved = newest_identity(path / CHECKPOINTS)
    if saved is None:
        raise ConfigError(
            f"{path} is not a run folder: it has no {CONFIG_FILE}; pass a configuration to start a run there"
        )
    return parse_config(override(saved.config, overrides))


def check_start(path: Path, config: Config, asked: StartOptions = DEFAULT_START) -> None:
    """Say what a start would change in a run that has checkpoints, and refuse what `RunFolder.create` would refuse; writes nothing.

    So a launcher knows it before ranks start. Raises ConfigError and DataError as `RunFolder.create`.
    """
    prepared, data_hash = read_prepared_tokenizer(config), load_manifest(Path(config.data.path)).content_hash
    if asked.start_over or not has_checkpoints(path / CHECKPOINTS):
        return
    saved = newest_identity(path / CHECKPOINTS)
    if saved is not None:
        _compare(path, saved, absolute_paths(config), prepared, data_hash, asked)


@contextmanager
def one_writer(path: Path, required: bool = True, ranks: Ranks = SINGLE_PROCESS) -> Iterator[None]:
    """A block in which only this run writes in a folder, which is made if it is not there. Rank 0 has the lock for all ranks.

    required: False to go on where the file system has no locks. Raises LockError, or ConfigError for a folder that cannot be.
    """
    with ExitStack() as held:
        with ranks.fail_together(f"locking {path}"):
            if ranks.first:
                try:
                    held.enter_context(FolderLock(path, required))
                except OSError as error:
                    raise _cannot_write(path, error) from error
        yield


def read_prepared(config: Config) -> tuple[Tokenizer, RoutingTable]:
    """The tokenizer of the prepared data, and the tables drawn for it.

    Raises ConfigError when the tokenizer was made for other slots, DataError when there is none.
    """
    tokenizer = read_prepared_tokenizer(config)
    return tokenizer, drawn_tables(config, tokenizer)


def read_prepared_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of the prepared data. Raises as `read_prepared`."""
    prepared = Path(config.data.path)
    if not prepared.exists():
        raise DataError(
            f"data.path={config.data.path} is not there; run prepare-data first, or, if it was moved, --set data.path=…"
        )
    tokenizer = PreparedData(prepared).tokenizer()
    if tokenizer.slot_rows.shape != (config.slots, config.model.slot_rows):
        raise ConfigError(
            f"data.path={config.data.path}: its tokenizer has {tokenizer.slot_rows.shape[0]} slots of "
            f"{tokenizer.slot_rows.shape[1]} rows, this configuration has {config.slots} of {config.model.slot_rows}; "
            "run prepare-data with this configuration"
        )
    return tokenizer


def drawn_tables(config: Config, tokenizer: Tokenizer) -> RoutingTable:
    """The tables of a configuration, drawn for a vocabulary and, if they are balanced, the token counts of the prepared text."""
    return draw_tables(
        config.routing,
        config.model.rre_layers,
        len(config.domains),
        tokenizer.size,
        config.model.experts_per_domain,
        PreparedData(Path(config.data.path)).frequencies() if config.routing.table == "balanced" else None,
    )


def _take_up(path: Path, config: Config, prepared: Tokenizer, data_hash: str, asked: StartOptions) -> bool:
    """Make a folder ready to go on with `config`. Returns False if it has no checkpoint. Raises as `RunFolder.create`."""
    try:
        if asked.start_over:
            start_over(path)
        if not has_checkpoints(path / CHECKPOINTS):
            set_aside_lines_without_checkpoint(path)
            return False
        saved = newest_identity(path / CHECKPOINTS)
        if saved is None:
            return True  # none of them is whole, which loading them says
        _compare(path, saved, config, prepared, data_hash, asked)
        if not _mend(path, saved, config, prepared) and read_config(path, "run", WAY_BACK_OF_CONFIG) != config:
            write_config(path, config, "run")
        return True
    except OSError as error:
        raise _cannot_write(path, error) from error


def _compare(
    path: Path, saved: Identity, config: Config, prepared: Tokenizer, data_hash: str, asked: StartOptions
) -> None:
    """Say which keys change, and refuse those that must not, and another vocabulary or text."""
    changes = changed_keys(run_config(path).model_dump(mode="json"), config.model_dump(mode="json"))
    refuse_changes(path, changes)
    for change in changes:
        why = rule_of(change[0]).why
        logger.info("%s%s", change_text(change), f" ({why})" if why else "")
    _refuse_other_data(path, saved, config, prepared, data_hash, asked)


def _refuse_other_data(
    path: Path, saved: Identity, config: Config, prepared: Tokenizer, data_hash: str, asked: StartOptions
) -> None:
    if prepared.hash != saved.vocabulary_hash:
        raise ConfigError(
            f"{path} holds a run with another vocabulary than data.path={config.data.path}: its token ids mean other text; set "
            "data.path back, choose another folder with --output, or add --start-over"
        )
    if saved.data_hash == data_hash:
        return
    if saved.data_hash is None:
        logger.warning(
            "%s: its checkpoint has no hash of its text, so it could not be checked that it is the same", path
        )
    elif not asked.allow_data_change:
        raise ConfigError(
            f"data.path={config.data.path} holds other text than {path} was trained on (content hash {data_hash[:12]}…, not "
            f"{saved.data_hash[:12]}…); set data.path back, or add --allow-data-change to train on with it, which the history of "
            "the run will say"
        )
    else:
        logger.warning("%s goes on with other text, that of data.path=%s", path, config.data.path)


def _mend(path: Path, saved: Identity, config: Config, prepared: Tokenizer) -> bool:
    """Write the files of a run again if one is missing or damaged, provided that they are then those of its checkpoints.

    Returns True if it did. Raises DamagedFile if they would be others.
    """
    try:
        if not (path / CONFIG_FILE).exists():
            raise DamagedFile(f"{path / CONFIG_FILE}: is missing")
        tokenizer, table = read_model_files(path, "and has to be made again")
        if (tokenizer.hash, table.hash) == (saved.vocabulary_hash, saved.routing_hash):
            return False
        raise DamagedFile(f"{path}: {TOKENIZER_FOLDER}/ and {ROUTING_FILE} are not those of its checkpoints")
    except (DamagedFile, DataError) as problem:
        table = drawn_tables(config, prepared)
        if table.hash != saved.routing_hash:
            other = (
                "make the run again with the command that made it"
                if (path / LINEAGE_FILE).exists()
                else (f"set data.path to the text that {path} was started with")
            )
            raise DamagedFile(
                f"{problem}\nit cannot be: data.path={config.data.path} gives other routing tables than the checkpoints have; "
                f"{other}, or copy the file from a backup"
            ) from problem
        _write(path, config, table)
        logger.warning("%s\nmade again from data.path=%s and the configuration of the run", problem, config.data.path)
        return True


def _holds(path: Path, config: Config, tokenizer: Tokenizer, table: RoutingTable) -> bool:
    """True if a folder has these files already."""
    try:
        found, files = read_config(path, "run", ""), read_model_files(path, "")
    except (ConfigError, DamagedFile, DataError):
        return False
    return (found, *(each.hash for each in files)) == (config, tokenizer.hash, table.hash)


def _write(path: Path, config: Config, table: RoutingTable) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_model_files(path, config, Path(config.data.path) / TOKENIZER_FOLDER, table)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{error.filename or path}: {error.strerror}; nothing of the run was changed: make room there or the folder writable, or "
        "choose another one with --output"
    )


def way_back(path: Path) -> str:
    """What to do about other files of a run that are not what was written."""
    return f"`pangu-sigma train {path}` makes it again if data.path still gives the same"
