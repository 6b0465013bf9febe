"""Benchmarks of a model by name: those of this project in `tasks/`, those that lm-evaluation-harness has, and those that need more.

What an evaluation has done is kept beside its result, request by request, so that the same command goes on after a kill.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.kept import Kept
from pangu_sigma.evaluate.task_result import TaskResult
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.text import open_engine
from pangu_sigma.stored.open import open_model

if TYPE_CHECKING:
    from pangu_sigma.evaluate.harness import HarnessModel

logger = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "tasks"
"""Folder of this project's tasks for lm-evaluation-harness: what its --include_path takes."""

CHINESE = "zh"
"""The domain that answers unless another one is asked: nearly all of this project's benchmarks are Chinese."""

LANES = 8
"""Number of texts that are read at a time."""


@dataclass(frozen=True)
class OwnTask:
    """A benchmark that the harness does not run.

    module: has run(engine, domain, folder, limit=…, temperature=…, …) -> TaskResult. format: of the domain that answers if nobody
    says which. file: the argument that is a file for people to read, and the end of its name. runs_programs: True if it takes
    samples and unsafe, too.
    """

    module: str
    format: str
    file: tuple[str, str]
    runs_programs: bool = False


_PACKAGE = "pangu_sigma.evaluate"

OWN: dict[str, OwnTask] = {
    "humaneval": OwnTask(f"{_PACKAGE}.human_eval", "code", ("samples_file", "jsonl"), runs_programs=True),
    "mbpp": OwnTask(f"{_PACKAGE}.mbpp", "code", ("samples_file", "jsonl"), runs_programs=True),
    "translation_zh_en": OwnTask(f"{_PACKAGE}.translation", "bilingual", ("translations", "txt")),
    "translation_en_zh": OwnTask(f"{_PACKAGE}.translation", "bilingual", ("translations", "txt")),
    "dialogue": OwnTask(f"{_PACKAGE}.dialogue", "text", ("transcripts", "md")),
}


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is asked of an evaluation.

    tasks: names. files: the folder with a folder of files for each task. domain: which experts answer; None for zh, and in tasks of
    `OWN` for the first domain of their format. limit: the most items of a task, the first ones; None for all. num_fewshot:
    examples before each item, drawn from the other items; None for what the task says. temperature: of the answers in tasks of
    `OWN`; None for what each of them says. samples_per_problem: programs for each. allow_code_execution: True to run them where
    they cannot be isolated too.
    """

    tasks: tuple[str, ...]
    files: str | None
    domain: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    temperature: float | None = None
    samples_per_problem: int = 1
    allow_code_execution: bool = False

    def domain_of(self, name: str, config: Config) -> str:
        """The domain that answers in a task. Raises ConfigError if the model has none of the format."""
        if self.domain is not None:
            return self.domain
        if name not in OWN:
            return CHINESE
        wanted = OWN[name].format
        found = next((domain.name for domain in config.domains if domain.format == wanted), None)
        if found is None:
            raise ConfigError(
                f"{name} asks a domain of format {wanted}, and the model has none; say with --domain which answers"
            )
        return found

    def folder_of(self, name: str) -> Path:
        """The folder of a task's files. Raises ConfigError if none was given."""
        if self.files is None:
            raise ConfigError(f"{name} reads files; say with --files in which folder its folder {name} is")
        return Path(self.files) / name


def run_benchmarks(
    model: Path, asked: BenchmarkRequest, kept: Kept | None = None, beside: Path | None = None
) -> dict[str, TaskResult]:
    """The results of each task, of a run's newest checkpoint or of an export; a group of tasks has one for each of them, too.

    beside: the file of the result; what people can read of a task of `OWN` is written beside it.

    Raises ConfigError for a task that is not known and a domain that the model has not, and DataError, before anything is computed,
    for files that are missing or of another format.
    """
    others = [name for name in asked.tasks if name not in OWN]
    lm = _harness_model(model, asked, kept) if others else None
    engine = open_engine(model, lanes=LANES) if lm is None else lm.engine
    manager, loaded = _load(others, asked, engine.decoder.config.model.seq_length) if others else (None, {})
    for name in OWN.keys() & asked.tasks:
        asked.folder_of(name)
        asked.domain_of(name, engine.decoder.config)
    results: dict[str, TaskResult] = {}
    for name in asked.tasks:
        done = kept.get(f"task {name}") if kept else None
        if done is None:
            logger.info("%s", name)
            own = name in OWN
            found = _run_own(engine, name, asked, beside) if own else _run_harness(lm, manager, loaded[name], asked)
            done = {each: asdict(result) for each, result in found.items()}
            if kept:
                kept.put(f"task {name}", done)
        results |= {each: TaskResult(**result) for each, result in done.items()}
    return results


def _harness_model(model: Path, asked: BenchmarkRequest, kept: Kept | None) -> HarnessModel:
    from pangu_sigma.evaluate.harness import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    logging.getLogger("lm_eval.api.task").addFilter(_is_no_advice)
    found = HarnessModel(str(model), asked.domain or CHINESE, batch_size=LANES)
    found.kept = kept
    return found


