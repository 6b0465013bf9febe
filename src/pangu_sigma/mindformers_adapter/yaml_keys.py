"""Conversion of a YAML in MindFormers' style to the project's configuration.

Each section of such a YAML belongs to one object of MindFormers; the tables below map its keys to keys of the project. Every key of
a section that belongs to this project must be in a table; MindFormers checks its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import override, parse_config
from pangu_sigma.sections import ModelConfig

SECTIONS = ("domains", "vocabulary", "routing", "ecss")
"""Sections of the project's configuration that are keys of `model.model_config`, besides the keys of `ModelConfig`."""

KEYS = {
    "trainer.model_name": "name",
    "seed": "seed",
    "runner_config.batch_size": "train.batch_size",
    **{f"model.model_config.{key}": f"model.{key}" for key in ModelConfig.model_fields},
    **{f"model.model_config.{section}": section for section in SECTIONS},
    "model.model_config.compute_dtype": "train.compute_dtype",
    "train_dataset.data_loader.dataset_dir": "data.path",
    **{f"train_dataset.data_loader.{key}": f"data.{key}" for key in ("domains_per_step", "domain_sets", "shuffle")},
    "train_dataset.data_loader.steps": "train.steps",
    "optimizer.betas.0": "train.optimizer.beta1",
    "optimizer.betas.1": "train.optimizer.beta2",
    "optimizer.eps": "train.optimizer.eps_dense",
    **{f"optimizer.{key}": f"train.optimizer.{key}" for key in ("eps_experts", "weight_decay")},
    "lr_schedule.learning_rate": "train.optimizer.peak_lr",
    "lr_schedule.lr_end": "train.optimizer.end_lr",
    "lr_schedule.warmup_steps": "train.optimizer.warmup_steps",
    "lr_schedule.total_steps": "train.optimizer.decay_steps",
    "runner_wrapper.accumulation": "train.accumulation",
    "runner_wrapper.max_grad_norm": "train.optimizer.clip_norm",
    "runner_wrapper.scale_sense.loss_scale_value": "train.loss_scale.initial",
    "runner_wrapper.scale_sense.scale_window": "train.loss_scale.window",
    "callbacks.PanGuSigmaCheckpoint.save_checkpoint_steps": "train.checkpoint_interval",
    "callbacks.PanGuSigmaCheckpoint.keep_checkpoint_max": "train.keep_checkpoints",
}
"""MindFormers' key → the project's key. `pangu_sigma.config` says meanings and limits; total_steps includes the warm-up."""

FIXED = {
    "trainer.type": "PanGuSigmaTrainer",
    "model.model_config.type": "PanGuSigmaConfig",
    "model.arch.type": "PanGuSigmaForCausalLM",
    "train_dataset_task.type": "PanGuSigmaDataset",
    "optimizer.type": "PanGuSigmaAdam",
    "lr_schedule.type": "CosineWithWarmUpLR",
    "runner_wrapper.type": "PanGuSigmaTrainOneStepCell",
    "runner_wrapper.scale_sense.type": "DynamicLossScaleUpdateCell",
    "runner_wrapper.scale_sense.scale_factor": 2,
    "runner_config.epochs": 1,
    "runner_config.sink_mode": False,
    "runner_config.gradient_accumulation_steps": 1,
    "use_parallel": False,
}
"""YAML keys with one allowed value. Data sinking is off because the host works between steps; there is one epoch because samples
are drawn by step; accumulation is the step's own (runner_wrapper.accumulation); the adapter trains on one device."""

_RESUMES = "a training goes on from the newest checkpoint in output_dir, if it has one"
EMPTY = {
    **dict.fromkeys(("load_checkpoint", "resume_training", "model.model_config.checkpoint_name_or_path"), _RESUMES),
    "model.model_config.rows": "MindFormers' trainer, whose dataset has no host beside it, has no place for rows",
    "do_eval": "`pangu-sigma evaluate` measures the held-out loss of output_dir",
}
"""YAML keys that must be empty, and the reason. MindFormers itself writes some of these keys."""

CHECKED_SECTIONS = (
    "model.model_config",
    "model.arch",
    "train_dataset.data_loader",
    "optimizer",
    "lr_schedule",
    "runner_wrapper",
    "callbacks.PanGuSigmaCheckpoint",
)
"""Sections of the YAML whose keys must all be in a table."""

ADDED_BY_MINDFORMERS = "model.model_config.disable_lazy_inline"
"""Key that MindFormers adds to `CHECKED_SECTIONS`."""

