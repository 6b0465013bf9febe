"""Layout of the records that people bring: which keys hold the text and the domain, as section `data` of a configuration says; and
the checks of a record."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import isfunction
from pathlib import Path
from reprlib import repr as _shown  # of a nested value the beginning
from types import ModuleType
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import SIDES, Document, RejectedLine, Segments

_ARRAY_ADVICE = "`jq -c '.[]' FILE > lines.jsonl` makes lines of an array"
_DOMAIN = "domain"
"""Key with the name of a record's domain."""
LEFT_OUT = "left out by the reader"
"""Reason of records for which the user's function returns None."""

Record = dict[str, Any]
"""JSON object, or a row of a Parquet file."""


@dataclass(frozen=True)
class Layout:
    """Layout of records, by default {"text": …, "domain": …}. It can be sent to another process.

    text_key, domain_of: as in section `data`. reader: FILE.py:FUNCTION of the user's, called with each record, whose result is used
    in its place. source: content of FILE.py.
    """

    text_key: str = "text"
    domain_of: Mapping[str, str] = field(default_factory=dict)
    reader: str | None = None
    source: bytes = b""

    @classmethod
    def of(cls, config: Config, reader: str | None = None) -> Layout:
        """Return the layout that a configuration describes. reader: FILE.py:FUNCTION; no key, so that no configuration runs code.

        Raises ConfigError for a domain that the configuration lacks, and for a reader that cannot be loaded.
        """
        data = config.data
        layout = cls(data.text_key, data.domain_of, reader, b"" if reader is None else _source_of(reader))
        names = [domain.name for domain in domains_of(config)]
        for glob, name in data.domain_of.items():
            if name not in names:
                raise ConfigError(f"data.domain_of: {glob!r} has the domain {name!r}; write one of {', '.join(names)}")
        layout.function()
        return layout

    def function(self) -> Callable[[Record], Record | None] | None:
        """Return the user's function, loaded once in a process; None without a reader. Raises ConfigError."""
        return None if self.reader is None else _load_function(self.reader, self.source)

    @property
    def source_hash(self) -> str | None:
        """SHA-256 of the file of the reader, which decides the documents too; None without a reader."""
        return None if self.reader is None else hashlib.sha256(self.source).hexdigest()

    def columns(self, domain: str | None) -> list[str] | None:
        """Return the keys that records need; None if a reader may need any. domain: of the file, or None."""
        if self.reader is not None:
            return None
        return [self.text_key, *([_DOMAIN] if domain is None else [])]

    def domain_of_file(self, path: Path) -> str | None:
        """Return the domain that the rules of `domain_of` (glob → domain) state for all records of a file, or None if no rule
        matches and records name their domains. Raises DataError if rules contradict each other."""
        rules = {glob: name for glob, name in self.domain_of.items() if _matches(path, glob)}
        if len(set(rules.values())) > 1:
            statements = ", ".join(f"{glob!r} says {name}" for glob, name in rules.items())
            raise DataError(f"data.domain_of: for {path} {statements}; change the rules so that they agree")
        return next(iter(rules.values()), None)

    def idle_rules(self, files: Sequence[Path]) -> list[str]:
        """Return the globs of `domain_of` that no file matches."""
        return [glob for glob in self.domain_of if not any(_matches(path, glob) for path in files)]

    def document(self, row: bytes | Record, domain: str | None, domains: Domains) -> Document:
        """Return the document of a row. row: record, or its JSON. domain: domain of the file; None if the record names its domain.
        Raises RejectedLine for a row that cannot be used."""
        record = json_object(row) if isinstance(row, bytes) else row
        if (function := self.function()) is not None:
            record = _apply_reader(function, record)
        name = known_domain(_value(record, _DOMAIN, domains), domains) if domain is None else domain
        value = _value(record, self.text_key, domains)
        if isinstance(value, dict | list) and domains.named(name).format == "bilingual":
            return Document(name, text_sides(value))
        return Document(name, visible_text(value, self.text_key))


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line with a JSON object. Raises RejectedLine for any other line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        fix = "convert it with `iconv -f … -t UTF-8`, or name a compressed file *.jsonl.gz"
        raise RejectedLine("not UTF-8", f"byte {error.start} of the line: {error.reason}; {fix}") from None
    except (ValueError, RecursionError) as error:
        fix = _ARRAY_ADVICE if line.lstrip().startswith(b"[") else "a line holds a whole object, as `jq -c .` writes it"
        raise RejectedLine("not JSON", f"{error}; {fix}") from None
    if not isinstance(value, dict):
        fix = f"; {_ARRAY_ADVICE}" if isinstance(value, list) else ""
        raise RejectedLine("not a JSON object", f"the line holds {_shown(value)}{fix}")
    return value


