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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.changes import change_text, changed_keys, refuse_changes
from pangu_sigma.checkpoint.checkpoint import keep_only
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.checkpoint.run_folder import one_writer, refuse_idle_changes
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override
from pangu_sigma.data.prepare.overview import write_rejected
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.finetune.best import BestState
from pangu_sigma.finetune.samples import TaskFile, format_file, read_task_files
from pangu_sigma.finetune.task import Task, read_task
from pangu_sigma.held_out.compare import compare_runs
from pangu_sigma.held_out.losses import format_numbers
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.inherit.child import Child, new_run_from
from pangu_sigma.inherit.receipt import WARM
from pangu_sigma.ranks.layout import axes_text
from pangu_sigma.ranks.ranks import is_rank
from pangu_sigma.results import aligned
from pangu_sigma.sealed import sealed, write_atomically
from pangu_sigma.stored.model import TUNING_RESULT, read_lineage, read_tuning_result
from pangu_sigma.stored.open import kind_of, open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.first_checkpoint import unfinished_folder
from pangu_sigma.training.health import UnhealthyRun
from pangu_sigma.training.log.report import draw_report

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


def finetune_run(path: Path, request: TuningRequest, into: Path) -> dict[str, Any] | None:
    """Fine-tune the run in `path` on a task, in the run folder `into`; the same call resumes a stopped run.

    Returns the result that `format_result` formats; None if SIGTERM stopped the run. A finished run is not trained again. Raises
    ConfigError, DataError and CheckpointError for errors that the user can fix, and UnhealthyRun if training fails.
    """
    parent = open_model(path.absolute(), "run")
    task = read_task(request.task, request.learn, request.domain, request.overrides)
    if into.resolve() == path.resolve():
        raise ConfigError(
            f"{into} is the run to tune, which stays as it is; name another folder with {argument('--output')}"
        )
    if kind_of(into) == "run":
        config, files = _read_files(parent, task, request)
    else:
        with unfinished_folder(into) as folder:
            config, files = _read_files(parent, task, request)
            _begin(parent, config, files, folder)
    with one_writer(into):
        run = StoredRun(into, text_hash=_samples_hash(files))
        _apply_changes(run, config, parent.path)
        logger.info("%s", learns_text(training_extent(config)))
        run.config = config
        if (earlier_result := read_tuning_result(into)) is not None:
            keep_only(run.checkpoints, earlier_result["best"]["step"])
            return earlier_result
        outcome = _train(run, files)
        if outcome is None:
            return None
        keep_only(run.checkpoints, outcome["best"]["step"])
        facts: dict[str, Any] = dict.fromkeys(("train_file", "dev_file")) | {name: f.facts for name, f in files.items()}
        result = {
            "parent": str(parent.path),
            "task": config.tuning.task,
            **training_extent(config),
            **facts,
            **outcome,
            "forgetting": measure_forgetting(into, parent.path),
        }
        write_atomically(into / TUNING_RESULT, sealed(result, record=True))
        draw_report(into)
    return result


def _read_files(parent: StoredRun, task: Task, request: TuningRequest) -> tuple[Config, dict[str, TaskFile]]:
    """Return the configuration of the tuned run, and the task's files by the names of `read_task_files`. Raises ConfigError for
    several ranks, or a run that does not fit into memory, before a file is read."""
    draft = task.config(parent.config)
    if draft.parallel.ranks > 1 or is_rank():
        raise ConfigError(
            f"parallel ({axes_text(draft.parallel)}): fine-tuning is one process, and neither `pangu-sigma launch` nor msrun "
            "starts it; leave the keys of this section out, and start one process"
        )
    check_training_fits(draft)
    files = read_task_files(request.train_file, request.dev_file, draft, parent.tokenizer)
    counts = files["train_file"].sequences.counts
    domains = [domain.name for domain, count in zip(draft.domains, counts, strict=True) if count]
    return task.config(parent.config, domains, sum(counts)), files


def _samples_hash(files: dict[str, TaskFile]) -> str:
    """Return the hash of all samples. Checkpoints of a tuned run record it in place of the content hash of prepared text."""
    return "".join(file.sequences.hash for file in files.values())


