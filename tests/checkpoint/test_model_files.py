"""Files of runs and exports. Damage of each of them: test_run_folder.py and tests/convert/test_mindir.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pangu_sigma as ps
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.model_files import (
    read_config,
    read_table,
    read_tokenizer,
    write_config,
    write_model_files,
)
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import DamagedFile, check_folder

FIX = "write it again"


@pytest.fixture
def folder(tiny_data, tmp_path) -> Path:
    table = RoutingTable(np.zeros((1, 1, 8), np.int16), np.ones((1, 8), np.int16), 2)
    write_model_files(tmp_path, tiny_config(tiny_data), PreparedData(tiny_data).tokenizer(), table)
    return tmp_path


def test_what_was_written_is_read(folder, tiny_data):
    assert read_config(folder, "run", FIX) == tiny_config(tiny_data)
    tokenizer, table = read_tokenizer(folder, FIX), read_table(folder, FIX)
    assert (tokenizer.size > 40_000, table.experts, check_folder(folder, FIX)["format"]) == (True, 2, 4)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["configuration.json", "routing.npz", "seal.json", "tokenizer"]
    assert sorted(json.loads((folder / "seal.json").read_text())["files"]) == [
        "routing.npz",
        *("tokenizer/english.model", "tokenizer/pangu_alpha.model", "tokenizer/vocabulary.json"),
    ]


def test_it_is_json_that_says_kind_and_format_and_the_folder_or_the_file_names_it(folder, tiny_data):
    tree = json.loads((folder / "configuration.json").read_text(encoding="utf-8"))
    assert [*tree] == ["kind", "format", "config", "manifest"] and (tree["kind"], tree["format"]) == ("run", 4)
    assert Config.model_validate(tree["config"]) == tiny_config(tiny_data)
    for named in (folder, folder / "configuration.json"):
        assert ps.load_config(named) == tiny_config(tiny_data)


def test_every_flipped_bit_of_the_configuration_is_noticed(folder):
    file = folder / "configuration.json"
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        with pytest.raises((DamagedFile, ConfigError), match=rf"configuration\.json.*{FIX}"):
            read_config(folder, "run", FIX)


def test_a_lost_seal_is_damage(folder):
    (folder / "seal.json").unlink()
    read_config(folder, "run", FIX)
    for read in (read_tokenizer, read_table):
        with pytest.raises(DamagedFile, match=rf"seal\.json: No such file or directory; {FIX}"):
            read(folder, FIX)


def test_an_export_is_not_taken_for_a_run(folder, tiny_data):
    write_config(folder, tiny_config(tiny_data), "export")
    with pytest.raises(ConfigError, match="is an export without its graph; copy it again, or name"):
        read_config(folder, "run", FIX)
