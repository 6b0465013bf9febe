"""Rules for configuration changes of a run with a checkpoint: for each key, whether it may change, and why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pangu_sigma.config import Config, ConfigError

Change = tuple[str, Any, Any]
"""Key path, old value and new value of a changed configuration key; None for a value that does not exist."""


class Rule(NamedTuple):
    """Rule for changes of a configuration key when a run resumes; it also holds for keys below without a rule.

    free: True if a run may resume with another value.
    why: reason why the key must not change; for a free key the effect of a change, or ""."""

    free: bool
    why: str = ""


_CATCHES_UP = "no sample is lost or taken twice; domains that it leaves behind come first until they have caught up"
_DRAWN = "the weights of this run were drawn with it"
_NONE_LOST = "no sample is lost or taken twice"

RULES = {
    "name": Rule(True),
    "seed": Rule(False, "it shuffles the samples and drew the weights: samples would be taken twice or never"),
    "model": Rule(False, "the saved arrays have this shape"),
    "model.activation": Rule(
        False, "the weights were trained for it: with another one the same weights are another function"
    ),
    "model.dropout": Rule(True),
    "model.rows": Rule(
        False, "rows are saved by numbers that follow from it; `pangu-sigma extend` adds rows to a run without them"
    ),
    **dict.fromkeys(("model.init_std", "model.expert_init"), Rule(False, _DRAWN)),
    "domains": Rule(False, "experts, slots and sample counts of the checkpoint belong to these domains in this order"),
    "domains.*.format": Rule(False, "the model was trained on text that is written so"),
    "domains.*.language": Rule(False, "the model was trained on text that is segmented so"),
    "domains.*.weight": Rule(True, _CATCHES_UP),
    **{f"domains.*.{key}": Rule(True) for key in ("held_out", "max_overlap", "min_held_out_tokens")},
    "vocabulary": Rule(False, "the run keeps the vocabulary that it was started with"),
    "routing": Rule(False, "which expert a token goes to is decided before the first step, once and for all"),
    "ecss": Rule(True),
    "ecss.moments": Rule(False, "the saved moments have this precision"),
    "data": Rule(True),
    **dict.fromkeys(("data.domains_per_step", "train.batch_size", "train.accumulation"), Rule(True, _NONE_LOST)),
    "data.shuffle": Rule(False, "the run counts its samples in that order: some would be taken twice and others never"),
    **{f"data.{key}": Rule(True, _CATCHES_UP) for key in ("domain_sets", "phases", "temperature")},
    "train": Rule(True),
    "train.compute_dtype": Rule(True, "the run goes on with the loss scale that it has"),
    "train.loss_scale.initial": Rule(True, "the run goes on with the scale that it has"),
    "parallel": Rule(True),
    "chat": Rule(True),
    "finetune": Rule(False, "its samples are chosen and cut by it, and what it does not name has kept its bits so far"),
}
"""Rules of all configuration keys, by key path; * is any index."""


def rule_of(key: str) -> Rule:
    """Return the rule of a configuration key, or of the nearest key above with a rule. Raises KeyError if no key above has one."""
    words = ["*" if word.isdigit() else word for word in key.split(".")]
    for end in range(len(words), 0, -1):
        if rule := RULES.get(".".join(words[:end])):
            return rule
    raise KeyError(key)


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the values of a configuration tree by key path, such as domains.0.name. path: key path of the tree itself."""
    if not isinstance(tree, dict | list):
        return {path: tree}
    values = dict[str, Any]()
    for name, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        values |= leaves(child, f"{path}.{name}".lstrip("."))
    return values


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return the keys whose values differ between two configurations, given as plain trees, in the order of the new one."""
    before, after = leaves(old), leaves(new)
    keys = dict.fromkeys([*after, *before])
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def refuse_changes(run: Path, changes: list[Change], fix: str) -> None:
    """Raise ConfigError if changes would give the saved state of a run another meaning; the message names all of them.

    fix: advice to the user, the end of the message."""
    refused = [change for change in changes if not rule_of(change[0]).free]
    if refused:
        lines = [f"{change_text(change)}: {rule_of(change[0]).why}" for change in refused]
        raise ConfigError(f"{run} has checkpoints that do not go with\n  " + "\n  ".join(lines) + f"\n{fix}")


def change_text(change: Change) -> str:
    """Format a configuration change as one line of text."""
    key, *values = change
    old, new = (json.dumps(value, ensure_ascii=False) for value in values)
    return f"{key}: {old} → {new}"


def absolute_paths(config: Config) -> Config:
    """Return the configuration with its paths made absolute."""
    return _with_paths(config, str)


def paths_from_here(config: Config) -> Config:
    """Return the configuration with paths relative to the working folder; a path outside of this folder is cut to its last name."""
    here = Path.cwd()
    return _with_paths(config, lambda path: str(path.relative_to(here)) if path.is_relative_to(here) else path.name)


def _with_paths(config: Config, text_of: Callable[[Path], str]) -> Config:
    """Replace data.path, ecss.path and routing.table, if set, by the text that `text_of` returns for the absolute path."""
    data = config.data.model_copy(update={"path": text_of(Path(config.data.path).absolute())})
    ecss = config.ecss.model_copy(update={"path": config.ecss.path and text_of(Path(config.ecss.path).absolute())})
    table = config.routing.file
    routing = config.routing.model_copy(update={"table": text_of(table.absolute())}) if table else config.routing
    return config.model_copy(update={"data": data, "ecss": ecss, "routing": routing})
