"""Faults of a configuration and what the message of each must say, on top of the tiny configuration of tiny.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.tiny import tiny_tree


class Fault(NamedTuple):
    """A fault. text: the file; None: the tiny configuration. overrides: for --set. says: parts of the message, all of them."""

    name: str
    text: bytes | None
    overrides: tuple[str, ...]
    says: tuple[str, ...]


def _set(override: str, *says: str) -> Fault:
    return Fault(f"--set {override[:60]}", None, (override,), says)


def _file(name: str, text: str | bytes, *says: str) -> Fault:
    return Fault(name, text.encode() if isinstance(text, str) else text, (), says)


def _unknown(section: str, written: str, nearest: str) -> Fault:
    """An unknown key, as a slip of the pen makes it."""
    path = f"{section}.{written}".lstrip(".")
    return _set(f"{path}=1", f"{path}: unknown key", f"nearest valid key: {nearest};")


def _wrong(path: str, value: str, *says: str) -> Fault:
    """A value that is not allowed: the message has the whole path and the value."""
    return _set(f"{path}={value}", f"{path}: ", "is not allowed", *says)


UNKNOWN = [
    _unknown("", "modle", "model"),
    _unknown("", "vocab", "vocabulary"),
    _unknown("model", "hiden", "hidden"),
    _unknown("model", "sequence_length", "seq_length"),
    _unknown("domains.0", "formt", "format"),
    _unknown("domains.1", "lang", "language"),
    _unknown("routing", "tables", "table"),
    _unknown("ecss", "cache_gb", "cache_gib"),
    _unknown("data", "paht", "path"),
    _unknown("train", "stepz", "steps"),
    _unknown("train", "optimiser", "optimizer"),
    _unknown("train.optimizer", "peek_lr", "peak_lr"),
    _unknown("train.optimizer", "warmup", "finetune.warmup"),
    _unknown("train.loss_scale", "intial", "initial"),
    _unknown("parallel", "tensr", "tensor"),
]
_TYPES = [
    _wrong("seed", "x", "'x'", "whole number"),
    _wrong("seed", "1.5", "1.5"),
    _wrong("seed", "null", "None"),
    _wrong("model.hidden", "24.0", "24.0", "whole number"),
    _wrong("model.heads", "[2]", "[2]"),
    _wrong("model.dropout", "often", "'often'"),
    _wrong("model.activation", "gelu", "'fast_gelu', 'tanh' or 'erf'"),
    _wrong("model.seq_length", "true", "True"),
    _wrong("domains", "en", "'en'"),
    _wrong("domains", "[]", "at least 1"),
    _wrong("domains.0", "zh", "'zh'"),
    _wrong("domains.0.name", "Zh!", "'Zh!'"),
    _wrong("routing.table", "hash", "'random' or 'balanced'"),
    _wrong("ecss.enabled", "1", "true or false"),
    _wrong("ecss.store", "tape", "'host' or 'file'"),
    _set(
        "train.compute_dtype=bfloat16",
        "train.compute_dtype=bfloat16: Ascend 910A has no bfloat16",
        "parallel.chip=910b",
    ),
    _wrong("train", "5", "5"),
    _wrong("data.path", "3", "3"),
]
RANGES = [
    _wrong("seed", "-1", "greater than or equal to 0"),
    _wrong("seed", "18446744073709551617", "less than 4294967296"),
    _wrong("model.hidden", "999999999998", "less than or equal to 1048576"),
    _wrong("model.dropout", "1.0", "less than 1"),
    _wrong("model.init_std", "0.0", "greater than 0"),
    _wrong("domains.1.weight", "1e300", "less than or equal to"),
    _wrong("data.held_out", "0.5", "less than 0.5"),
    _wrong("train.steps", "1000000000000000", "less than or equal to"),
    _wrong("train.optimizer.peak_lr", ".inf", "finite"),
    _wrong("train.optimizer.peak_lr", ".nan", "finite"),
]
COMBINATIONS = [
    _set("name=../../x", "name: ", "'../../x' is not allowed", "name of a folder"),
    _set("name=''", "name: ", "is not allowed"),
    _set("model.heads=5", "model.hidden (24) is not divisible by model.heads (5); change one of them"),
    _set("domains.1.name=zh", "domains: name 'zh' is used more than once"),
    _set("train.batch_size=3", "train.batch_size (3) is not divisible by data.domains_per_step (2)"),
    _set("data.domains_per_step=4", "data.domains_per_step=4 is more than the 3 domains"),
    _set("train.optimizer.end_lr=1.0", "train.optimizer.end_lr=1.0 is more than peak_lr=0.01"),
    _set("parallel.stages=9", "parallel.stages=9 is more than the 3 layers"),
    _set("parallel.expert=4", "model.experts_per_domain (2)", "parallel.expert (4)"),
    _set("ecss={enabled: false, store: file}", "ecss: store=file needs enabled=true"),
    Fault(
        *("bfloat16 moments", None, ("ecss.moments=bfloat16", "train.optimizer.beta2=0.999")),
        ("ecss.moments=bfloat16 needs train.optimizer.beta2 <= 0.99, not 0.999",),
    ),
    Fault(
        *("too many ranks", None, ("parallel.groups=100000", "parallel.expert=100000")),
        ("parallel: the number of ranks=10000000000 is more than the possible 1048576",),
    ),
]
OVERRIDES = [
    _set("train.steps", "--set 'train.steps' is not KEY=VALUE"),
    _set("=3", "is not KEY=VALUE"),
    _set("train.steps=[", "--set train.steps: '[' is not a YAML value"),
    _set("model.hidden.x=3", "--set model.hidden.x: hidden holds the value 24, not a section"),
    _set("domains.9.name=x", "--set domains.9.name: '9' is not an index of a list of 3; use 0 … 2"),
    _set("model=" + "[" * 1_000, "--set model: ", "is not a YAML value"),
    _set("seed=" + "9" * 5_000, "--set seed: ", "4300 digits"),
]
_ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
_TINY = yaml.safe_dump(tiny_tree(Path("none")), allow_unicode=True)
FAULTY_FILES = [
    _file("empty", "", "is empty; it must be a mapping of keys"),
    _file("a list", "- a", "is ['a']; it must be a mapping of keys"),
    _file("open bracket", "a: [", "is not valid YAML"),
    _file("no UTF-8", b"\xff\xfe\x00", "is not valid YAML"),
    _file("aliases that stand for a billion values", _ALIASES, "a: unknown key"),
    _file("an alias of itself", "a: &a [*a]", "a: unknown key"),
    _file("300,000 keys", "".join(f"key{i}: 1\n" for i in range(300_000)), "is not a file of at most 262,144 bytes"),
    _file("20,000 keys", "".join(f"k{i}: 1\n" for i in range(20_000)), "k0: unknown key", "more problems"),
    _file("a key twice", f"{_TINY}\nname: b\n", "key 'name' is written twice"),
    _file("a date that cannot be", "a: 2020-13-45", "is not valid YAML"),
    _file("a tag of Python", "!!python/object/apply:os.system [ls]", "is not valid YAML"),
    _file("a tag without its value", "a: !!int ''", "is not valid YAML"),
    _file("no model", "name: a\ndomains: [{name: en}]\n", "model: required key is missing"),
]
FAULTS: list[Fault] = [*UNKNOWN, *_TYPES, *RANGES, *COMBINATIONS, *OVERRIDES, *FAULTY_FILES]
"""All of them."""


def file_of(fault: Fault, folder: Path) -> Path:
    """The configuration file of a fault, written into `folder`."""
    file = folder / "fault.yaml"
    file.write_bytes(_TINY.encode() if fault.text is None else fault.text)
    return file


def arguments_of(fault: Fault, file: Path) -> list[str]:
    """Arguments of a command that must refuse the fault."""
    return ["train", str(file), *(text for override in fault.overrides for text in ("--set", override))]


def missing_words(fault: Fault, message: str) -> list[Any]:
    """What the message should say and does not."""
    return [words for words in fault.says if words not in message]
