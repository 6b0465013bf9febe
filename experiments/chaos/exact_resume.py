"""Runs that are stopped and go on, against the same run that never stopped: everything that it saves, after every step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.chaos.rank_processes import MAIN, RankProcesses
from experiments.chaos.runs import digests
from experiments.tiny import tiny_tree
from pangu_sigma.config_file import load_config
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import train

RESUMED_STEPS = 12
WAIT = 600.0
"""Seconds that a run of seconds may take on a busy machine."""
HIGH = {"compute_dtype": "float16", "loss_scale": {"initial": 2.0**26, "window": 2}}
"""A loss scale with which gradients leave float16 at first, and every few steps again when it has grown."""
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "accumulation": {"train": {"accumulation": 2}},
    "overflow": {"train": HIGH, "ecss": {"update": "worker"}},
    "dropout": {"model": {"dropout": 0.1}},
    "tanh": {"model": {"activation": "tanh"}},
    "erf": {"model": {"activation": "erf"}},
    "all": {
        "train": {"accumulation": 2} | HIGH,
        "model": {"dropout": 0.1},
        "ecss": {"update": "worker"},
    },
}
"""What a run does besides."""


class ExactResume:
    """One run that kept every checkpoint, and copies of it that were stopped and went on."""

    def __init__(
        self, data: Path, folder: Path, case: str, ranks: int, steps: int = RESUMED_STEPS, forked: bool = False
    ):
        """data: the tiny data. folder: where the runs are written. forked: True if stopped ranks go on in forks, see `Forked`."""
        self._folder, self._ranks, self._steps, self._forked = folder, ranks, steps, forked
        tree = tiny_tree(data)
        tree["train"] |= {"steps": steps, "checkpoint_interval": 1, "keep_checkpoints": steps}
        tree["train"] |= {"eval_interval": steps, "log_interval": 1}
        tree["parallel"] = {"expert": ranks}
        for section, keys in CASES[case].items():
            tree[section] = tree.get(section, {}) | keys
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self.run = folder / "config.yaml", folder / "run"
        self._file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        self._train(self.run, fresh=False)
        self._expected = {step: digests(self._checkpoint(self.run, step)) for step in range(1, steps + 1)}
        self._log = log_of(self.run)

    @property
    def skipped(self) -> int:
        """Number of steps that updated nothing."""
        return sum(line["skipped"] for line in self._log)

    def differences(self, step: int, fresh: bool = False) -> list[str]:
        """What is not the same after a stop behind `step`: names of arrays and of the log, with the step at which they differ.

        fresh: True to go on in a new process, as several ranks always do.
        """
        copy = self._folder / f"stopped_{step}"
        self._stop(step, copy)
        self._train(copy, fresh)
        found = [
            f"step {number}: {name}"
            for number, expected in self._expected.items()
            for name, digest in digests(self._checkpoint(copy, number)).items()
            if digest != expected.get(name)
        ]
        if log_of(copy) != self._log:
            found.append("metrics.jsonl")
        shutil.rmtree(copy)
        return found

    def _stop(self, step: int, copy: Path) -> None:
        """A copy of the run as it was when it had just saved `step`; what it logged later is still there, as after a crash."""
        shutil.copytree(self.run, copy)
        for number in range(step + 1, self._steps + 1):
            shutil.rmtree(self._checkpoint(copy, number))

    def _train(self, run: Path, fresh: bool) -> None:
        arguments = ["train", str(self._file), "--output", str(run)]
        if self._ranks > 1:
            logs, forked = run.parent / f"{run.name}_logs", self._forked and run != self.run
            with RankProcesses(self._ranks, arguments, logs, forked=forked) as ranks:
                assert ranks.wait(WAIT) == [0] * self._ranks, ranks.said()
        elif fresh:
            subprocess.run([sys.executable, "-c", MAIN, *arguments], check=True, timeout=WAIT, capture_output=True)
        else:
            train(load_config(self._file), run)

    @staticmethod
    def _checkpoint(run: Path, step: int) -> Path:
        return run / "checkpoints" / f"step_{step:08d}"


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of steps of a run's log, without what a clock says."""
    clock = {"tokens_per_second", "update_busy", "update_stall"}
    lines = [line for line in read_metrics(run) if line["kind"] == "step"]
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def random_stops(stops: int, seed: int, steps: int = RESUMED_STEPS) -> Iterator[int]:
    """Steps behind which a run is stopped; not the last. None comes twice before all have come."""
    rng = np.random.default_rng(seed)
    while stops > 0:
        for step in rng.permutation(np.arange(1, steps))[:stops]:
            yield int(step)
        stops -= steps - 1