def known_domain(name: Any, domains: Domains) -> str:
    """Return `name` if it is a domain of the configuration. Raises RejectedLine if not."""
    if not isinstance(name, str):
        raise RejectedLine("domain missing or not a string", f"domain is {_shown(name)}")
    if name not in (domain.name for domain in domains):
        names = ", ".join(domain.name for domain in domains)
        fix = "data.domain_of says the domain of a file, a reader that of a record"
        raise RejectedLine("unknown domain", f"domain {name!r}; text is prepared for {names}; {fix}")
    return name


def text_sides(value: dict[str, Any] | list[Any]) -> Segments:
    """Return the sides of a bilingual document as (language, text) pairs. value: an object {"zh": …, "en": …}, or a list of such
    objects. Raises RejectedLine for other keys, and as `visible_text` does."""
    pairs: list[Any] = value if isinstance(value, list) and value else [value]
    for pair in pairs:
        if not isinstance(pair, dict) or not pair or not pair.keys() <= {*SIDES}:
            raise RejectedLine("wrong sides", f"a pair has the keys {', '.join(SIDES)}; this is {_shown(pair)}")
    return tuple((side, visible_text(text, f"text.{side}")) for pair in pairs for side, text in pair.items())


def visible_text(value: Any, key: str) -> str:
    """Return `value` if it is Unicode text with a visible character. Raises RejectedLine if not. key: names it in the message."""
    if not isinstance(value, str):
        content = "null or missing" if value is None else _shown(value)
        raise RejectedLine("text missing or not a string", f"{key} is {content}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RejectedLine("not Unicode text", f"{key} has half a surrogate pair at character {error.start}") from None
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise RejectedLine("empty text", f"{key} has no visible character")
    return value


def _matches(path: Path, glob: str) -> bool:
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
    """Return the command-line option, or in Python the argument, that tells where such a record has its text, or its domain. role:
    "text" or "domain", what the record seems to lack."""
    if role == "text":  # most likely the longest value
        sizes = {key: len(value) for key, value in record.items() if isinstance(value, str) and key != _DOMAIN}
        key = max(sizes, key=sizes.__getitem__, default="KEY")
        return argument(f"--set data.text_key={key}", f'overrides={{"data.text_key": {key!r}}}')
    name = domains[0].name
    return argument(f"--set 'data.domain_of={{\"*\": {name}}}'", f'overrides={{"data.domain_of": {{"*": {name!r}}}}}')


def _source_of(reader: str) -> bytes:
    """Return the content of the file FILE.py of a reader. Raises ConfigError if it cannot be read."""
    file = reader.rpartition(":")[0]
    if not file.endswith(".py"):
        raise _reader_error(reader, "is not FILE.py:FUNCTION; name file and function, such as my_corpora.py:read")
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise _reader_error(reader, f"{file}: {why}; relative paths begin in {Path.cwd()}") from error


def _reader_error(reader: str, why: str) -> ConfigError:
    return ConfigError(f"{argument('--reader')}={reader}: {why}")


@cache
def _load_function(reader: str, source: bytes) -> Callable[[Record], Record | None]:
    """Execute the content of FILE.py, and return FUNCTION. Raises ConfigError."""
    file, _, name = reader.rpartition(":")
    module = ModuleType(f"reader_{hashlib.sha256(source).hexdigest()}")
    sys.modules[module.__name__], module.__file__ = module, file  # dataclasses and pickle look their module up there
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # no import, which may take a stale .pyc
    except Exception as error:  # the user's code, which may raise anything
        raise _reader_error(reader, f"cannot be loaded: {type(error).__name__}: {error}") from error
    function = vars(module).get(name)
    if not callable(function):
        names = ", ".join(key for key, value in vars(module).items() if isfunction(value)) or "none"
        raise _reader_error(reader, f"{file} has no function {name!r}; its functions: {names}")
    return function


def _apply_reader(function: Callable[[Record], Record | None], record: Record) -> Record:
    """Return `function(record)`, a record. Raises RejectedLine if the user's function returns None or fails."""
    try:
        result = function(record)
    except Exception as error:  # the user's code, which may raise anything
        raise RejectedLine("reader failed", f"{type(error).__name__}: {error}") from error
    if result is None:
        raise RejectedLine(LEFT_OUT, "it returned None")
    if not isinstance(result, dict):
        raise RejectedLine("reader failed", f"it returned a {type(result).__name__}, not a dict or None")
    return result
