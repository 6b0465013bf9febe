"""Start of a run: a new run folder, or one with checkpoints that is resumed with a configuration that they allow; its progress."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.changes import Change, absolute_paths, change_text, changed_keys, refuse_changes, rule_of
from pangu_sigma.checkpoint.checkpoint import Checkpoint, checkpoints, newest_checkpoint
from pangu_sigma.checkpoint.model_files import (
    ROUTING_FILE,
    TOKENIZER_FOLDER,
    read_config,
    write_config,
    write_model_files,
)
from pangu_sigma.checkpoint.run_folder import (
    CHECKPOINTS,
    checkpoint_at,
    go_back,
    refuse_idle_changes,
    set_aside,
    start_over,
)
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.prepared import (
    data_of,
    drawn_tables,
    encodes,
    read_prepared_tokenizer,
    refuse_spare_rows,
    unlike_prepared,
)
from pangu_sigma.errors import argument
from pangu_sigma.foreign.dense_files import describe_contents
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.sealed import SEAL, UNFINISHED
from pangu_sigma.stored.open import KIND_NAMES, kind_of
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.writable import LOCK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartOptions:
    """Options of the start of a run, besides its configuration.

    start_over: True to move the folder's contents aside and begin at step 0. allow_data_change: True to resume although the text
    differs from the checkpoint's. from_step: step of the checkpoint to go on from, by default the newest; checkpoints of later
    steps are set aside.
    """

    start_over: bool = False
    allow_data_change: bool = False
    from_step: int | None = None


DEFAULT_START = StartOptions()


def start_run(
    path: Path, config: Config, ranks: Ranks = SINGLE_PROCESS, options: StartOptions = DEFAULT_START
) -> StoredRun:
    """Create a run folder, or open one to resume its run, and write the configuration that it trains with.

    A folder without checkpoints gets the tokenizer of the prepared data and routing tables drawn for it. A run with checkpoints
    keeps its tokenizer and tables; changed keys are logged. The same call completes an interrupted start. A warning is logged for
    keys that differ from the configuration with which the data were prepared.

    ranks: all of them call this; rank 0 writes, into a folder that all of them see.
    Raises ConfigError for changed keys that do not fit the checkpoints, other data, or a folder that is not writable; DamagedFile
    for a damaged file; RankError if ranks differ in configuration or prepared data.
    """
    user_config, config = config, absolute_paths(config)  # messages have the paths as the user wrote them
    with ranks.fail_together(f"reading {config.data.path}"):
        tokenizer, data_hash = read_prepared_tokenizer(user_config), data_of(user_config).manifest.content_hash
    for remark in unlike_prepared(user_config) if ranks.first else ():
        logger.warning("%s", remark)
    sections = {key: json.dumps(value) for key, value in user_config.model_dump(mode="json").items()}
    ranks.agree({**sections, "vocabulary": tokenizer.hash, "prepared text": data_hash})
    with ranks.fail_together(f"taking up {path}"):
        is_resumed = ranks.first and _prepare_folder(path, config, tokenizer, data_hash, options)
    if not ranks.any(is_resumed):
        with ranks.fail_together("drawing the routing tables"):
            refuse_spare_rows(config)
            table = drawn_tables(config, tokenizer)
        ranks.agree({"routing table": table.hash})
        with ranks.fail_together(f"writing {path}"):
            if ranks.first:
                path.mkdir(parents=True, exist_ok=True)
                write_model_files(path, config, tokenizer, table)
    with ranks.fail_together(f"reading {path}"):
        run = StoredRun(path, text_hash=data_hash)
        run.config = config
        _ = run.tokenizer, run.table  # read now: raises DamagedFile
    return run


@dataclass
class Progress:
    """Progress of a run.

    step: number of steps taken. updates: number of steps that updated the weights; the learning rate depends on it.
    cursor: position in the data at which the next batch begins.
    """

    step: int
    updates: int
    cursor: Cursor

    def advance(self, applied: bool, cursor: Cursor) -> None:
        """Count a step. applied: False if it updated nothing. cursor: position in the data after its batch."""
        self.step += 1
        self.updates += applied
        self.cursor = cursor

    def state(self) -> dict[str, Any]:
        """Return the progress as plain data, for the state of a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Restore the progress from what `state` returned."""
        cursor = state["cursor"]
        return cls(state["step"], state["updates"], Cursor(list(cursor["taken"]), list(cursor["begun"])))


def resume(run: StoredRun, ranks: Ranks = SINGLE_PROCESS) -> tuple[Progress, Checkpoint | None]:
    """Return the progress to resume from, and the newest checkpoint to restore; if there is none, step 0, and None. All ranks call
    this. Raises CheckpointError if no checkpoint is intact, or if it is of another vocabulary or routing table."""
    checkpoint = newest_checkpoint(run.checkpoints, run.identity, ranks)
    if checkpoint is None:
        return Progress(0, 0, Cursor([0] * len(run.config.domains))), None
    if checkpoint.step:  # a run that was made from another model begins with a checkpoint of step 0
        logger.info("resuming %s after step %d", run.path, checkpoint.step)
    return Progress.from_state(checkpoint.state), checkpoint


def changes_since_checkpoint(checkpoint: Checkpoint | None, run: StoredRun) -> list[Change]:
    """Return the changes since a run's newest checkpoint was written: (key, old, new) of configuration keys, and of `data`, the
    content hash of the prepared text, if both hashes are known."""
    if checkpoint is None:
        return []
    old, new = checkpoint.identity, run.identity
    changes = changed_keys(old.config, new.config)
    if old.data_hash and new.data_hash and old.data_hash != new.data_hash:
        changes.append(("data", old.data_hash, new.data_hash))
    return changes


def check_cpu(config: Config) -> None:
    """Raise ConfigError for the first key that needs Ascend."""
    for key, value, choices, limitation in (
        ("train.compute_dtype", config.train.compute_dtype, ("float32", "float16"), "multiplies no bfloat16"),
        ("parallel.tensor", config.parallel.tensor, (1,), "shares no matrices"),
        ("parallel.stages", config.parallel.stages, (1,), "cuts no network into stages"),
    ):
        if value not in choices:
            raise ConfigError(f"{key}={value} needs Ascend: MindSpore {limitation} on the CPU; set it to {choices[0]}")


def check_start(path: Path, config: Config, options: StartOptions = DEFAULT_START) -> list[str]:
    """Check that `start_run` would succeed, and return what it would change in a run with checkpoints; nothing is written.

    This is called before ranks start, and before MindSpore is loaded. Raises ConfigError for a start that would be refused,
    DataError for invalid data, DamagedFile for a damaged file of the run.
    """
    refuse_tuned(path, config)
    refuse_foreign(path)
    tokenizer, data_hash = read_prepared_tokenizer(config), data_of(config).manifest.content_hash
    if options.start_over and options.from_step is not None:
        raise ConfigError(
            f"{argument('--start-over')} and {argument('--from-step')} are two ways to begin; choose one of them"
        )
    if options.start_over:
        refuse_spare_rows(config)
        return []
    step, root = options.from_step, path / CHECKPOINTS
    checkpoint = newest_checkpoint(root, verified=False) if step is None else checkpoint_at(path, step)
    if checkpoint is None:
        refuse_spare_rows(config)
        return []
    run = StoredRun(path)
    _ = run.tokenizer, run.table  # raises DamagedFile
    return _describe_changes(path, checkpoint, absolute_paths(config), tokenizer, data_hash, options)


def refuse_tuned(path: Path, config: Config) -> None:
    """Raise ConfigError for a run that is tuned to a task."""
    if config.finetune is not None:
        raise ConfigError(
            f"finetune.task={config.finetune.task}: {path} is tuned to a task; go on with the `pangu-sigma finetune` command "
            "that made it, or make a run to train of it, with `pangu-sigma extract`"
        )


def refuse_foreign(path: Path) -> None:
    """Raise ConfigError for a folder with files that is not a run folder: training would write over them. Raise DamagedFile for a
    run without checkpoints whose configuration.json is damaged."""
    kind, fix = kind_of(path), f"name another folder with {argument('--output')}"
    if kind == "run" and not checkpoints(path / CHECKPOINTS):
        read_config(path, "run", fix)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    # `launch` writes logs before a rank starts, and an interrupted start has a lock and no configuration.json
    start_files = {"logs", *((LOCK, TOKENIZER_FOLDER, ROUTING_FILE, SEAL) if LOCK in names else ())}
    start_files |= {name for name in names if name.startswith(UNFINISHED)}
    if kind != "run" and names - start_files:
        contents = describe_contents(path, start_files) if kind == "alpha" else KIND_NAMES[kind]
        raise ConfigError(f"{path} is {contents}, not a run folder; {fix}")


def _prepare_folder(path: Path, config: Config, tokenizer: Tokenizer, data_hash: str, options: StartOptions) -> bool:
    """Prepare a run folder as the options say. If it then has a checkpoint, write `config` to resume with it, and return True; else
    set an old log aside, and return False. tokenizer, data_hash: of the prepared data. Raises as `start_run`, and OSError."""
    if options.start_over:
        start_over(path)
    if options.from_step is not None:
        go_back(path, options.from_step)
    checkpoint = newest_checkpoint(path / CHECKPOINTS, verified=False)
    if checkpoint is None:
        _set_aside_log(path)
        return False
    for change in _describe_changes(path, checkpoint, config, tokenizer, data_hash, options):
        logger.warning("%s", change)
    write_config(path, config, "run")
    return True


def _set_aside_log(path: Path) -> None:
    """Set the contents of a folder without checkpoints aside if its log has steps after 0. A warning counts their lines."""
    from pangu_sigma.training.log.metrics import FILE, read_metrics

    count = sum(line["step"] > 0 for line in read_metrics(path)) if (path / FILE).exists() else 0
    if count:
        logger.warning(
            "%s has no checkpoint, but %d logged lines of later steps than 0: it begins at step 0", path, count
        )
        set_aside(path)


def _describe_changes(
    path: Path, checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer, data_hash: str, options: StartOptions
) -> list[str]:
    """Return a text for each key that differs from the checkpoint's, and one if the prepared text differs or is not known there.
    tokenizer, data_hash: of the prepared data. Raises ConfigError for changes that are not allowed."""
    identity = checkpoint.identity
    changes = changed_keys(identity.config, config.model_dump(mode="json"))
    fix = "leave the run's values (`train RUN` takes all of them), choose another folder with --output, or add --start-over"
    refuse_changes(path, changes, fix)
    refuse_idle_changes(path, changes, config.train.steps, checkpoint.step)
    whys = [rule_of(key).why for key, _, _ in changes]
    texts = [change_text(change) + f" ({why})" * bool(why) for change, why in zip(changes, whys, strict=True)]
    if tokenizer.hash != identity.vocabulary_hash and not encodes(StoredRun(path).tokenizer, tokenizer):
        raise ConfigError(
            f"{path} holds a run with another vocabulary than data.path={config.data.path}: its token ids mean other text; set "
            f"data.path back, choose another folder with {argument('--output')}, or add {argument('--start-over')}"
        )
    if identity.data_hash is None:
        texts.append(f"{path}: its checkpoint has no hash of its text, so it could not be checked that it is the same")
    elif identity.data_hash != data_hash and not options.allow_data_change:
        raise ConfigError(
            f"data.path={config.data.path} holds other text than {path} was trained on (content hash {data_hash[:12]}…, not "
            f"{identity.data_hash[:12]}…); set data.path back, or add {argument('--allow-data-change')} to train on with it, which "
            "the history of the run will say"
        )
    elif identity.data_hash != data_hash:
        texts.append(f"{path} goes on with other text, that of data.path={config.data.path}")
    return texts
