from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import tiny_config

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import dump_config
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.errors import DataError
from pangu_sigma.rre.table import draw_tables


def test_what_was_created_is_opened(tiny_data, tmp_path):
    config = tiny_config(tiny_data)
    created = RunFolder.create(tmp_path / "new" / "run", config)
    opened = RunFolder.open(tmp_path / "new" / "run")
    assert opened.config == created.config == config
    assert opened.identity == created.identity
    assert opened.tokenizer.hash == Tokenizer.load(tiny_data / "tokenizer").hash
    assert opened.table.hash == created.table.hash
    assert opened.table.first_NDV.shape == (2, 3, opened.tokenizer.size)


def test_it_needs_the_prepared_data_no_more(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    RunFolder.create(tmp_path / "run", tiny_config(data))
    shutil.rmtree(data)
    assert RunFolder.open(tmp_path / "run").tokenizer.size > 40_000


def test_a_run_knows_its_data_from_any_folder(tiny_data, tmp_path, monkeypatch):
    """A relative data.path is that of where the run was created; an old run that holds a relative one opens as it is."""
    monkeypatch.chdir(tiny_data.parent)
    config = tiny_config(Path(tiny_data.name))
    run = RunFolder.create(tmp_path / "run", config)
    assert run.config == config
    monkeypatch.chdir(tmp_path)
    assert RunFolder.open(tmp_path / "run").config == tiny_config(tiny_data)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert RunFolder.open(tmp_path / "run").config.data.path == tiny_data.name


def test_the_identity_follows_vocabulary_and_tables_and_carries_the_configuration(tiny_data, tmp_path):
    one = RunFolder.create(tmp_path / "a", tiny_config(tiny_data)).identity
    same = RunFolder.create(tmp_path / "b", tiny_config(tiny_data, train={"steps": 7})).identity
    other = RunFolder.create(tmp_path / "c", tiny_config(tiny_data, routing={"seed": 1})).identity
    assert (one.vocabulary_hash, one.routing_hash) == (same.vocabulary_hash, same.routing_hash)
    assert one.routing_hash != other.routing_hash
    assert same.config["train"]["steps"] == 7


def test_the_same_tables_continue_a_folder_and_others_do_not(tiny_data, tmp_path):
    RunFolder.create(tmp_path / "run", tiny_config(tiny_data))
    (tmp_path / "run" / "mine.txt").write_text("x")
    again = RunFolder.create(tmp_path / "run", tiny_config(tiny_data, train={"steps": 7}))
    assert RunFolder.open(tmp_path / "run").config == again.config, "the newest configuration is the run's"
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"other routing tables; choose another folder with --run, or remove it"):
        RunFolder.create(tmp_path / "run", tiny_config(tiny_data, routing={"seed": 1}))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_data_prepared_for_other_slots_is_refused(tiny_data, tmp_path):
    model = tiny_config(tiny_data).model.model_dump() | {"slot_rows": 700}
    with pytest.raises(
        ConfigError, match=r"has 2 slots of 640 rows, this configuration has 2 of 700; run prepare-data"
    ):
        RunFolder.create(tmp_path / "run", tiny_config(tiny_data, model=model))
    assert not (tmp_path / "run").exists()


def test_missing_data_says_to_prepare(tmp_path):
    with pytest.raises(DataError, match="run prepare-data"):
        RunFolder.create(tmp_path / "run", tiny_config(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_balanced_tables_are_made_from_the_frequencies_of_the_text(tiny_data, tmp_path):
    config = tiny_config(tiny_data, routing={"table": "balanced"})
    table = RunFolder.create(tmp_path / "run", config).table
    frequencies = np.load(tiny_data / "frequencies.npy")
    expected = draw_tables(config.routing, 2, 3, frequencies.shape[1], 2, frequencies)
    assert table.hash == expected.hash
    assert table.hash != draw_tables(tiny_config(tiny_data).routing, 2, 3, frequencies.shape[1], 2, None).hash


@pytest.mark.parametrize("name", ["config.yaml", "routing.npz", "tokenizer"])
def test_a_folder_that_misses_a_part_is_no_run(tiny_data, tmp_path, name):
    RunFolder.create(tmp_path / "run", tiny_config(tiny_data))
    path = tmp_path / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(ConfigError, match=f"is not a run folder: it has no {name}"):
        RunFolder.open(tmp_path / "run")