def kept_beside(file: Path, model: Path, asked: BenchmarkRequest) -> Kept:
    """What an evaluation of before, of the same model and options, has kept beside its result."""
    found = open_model(model, "run", "export", verified=False)
    of = asdict(asked) | {"tasks": list(asked.tasks), "model": found.hash}
    return Kept(file.with_name(f"{file.name}.partial"), of)


def format_tasks(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of the figures of each task."""
    counts = ("n", "skipped", "truncated")
    rows = [
        [name, metric, "–" if value is None else f"{value:.4f}", *(f"{figures[key]:,}" for key in counts)]
        for name, figures in results.items()
        for metric, value in figures.items()
        if metric not in counts
    ]
    lines = [["task", "metric", "value", "items", *counts[1:]], ["---", "---", *["---:"] * 4], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures_of(results: Mapping[str, TaskResult]) -> dict[str, dict[str, Any]]:
    """Results as values for JSON: what is not finite is None."""
    return {
        name: {key: value if math.isfinite(value) else None for key, value in result.figures().items()}
        for name, result in results.items()
    }


def _is_no_advice(record: logging.LogRecord) -> bool:
    """False for what the harness tells a caller who might give metadata: we do."""
    return "Custom kwargs can be passed" not in record.getMessage()


def _load(names: list[str], asked: BenchmarkRequest, seq_length: int) -> tuple[Any, dict[str, Any]]:
    """The harness's manager of tasks, and the tasks with their data by their names."""
    from lm_eval.tasks import TaskManager

    ours = {file.stem for file in TASKS.glob("*.yaml")} | {"pangu_alpha"}
    metadata = {"data": asked.files, "seq_length": seq_length}
    manager = TaskManager(include_path=str(TASKS), include_defaults=not ours >= set(names), metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"benchmark {name} is not known; this project has {', '.join(sorted(ours | OWN.keys()))}, and lm-evaluation-"
                "harness what `python -m pangu_sigma.evaluate.lm_eval ls tasks` prints"
            )
    loaded = {name: _load_one(manager, name, name in ours) for name in names}
    for name, task in (each for found in loaded.values() for each in found["tasks"].items()):
        items = len(task.eval_docs) if "skipped" in task.dataset else math.inf
        if asked.num_fewshot and asked.num_fewshot >= items:
            raise ConfigError(
                f"--num-fewshot {asked.num_fewshot} is not possible: {name} has {items} items, and examples are others than the "
                "one that is asked; give a smaller number"
            )
    return manager, loaded


def _load_one(manager: Any, name: str, ours: bool) -> Any:
    try:
        return manager.load([name])
    except (OSError, ValueError) as error:
        if ours:
            raise DataError(str(error)) from error
        raise DataError(
            f"{name}: the harness cannot read its dataset: {error}; it comes from the Hugging Face Hub, or from a copy in "
            "a folder of its full name, owner/name, below the folder where this command is started"
        ) from error


def _run_own(engine: Engine, name: str, asked: BenchmarkRequest, beside: Path | None) -> dict[str, TaskResult]:
    task = OWN[name]
    options: dict[str, Any] = {} if asked.temperature is None else {"temperature": asked.temperature}
    if task.runs_programs:
        options |= {"samples": asked.samples_per_problem, "unsafe": asked.allow_code_execution}
    if beside is not None:
        argument, end = task.file
        options[argument] = beside.with_name(f"{beside.stem}.{name}.{end}")
        logger.info("%s: the answers will be in %s", name, options[argument])
    domain = asked.domain_of(name, engine.decoder.config)
    logger.info("%s: domain %s answers", name, domain)
    run = importlib.import_module(task.module).run
    return {name: run(engine, domain, asked.folder_of(name), limit=asked.limit, **options)}


def _run_harness(lm: Any, manager: Any, loaded: dict[str, Any], asked: BenchmarkRequest) -> dict[str, TaskResult]:
    from lm_eval.evaluator import simple_evaluate

    found = simple_evaluate(
        model=lm,
        tasks=[*(loaded["groups"] or loaded["tasks"]).values()],
        num_fewshot=asked.num_fewshot,
        limit=asked.limit,
        bootstrap_iters=0,
        task_manager=manager,
    )
    return {
        name: _result(
            lm, values, found["samples"], found.get("group_subtasks", {}).get(name) or [name], loaded["tasks"]
        )
        for name, values in found["results"].items()
    }


def _result(
    lm: Any, values: Mapping[str, Any], samples: Mapping[str, Any], names: Sequence[str], tasks: Mapping[str, Any]
) -> TaskResult:
    """What the harness found of a task, or of a group whose tasks are `names`."""
    metrics = {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, float)}
    items = {(name, each["doc_id"]): each["doc"] for name in names for each in samples.get(name, [])}
    cut = {item for item, doc in items.items() if isinstance(doc, Mapping) and doc.get("cut")}
    skipped = sum(len(tasks[name].dataset["skipped"]) for name in names if "skipped" in tasks[name].dataset)
    return TaskResult(metrics, len(items), skipped, len(cut | (lm.truncated & items.keys())))
