"""Reader and writer of configurations in YAML: shipped ones by name, files, overrides of keys, one error line per problem."""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
import yaml
from pydantic import BaseModel, ValidationError

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import argument

MOST_BYTES = 256 << 10
"""Maximum bytes of a configuration file; 1,024 domains take half of them. PyYAML reads that many in a second or two."""
_SHOWN_PROBLEMS = 20
"""Maximum number of problems that a message lists; a file of another kind has thousands."""
_ENDINGS = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """Loader of YAML that refuses a key twice. `2e-5` is a number; `1:30`, 90 in YAML 1.1, `010`, 8, and `910_93` are texts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dictionary of a node. Raises ConstructorError for a key that is written twice, which PyYAML would allow."""
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"key {key.value!r} is written twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_INTEGERS = re.compile("[-+]?(0|[1-9][0-9]{0,2}(_[0-9]{3})+|[1-9][0-9]*)$")
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, _INTEGERS, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Dumper of YAML that quotes every text that `_Loader`, or another reader of YAML 1.1, would take for another value."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))

_Section = TypeVar("_Section", bound=BaseModel)
Override = str | tuple[str, Any]
"""Override of one configuration key: "key.path=value", whose value is YAML, or (key.path, value)."""


def shipped_configs(kind: str = "") -> dict[str, Path]:
    """Return the files of the shipped configurations, by the name that `config_path` takes. kind: "finetune" for tasks."""
    folder = Path(str(files("pangu_sigma") / "model_configs"))  # a link in a checkout, a folder of files in a wheel
    return {file.stem: file for file in sorted((folder / kind).glob("*.yaml"))}


def config_path(name_or_path: str | os.PathLike[str], kind: str = "") -> Path:
    """Return the file of a shipped configuration by its name, or a path unchanged; an existing file wins over a shipped name. kind:
    as in `shipped_configs`. Raises ConfigError, which lists the names, for a bare name that is neither shipped nor a file."""
    path = Path(name_or_path)
    if path.suffix in _ENDINGS or path.name != str(path) or path.is_file():
        return path
    if (shipped := shipped_configs(kind)).get(path.name) is None:
        names = f"shipped: {', '.join(shipped)}; the name of a file ends in {' or '.join(_ENDINGS)}"
        raise ConfigError(f"{'task' if kind else 'configuration'} {path.name!r} is neither shipped nor a file; {names}")
    return shipped[path.name]


def load_config(path: str | Path, overrides: Sequence[Override] = ()) -> Config:
    """Load a YAML file as a validated configuration. Raises ConfigError for a file that cannot be read, and for invalid keys."""
    return parse_config(read_tree(path, overrides))


