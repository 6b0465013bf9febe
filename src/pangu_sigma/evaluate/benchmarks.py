"""Benchmarks by name: tasks of lm-evaluation-harness and of `tasks/`. Answers are saved at once, so a killed command resumes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument, warn_without_effect
from pangu_sigma.evaluate.result_cache import ResultCache
from pangu_sigma.generate.text import open_engine
from pangu_sigma.sealed import as_json, write_atomically
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import ANSWERING, open_model
from pangu_sigma.training.log.report import BENCHMARKS, write_report
from pangu_sigma.writable import check_file_writable

logger = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "tasks"
"""Folder of this project's tasks for lm-evaluation-harness, for its --include_path."""

CHINESE = "zh"
"""Default domain of benchmarks, since nearly all of this project's are Chinese."""

FORMATS = {"humaneval": "code", "mbpp": "code", "translation_en_zh": "bilingual", "translation_zh_en": "bilingual"}
"""Text format of the domain that answers by default in a benchmark; its first domain does."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """Options of a benchmark run.

    tasks: task names. files: folder with a folder of files for each task. domain: domain that answers; None for the first domain of
    the format in `FORMATS`, and for zh in other tasks. limit: maximum number of items of a task, the first ones; None for all.
    num_fewshot: examples before each item; None for the task's default. temperature: of generated answers; None for the task's
    default. samples_per_problem: programs for each problem. allow_code_execution: True to run programs that the model writes, in a
    sandbox. include_path: folder with tasks of the user's own for lm-evaluation-harness.
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
        text_format = FORMATS.get(name)
        candidates = [d.name for d in config.domains if (d.format == text_format if text_format else d.name == CHINESE)]
        if not candidates:
            requirement = f"of format {text_format}" if text_format else f"called {CHINESE}"
            raise ConfigError(
                f"{name} asks a domain {requirement}, and the model has none; say with {argument('--domain')} which answers: "
                f"{', '.join(domain.name for domain in config.domains)}"
            )
        return candidates[0]


Figures = dict[str, Any]
"""Result of a benchmark as values for JSON: its metrics, None where not finite; `n`, items; `skipped`, lines without a label or an
answer by design; `truncated`, items that were cut to fit."""


def benchmark_model(model: Path, request: BenchmarkRequest, file: Path | None = None) -> dict[str, Figures]:
    """Run benchmarks as `run_benchmarks` does; if the model is a run, write the results to the run's folder, too."""
    stored = open_model(model, *ANSWERING)
    results = run_benchmarks(stored, request, file)
    if stored.kind == "run":
        _write_to_run(stored, request, results)
    return results


def run_benchmarks(
    model: Path | StoredModel, request: BenchmarkRequest, file: Path | None = None
) -> dict[str, Figures]:
    """Run benchmarks on a model, such as a run's newest checkpoint, and return results by task; a task group has a result too.

    file: file to write the result to as JSON; until then, answers are cached beside it, and the generated answers of each task are
    written beside it, an item a line. Raises, before anything is computed, ConfigError for an unknown task or domain, and if
    programs may not or cannot be run, DataError for missing or invalid files, and NotWritable for files that would be replaced.
    """
    stored = model if isinstance(model, StoredModel) else open_model(model, *ANSWERING)
    for name in request.tasks:  # an unknown domain is refused before the harness, which takes seconds, is imported
        domains_of(stored.config).named(request.domain_of(name, stored.config))
    from pangu_sigma.evaluate.harness import HarnessModel

    manager, loaded_tasks = _load_tasks(request, stored.config)
    tasks = {name: task for loaded in loaded_tasks.values() for name, task in loaded["tasks"].items()}
    _apply_options([*tasks.values()], request)
    cache = cache_beside(file, stored, request) if file else None
    for name, task in tasks.items():
        # a killed evaluation that goes on may replace its own files of answers
        if file and cache and not cache.is_continued and task.OUTPUT_TYPE == "generate_until":
            check_file_writable(_answers_file(file, name), "--json")
    engine, results = open_engine(stored, lanes=8), dict[str, Figures]()
    for name in request.tasks:
        lm = HarnessModel(engine, request.domain_of(name, stored.config), tags=True)
        lm.cache = cache
        logger.info("%s: domain %s answers", name, lm.domain.name)
        results |= _run_task(lm, manager, loaded_tasks[name], request, file)
    if file and cache:
        write_atomically(file, f"{json.dumps(results, ensure_ascii=False, indent=2)}\n".encode())
        cache.remove()
    return results


