"""Fine-tuning task, and the configuration of a run that is tuned to it.

A task is a YAML file with a part of a configuration: its sections `finetune` and `chat`, and keys of `train`. The new run has the
configuration of its parent, then the task's keys, then --set. Keys that nobody has set follow from the number of sequences: steps,
warm-up, decay, and the interval of evaluations.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.changes import absolute_paths, changed_keys, leaves, refuse_changes
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, config_path, override, parse_config, read_tree
from pangu_sigma.errors import argument
from pangu_sigma.held_out.batches import samples_of_evaluation
from pangu_sigma.sections import ParallelConfig

logger = logging.getLogger(__name__)

TASK_SECTIONS = ("finetune", "chat", "train")
"""Sections of a fine-tuning task's YAML file."""


@dataclass(frozen=True)
class Task:
    """Fine-tuning task with the user's overrides. tree: its configuration keys. keys: paths of the keys that task or user sets."""

    tree: dict[str, Any]
    keys: frozenset[str]
    overrides: tuple[Override, ...]

    def config(self, parent: Config, domains: Sequence[str] = (), sequences: int = 1) -> Config:
        """Return the configuration of a run that is tuned to the task.

        domains, sequences: domains of the task's samples, and number of sequences that they fill; none and 1 before the samples are
        read. Raises ConfigError for invalid keys and values, and for keys that do not fit the parent's weights.
        """
        tree = absolute_paths(parent).model_dump(mode="json") | {"finetune": {}}
        tree = _merge(tree, self.tree)
        tree["name"] = f"{parent.name}_{self.tree['finetune'].get('task', '')}"[:100]
        tree["parallel"] = ParallelConfig().model_dump(mode="json")
        override(tree, [*self.overrides, ("finetune.domains", list(domains))])
        interval = tree["train"]["checkpoint_interval"] if "train.checkpoint_interval" in self.keys else 1
        one_domain = {"data.domain_sets": 1, "data.domains_per_step": 1}  # all samples may be of one domain
        # provisional values, so that `parse_config` accepts the tree: an evaluation must fall on a checkpoint
        self._set_default(tree, {"train.eval_interval": interval, "train.checkpoint_interval": interval, **one_domain})
        self._set_default(tree, self._derived(parent, parse_config(tree), len(domains), sequences))
        child = parse_config(tree)
        changes = changed_keys(parent.model_dump(mode="json"), child.model_dump(mode="json"))
        # the parent's weights are drawn, so the seed may change
        changes = [change for change in changes if not change[0].startswith(("seed", "finetune"))]
        refuse_changes(Path(parent.name), changes, "  leave these keys out")
        return child

    def _set_default(self, tree: dict[str, Any], values: dict[str, Any]) -> None:
        """Set the keys that nobody has set."""
        override(tree, [(key, value) for key, value in values.items() if key not in self.keys])

    def _derived(self, parent: Config, config: Config, domains: int, sequences: int) -> dict[str, Any]:
        """Return the values of keys that follow from the samples. config: the run's, with provisional values of the keys. domains,
        sequences: number of domains that have samples, and of sequences that the samples fill."""
        options, train = config.tuning, config.train
        batch = train.batch_size * train.accumulation
        epoch_steps = max(math.ceil(options.epochs * sequences / batch), 1)
        steps = train.steps if "train.steps" in self.keys else epoch_steps
        warmup, pass_steps = int(options.warmup * steps), min(max(math.ceil(sequences / batch), 1), steps)
        save_interval = train.checkpoint_interval if "train.checkpoint_interval" in self.keys else 1
        rounded_pass = -(-pass_steps // save_interval) * save_interval  # up, as each evaluation needs a checkpoint
        interval = train.eval_interval if "train.eval_interval" in self.keys else rounded_pass
        counts = range(min(parent.data.domains_per_step, max(domains, 1)), 0, -1)
        return {
            "train.steps": steps,
            "train.optimizer.warmup_steps": warmup,
            "train.optimizer.decay_steps": max(steps - warmup, 1),
            "train.eval_interval": interval,
            "train.checkpoint_interval": interval,
            "train.log_interval": min(max(pass_steps // 10, 1), 10),
            "train.eval_batches": math.ceil(samples_of_evaluation(parent) / train.batch_size),
            "data.domains_per_step": next(count for count in counts if train.batch_size % count == 0),
        }


def read_task(
    name_or_path: str | Path,
    learn: str | None = None,
    domain: str | None = None,
    overrides: Sequence[Override] = (),
) -> Task:
    """Read a shipped fine-tuning task by its name, or a task from a YAML file. learn, domain: the user's values for these keys.

    Raises ConfigError for an unknown name, with a list of the shipped tasks, for a file that is no task, and for overrides that
    contradict learn or domain.
    """
    path = config_path(name_or_path, "finetune")
    tree = read_tree(path)
    if unknown := [key for key in tree if key not in TASK_SECTIONS]:
        raise ConfigError(f"task {path}: {unknown[0]} is no section of a task; allowed: {', '.join(TASK_SECTIONS)}")
    if not isinstance(tree.get("finetune"), dict):
        raise ConfigError(f"task {path}: has no section finetune, which names the task and its domain")
    options = [(f"finetune.{key}", value) for key, value in (("learn", learn), ("domain", domain)) if value is not None]
    all_overrides = (*options, *overrides)
    values = leaves(override(deepcopy(tree), all_overrides))
    for key, value in options:
        if values.get(key) != value:
            option = argument(f"--{key.removeprefix('finetune.')}")
            contradiction = f"by {argument('--set', 'overrides')} {key} is {values.get(key, 'left out')}"
            raise ConfigError(f"{option} {value}, and {contradiction}; leave one of them away")
    return Task(tree, frozenset(values), all_overrides)


def _merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change a tree of keys in place, section by section, and return the tree."""
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = _merge(tree[key], value) if is_section else deepcopy(value)
    return tree
