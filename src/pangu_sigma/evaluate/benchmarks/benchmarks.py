"""Benchmarks of a model by name: tasks of lm-evaluation-harness, among them those of `tasks/`, and tasks that it cannot run.

Each answer is saved beside the result file at once, so that the same command resumes after a kill.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument, without_effect
from pangu_sigma.evaluate.benchmarks import human_eval, mbpp, translation
from pangu_sigma.evaluate.benchmarks.result_cache import ResultCache
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.text import open_engine
from pangu_sigma.stored.open import ANSWERING, open_model

logger = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "tasks"
"""Folder of this project's tasks for lm-evaluation-harness, for its --include_path."""

CHINESE = "zh"
"""Default domain of benchmarks, since nearly all of this project's are Chinese."""

LANES = 8
"""Number of texts in a batch of a benchmark."""


@dataclass(frozen=True)
class OwnTask:
    """Benchmark of this project, which runs without lm-evaluation-harness.

    run: function that runs it, called with (engine, domain, folder, limit=…, temperature=…, …). format: text format of domains that
    can answer. file: name of the argument of `run` for the path of a readable file of the answers, and that file's ending.
    runs_programs: True if it runs programs, so that `run` also takes `samples` and `unsafe` of `CodeOptions`.
    """

    run: Callable[..., TaskResult]
    format: str
    file: tuple[str, str]
    runs_programs: bool = False


OWN_TASKS: dict[str, OwnTask] = {
    "humaneval": OwnTask(human_eval.run, "code", ("samples_file", "jsonl"), runs_programs=True),
    "mbpp": OwnTask(mbpp.run, "code", ("samples_file", "jsonl"), runs_programs=True),
    "translation_zh_en": OwnTask(translation.run, "bilingual", ("translations", "txt")),
    "translation_en_zh": OwnTask(translation.run, "bilingual", ("translations", "txt")),
}
"""Benchmarks that run without lm-evaluation-harness, by name."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """Options of a benchmark run.

    tasks: task names. files: folder with a folder of files for each task. domain: domain that answers; None for zh, and in tasks of
    `OWN_TASKS` for the first domain of their format. limit: maximum number of items of a task, the first ones; None for all.
    num_fewshot: examples before each item, drawn from the other items; None for the task's default. temperature: of the answers in
    tasks of `OWN_TASKS`; None for their defaults. samples_per_problem: programs for each problem. allow_code_execution: True to
    run them even where they cannot be isolated. include_path: folder with tasks of the user's own for lm-evaluation-harness.
    """

    tasks: tuple[str, ...]
    files: str | None
    domain: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    temperature: float | None = None
    samples_per_problem: int = 1
    allow_code_execution: bool = False
    include_path: str | None = None

    def domain_of(self, name: str, config: Config) -> str:
        """Return the domain that answers in a task. Raises ConfigError if the model has no domain of the task's format."""
        if self.domain is not None:
            return self.domain
        own = OWN_TASKS.get(name)
        wanted = f"of format {own.format}" if own else f"called {CHINESE}"
        names = [each.name for each in config.domains if (each.format == own.format if own else each.name == CHINESE)]
        if not names:
            raise ConfigError(
                f"{name} asks a domain {wanted}, and the model has none; say with {argument('--domain')} which answers: "
                f"{', '.join(each.name for each in config.domains)}"
            )
        return names[0]

    def folder_of(self, name: str) -> Path:
        """Return the folder of a task's files. Raises ConfigError if `files` was not given."""
        if self.files is None:
            raise ConfigError(
                f"{name} reads files; say with {argument('--files')} in which folder its folder {name} is"
            )
        return Path(self.files) / name


def run_benchmarks(
    model: Path, request: BenchmarkRequest, kept: ResultCache | None = None, beside: Path | None = None
) -> dict[str, TaskResult]:
    """Run benchmarks on a run's newest checkpoint or an exported model, and return results by task; a task group has a result too.

    kept: cache of answers; None for no cache. beside: path of the result's file, in whose folder the tasks of `OWN_TASKS` write
    readable files of their answers; None to write none.

    Raises ConfigError for an unknown task or domain, and DataError, before anything is computed, for missing or invalid files.
    """
    others = [name for name in request.tasks if name not in OWN_TASKS]
    _check_options(request)
    config = open_model(model, *ANSWERING, verified=False).config
    for name in request.tasks:
        domains_of(config).named(request.domain_of(name, config))
        if name in OWN_TASKS:
            request.folder_of(name)
    lm, manager, loaded = _load(model, others, request, config, kept) if others else (None, None, {})
    engine = open_engine(model, lanes=LANES) if lm is None else lm.engine
    results: dict[str, TaskResult] = {}
    for name in request.tasks:
        done = kept.get(f"task {name}") if kept else None
        if done is None:
            logger.info("%s", name)
            own = name in OWN_TASKS
            new = _run_own(engine, name, request, beside) if own else _run_harness(lm, manager, loaded[name], request)
            done = {each: asdict(result) for each, result in new.items()}
            if kept:
                kept.put(f"task {name}", done)
        results |= {each: TaskResult(**result) for each, result in done.items()}
    return results


def _check_options(request: BenchmarkRequest) -> None:
    """Warn of an option that none of the tasks uses."""
    own = [OWN_TASKS[name] for name in request.tasks if name in OWN_TASKS]
    programs, harness = any(task.runs_programs for task in own), len(own) < len(request.tasks)
    for option, given, used, tasks in (
        ("--samples-per-problem", request.samples_per_problem != 1, programs, "humaneval and mbpp"),
        ("--allow-code-execution", request.allow_code_execution, programs, "humaneval and mbpp"),
        ("--temperature", request.temperature is not None, bool(own), ", ".join(OWN_TASKS)),
        ("--num-fewshot", request.num_fewshot is not None, harness, f"tasks other than {', '.join(OWN_TASKS)}"),
    ):
        if given and not used:
            without_effect(argument(option), f"it is for {tasks}, and not for {', '.join(request.tasks)}")