def _apply_changes(run: StoredRun, config: Config, parent: Path) -> None:
    """Check that `config` can train a run, and write changed keys. Raises ConfigError for another parent, samples or fixed key."""
    into, advice = run.path, f"choose another folder with {argument('--output')}"
    recorded_parent = (run.lineage or {}).get("parent", "")
    if run.config.finetune is None:
        raise ConfigError(f"{into} is a run that is not tuned to a task; {advice}")
    if Path(recorded_parent).resolve() != parent.resolve():
        raise ConfigError(f"{into} began with {recorded_parent}, not with {parent}; {advice}")
    changes = changed_keys(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
    fix = f"give the options that it was begun with, or {advice}"
    refuse_changes(into, changes, fix)
    if (newest := run.newest) and newest.identity.data_hash != run.text_hash:
        raise ConfigError(
            f"{into} was begun on other samples: {argument('--train-file')} or {argument('--dev-file')} is another file, or its "
            f"lines have changed; name the files that it was begun with, or {advice}"
        )
    if changes and (into / TUNING_RESULT).exists():
        raise ConfigError(
            "\n  ".join([f"{into} is finished, and was tuned with", *map(change_text, changes)]) + f"\n{fix}"
        )
    refuse_idle_changes(into, changes, config.train.steps, newest.step if newest else -1)
    if changes:
        logger.info("%s", "\n".join(map(change_text, changes)))
        write_config(into, config, "run")


def _begin(parent: StoredRun, config: Config, files: dict[str, TaskFile], folder: Path) -> None:
    """Write step 0 of a tuned run, a copy of its parent with Adam state, and the unusable lines of the task's files."""
    trained = training_extent(config)
    learns, total = trained["parameters"].values()
    hashes = {name: {key: file.facts[key] for key in ("path", "xxh3_128", "samples")} for name, file in files.items()}
    sources = {domain.name: domain.name for domain in config.domains}
    child = Child.of_run("finetune", parent, config, parent.tokenizer, parent.table, sources)
    child.domains = dict.fromkeys(sources, "as it was") if config.tuning.learn == "experts" else {}
    child.domains |= dict.fromkeys(config.tuning.domains, "learns the task")
    child.notes = [WARM, learns_text(trained)]
    child.options = {**config.tuning.model_dump(mode="json"), **hashes}
    child.parameters = {"learns": learns, "stays as it was": total - learns}
    new_run_from(child, folder, _samples_hash(files))
    (folder / TUNING_FOLDER).mkdir()
    if unusable_lines := [line for file in files.values() for line in file.unusable_lines]:
        write_rejected(folder / TUNING_FOLDER / QUARANTINE, unusable_lines)


def _train(run: StoredRun, files: dict[str, TaskFile]) -> dict[str, Any] | None:
    """Train to the end, and return steps, best state and losses; None if SIGTERM came before. Raises UnhealthyRun if the best state
    has no finite loss."""
    from pangu_sigma.training.loop import Trainer, train_to_end  # which load MindSpore

    splits, best = {"train_file": "train", "dev_file": "held_out"}, BestState()
    samples = {splits[name]: file.sequences for name, file in files.items()}
    trainer = Trainer(run, samples=samples, best=best)
    train_to_end(trainer)
    if not trainer.finished:
        return None
    if best.loss is None:
        text, advice = (
            ("dev set", "") if "dev_file" in files else ("training samples", ", with --dev-file to keep the best state")
        )
        raise UnhealthyRun(
            f"{run.path}: the loss of the {text} is not finite after step {best.step}: the tuning diverged, and there is no better "
            f"state to keep; remove the folder, lower train.optimizer.peak_lr={run.config.train.optimizer.peak_lr:g} and tune "
            f"again{advice}"
        )
    losses = {"before": best.before, "after": best.loss}
    return {"steps": trainer.progress.step, "best": best.state(), "losses": losses}


def training_extent(config: Config) -> dict[str, Any]:
    """Return how much of a model fine-tuning trains, as values for JSON: "learn", `finetune.learn`; "parameters", the number that
    the samples reach and the number of all; "common_kept", parameters of common experts, if these do not learn; and "rows", for
    each kind of `model.rows` True if the rows that samples meet learn."""
    options, model, count = config.tuning, config.model, config.num_params()
    slots = {domains_of(config).named(name).slot for name in options.domains}
    experts = len(config.domains) * config.domain_experts  # of own segments
    learn = tuned_experts = len(options.domains) * config.domain_experts
    if options.learn == "experts+slot":
        learn += len(slots) * model.slot_rows * model.hidden
    if options.learn == "all":
        learn = count.total - experts + tuned_experts  # no sample reaches own experts of other domains
    return {
        "learn": options.learn,
        "parameters": {"learn": learn, "all": count.total},
        "common_kept": 0 if config.learns("common") else count.experts - experts,
        "rows": {entry.kind: config.learns(entry.kind) for entry in model.rows},
    }


def learns_text(result: dict[str, Any]) -> str:
    """Format the number of parameters that a fine-tuning run trains, in one line."""
    learn, total, common = result["parameters"]["learn"], result["parameters"]["all"], result["common_kept"]
    text = f"; the {common:,} of common segments keep their bits" if common else ""
    for kind, learns in result.get("rows", {}).items():
        text += f"; {kind} rows that samples meet learn" if learns else f"; {kind} rows keep their bits"
    return f"learn {result['learn']}: {learn:,} of {total:,} parameters ({learn / total:.1%}){text}"


def format_result(result: dict[str, Any]) -> str:
    """Format a fine-tuning result as the tables that `pangu-sigma finetune` prints."""
    best, dev, losses = result["best"], result["dev_file"], format_numbers(result["losses"].values(), [4] * 2)
    text, moment = ("dev set", "at its best") if dev else ("training samples", "at the end (no --dev-file)")
    lines = [format_file(facts) for facts in (result["train_file"], dev) if facts]
    lines += [
        learns_text(result),
        f"loss of the {text}: {losses[0]} before, {losses[1]} {moment}, after step {best['step']} of {result['steps']}; nats per "
        "token of the answers",
    ]
    if not best["step"]:
        lines.append("no state was better than the parent's, which is kept")
    if best["diverged"]:
        lines.append(f"{best['diverged']} evaluations have no finite loss: it diverged; lower train.optimizer.peak_lr")
    return "\n".join([*lines, format_forgetting(result["forgetting"])])


def measure_forgetting(run: Path, parent: Path) -> dict[str, Any]:
    """Compare a tuned run with its parent, as `evaluate RUN --against PARENT` does: equal weights have equal losses bit for bit.

    Returns {"domains": {name: {"before", "after", "difference"}}}, held-out losses in nats per token and their difference with its
    standard error, or {"skipped": reason} if the parent's text is missing, or its checkpoint is another one by now.
    """
    # opened again, because the parent may have been trained on meanwhile; `compare_runs` verifies it
    parent_now = open_model(parent, "run", verified=False)
    if parent_now.hash != (read_lineage(run) or {}).get("parent_hash"):
        return {"skipped": f"{parent} was trained on after the tuning began"}
    try:
        (pair,) = compare_runs([run], [parent])["pairs"]
    except (ConfigError, DataError) as error:
        return {"skipped": str(error)}
    losses: dict[str, Any] = {}
    for name, after in pair["domains"].items():
        figures = {"before": after["against"], "after": after}
        losses[name] = {
            when: {key: of_run[key] for key in ("loss", "tokens", "samples")} for when, of_run in figures.items()
        }
        losses[name]["difference"] = after["difference"]
    return {"domains": losses}


def format_forgetting(forgetting: dict[str, Any]) -> str:
    """Format what `measure_forgetting` returned as a table of each domain's held-out loss before and after fine-tuning."""
    if "skipped" in forgetting:
        return f"forgetting was not measured: {forgetting['skipped']}"
    table, remarks = [["domain", "before", "after", "change", "±"]], list[str]()
    for name, losses in forgetting["domains"].items():
        before, after, difference = losses["before"]["loss"], losses["after"]["loss"], losses["difference"]
        cells = format_numbers([before, after, difference["nats_per_token"], difference["se"]], [4] * 4)
        if difference["nats_per_token"] == 0:
            cells[2] = "exactly 0"
        table.append([name, *cells])
        if after is None and before is not None:
            remarks.append(f"{name} is lost: its loss is not finite any more; lower train.optimizer.peak_lr")
    return "\n".join([*aligned(table, "<>", "held-out text of the parent, nats per token"), *remarks])
