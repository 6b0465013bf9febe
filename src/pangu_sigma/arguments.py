"""Arguments of the Python face: a caller's values as the kinds that the folders take, or one message that names the argument."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import Override
from pangu_sigma.errors import argument, keyword
from pangu_sigma.generate.sampling import Sampling, check_text

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Iterable[AnyPath]
Overrides = Mapping[str, Any] | Sequence[Override]
"""Overrides of a configuration: values by key path, such as {"train.steps": 100}, or texts such as "train.steps=100"."""


def to_path(path: AnyPath, name: str) -> Path:
    """Return a caller's argument as a path. name: of the argument. Raises ConfigError for other types and blank text."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).strip():
        raise ConfigError(f"{argument(name)}={path!r} is not allowed: a path, as text or pathlib.Path, not blank")
    return Path(path)


def to_paths(paths: Paths, name: str) -> list[Path]:
    """Return a caller's argument, one path or several, as a list. name: of the argument. Raises ConfigError for other types."""
    if isinstance(paths, str | bytes | Mapping | os.PathLike) or not isinstance(paths, Iterable):
        return [to_path(paths, name)]  # type: ignore[arg-type]  # which refuses it
    return [to_path(path, name) for path in paths]


def to_overrides(overrides: Overrides) -> list[Override]:
    """Return a caller's overrides of a configuration as a list. Raises ConfigError for other types."""
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        overrides = [overrides]
    changes = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    for each in changes:
        if not isinstance(each, str) and not (isinstance(each, tuple) and len(each) == 2):
            raise ConfigError(f'overrides: {each!r} is not allowed: values by key path, such as {{"train.steps": 100}}')
    return changes


def to_text(text: str, name: str) -> str:
    """Return a caller's argument if it is a text. name: of the argument. Raises ConfigError for other types and bad Unicode."""
    if not isinstance(text, str):
        raise ConfigError(f"{argument(name)}={text!r} is not allowed: a text")
    check_text(text, argument(name))
    return text


def to_texts(texts: str | Iterable[str], name: str) -> list[str]:
    """Return a caller's argument, one text or several, as a list. name: of the argument. Raises ConfigError for other types."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        return [to_text(texts, name)]  # type: ignore[arg-type]  # which refuses it
    return [to_text(text, name) for text in texts]


def to_sampling(options: Mapping[str, Any], seed: int) -> Sampling:
    """Return sampling options given as keywords. Raises ConfigError for an unknown one, and for one or a seed without effect."""
    known = ["prompt", "domain", "max_new_tokens", "seed", "stop", *(field.name for field in fields(Sampling))]
    for name in options:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ConfigError(f"{name}: unknown argument; nearest: {near[0]}; allowed here: {', '.join(known)}")
    sampling = Sampling(**options)
    without_effect = {name: getattr(sampling, name) for name in ("top_k", "top_p", "min_p")} | {"seed": seed}
    for name, value in without_effect.items():
        if sampling.temperature == 0 and value != getattr(Sampling, name, 0):
            raise ConfigError(
                f"{keyword(name)}={value} does nothing at {keyword('temperature')}=0, which takes the likeliest token; raise it"
            )
    return sampling