def kept_beside(file: Path, model: Path, request: BenchmarkRequest) -> ResultCache:
    """Open the cache of answers beside a result file; it has answers if a run with the same model and options was interrupted."""
    stored = open_model(model, *ANSWERING, verified=False)
    header = asdict(request) | {"tasks": list(request.tasks), "model": stored.hash}
    return ResultCache(file.with_name(f"{file.name}.partial"), header)


def format_tasks(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the metrics of each benchmark task as a Markdown table."""
    counts = ("n", "skipped", "truncated")
    rows = [
        [name, metric, "–" if value is None else f"{value:.4f}", *(f"{figures[key]:,}" for key in counts)]
        for name, figures in results.items()
        for metric, value in figures.items()
        if metric not in counts
    ]
    lines = [["task", "metric", "value", "items", *counts[1:]], ["---", "---", *["---:"] * 4], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _load(
    model: Path, names: list[str], request: BenchmarkRequest, config: Config, kept: ResultCache | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model for the harness, the harness's task manager, and the loaded tasks by name."""
    from pangu_sigma.evaluate.benchmarks.harness import HarnessModel, TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    advice = "Custom kwargs can be passed"  # to pass metadata, which is done below
    logging.getLogger("lm_eval.api.task").addFilter(lambda record: advice not in record.getMessage())
    ours = {file.stem for file in TASKS.glob("*.yaml")} | {"pangu_alpha"}
    metadata = {"data": request.files, "seq_length": config.model.seq_length}
    folders = [TASKS, *([Path(request.include_path)] if request.include_path else [])]
    if not folders[-1].is_dir():
        raise ConfigError(f"{argument('--include-path')} {folders[-1]} is not a folder; name one with tasks in YAML")
    ours |= {file.stem for file in folders[-1].rglob("*.yaml")}
    manager = TaskManager(
        include_path=[str(folder) for folder in folders], include_defaults=not ours >= set(names), metadata=metadata
    )
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"benchmark {name} is not known; this project has {', '.join(sorted(ours | OWN_TASKS.keys()))}, and lm-evaluation-"
                "harness what `python -m pangu_sigma.evaluate.benchmarks.lm_eval ls tasks` prints"
            )
    loaded: dict[str, Any] = {}
    for name in names:
        try:
            loaded[name] = manager.load([name])
        except (OSError, ValueError) as error:
            source = (
                f"{name}: the harness cannot read its dataset: {error}; it comes from the Hugging Face Hub, or from a copy in "
                "a folder of its full name, owner/name, below the folder where this command is started"
            )
            raise DataError(str(error) if name in ours else source) from error
    for name, task in (each for found in loaded.values() for each in found["tasks"].items()):
        items = len(task.eval_docs) if "skipped" in task.dataset else math.inf
        if request.num_fewshot and request.num_fewshot >= items:
            raise ConfigError(
                f"{argument('--num-fewshot')} {request.num_fewshot} is not possible: {name} has {items} items, and "
                "examples are others than the one that is asked; give a smaller number"
            )
    lm = HarnessModel(str(model), request.domain_of(names[0], config), batch_size=LANES)
    lm.kept = kept
    return lm, manager, loaded


def _run_own(engine: Engine, name: str, request: BenchmarkRequest, beside: Path | None) -> dict[str, TaskResult]:
    task = OWN_TASKS[name]
    options: dict[str, Any] = {} if request.temperature is None else {"temperature": request.temperature}
    if task.runs_programs:
        options |= {"samples": request.samples_per_problem, "unsafe": request.allow_code_execution}
    if beside is not None:
        argument, end = task.file
        options[argument] = beside.with_name(f"{beside.stem}.{name}.{end}")
        logger.info("%s: the answers will be in %s", name, options[argument])
    domain = request.domain_of(name, engine.decoder.config)
    logger.info("%s: domain %s answers", name, domain)
    return {name: task.run(engine, domain, request.folder_of(name), limit=request.limit, **options)}


def _run_harness(lm: Any, manager: Any, loaded: dict[str, Any], request: BenchmarkRequest) -> dict[str, TaskResult]:
    from lm_eval import evaluator

    # it asks git, which complains where the user's folder is no repository
    evaluator.get_git_commit_hash = lambda: None
    evaluated = evaluator.simple_evaluate(
        model=lm,
        tasks=[*(loaded["groups"] or loaded["tasks"]).values()],
        num_fewshot=request.num_fewshot,
        limit=request.limit,
        bootstrap_iters=0,
        task_manager=manager,
    )
    members = evaluated.get("group_subtasks", {})
    return {
        name: _result(lm, values, evaluated["samples"], members.get(name) or [name], loaded["tasks"])
        for name, values in evaluated["results"].items()
    }


def _result(
    lm: Any, values: Mapping[str, Any], samples: Mapping[str, Any], names: Sequence[str], tasks: Mapping[str, Any]
) -> TaskResult:
    """Convert the harness's result of a task, or of a group with the tasks `names`."""
    metrics = {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, float)}
    items = {(name, each["doc_id"]): each["doc"] for name in names for each in samples.get(name, [])}
    cut = {item for item, doc in items.items() if isinstance(doc, Mapping) and doc.get("cut")}
    skipped = sum(len(tasks[name].dataset["skipped"]) for name in names if "skipped" in tasks[name].dataset)
    return TaskResult(metrics, len(items), skipped, len(cut | (lm.truncated & items.keys())))
