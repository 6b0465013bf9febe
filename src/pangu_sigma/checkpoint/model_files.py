"""Configuration, tokenizer and routing tables of a run folder or an exported model: written once, verified before use.

    configuration.json       {"kind": "run", "format": 3, "config": {…}, "manifest": its own hash}; the configuration is resolved
    tokenizer/ routing.npz   vocabulary, and the expert of each token id
    seal.json                size and hash of those two (of an export: of every file but README.md), and its own hash

configuration.json has its own hash because a run may change it; the others never change.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import (
    ITS_VERSION,
    UNFINISHED,
    check_folder,
    commit,
    seal_folder,
    sealed,
    unsealed,
    write_atomically,
)
from pangu_sigma.text.tokenizer import Tokenizer

FILES_FORMAT = 4
"""Format version of these files; others are refused."""
CONFIG_FILE = "configuration.json"
ROUTING_FILE = "routing.npz"
TOKENIZER_FOLDER = "tokenizer"


def write_model_files(folder: Path, config: Config, tokenizer: Tokenizer, table: RoutingTable) -> None:
    """Write tokenizer, routing tables and configuration into a run folder. configuration.json is written last, so that a folder
    which has it is complete. Raises OSError."""
    unfinished = folder / f"{UNFINISHED}{TOKENIZER_FOLDER}"
    for path in (unfinished, folder / TOKENIZER_FOLDER):  # an interrupted call may have left them
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save(unfinished)
    commit(unfinished, folder / TOKENIZER_FOLDER)
    table.save(folder / ROUTING_FILE)
    seal_model_files(folder, {})
    write_config(folder, config, "run")


def seal_model_files(folder: Path, facts: dict[str, Any], others: Iterable[str] = ()) -> None:
    """Write a folder's seal.json: the hashes of its files, the format version, and `facts`. others: names of the files to hash
    besides the tokenizer's and the routing tables."""
    tokenizer_files = [f"{TOKENIZER_FOLDER}/{file.name}" for file in (folder / TOKENIZER_FOLDER).iterdir()]
    seal_folder(folder, [*tokenizer_files, ROUTING_FILE, *others], {"format": FILES_FORMAT, **facts})


def write_config(folder: Path, config: Config, kind: str) -> None:
    """Write configuration.json atomically, unless it has the same content already. kind: "run" or "export"."""
    content = sealed({"kind": kind, "format": FILES_FORMAT, "config": config.model_dump(mode="json")}, record=True)
    file = folder / CONFIG_FILE
    if not file.exists() or file.read_bytes() != content:
        write_atomically(file, content)


def read_config(folder: Path, wanted_kind: str, fix: str) -> Config:
    """Read configuration.json of a folder of the wanted kind, "run" or "export". fix: advice to the user for an edited file.

    Raises DamagedFile for a file that was edited or damaged; ConfigError for another kind of folder or an invalid configuration.
    """
    body = unsealed(folder / CONFIG_FILE, fix)
    if wanted_kind == "run" and body.get("kind") != "run":
        raise ConfigError(f"{folder} is an export without its graph; copy it again, or name the run that it came from")
    if wanted_kind == "export" and body.get("kind") != "export":
        raise ConfigError(f"{folder} is an ordinary run, not an export")
    if body["format"] != FILES_FORMAT:
        raise ConfigError(
            f"{folder / CONFIG_FILE} says format {body['format']}, this version reads {FILES_FORMAT}: {ITS_VERSION}"
        )
    return parse_config(body["config"])


def read_tokenizer(folder: Path, fix: str) -> Tokenizer:
    """Read the tokenizer of a run folder or an export, verified by the hashes in seal.json. fix: advice to the user if it is
    damaged, for the message. Raises DamagedFile or DataError."""
    check_folder(folder, fix, f"{TOKENIZER_FOLDER}/")
    return Tokenizer.load(folder / TOKENIZER_FOLDER)


def read_table(folder: Path, fix: str) -> RoutingTable:
    """Read the routing tables of a run folder or an export, verified by the hashes in seal.json. fix: advice to the user if they
    are damaged, for the message. Raises DamagedFile or DataError."""
    check_folder(folder, fix, ROUTING_FILE)
    return RoutingTable.load(folder / ROUTING_FILE, fix)
