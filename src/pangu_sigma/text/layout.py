"""Layout of the records that people bring: which keys hold the text and the domain, as section `data` of a configuration says."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import (
    Document,
    RejectedLine,
    is_visible,
    known_domain,
    text_sides,
    visible_text,
)

_NAMED: dict[str | None, tuple[tuple[str, ...], str | None]] = {
    None: (("text",), "domain"),
    "wudao": (("title", "content"), "dataType"),
    "skypile": (("text",), None),
    "chinese-fineweb-edu": (("text",), None),
}
"""Text keys and domain key of each `data.layout`. Records of WuDaoCorpora 2.0 base (200 GB) are shown at github.com/xubuvd/LLMs,
those of SkyPile-150B at huggingface.co/datasets/Skywork/SkyPile-150B, those of Chinese FineWeb-Edu at
huggingface.co/datasets/opencsg/chinese-fineweb-edu."""

Record = dict[str, Any]
"""JSON object, or a row of a Parquet file."""


@dataclass(frozen=True)
class Layout:
    """Layout of records, by default {"text": …, "domain": …}. It can be sent to another process.

    text_keys, domain_key, domain_map, domain_of, reader: as in section `data`. domain_key: None if records have no label.
    reader_sha256: SHA-256 of the file of `reader`, which decides the result too.
    """

    text_keys: tuple[str, ...] = ("text",)
    domain_key: str | None = "domain"
    domain_map: Mapping[str, str] = field(default_factory=dict)
    domain_of: Mapping[str, str] = field(default_factory=dict)
    reader: str | None = None
    reader_sha256: str | None = None

    @classmethod
    def of(cls, config: Config) -> Layout:
        """Return the layout that a configuration describes.

        Raises ConfigError for a domain that the configuration lacks, and for a `data.reader` that cannot be loaded, or that only
        a record names.
        """
        data = config.data
        text_keys, domain_key = _NAMED[data.layout]
        layout = cls(
            text_keys=text_keys if data.text_keys is None else tuple(data.text_keys),
            domain_key=domain_key if data.domain_key is None else data.domain_key,
            domain_map=data.domain_map,
            domain_of=data.domain_of,
            reader=data.reader,
            reader_sha256=None if data.reader is None else _hash_of_reader(config, data.reader),
        )
        names = [domain.name for domain in domains_of(config)]
        for key, rules in (("domain_map", data.domain_map), ("domain_of", data.domain_of)):
            for label, name in rules.items():
                if name not in names:
                    raise ConfigError(f"data.{key}: {label!r} has the domain {name!r}; write one of {', '.join(names)}")
        layout.function()
        return layout

    def function(self) -> Callable[[Record], Record | None] | None:
        """Return the user's function, loaded once in a process; None without a reader. Raises ConfigError."""
        return None if self.reader is None else _function(self.reader, self.reader_sha256)

    def columns(self, domain: str | None) -> list[str] | None:
        """Return the keys that records need; None if a reader may need any. domain: of the file, or None."""
        if self.reader is not None:
            return None
        keys = [*self.text_keys, *([self.domain_key] if domain is None and self.domain_key else [])]
        return list(dict.fromkeys(keys))

    def domain_of_file(self, path: Path) -> str | None:
        """Return the domain of all records of a file by `domain_of`, or None if their labels say it.

        Raises DataError if rules contradict each other, and if there is neither a rule nor a label.
        """
        rules = {glob: name for glob, name in self.domain_of.items() if matches(path, glob)}
        if len(set(rules.values())) > 1:
            said = ", ".join(f"{glob!r} says {name}" for glob, name in rules.items())
            raise DataError(f"data.domain_of: for {path} {said}; change the rules so that they agree")
        if not rules and self.domain_key is None:
            raise DataError(
                f"{path}: records of this data.layout have no domain; say which one the file has with data.domain_of, such as "
                f"'{{{path.name}: zh}}', or set data.domain_key"
            )
        return next(iter(rules.values()), None)

    def idle_rules(self, files: Sequence[Path]) -> list[str]:
        """Return the globs of `domain_of` that no file matches."""
        return [glob for glob in self.domain_of if not any(matches(path, glob) for path in files)]

    def document(self, record: Record, domain: str | None, domains: Domains, origin: str) -> Document:
        """Return the document of a record. domain: of the file, or None. origin: as in `Document`.

        Raises RejectedLine for a record that cannot be used.
        """
        if (function := self.function()) is not None:
            record = _read(function, record)
        name = self._label(record, domains) if domain is None else domain
        values = [_value(record, key, "text") for key in self.text_keys]
        if len(values) > 1:
            return Document(name, _joined(self.text_keys, values), origin)
        if isinstance(values[0], dict | list) and domains.named(name).format == "bilingual":
            return Document(name, text_sides(values[0]), origin)
        return Document(name, visible_text(values[0], self.text_keys[0]), origin)

    def _label(self, record: Record, domains: Domains) -> str:
        """Return the domain that the label of a record stands for."""
        assert self.domain_key is not None, "domain_of_file refuses files without"
        label = _value(record, self.domain_key, "domain")
        return known_domain(self.domain_map.get(label, label) if isinstance(label, str) else label, domains)


