"""Configurations as files: YAML in, overrides of single keys, one line for each problem, YAML out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pangu_sigma.config import Config, ConfigError


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.2 where PyYAML differs: `2e-5` is a number without the `.0` too, and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


Override = str | tuple[str, Any]
"""A changed key: "key.path=value", whose value is YAML, or (key.path, value)."""


def load_config(path: str | Path, overrides: Sequence[Override] | None = None) -> Config:
    """The configuration in a YAML file; raises ConfigError for what `read_tree` or the tree refuses."""
    return parse_config(read_tree(path, overrides))


def read_tree(path: str | Path, overrides: Sequence[Override] | None = None) -> dict[str, Any]:
    """Read a YAML file and apply the overrides, the later ones last.

    Raises ConfigError for a missing file, broken YAML, or an override that is not `key=value` or whose key cannot be.
    """
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys, not {type(tree).__name__}")
    return override(tree, overrides or [])


def override(tree: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Apply overrides to a plain tree, which is changed and returned; the later ones last. Raises as `read_tree`."""
    for each in overrides:
        if isinstance(each, str):
            key, value = _key_and_value(each)
            _set(tree, key, value, f"--set {key}")
        else:
            key, value = each
            _set(tree, str(key), os.fspath(value) if isinstance(value, os.PathLike) else value, f"override {key}")
    return tree


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a plain tree; ConfigError lists every problem, one line each."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved tree as YAML, every default filled in; `load_config` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text!r} is not key.path=value, for example --set train.steps=100")
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {value!r} is not a YAML value: {error}") from error


def _set(tree: dict[str, Any], path: str, value: Any, named: str) -> None:
    """Change one key of a tree. named: how messages call the override."""
    *parents, last = path.split(".")
    node: Any = tree
    for key in parents:
        node = _step_into(node, key, named)
    if isinstance(node, list):
        node[_list_index(node, last, named)] = value
    else:
        node[last] = value


def _step_into(node: Any, key: str, named: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, key, named)]
    child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"{named}: {key} holds the value {child!r}, not a section with keys of its own")
    return child


def _list_index(node: list[Any], key: str, named: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(f"{named}: {key!r} is not an index of a list of {len(node)}; use 0 … {len(node) - 1}")
    return int(key)


def _explain(problem: Any) -> str:
    """The line for one pydantic error that tells a user what to do."""
    path = ".".join(str(key) for key in problem["loc"]) or "configuration"
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        allowed = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1, cutoff=0.0)
        return (
            f"{path}: unknown key (value {value!r}); nearest valid key: {near[0]}; allowed here: {', '.join(allowed)}"
        )
    if kind == "missing":
        return f"{path}: required key is missing; allowed here: {', '.join(_keys_at(problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}"
    return f"{path}: {value!r} is not allowed: {message}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """Keys that the section at `location` declares."""
    section: Any = Config
    for key in location:
        if isinstance(key, int):
            continue
        annotation = section.model_fields[key].annotation
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = get_args(annotation)[0]
        section = annotation
    return list(section.model_fields)
