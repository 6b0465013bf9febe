"""Configuration, tokenizer and routing tables of a run folder or an exported model: written once, verified before use.

    config.yaml              `# pangu-sigma run, format 2; xxh3_128 of the lines below: …`, then the resolved tree
    tokenizer/ routing.npz   vocabulary, and the expert of each token id
    seal.json                size and hash of those two (of an export: of every file but README.md), and its own hash

config.yaml has its own hash because a run may change it; the others never change.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, parse_config, read_tree
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import ITS_VERSION, UNFINISHED, DamagedFile, check_folder, seal_folder, sync, write_atomically
from pangu_sigma.text.tokenizer import Tokenizer, copy_tokenizer

FILES_FORMAT = 2
"""Format version of these files; others are refused."""
CONFIG_FILE = "config.yaml"
ROUTING_FILE = "routing.npz"
TOKENIZER_FOLDER = "tokenizer"

_FIRST_LINE = re.compile(rb"# pangu-sigma (run|export), format (\d+); xxh3_128 of the lines below: ([0-9a-f]{32})\n")


def write_model_files(folder: Path, config: Config, tokenizer: Path, table: RoutingTable) -> None:
    """Write configuration, tokenizer and routing tables of a run folder; config.yaml comes last, so a folder with it is complete.

    tokenizer: folder of a saved tokenizer, which is copied. Raises OSError.
    """
    fresh = folder / f"{UNFINISHED}{TOKENIZER_FOLDER}"
    shutil.rmtree(fresh, ignore_errors=True)
    copy_tokenizer(tokenizer, fresh)
    if (folder / TOKENIZER_FOLDER).exists():
        shutil.rmtree(folder / TOKENIZER_FOLDER)
    fresh.rename(folder / TOKENIZER_FOLDER)
    unfinished = folder / f"{UNFINISHED}{ROUTING_FILE}"
    table.save(unfinished)
    sync(unfinished)
    unfinished.replace(folder / ROUTING_FILE)
    seal_model_files(folder, {})
    write_config(folder, config, "run")


def seal_model_files(folder: Path, facts: dict[str, Any], others: Iterable[str] = ()) -> None:
    """Write a folder's seal.json: the hashes of its tokenizer, its routing tables and its files named in `others`, and `facts`."""
    tokenizer = [f"{TOKENIZER_FOLDER}/{file.name}" for file in (folder / TOKENIZER_FOLDER).iterdir()]
    seal_folder(folder, [*tokenizer, ROUTING_FILE, *others], {"format": FILES_FORMAT, **facts})


def write_config(folder: Path, config: Config, kind: str) -> None:
    """Write config.yaml atomically, with its hash in the first line. kind: "run" or "export"."""
    text = dump_config(config).encode()
    line = (
        f"# pangu-sigma {kind}, format {FILES_FORMAT}; xxh3_128 of the lines below: {xxhash.xxh3_128_hexdigest(text)}\n"
    )
    write_atomically(folder / CONFIG_FILE, line.encode() + text)


def read_config(folder: Path, kind: str, fix: str) -> Config:
    """Read config.yaml of a run folder or an export. kind: "run" or "export". fix: advice to the user for an edited file.

    Raises DamagedFile for a file that was edited or damaged; ConfigError for another kind of folder or an invalid configuration.
    """
    file = folder / CONFIG_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{file}: {error.strerror}; {fix}") from error
    found = _FIRST_LINE.match(content)
    if found is None:
        raise DamagedFile(f"{file}: its first line is not the one that was written; {fix}")
    if found[1] != kind.encode():
        raise ConfigError(
            f"{folder} is an {'export; name the run that it came from' if kind == 'run' else 'ordinary run, not an export'}"
        )
    if int(found[2]) != FILES_FORMAT:
        raise ConfigError(
            f"{file} says format {int(found[2])}, this version reads {FILES_FORMAT}: {ITS_VERSION}; if none "
            f"did, the line is damaged: {fix}"
        )
    if xxhash.xxh3_128_hexdigest(content[found.end() :]) != found[3].decode():
        raise DamagedFile(f"{file}: not the hash of its first line: it was edited by hand or is damaged; {fix}")
    return parse_config(read_tree(file))


def recorded_kind(file: Path) -> str | None:
    """Return "run" or "export" for a file that begins as the config.yaml of one does; None for another file, or none."""
    try:
        with open(file, "rb") as stream:
            found = _FIRST_LINE.match(stream.read(200))
    except OSError:
        return None
    return found[1].decode() if found else None


def read_model_files(folder: Path, fix: str) -> tuple[Tokenizer, RoutingTable]:
    """Read tokenizer and routing tables of a run folder or an export. Arguments and errors: see `read_tokenizer`, `read_table`."""
    table = read_table(folder, fix)
    return read_tokenizer(folder, fix), table


def read_tokenizer(folder: Path, fix: str) -> Tokenizer:
    """Read the tokenizer of a run folder or an export, verified by the hashes in seal.json. fix: advice to the user if it is
    damaged, for the message. Raises DamagedFile or DataError."""
    check_folder(folder, fix, f"{TOKENIZER_FOLDER}/")
    return Tokenizer.load(folder / TOKENIZER_FOLDER)


def read_table(folder: Path, fix: str) -> RoutingTable:
    """Read the routing tables of a run folder or an export, verified by the hashes in seal.json. fix: advice to the user if they
    are damaged, for the message. Raises DamagedFile."""
    check_folder(folder, fix, ROUTING_FILE)
    try:
        return RoutingTable.load(folder / ROUTING_FILE)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFile(f"{folder / ROUTING_FILE}: {error}; {fix}") from error