def _write_to_run(run: StoredModel, request: BenchmarkRequest, results: dict[str, Figures]) -> None:
    """Write the results to the run folder, and rewrite its report if it has logged steps."""
    origin = {name: {"domain": request.domain_of(name, run.config), "step": run.step} for name in results}
    file = run.path / BENCHMARKS
    try:
        old_results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        new_results = {name: figures | origin[name] for name, figures in results.items()}
        write_atomically(file, as_json(old_results | new_results))
        write_report(run.path)
    except (OSError, ValueError) as error:
        logger.warning("the run's report does not have these benchmarks: %s", error)


def cache_beside(file: Path, model: StoredModel, request: BenchmarkRequest) -> ResultCache:
    """Open the cache of answers beside a result file, which goes on if one with the same model and options was interrupted."""
    header = asdict(request) | {"tasks": list(request.tasks), "model": model.hash}
    return ResultCache(file.with_name(f"{file.name}.partial"), header)


def _answers_file(result_file: Path, task: str) -> Path:
    return result_file.with_name(f"{result_file.stem}.{task}.jsonl")


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


def _load_tasks(request: BenchmarkRequest, config: Config) -> tuple[Any, dict[str, Any]]:
    """Return the harness's task manager, and by each name of the request what the harness loaded: {"tasks": …, "groups": …}. Raises
    ConfigError for an unknown name, DataError for files or a dataset that cannot be read."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    advice = "Custom kwargs can be passed"  # to pass metadata, which is done below
    logging.getLogger("lm_eval.api.task").addFilter(lambda record: advice not in record.getMessage())
    folders = [TASKS, *([Path(request.include_path)] if request.include_path else [])]
    if not folders[-1].is_dir():
        raise ConfigError(f"{argument('--include-path')} {folders[-1]} is not a folder; name one with tasks in YAML")
    user_files = {file.stem: file for file in folders[-1].rglob("*.yaml")} if request.include_path else {}
    own_names = {"pangu_alpha"} | {file.stem for folder in folders for file in folder.rglob("*.yaml")}
    if harness_names := [name for name in request.tasks if name not in own_names]:
        logger.info("lm-evaluation-harness reads its 14,000 task files to find %s: seconds", ", ".join(harness_names))
    metadata = {"data": request.files, "seq_length": config.model.seq_length}
    manager = TaskManager(include_path=[*map(str, folders)], include_defaults=bool(harness_names), metadata=metadata)
    return manager, {name: _load_task(manager, name, own_names, user_files) for name in request.tasks}


def _load_task(manager: Any, name: str, own_names: set[str], user_files: dict[str, Path]) -> Any:
    """Load a task or a group of tasks by name. own_names: names of the project's and the user's tasks. user_files: by name."""
    is_indexed = name in manager.all_tasks
    # a file that the manager cannot read is in no index; it is loaded for the error message
    file = manager.task_index[name].yaml_path if is_indexed else user_files.get(name)
    if not is_indexed and file is None:
        raise ConfigError(
            f"benchmark {name} is not known; this project has {', '.join(sorted(own_names))}, and lm-evaluation-harness what "
            "`python -m pangu_sigma.evaluate.lm_eval ls tasks` prints"
        )
    try:
        return manager.load([name if is_indexed else str(file)])
    except Exception as error:
        if file in user_files.values():  # any error: the task may name Python code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{file}: {reason}; mend the task, or what it names") from error
        if not isinstance(error, OSError | ValueError):
            raise
        if name in own_names:  # the error of tasks/reading.py names the file and the fix
            raise DataError(str(error)) from error
        raise DataError(
            f"{name}: the harness cannot read its dataset: {error}; it comes from the Hugging Face Hub, or from a copy in "
            "a folder of its full name, owner/name, below the folder where this command is started"
        ) from error


def _apply_options(tasks: Sequence[Any], request: BenchmarkRequest) -> None:
    """Apply the options of a request to the loaded tasks, and warn of an option that no task uses. Raises ConfigError for an option
    that is not possible, and for tasks whose programs may not or cannot be run."""
    program_tasks = [task for task in tasks if getattr(task, "UNSAFE_CODE", False)]
    generation_tasks = [task for task in tasks if task.OUTPUT_TYPE == "generate_until"]
    for option, is_set, tasks_with_effect, kind in (
        ("--samples-per-problem", request.samples_per_problem != 1, program_tasks, "programs"),
        ("--allow-code-execution", request.allow_code_execution, program_tasks, "programs"),
        ("--temperature", request.temperature is not None, generation_tasks, "generated answers"),
    ):
        if is_set and not tasks_with_effect:
            warn_without_effect(argument(option), f"it is for benchmarks of {kind}, not for {', '.join(request.tasks)}")
    if request.temperature is not None:
        generation_options = {"temperature": request.temperature, "do_sample": request.temperature > 0}
        for task in generation_tasks:
            task.set_config("generation_kwargs", generation_options, update=True)
    for task in program_tasks:
        _check_programs(task, request)
        task.set_config("repeats", request.samples_per_problem)
    for task in tasks:
        examples = (task.config.num_fewshot or 0) if request.num_fewshot is None else request.num_fewshot
        split = task.config.fewshot_config.split
        # tasks of this project have the split "skipped"; an item of the test split is no example for itself
        if "skipped" in task.dataset and examples > len(task.dataset[split]) - (split == task.config.test_split):
            raise ConfigError(
                f"{argument('--num-fewshot')} {examples} is not possible: {task.task_name} has {len(task.dataset[split])} {split}, "
                "and examples are others than the one that is asked; give a smaller number"
            )


def _check_programs(task: Any, request: BenchmarkRequest) -> None:
    """Raise ConfigError unless a task's programs may run, several of one problem can differ, and the sandbox starts here."""
    from pangu_sigma.evaluate.tasks.programs import outcome

    name, samples = task.task_name, request.samples_per_problem
    if not request.allow_code_execution:
        raise ConfigError(f"{name} runs programs that the model writes; {argument('--allow-code-execution')} allows it")
    if not (TASKS / f"{name}.yaml").exists():
        raise ConfigError(f"{name} runs programs outside of a sandbox; take humaneval or mbpp, which have one")
    if samples > 1 and not task.config.generation_kwargs["do_sample"]:
        raise ConfigError(f"{samples} programs of temperature 0 are all the same; give {argument('--temperature')} 0.8")
    try:  # an empty program, to see if the sandbox starts
        outcome({"task_id": 0, "prompt": "", "test": "def check(_): pass", "entry_point": "None"}, "")
    except RuntimeError as error:
        raise ConfigError(str(error)) from error