def matches(path: Path, glob: str) -> bool:
    """Return True if a glob is that of the file, or of a folder that it is in."""
    return any(each.match(glob) for each in (path, *path.parents))


def _value(record: Record, key: str, what: str) -> Any:
    """Return the value of a key of a record; a.b is the key b in the object a, unless there is a key "a.b".

    what: "text" or "domain", for the reason. Raises RejectedLine if the key is missing.
    """
    value: Any = record
    for name in [key] if key in record else key.split("."):
        if not isinstance(value, dict) or name not in value:
            found = f"no key {key!r}; the keys are {', '.join(map(repr, record))}; {_way_to_name(record, what)}"
            raise RejectedLine(f"{what} missing or not a string", found)
        value = value[name]
    return value


def _way_to_name(record: Record, what: str) -> str:
    """Return how a configuration says which keys of such a record hold the text or the domain."""
    for layout, (text_keys, domain_key) in _NAMED.items():
        if layout is not None and domain_key and {*text_keys, domain_key} <= record.keys():
            return f"they are of data.layout={layout}"
    if what == "text":
        return "name those with the text in data.text_keys"
    return "say with data.domain_of which domain a file has, or with data.domain_key which key has it"


def _joined(keys: tuple[str, ...], values: list[Any]) -> str:
    """Join the texts of several keys with newlines; null and texts without a visible character are left out."""
    texts = [
        visible_text(value, key)
        for key, value in zip(keys, values, strict=True)
        if value is not None and not (isinstance(value, str) and not is_visible(value))
    ]
    if not texts:
        raise RejectedLine("empty text", f"none of {', '.join(keys)} has a visible character")
    return "\n".join(texts)


def _hash_of_reader(config: Config, reader: str) -> str:
    """Return the SHA-256 of the file FILE.py of a reader. Raises ConfigError if it cannot be read, or only a record names it."""
    file, _, name = reader.rpartition(":")
    if not config.reader_named:
        keep, none = (
            argument(f"--set data.reader={value}", f'overrides={{"data.reader": {text}}}')
            for value, text in ((reader, repr(reader)), ("null", "None"))
        )
        raise ConfigError(
            f"data.reader={reader} is recorded in a run or an export, whose code is not executed unasked; add {keep} if you know "
            f"this function, or {none} to use records as they are"
        )
    if not file.endswith(".py"):
        raise ConfigError(
            f"data.reader={reader}: is not FILE.py:FUNCTION; name the file, such as {file.replace('.', '/')}.py:{name}"
        )
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"data.reader={reader}: {file}: {error.strerror}; relative paths begin in {Path.cwd()}"
        ) from error


@cache
def _function(reader: str, sha256: str | None) -> Callable[[Record], Record | None]:
    """Execute the file of FILE.py:FUNCTION, and return the function. Raises ConfigError, also if the file's hash is another."""
    file, _, name = reader.rpartition(":")
    source = Path(file).read_bytes()
    if hashlib.sha256(source).hexdigest() != sha256:
        raise ConfigError(f"data.reader={reader}: {file} was changed meanwhile; call again")
    module = sys.modules[f"reader_{sha256}"] = ModuleType(f"reader_{sha256}")
    module.__file__ = file
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # no import, which may take a stale .pyc
        function = getattr(module, name)
    except Exception as error:  # the user's code, which may raise anything
        raise ConfigError(f"data.reader={reader}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(f"data.reader={reader}: is not a function; it takes a record and returns one, or None")
    return function


def _read(function: Callable[[Record], Record | None], record: Record) -> Record:
    """Return the record that the user's function makes of a record. Raises RejectedLine for None, and if it fails."""
    try:
        found = function(record)
    except Exception as error:  # the user's code, which may raise anything
        raise RejectedLine("data.reader failed", f"{type(error).__name__}: {error}") from error
    if found is None:
        raise RejectedLine("left out by data.reader", "it returned None")
    if not isinstance(found, dict):
        raise RejectedLine("data.reader failed", f"it returned a {type(found).__name__}, not a dict or None")
    return found
