"""Fine-tuning of a run on a task: a new run folder starts from the parent's newest checkpoint and ends with the best checkpoint.

RUN/                newest checkpoint of the parent, with Adam state, tokenizer and routing tables
  → INTO/           the same state as step 0; then the training loop on the task's samples
    checkpoints/    at the end only the best checkpoint, which other commands read as a run's newest
    lineage.json    parent, task, trained parameters, hashes of the files
    finetune/       quarantine.jsonl, the unusable lines; result.json, the result
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.checkpoint.changes import change_text, changed_keys, refuse_changes
from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER, write_config, write_model_files
from pangu_sigma.checkpoint.root import keep_only
from pangu_sigma.checkpoint.run_folder import one_writer, refuse_idle_changes
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override
from pangu_sigma.data.held_out import samples_of_evaluation
from pangu_sigma.data.prepare.quarantine import Quarantine
from pangu_sigma.errors import argument
from pangu_sigma.finetune.forgetting import format_forgetting, measure_forgetting
from pangu_sigma.finetune.seconds import Seconds
from pangu_sigma.finetune.task import learned_parameters, read_task
from pangu_sigma.finetune.task_file import TaskFile, format_file, read_task_file
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.inherit.receipt import Receipt
from pangu_sigma.inherit.trained import WARM
from pangu_sigma.ranks.layout import axes_text
from pangu_sigma.ranks.ranks import is_rank
from pangu_sigma.sealed import sealed, write_atomically
from pangu_sigma.stored.model import TUNING_RESULT, StoredModel, read_tuning_result
from pangu_sigma.stored.open import kind_of, open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.finished import draw_report
from pangu_sigma.training.first_checkpoint import check_absent, unfinished_folder, write_step_0
from pangu_sigma.training.health import UnhealthyRun
from pangu_sigma.training.log.losses import finite_or_none, format_number

if TYPE_CHECKING:
    from pangu_sigma.finetune.tuner import Tuner

logger = logging.getLogger(__name__)

TUNING_FOLDER = "finetune"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class TuningRequest:
    """Options of fine-tuning: task name or file, files of training samples and dev set, and arguments of `read_task`."""

    task: str | Path
    train_file: Path
    dev_file: Path | None = None
    learn: str | None = None
    domain: str | None = None
    overrides: Sequence[Override] = ()


def finetune_run(
    path: Path, asked: TuningRequest, into: Path, lock: bool = True, seconds: Seconds | None = None
) -> dict[str, Any] | None:
    """Fine-tune the run in `path` on a task, in the run folder `into`; the same call resumes a stopped run.

    lock: False to write even if the file system has no locks. seconds: stopwatch of the caller; by default one that begins here.
    Returns the result that `format_result` formats; None if SIGTERM stopped the run. A finished run is not trained again.
    Raises ConfigError, DataError, CheckpointError for errors that the user can fix, and UnhealthyRun if training fails.
    """
    seconds = seconds or Seconds()
    parent, task = open_model(path, "run"), read_task(asked.task, asked.learn, asked.domain, asked.overrides)
    if into.resolve() == path.resolve():
        raise ConfigError(
            f"{into} is the run to tune, which stays as it is; name another folder with {argument('--output')}"
        )
    first, begins = task.config(parent.config), kind_of(into) != "run"
    if first.parallel.ranks > 1 or is_rank():
        raise ConfigError(
            f"parallel ({axes_text(first.parallel)}): fine-tuning is one process, and neither `pangu-sigma launch` nor msrun "
            "starts it; leave the keys of this section out, and start one process"
        )
    if begins:
        check_absent(into)
    check_training_fits(first)
    with Quarantine(into.with_name(f".{into.name}.{QUARANTINE}"), kept=False) as quarantine:
        training = read_task_file(asked.train_file, "--train-file", first, parent.tokenizer, quarantine)
        dev = None
        if asked.dev_file is not None:
            dev = read_task_file(asked.dev_file, "--dev-file", first, parent.tokenizer, quarantine)
            if dev.sequences.hash == training.sequences.hash:
                raise ConfigError(
                    f"{argument('--dev-file')} {asked.dev_file} is the {argument('--train-file')}: its loss says nothing about "
                    "new text; give other lines, or leave it out"
                )
        config = task.config(parent.config, training.domains, sum(training.sequences.counts))
        data_hash = training.sequences.hash + ("" if dev is None else dev.sequences.hash)
        if begins:
            with unfinished_folder(into) as fresh:
                write_model_files(fresh, config, parent.path / TOKENIZER_FOLDER, parent.table)
                run = StoredRun(fresh, text_hash=data_hash)
                write_step_0(run, compose(config, lambda shard, name, shape: parent.array(shard, name)))
                _receipt(parent, config, training, dev).save(fresh)
                (fresh / TUNING_FOLDER).mkdir()
                if quarantine.counts:
                    quarantine.copy_to(fresh / TUNING_FOLDER / QUARANTINE)
    with one_writer(into, lock):
        run = _take_up(into, config, parent.path.absolute(), data_hash)
        logger.info("%s", learns_text(_learned(config)))
        result = read_tuning_result(into)
        if result is None:
            tuner = _train(run, training, dev, seconds)
            if tuner is None:
                return None
            result = _result(parent, config, training, dev, tuner)
            write_atomically(into / TUNING_RESULT, sealed(result, record=True))
            draw_report(into)
        keep_only(run.checkpoints, result["best"]["step"])  # last: a killed call does so the next time
    return result


def _take_up(into: Path, config: Config, path: Path, data_hash: str) -> StoredRun:
    """Open a fine-tuning run to resume it. Raises ConfigError for another parent, other samples, or changes of fixed keys."""
    run = open_model(into, "run")
    if run.config.finetune is None:
        raise ConfigError(
            f"{into} is a run that is not tuned to a task; choose another folder with {argument('--output')}"
        )
    lineage = run.lineage or {}
    if lineage.get("parent") != str(path):
        raise ConfigError(
            f"{into} began with {lineage.get('parent')}, not with {path}; choose another folder with {argument('--output')}"
        )
    changes = changed_keys(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
    fix = f"give the options that it was begun with, or choose another folder with {argument('--output')}"
    refuse_changes(into, changes, fix)
    if (saved := run.newest) and saved.identity.data_hash != data_hash:
        raise ConfigError(
            f"{into} was begun on other samples: {argument('--train-file')} or {argument('--dev-file')} is another file, or its "
            f"lines have changed; name the files that it was begun with, or choose another folder with {argument('--output')}"
        )
    if changes and (into / TUNING_RESULT).exists():
        raise ConfigError(
            "\n  ".join([f"{into} is finished, and was tuned with", *map(change_text, changes)]) + f"\n{fix}"
        )
    refuse_idle_changes(into, changes, config.train.steps, saved.step if saved else -1)
    for change in changes:
        logger.info("%s", change_text(change))
    if changes:
        write_config(into, config, "run")
    run.config, run.text_hash = config, data_hash
    return run


def _train(run: StoredRun, training: TaskFile, dev: TaskFile | None, seconds: Seconds) -> Tuner | None:
    """Train to the end. Returns None if SIGTERM came before."""
    from pangu_sigma.finetune.tuner import Tuner
    from pangu_sigma.training.loop import train_to_end

    tuner = Tuner(run, training.sequences, None if dev is None else dev.sequences, seconds)
    with seconds.of("training"):
        train_to_end(tuner)
    tuner.ranks.leave()
    if not tuner.finished:
        return None
    if not (run.checkpoints / f"step_{tuner.best.step:08d}").exists():
        raise CheckpointError(
            f"{run.path}: the best state, that after step {tuner.best.step}, was not saved, as the log says; make room on the "
            "disk, remove the folder and tune again"
        )
    return tuner


def _receipt(parent: StoredModel, config: Config, training: TaskFile, dev: TaskFile | None) -> Receipt:
    found = _learned(config)
    learned, total = found["parameters"].values()
    kept = (
        ["experts of common segments keep their bits, because all domains share them"] if found["common_kept"] else []
    )
    if not config.learns("common") and any(entry.kind == "common" for entry in config.model.rows):
        kept.append("common rows (model.rows) keep their bits, because all domains share them")
    files = {"train_file": training, **({"dev_file": dev} if dev is not None else {})}
    fates = {each.name: "as it was" for each in config.domains} if config.tuning.learn == "experts" else {}
    return Receipt(
        kind="finetune",
        parent=str(parent.path.absolute()),
        layout="run",
        parent_step=parent.step,
        parent_hash=parent.hash,
        parameters={"learns": learned, "stays as it was": total - learned},
        activation=config.model.activation,
        parent_activation=config.model.activation,
        options={**config.tuning.model_dump(mode="json"), **{name: each.hashes() for name, each in files.items()}},
        parent_parameters=total,
        domains={**fates, **dict.fromkeys(config.tuning.domains, "learns the task")},
        notes=[WARM, *kept],
        parent_lineage=parent.lineage,
    )


def _result(
    parent: StoredRun, config: Config, training: TaskFile, dev: TaskFile | None, tuner: Tuner
) -> dict[str, Any]:
    """Return the result of a fine-tuning run as values for JSON. Raises UnhealthyRun if its state has no finite loss."""
    from pangu_sigma.finetune.tuner import mean_loss

    most = samples_of_evaluation(parent.config)
    losses = {"before": tuner.best.before, "after": tuner.best.loss}
    if dev is None:
        steps = {"after": tuner.best.step, "before": 0}  # in this order, as the last state is in memory
        losses |= {
            key: finite_or_none(mean_loss(tuner.losses_at(at, tuner.batches, most))) for key, at in steps.items()
        }
    if losses["after"] is None:
        samples = "training samples" if dev is None else "dev set"
        raise UnhealthyRun(
            f"{tuner.run.path}: the loss of the {samples} is not finite after step {tuner.best.step}: the tuning diverged, and "
            f"there is no better state to keep; remove the folder, lower train.optimizer.peak_lr="
            f"{config.train.optimizer.peak_lr:g} and tune again, with --dev-file to keep the best state"
        )
    forgetting = measure_forgetting(tuner, parent)
    return {
        "parent": str(parent.path.absolute()),
        "task": config.tuning.task,
        **_learned(config),
        "train_file": training.facts(),
        "dev_file": None if dev is None else dev.facts(),
        "steps": tuner.progress.step,
        "best": asdict(tuner.best),
        "losses": losses,
        "metric": config.tuning.metric,
        "forgetting": forgetting,
        "seconds": tuner.seconds.figures(),
    }


def _learned(config: Config) -> dict[str, Any]:
    count = config.num_params()
    counts = {"learn": learned_parameters(config), "all": count.total}
    common = 0 if config.learns("common") else count.experts - len(config.domains) * config.domain_experts
    rows = {entry.kind: config.learns(entry.kind) for entry in config.model.rows}
    return {"learn": config.tuning.learn, "parameters": counts, "common_kept": common, "rows": rows}


def learns_text(result: dict[str, Any]) -> str:
    """Format the number of parameters that a fine-tuning run trains, in one line."""
    learned, total = result["parameters"]["learn"], result["parameters"]["all"]
    kept = f"; the {common:,} of common segments keep their bits" if (common := result["common_kept"]) else ""
    for kind, learns in result.get("rows", {}).items():
        kept += f"; {kind} rows that samples meet learn" if learns else f"; {kind} rows keep their bits"
    return f"learn {result['learn']}: {learned:,} of {total:,} parameters ({learned / total:.1%}){kept}"


def format_result(result: dict[str, Any]) -> str:
    """Format a fine-tuning result as the tables that `pangu-sigma finetune` prints."""
    best, losses = result["best"], [format_number(loss, 0, 4) for loss in result["losses"].values()]
    lines = [format_file(result[name]) for name in ("train_file", "dev_file") if result[name] is not None]
    lines.append(learns_text(result))
    if result["dev_file"] is None:
        lines.append(
            f"no dev set (--dev-file): the last state is kept, that after step {best['step']}; loss of the training samples "
            f"{losses[0]} before, {losses[1]} after; nats per token of the answers"
        )
    else:
        lines.append(
            f"dev loss {losses[0]} before, {losses[1]} at its best, after step {best['step']} of {result['steps']}; nats per token "
            "of the answers"
        )
        if not best["step"]:
            lines.append("no state was better than the parent's, which is kept")
        if best["diverged"]:
            lines.append(
                f"{best['diverged']} evaluations have no finite loss: it diverged; lower train.optimizer.peak_lr"
            )
    seconds = ", ".join(f"{phase} {spent:.1f}" for phase, spent in result["seconds"].items())
    return "\n".join([*lines, format_forgetting(result["forgetting"]), f"seconds: {seconds}"])
