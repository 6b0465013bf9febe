"""The runs of the comparison: two models of each seed, tuned in four ways to each task, each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pangu_sigma as ps
from experiments.cases import CaseError, Cases, train_whole
from experiments.finetune_packages.packages import format_splits, write_packaged_tasks
from experiments.finetune_packages.tuned_variants import TunedVariant, best_rate, compare_tuned, write_tuned
from experiments.small import SMALL, SMALL_DENSE, Changes, drawn, evaluated, schedule, tiny
from pangu_sigma.config_file import Override
from pangu_sigma.finetune.tuning import TuningRequest, finetune_run

LEARNS = {"experts": "experts", "slot": "experts+slot", "all": "all", "dense": "all"}
"""What learns in each variant; the parent of `dense` is the dense model."""
TITLES = {"experts": "Σ experts", "slot": "Σ experts+slot", "all": "Σ all", "dense": "dense"}
ENGLISH_QA: list[Override] = [
    ("chat.system", "{content}\n"),
    ("chat.user", "Question: {content}\n"),
    ("chat.assistant", "Answer: {content}\n"),
]
"""The template of qa, which is in English here."""


class Tuning:
    """The tuned runs of a task, by variant, seed and rate; each is made once."""

    def __init__(self, cases: Cases, steps: int):
        """steps: of each run; rounded up to three evaluations."""
        third = (steps + 2) // 3
        self._cases = cases
        self._keys = {
            "train.steps": 3 * third,
            "train.eval_interval": third,
            "train.checkpoint_interval": third,
            "train.keep_checkpoints": 1,
            "train.optimizer.end_lr": 0.0,
            "finetune.patience": 1000,
        }

    def run(self, task: str, name: str, seed: int, rate: str) -> Path:
        """The folder of a tuned run."""
        run = self._cases.folder / f"{task}_{name}_{seed}_{rate}"
        self._cases.run(run.name, finetune_run, self.parent(name, seed), self._request(task, name, seed, rate), run)
        return run

    def parent(self, name: str, seed: int) -> Path:
        """The run that a variant begins with."""
        return self._cases.folder / f"{'dense' if name == 'dense' else 'sigma'}_{seed}"

    def _request(self, task: str, name: str, seed: int, rate: str) -> TuningRequest:
        files = self._cases.folder / "tasks" / task
        keys = self._keys | {"seed": seed, "train.optimizer.peak_lr": float(rate)}
        overrides = [*(ENGLISH_QA if task == "qa" else []), *keys.items()]
        domain = "en" if task == "qa" else None
        return TuningRequest(task, files / "train.jsonl", files / "dev.jsonl", LEARNS[name], domain, overrides)


def finetune_packages(
    folder: Path,
    tasks: Sequence[str],
    steps: int,
    tune_steps: int,
    seeds: Sequence[int],
    rates: Sequence[str],
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """Train and tune what is not yet, and yield the tables of each task. Raises CaseError for fewer than one step."""
    if min(steps, tune_steps) < 1:
        raise CaseError(f"--steps {steps} --tune-steps {tune_steps}: both need a number of at least 1")
    total = 2 * len(seeds) + len(tasks) * len(LEARNS) * (len(rates) + len(seeds) - 1)
    cases = Cases(folder, {"steps": steps, "tune_steps": tune_steps, "set": list(overrides)}, total)
    data = {"data.path": str(Path("data", folder.name))}  # of its own: its slots have fewer rows than sigma_tiny's
    sparse: list[Changes] = [SMALL, schedule(steps, 2e-3, 2e-4), evaluated(steps, 4, steps), data, overrides]
    ps.prepare_data(tiny(*sparse))
    splits = write_packaged_tasks(tasks, tiny(data), folder / "tasks")
    text = "\n".join(format_splits(task, facts) for task, facts in splits.items())
    (folder / "tasks.txt").write_text(f"{text}\n", encoding="utf-8")
    yield text
    for seed in seeds:
        for name, keys in (("sigma", sparse), ("dense", [*sparse, SMALL_DENSE])):
            cases.run(f"{name}_{seed}", train_whole, tiny(*keys, drawn(seed)), folder / f"{name}_{seed}")
    tuning = Tuning(cases, tune_steps)
    tuned = {task: [tune_variant(tuning, task, name, seeds, rates) for name in LEARNS] for task in tasks}
    for task, variants in tuned.items():
        compared = compare_tuned(variants, folder / "tasks" / task / "test.jsonl", folder / "answers" / task)
        yield write_tuned(task, compared, folder)
    yield cases.summary()


def tune_variant(tuning: Tuning, task: str, name: str, seeds: Sequence[int], rates: Sequence[str]) -> TunedVariant:
    """Tune a variant: the first seed at every rate, the others at its best."""
    tried = {rate: tuning.run(task, name, seeds[0], rate) for rate in rates}
    best = best_rate(tried)
    runs = [tried[best], *(tuning.run(task, name, seed, best) for seed in seeds[1:])]
    return TunedVariant(TITLES[name], tried, [tuning.parent(name, seed) for seed in seeds], runs)