_YAML_KEY_OF = {project_key: path for path, project_key in KEYS.items()} | {"model": "model.model_config"}
_PROJECT_KEY = re.compile(
    rf"(?<![\w.])({'|'.join(key for key in sorted(_YAML_KEY_OF, reverse=True) if '.' in key)})(?!\w)"  # anywhere
    rf"|(?<![\w.])({'|'.join(SECTIONS)})(?=\.\w)|^({'|'.join(key for key in _YAML_KEY_OF if '.' not in key)})(?=[:.])"
)
"""Pattern of the project's keys in a message. A key without dots is also a word, so it matches only before a dot or at the start of
a line."""


def sigma_config(yaml: dict[str, Any]) -> Config:
    """Convert a YAML in MindFormers' style to the project's configuration.

    yaml: tree of the file, or of the file with the keys that MindFormers adds. Raises ConfigError, which names the YAML's key, for
    an unknown or missing key, a value that is invalid, or unlike the only allowed one (in FIXED), a key that must be empty (in
    EMPTY), the callback CheckpointMonitor of MindFormers, and the file store for experts.
    """
    values = dict(_leaves(_callbacks_by_type(yaml), ""))
    for path, value in FIXED.items():
        if values.get(path) != value or type(values.get(path)) is not type(value):
            raise ConfigError(f"{path}: {values.get(path)!r} is not allowed: it must be {value!r} for PanGu-Σ")
    for path, value in values.items():
        if value and path in EMPTY:
            raise ConfigError(f"{path}: {value!r} is not allowed: {EMPTY[path]}")
        _check_known(path)
    for path in KEYS:
        if path.startswith("lr_schedule.") and path not in values:
            raise ConfigError(f"{path}: required key is missing; MindFormers' default is not the project's")
    tree = override({}, [(project_key, values[path]) for path, project_key in KEYS.items() if path in values])
    try:
        config = parse_config(_with_decay_steps(tree))
    except ConfigError as error:
        raise ConfigError("\n".join(map(_with_yaml_keys, str(error).splitlines()))) from None
    if config.ecss.store == "file":
        raise ConfigError("model.model_config.ecss.store: 'file' is not allowed: under MindFormers it must be host")
    return config


def _callbacks_by_type(yaml: dict[str, Any]) -> dict[str, Any]:
    """Return the YAML with its list of callbacks as a section, keyed by type."""
    callback_list = yaml.get("callbacks")
    if not isinstance(callback_list, list) or not all(isinstance(callback, dict) for callback in callback_list):
        raise ConfigError(f"callbacks: {callback_list!r} is not allowed: it must be a list of sections with a type")
    callbacks = {str(callback.get("type")): callback for callback in callback_list}
    if "CheckpointMonitor" in callbacks:
        raise ConfigError(
            "callbacks: CheckpointMonitor is not allowed: its files hold neither the position in the data nor what the ids mean; "
            "use PanGuSigmaCheckpoint, which has the same save_checkpoint_steps and keep_checkpoint_max"
        )
    return {**yaml, "callbacks": callbacks}


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of each key of KEYS or FIXED, with everything below it, and of each other scalar. An item of a list has
    its index as key."""
    if path in KEYS or path in FIXED:
        yield path, _plain(node)
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _plain(node: Any) -> Any:
    """Return a copy in plain dicts and lists: MindFormers' own kind of dict returns a value for every attribute, which misleads."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(item) for item in node] if isinstance(node, list) else node


def _check_known(path: str) -> None:
    """Raise ConfigError for a key of CHECKED_SECTIONS that is in no table."""
    section = next((section for section in CHECKED_SECTIONS if path.startswith(f"{section}.")), None)
    if section is None or path in (*KEYS, *FIXED, *EMPTY, ADDED_BY_MINDFORMERS, "callbacks.PanGuSigmaCheckpoint.type"):
        return
    allowed = [key for key in (*FIXED, *KEYS) if key.startswith(f"{section}.")]
    nearest = difflib.get_close_matches(path, allowed, n=1, cutoff=0.0)
    names = ", ".join(key.removeprefix(f"{section}.") for key in allowed)
    raise ConfigError(f"{path}: unknown key; nearest valid key: {nearest[0]}; allowed in {section}: {names}")


def _with_decay_steps(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace total_steps, at which the decay ends (-1: at the last step), by decay_steps, which count from the warm-up's end."""
    train = tree["train"]
    total, warmup = train["optimizer"]["decay_steps"], train["optimizer"]["warmup_steps"]
    if total == -1:
        total = train.get("steps")
    if not isinstance(total, int) or not isinstance(warmup, int) or total <= warmup:
        raise ConfigError(
            f"lr_schedule.total_steps: {total!r} must be more than lr_schedule.warmup_steps={warmup!r}; "
            "-1 stands for train_dataset.data_loader.steps"
        )
    train["optimizer"]["decay_steps"] = total - warmup
    return tree


def _with_yaml_keys(line: str) -> str:
    """Replace the project's keys by the YAML's keys in a line of a ConfigError."""
    return _PROJECT_KEY.sub(lambda match: _YAML_KEY_OF[match[0]], line)