def read_tree(path: str | Path, overrides: Sequence[Override] = ()) -> dict[str, Any]:
    """Read a configuration's YAML file as a plain tree, and apply the overrides in order. Raises ConfigError."""
    file, subject = Path(path), f"configuration {path}"
    try:
        if file.exists() and (not file.is_file() or file.stat().st_size > MOST_BYTES):  # reading a pipe may never end
            raise ConfigError(f"{subject} is not a file of at most {MOST_BYTES:,} bytes; pass a YAML file")
        encoded = file.read_bytes()
        tree = _parse_yaml(encoded.decode(), f"{subject} is not valid YAML")
    except OSError as error:
        raise ConfigError(f"cannot read {subject}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        line = 1 + encoded.count(b"\n", 0, error.start)
        raise ConfigError(f"{subject} is not valid YAML: line {line} is not UTF-8; save the file as UTF-8") from error
    if not isinstance(tree, dict):
        content = "empty" if tree is None else short(tree)
        raise ConfigError(f"{subject} is {content}; it must be a mapping of keys, such as `name: mine`")
    return override(tree, overrides)


def override(tree: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Apply overrides to a configuration's plain tree, in order; the tree is changed and returned. Raises ConfigError."""
    option = argument("--set", "override")
    for change in overrides:
        key = key_of(change)
        subject = f"{option if isinstance(change, str) else 'override'} {key}"
        if not isinstance(change, str):
            value = _plain(change[1])
        elif not key or "=" not in change:
            example = f"{short(key or 'KEY')[1:-1]}=10"  # without the quotes of the text
            raise ConfigError(f"{option} {short(change)} is not KEY=VALUE, such as {example}")
        else:
            text = change.partition("=")[2]
            value = _parse_yaml(text, f"{subject}: {short(text)} is not a YAML value")
        _set(tree, key, value, subject)
    return tree


def key_of(change: Override) -> str:
    """Return the key path of an override."""
    return change.partition("=")[0] if isinstance(change, str) else str(change[0])


def as_text(change: Override) -> str:
    """Return an override as the text KEY=VALUE."""
    if isinstance(change, str):
        return change
    return f"{change[0]}={json.dumps(change[1], ensure_ascii=False, default=_plain)}"


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, and a path as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a plain tree as a configuration. Raises ConfigError, which lists one problem per line."""
    return validated(Config, tree)


def validated(section: type[_Section], tree: dict[str, Any]) -> _Section:
    """Validate a plain tree as a section. Raises ConfigError, which lists one problem per line."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_explain(problem, section) for problem in problems[:_SHOWN_PROBLEMS]]
        lines += [f"… and {len(problems) - len(lines)} more problems"] * (len(problems) > len(lines))
        raise ConfigError("\n".join(lines)) from None


def changed(config: Config, overrides: Sequence[Override]) -> Config:
    """Return a configuration with overrides applied. Raises ConfigError."""
    return parse_config(override(config.model_dump(), overrides)) if overrides else config


def dump_config(config: Config) -> str:
    """Return a configuration as YAML, with every default filled in; `load_config` reads it back to an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


_ADVICE = "write KEY: VALUE, indent keys of a section alike, with blanks, "
_ADVICE += "quote a text with : * & or [, and save as UTF-8"
"""Advice against most errors of YAML."""


def _parse_yaml(content: str, subject: str) -> Any:
    """Parse a YAML document. subject: beginning of the message of ConfigError."""
    try:
        return yaml.load(content, _Loader)
    except Exception as error:  # PyYAML raises errors of many types, all of them about the text
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
            within = f" ({error.context} of line {error.context_mark.line + 1})" if error.context_mark else ""
            reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{within}"
        raise ConfigError(f"{subject}: {reason}; {_ADVICE}") from error


def short(value: Any) -> str:
    """Format a value for a message: at most some four hundred characters, however large it is."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxlong = limits.maxother = 200
    limits.maxlevel = limits.maxdict = limits.maxlist = 4
    text = limits.repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _set(tree: dict[str, Any], path: str, value: Any, subject: str) -> None:
    """Set the value at a key path, such as domains.0.weight, in a tree. subject: beginning of messages. Raises ConfigError."""
    *parents, last_key = path.split(".")
    node: Any = tree
    for key in parents:
        node = node[_list_index(node, key, subject)] if isinstance(node, list) else node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{subject}: {key} holds the value {short(node)}, not a section with keys of its own")
    node[_list_index(node, last_key, subject) if isinstance(node, list) else last_key] = value


def _list_index(node: list[Any], key: str, subject: str) -> int:
    """Return `key`, one step of a key path, as an index of a list. Raises ConfigError if the list has no such index."""
    if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(node)):
        raise ConfigError(f"{subject}: {short(key)} is not an index of a list of {len(node)}; use 0 … {len(node) - 1}")
    return int(key)


_WORDS = {
    "(Input|List|String|Dictionary) should": "it must",
    "a valid number.*": "a number",
    "a valid integer.*": "a whole number",
    "a valid boolean.*": "true or false",
    "a valid string": "a text; put it into quotes",
    "a valid dictionary.*": "a section of keys",
    "a valid ": "a ",
    " after validation|^Value error, ": "",
}
"""Patterns of pydantic's words, and ours."""


def _explain(problem: Any, section: type[BaseModel]) -> str:
    """Return a line that tells a user what to do about a pydantic error. section: class that was validated."""
    path = ".".join(str(key)[:100] for key in problem["loc"]) or "configuration"
    kind, value = problem["type"], problem["input"]
    if kind in ("extra_forbidden", "missing"):
        # keys beside the faulty one; in `_paths` every index of a list is 0
        parent = "".join(f"{0 if isinstance(key, int) else key}." for key in problem["loc"][:-1])
        keys = [key.removeprefix(parent) for key in _paths(section) if key.startswith(parent)]
        allowed = [key for key in keys if "." not in key]
        hint = "required key is missing; "
        if kind == "extra_forbidden":
            near = _nearest(str(problem["loc"][-1])[:100].lower(), allowed, section)
            hint = f"unknown key (value {short(value)}); " + (f"nearest valid key: {near}; " if near else "")
        return f"{path}: {hint}allowed here: {', '.join(allowed)}"
    if kind == "value_error":
        return f"{path}: {in_words(problem)}"
    if value is None and ":" in path:
        return f"{path}: has no value; write KEY: VALUE, with a blank after the colon"
    return f"{path}: {short(value)} is not allowed: {in_words(problem)}"


def in_words(problem: Any) -> str:
    """Return what a pydantic error says that a value must be, in our words."""
    message: str = problem["msg"]
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message)
    return message


def _nearest(name: str, allowed: list[str], section: type[BaseModel]) -> str:
    """Return the key that a user may mean by `name`: an allowed key that is very similar, else the paths of keys called `name` in
    other places of the section, else an allowed key that is less similar, else "". allowed: keys that could stand there."""
    similar, less_similar = (difflib.get_close_matches(name, allowed, n=1, cutoff=cutoff) for cutoff in (0.8, 0.6))
    return " or ".join(similar or [path for path in _paths(section) if path.endswith(f".{name}")] or less_similar)


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the path of every key of a section and of the sections in it; "0" stands for any index. prefix: begins all paths."""
    for key, field in section.model_fields.items():
        yield f"{prefix}{key}"
        inner = field.annotation
        while arguments := get_args(inner):  # as in list[DomainConfig], and in FinetuneConfig | None
            inner = arguments[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _paths(inner, f"{prefix}{key}.{'0.' * (get_origin(field.annotation) is list)}")