def _run_task(
    lm: Any, manager: Any, loaded: dict[str, Any], request: BenchmarkRequest, result_file: Path | None
) -> dict[str, Figures]:
    """Run a task or a group. Return results by name: of its tasks, and of the group.

    lm: `HarnessModel`. manager: `TaskManager` of the harness. loaded: "tasks" and "groups" that it loaded for one name of the
    request. result_file: file beside which generated answers are written; None not to write them."""
    from lm_eval import evaluator

    evaluator.get_git_commit_hash = lambda: None  # it asks git, which complains where there is no repository
    tasks = [*(loaded["groups"] or loaded["tasks"]).values()]  # a group runs its tasks
    options = {"num_fewshot": request.num_fewshot, "limit": request.limit, "bootstrap_iters": 0}
    options |= {"task_manager": manager, "confirm_run_unsafe_code": request.allow_code_execution}
    evaluation = evaluator.simple_evaluate(model=lm, tasks=tasks, **options)
    samples, members = evaluation["samples"], evaluation.get("group_subtasks", {})
    for name, task in loaded["tasks"].items():
        if result_file and task.OUTPUT_TYPE == "generate_until":
            _write_answers(_answers_file(result_file, name), samples[name])
    return {
        name: _figures_of(lm, values, samples, members.get(name) or [name], loaded["tasks"])
        for name, values in evaluation["results"].items()
    }


def _write_answers(file: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the prompt, the answers and their scores of each item to a file, a line of JSON each, for people to read."""
    rows = [
        {"item": sample["doc_id"], "prompt": sample["arguments"][0][0], "answers": sample["resps"][0]}
        | {metric: sample[metric] for metric in sample["metrics"]}
        for sample in samples
    ]
    lines = (f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
    write_atomically(file, "".join(lines).encode())


def _figures_of(
    lm: Any, values: Mapping[str, Any], samples: Mapping[str, Any], names: Sequence[str], tasks: Mapping[str, Any]
) -> Figures:
    """Convert the harness's result of a task or group to `Figures`.

    values: metrics by the harness's names. samples: evaluated items by task. names: the task, or the group's. tasks: by name."""
    metrics = {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, float)}
    items = {(name, sample["doc_id"]): sample["doc"] for name in names for sample in samples.get(name, [])}
    # tasks/reading.py sets "cut"
    cut_items = {key for key, doc in items.items() if isinstance(doc, Mapping) and doc.get("cut")}
    return {
        **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "n": len(items),
        "skipped": sum(len(tasks[name].dataset["skipped"]) for name in names if "skipped" in tasks[name].dataset),
        "truncated": len(cut_items | (lm.truncated & items.keys())),
    }
