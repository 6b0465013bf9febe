"""Arguments of the Python face: their types, the check of a call by its signature, and what a configuration's argument names."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from pangu_sigma import config_file
from pangu_sigma.checkpoint.model_files import CONFIG_FILE
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, config_path
from pangu_sigma.errors import UserError, argument, keyword
from pangu_sigma.text.documents import HALF_PAIR

_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_path(value: Any) -> Path:
    """Return a path. Raises ValueError for other types and blank text."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value).strip():
        raise ValueError("a path, as text or pathlib.Path, not blank")
    return Path(value)


def _text(value: Any) -> str:
    """Return a text. Raises ValueError for other types, and for half a surrogate pair, as which Python reads bytes of no UTF-8."""
    if not isinstance(value, str):
        raise ValueError("a text")
    if half := HALF_PAIR.search(value):
        place = f"character {half.start()}, {half[0]!r}"
        raise ValueError(f"it is not Unicode text: {place}, is half a pair or no UTF-8; give UTF-8")
    return value


def several(value: Any, convert: Callable[[Any], _R]) -> list[_R]:
    """Return one value or several as a list of converted values."""
    is_single = isinstance(value, str | bytes | Mapping | os.PathLike) or not isinstance(value, Iterable)
    return [convert(item) for item in ([value] if is_single else value)]


def paths(value: Paths) -> list[Path]:
    """Return one path or several as a list. Raises ValueError for other types and blank text."""
    return several(value, one_path)


def texts(value: Texts) -> list[str]:
    """Return one text or several as a list. Raises ValueError for other types and for bad Unicode."""
    return several(value, _text)


def overrides_of(value: Overrides) -> list[Override]:
    """Return the overrides of a configuration as a list. Raises ValueError for other types."""

    def one_override(item: Any) -> Override:
        if isinstance(item, str) or (isinstance(item, tuple) and len(item) == 2):
            return item
        raise ValueError('values by key path, such as {"train.steps": 100}')

    return several(value.items() if isinstance(value, Mapping) else value, one_override)


AnyPath = Annotated[str | os.PathLike[str], PlainValidator(one_path)]
Paths = Annotated[str | os.PathLike[str] | Iterable[str | os.PathLike[str]], PlainValidator(paths)]
Text = Annotated[str, PlainValidator(_text)]
Texts = Annotated[str | Iterable[str], PlainValidator(texts)]
_Config = PlainValidator(lambda value: value if isinstance(value, Config) else one_path(value))
AnyConfig = Annotated[Config | str | os.PathLike[str], _Config]
"""A configuration, or what `load_config` takes."""
Overrides = Annotated[Mapping[str, Any] | Iterable[Override], PlainValidator(overrides_of)]
"""Overrides of a configuration: values by key path, such as {"train.steps": 100}, or texts such as "train.steps=100"."""
AtLeastOne = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=365 * 86_400)]


def types_of(function: Callable[..., Any], names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return {parameter: type} of a function, with the metadata of `Annotated`, without the result, whose type may need MindSpore.
    names: {name: type} that replaces types which the function's module has under these names."""
    hints = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    annotated = type("", (), {"__annotations__": hints})  # get_type_hints takes an object that has annotations
    return get_type_hints(annotated, function.__globals__, names, include_extras=True)


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that it raises UserError, which names the argument, for a value that its annotation does not allow,
    and for unknown and missing arguments. Validators in the annotations convert, too, such as one text of `Texts` to a list."""
    signature = inspect.signature(function)

    @cache  # annotations are resolved at the first call
    def types() -> dict[str, TypeAdapter[Any]]:
        strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
        return {name: TypeAdapter(hint, config=strict) for name, hint in types_of(function).items()}

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Check and convert the arguments of a call by `types`, and call the function."""
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            names = ", ".join(signature.parameters).removeprefix("self, ")
            raise UserError(f"{function.__name__}: {error}; allowed here: {names}") from None
        for name in [name for name in types() if name in bound.arguments]:
            value = bound.arguments[name]
            try:
                plain = value.item() if isinstance(value, np.generic) else value
                bound.arguments[name] = types()[name].validate_python(plain)
            except ValidationError as error:
                rule = config_file.in_words(error.errors(include_url=False)[-1])  # of a union's types, the last
                is_option = signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
                option = keyword(name) if is_option else name
                raise UserError(f"{option}={config_file.short(value)} is not allowed: {rule}") from None
        return function(*bound.args, **bound.kwargs)

    return call


@checked
def load_config(config: AnyConfig, overrides: Overrides = ()) -> Config:
    """Load a configuration.

    Args:
        config: name of a shipped configuration, such as "sigma_tiny"; a YAML file; a run folder or its configuration.json; or a
            loaded configuration, to change it.
        overrides: values by key path, such as {"train.steps": 100, "domains.0.weight": 2.0}; a section replaces the section.
    """
    changes = overrides_of(overrides)
    if isinstance(config, Config):
        return config_file.changed(config, changes)
    path = Path(config).parent if Path(config).name == CONFIG_FILE else Path(config)
    if path.is_dir():
        return run_config(path, changes)
    if not (file := config_path(path)).exists():
        raise ConfigError(f"{path} is not there: neither a model nor a configuration; check the path")
    return config_file.load_config(file, changes)


def resolve_run(config: AnyConfig, output: AnyPath | None, overrides: Overrides = ()) -> tuple[Config, Path]:
    """Return the configuration and the run folder of a command that starts or resumes a run. A folder is a run folder; any other
    argument is a configuration, and the run folder is `output`, by default runs/NAME."""
    resolved = load_config(config, overrides)
    if isinstance(config, Config) or not Path(config).is_dir():
        return resolved, Path(output or f"runs/{resolved.name}")
    if output is not None:
        raise ConfigError(f"{config} is a run, which goes on where it is: leave {argument('--output')} {output} out")
    return resolved, Path(config)
