"""Only the text of new domains is prepared; what was prepared before is linked, with its ids."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.grown import law_tree, write_law
from helpers.prepared import exchange_lengths

from experiments.tiny import tiny_tree
from pangu_sigma.cli import main
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare import extended
from pangu_sigma.data.prepare.extended import prepare_extension
from pangu_sigma.data.prepared import SPLITS, PreparedData, read_prepared_tokenizer
from pangu_sigma.data.samples import open_samples
from pangu_sigma.errors import DataError


def extending(data, slot: str = "law", rows: int = 640) -> Config:
    tree = law_tree(data)
    tree["domains"][0] = {"name": "law", "language": "zh", "slot": slot}
    tree["model"]["slot_rows"] = rows
    return parse_config(tree)


@pytest.fixture(scope="module")
def text(tiny_data, tmp_path_factory):
    """Text of the old domains and of the new one."""
    path = tmp_path_factory.mktemp("text") / "law.jsonl"
    write_law(path, tiny_data.parent / "text.jsonl")
    return path


@pytest.fixture(scope="module")
def folder(tiny_data, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("extended") / "prepared"
    prepare_extension(extending(path), [text], tiny_data, path)
    return path


def test_old_domains_are_linked_and_the_new_one_is_prepared_with_the_same_ids(tiny_data, folder):
    old, new = PreparedData(tiny_data), PreparedData(folder)
    new.verify_all()
    tokenizer = read_prepared_tokenizer(extending(folder))
    assert tokenizer.vocabulary.pieces == old.tokenizer().vocabulary.pieces
    assert (tokenizer.slot_rows[1:] == old.tokenizer().slot_rows).all(), "zh and en; law comes first"
    for name in ("zh", "en", "code"):
        for split in SPLITS:
            assert (folder / f"{name}.{split}.bin").samefile(tiny_data / f"{name}.{split}.bin")
        assert new.manifest.domains[name] == old.manifest.domains[name]
    assert (new.frequencies()[1:] == old.frequencies()).all()
    law = new.tokens("law", "train", tokenizer.size)
    assert (new.frequencies()[0] == np.bincount(law.read(0, law.tokens), minlength=tokenizer.size)).all()
    assert (tokenizer.row_of[0, law.read(0, law.tokens)] >= 0).all()
    assert [each[0] for each in new.manifest.config["domains"]] == ["law", "zh", "en", "code"]
    assert new.manifest.quarantined == {"unknown domain": 360}, "lines of old domains are counted"
    assert open_samples(extending(folder), folder, "train", tokenizer.size).counts[0] > 1
    assert not list(folder.parent.glob(".*")), "nothing is left beside it"


def test_a_new_domain_in_an_old_slot_gets_the_rows_that_are_left(tiny_data, text, tmp_path):
    config = extending(tmp_path / "data", "en", 700)
    prepare_extension(config, [text], tiny_data, tmp_path / "data")
    old, new = PreparedData(tiny_data).tokenizer(), read_prepared_tokenizer(config)
    assert new.slot_rows.shape == (2, 700)
    had, has = old.slot_rows[1], new.slot_rows[0]  # en
    assert (has[: (had >= 0).sum()] == had[had >= 0]).all()
    assert (new.slot_rows[1][:640] == old.slot_rows[0]).all()
    assert (new.slot_rows[1][640:] == -1).all()
    law = PreparedData(tmp_path / "data").tokens("law", "train", new.size)
    assert (new.row_of[0, law.read(0, law.tokens)] >= 0).all()


def test_near_duplicates_of_the_new_text_are_in_the_manifest(tiny_data, text, tmp_path):
    config = extending(tmp_path / "data")
    config = config.model_copy(update={"data": config.data.model_copy(update={"near_duplicates": 0.9})})
    assert prepare_extension(config, [text], tiny_data, tmp_path / "data").near_duplicates is not None
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_after_a_kill_the_same_call_goes_on(tiny_data, text, tmp_path, monkeypatch):
    config, output = extending(tmp_path / "data"), tmp_path / "data"

    def killed(*unused):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extended, "join", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_extension(config, [text], tiny_data, output)
    assert (tmp_path / ".data.added" / "manifest.json").exists()
    made = (tmp_path / ".data.added" / "law.train.bin").stat().st_ino
    prepare_extension(config, [text], tiny_data, output)
    assert (output / "law.train.bin").stat().st_ino == made
    with pytest.raises(ConfigError, match=r"data exists, and extend makes a new folder; choose another path"):
        prepare_extension(config, [text], tiny_data, output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["domains"].pop(1), "has domain zh, the configuration has not"),
        (lambda tree: tree["domains"][1].update(slot="en"), "domain zh has format, .* text, zh, zh there, and text, zh, en"),
        (lambda tree: tree["domains"].pop(0), "has all domains of the configuration; leave"),
        (lambda tree: tree["vocabulary"].update(english_model="x.model"), r"leave out vocabulary\.english_model=x\.model"),
    ],
)  # fmt: skip
def test_what_would_change_old_domains_is_refused(tiny_data, text, tmp_path, change, message):
    tree = law_tree(tmp_path / "data")
    tree["data"]["domains_per_step"] = 1
    change(tree)
    with pytest.raises(ConfigError, match=message):
        prepare_extension(parse_config(tree), [text], tiny_data, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_problems_of_new_text_name_keys_of_the_whole_configuration(tiny_data, text, tmp_path):
    tree = law_tree(tmp_path / "data")
    tree["domains"] = [*tree["domains"][1:], tree["domains"][0]]
    tree["data"]["min_held_out_tokens"] = 1_000_000
    tree["data"]["max_held_out_tokens"] = 2_000_000
    with pytest.raises(DataError, match=r"domain law: .* set domains\.3\.min_held_out_tokens="):
        prepare_extension(parse_config(tree), [text], tiny_data, tmp_path / "data")
    _, [problem] = extended.preview_extension(parse_config(tree), [text], tiny_data)
    assert "domains.3.min_held_out_tokens=" in problem
    with pytest.raises(DataError, match=r"is not prepared data, .*; name the data\.path of a run"):
        prepare_extension(parse_config(tree), [text], text.parent, tmp_path / "data")
    with pytest.raises(DataError, match=r"extend .*nix is not there; name the data\.path of a run"):
        prepare_extension(parse_config(tree), [text], tmp_path / "nix", tmp_path / "data")


def test_other_ids_fewer_rows_and_missing_files_are_refused(tiny_data, folder, text, tmp_path):
    config, old = extending(tmp_path / "data", rows=600), PreparedData(tiny_data)
    with pytest.raises(DataError, match=r"slot zh: its 640 rows in .* do not fit model\.slot_rows=600; raise it"):
        prepare_extension(config, [text], tiny_data, tmp_path / "data")
    added = PreparedData(tmp_path / ".data.added")
    exchange_lengths(changed := shutil.copytree(tiny_data, tmp_path / "old") / "en.train.idx")
    with pytest.raises(DataError, match=r"en\.train\.idx: xxh3_128 is .* was written"):
        extended.join(extending(tmp_path / "data"), PreparedData(changed.parent), added, tmp_path / "data")
    (added.folder / "law.train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"law\.train\.bin: has 0 bytes, \d+ were written"):
        extended.join(extending(tmp_path / "data"), old, added, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command_extends_and_examines(tiny_data, text, tmp_path, capsys):
    config, output = tmp_path / "law.yaml", tmp_path / "data"
    config.write_text(dump_config(extending(output)), encoding="utf-8")
    command = ["prepare-data", str(config), "--input", str(text), "--extend", str(tiny_data)]
    assert main([*command, "--check"]) == 0
    assert "law" in capsys.readouterr().out
    assert not output.exists()
    assert main(command) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:5]] == ["law", "zh", "en", "code"]
    origin = load_manifest(output).config["extends"]
    assert origin["content_hash"] == load_manifest(tiny_data).content_hash
    assert (
        json.loads((output / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()[0])["reason"]
        == "unknown domain"
    )
    assert tiny_tree(output)["model"]["slot_rows"] == 640
