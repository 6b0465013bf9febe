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
    known_domain,
    text_sides,
    visible_text,
)

_DOMAIN = "domain"
"""Key with the name of a record's domain."""

Record = dict[str, Any]
"""JSON object, or a row of a Parquet file."""


@dataclass(frozen=True)
class Layout:
    """Layout of records, by default {"text": …, "domain": …}. It can be sent to another process.

    text_key, domain_of: as in section `data`. reader: FILE.py:FUNCTION of the user's, called with each record, whose result is used
    in its place. reader_sha256: SHA-256 of the file of `reader`, which decides the result too.
    """

    text_key: str = "text"
    domain_of: Mapping[str, str] = field(default_factory=dict)
    reader: str | None = None
    reader_sha256: str | None = None

    @classmethod
    def of(cls, config: Config, reader: str | None = None) -> Layout:
        """Return the layout that a configuration describes. reader: as in the class; code is named by a call, never by a file.

        Raises ConfigError for a domain that the configuration lacks, and for a reader that cannot be loaded.
        """
        data, reader_sha256 = config.data, None if reader is None else _hash_of_reader(reader)
        layout = cls(data.text_key, data.domain_of, reader, reader_sha256)
        names = [domain.name for domain in domains_of(config)]
        for glob, name in data.domain_of.items():
            if name not in names:
                raise ConfigError(f"data.domain_of: {glob!r} has the domain {name!r}; write one of {', '.join(names)}")
        layout.function()
        return layout

    def function(self) -> Callable[[Record], Record | None] | None:
        """Return the user's function, loaded once in a process; None without a reader. Raises ConfigError."""
        return None if self.reader is None else _load_function(self.reader, self.reader_sha256)

    def columns(self, domain: str | None) -> list[str] | None:
        """Return the keys that records need; None if a reader may need any. domain: of the file, or None."""
        if self.reader is not None:
            return None
        return [self.text_key, *([_DOMAIN] if domain is None else [])]

    def domain_of_file(self, path: Path) -> str | None:
        """Return the domain that `domain_of` has for all records of a file, or None if records name it themselves. Raises
        DataError if rules contradict each other."""
        rules = {glob: name for glob, name in self.domain_of.items() if matches(path, glob)}
        if len(set(rules.values())) > 1:
            statements = ", ".join(f"{glob!r} says {name}" for glob, name in rules.items())
            raise DataError(f"data.domain_of: for {path} {statements}; change the rules so that they agree")
        return next(iter(rules.values()), None)

    def idle_rules(self, files: Sequence[Path]) -> list[str]:
        """Return the globs of `domain_of` that no file matches."""
        return [glob for glob in self.domain_of if not any(matches(path, glob) for path in files)]

    def document(self, record: Record, domain: str | None, domains: Domains) -> Document:
        """Return the document of a record. domain: domain of the file; None if the record names it. Raises RejectedLine for a
        record that cannot be used."""
        if (function := self.function()) is not None:
            record = _apply_reader(function, record)
        name = known_domain(_value(record, _DOMAIN, domains), domains) if domain is None else domain
        value = _value(record, self.text_key, domains)
        if isinstance(value, dict | list) and domains.named(name).format == "bilingual":
            return Document(name, text_sides(value))
        return Document(name, visible_text(value, self.text_key))


def matches(path: Path, glob: str) -> bool:
    """Return True if a glob matches a file, or a folder that it is in."""
    return any(folder.match(glob) for folder in (path, *path.parents))


def _value(record: Record, key: str, domains: Domains) -> Any:
    """Return the value of a key of a record; a.b is the key b in the object a, unless there is a key "a.b". Raises RejectedLine if
    the key is missing."""
    value: Any = record
    for name in [key] if key in record else key.split("."):
        if not isinstance(value, dict) or name not in value:
            role = "domain" if key == _DOMAIN else "text"
            fix, keys = _naming_advice(role, record, domains), ", ".join(map(repr, record))
            problem = f"no key {key!r}; add {fix} or {argument('--reader', 'a reader')}; the keys are {keys}"
            raise RejectedLine(f"{role} missing or not a string", problem)
        value = value[name]
    return value


def _naming_advice(role: str, record: Record, domains: Domains) -> str:
    """Return the argument with which a user names the key of the text, or the domain, of such a record. role: "text" or
    "domain"."""
    if role == "text":  # most likely in the longest value
        sizes = {key: len(value) for key, value in record.items() if isinstance(value, str) and key != _DOMAIN}
        key = max(sizes, key=sizes.__getitem__, default="KEY")
        return argument(f"--set data.text_key={key}", f'overrides={{"data.text_key": {key!r}}}')
    name = domains[0].name
    return argument(f"--set 'data.domain_of={{\"*\": {name}}}'", f'overrides={{"data.domain_of": {{"*": {name!r}}}}}')


def _hash_of_reader(reader: str) -> str:
    """Return the SHA-256 of the file FILE.py of a reader. Raises ConfigError if it cannot be read."""
    file, _, name = reader.rpartition(":")
    if not file.endswith(".py"):
        example = f"{file.replace('.', '/')}.py:{name}" if file else "my_corpora.py:read"
        raise _refused(reader, f"is not FILE.py:FUNCTION; name file and function, such as {example}")
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise _refused(reader, f"{file}: {why}; relative paths begin in {Path.cwd()}") from error


def _refused(reader: str, why: str) -> ConfigError:
    return ConfigError(f"{argument('--reader')}={reader}: {why}")


@cache
def _load_function(reader: str, sha256: str | None) -> Callable[[Record], Record | None]:
    """Execute the file of FILE.py:FUNCTION, and return the function. sha256: hash that the file must have, so that a cached
    function is never of an older version. Raises ConfigError."""
    file, _, name = reader.rpartition(":")
    source = Path(file).read_bytes()
    if hashlib.sha256(source).hexdigest() != sha256:
        raise _refused(reader, f"{file} was changed meanwhile; call again")
    module = sys.modules[f"reader_{sha256}"] = ModuleType(f"reader_{sha256}")
    module.__file__ = file
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # no import, which may take a stale .pyc
        function = getattr(module, name)
    except Exception as error:  # the user's code, which may raise anything
        raise _refused(reader, f"cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise _refused(reader, "is not a function; it takes a record and returns one, or None")
    return function


def _apply_reader(function: Callable[[Record], Record | None], record: Record) -> Record:
    """Return `function(record)`, a record. Raises RejectedLine if the user's function returns None or fails."""
    try:
        result = function(record)
    except Exception as error:  # the user's code, which may raise anything
        raise RejectedLine("reader failed", f"{type(error).__name__}: {error}") from error
    if result is None:
        raise RejectedLine("left out by the reader", "it returned None")
    if not isinstance(result, dict):
        raise RejectedLine("reader failed", f"it returned a {type(result).__name__}, not a dict or None")
    return result
