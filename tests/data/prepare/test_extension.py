"""Only the text of new domains is prepared; what was prepared before stays as it is, with its ids and rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.grown import law_tree, prepare_extension, write_law
from helpers.prepared import exchange_lengths

from pangu_sigma.cli import main
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, parse_config
from pangu_sigma.data.batches import open_samples
from pangu_sigma.data.manifest import load_manifest, read_manifest
from pangu_sigma.data.prepare import extension
from pangu_sigma.data.prepare.extension import extension_of
from pangu_sigma.data.prepare.prepare import ONE_PROCESS, prepare, run_preparation
from pangu_sigma.data.prepared import PreparedData, data_of, read_prepared_tokenizer
from pangu_sigma.errors import DataError

OLD = ("zh", "en", "code")


def extending(data, slot: str = "law", rows: int = 640) -> Config:
    tree = law_tree(data)
    tree["domains"][0] = {"name": "law", "language": "zh", "slot": slot}
    tree["model"]["slot_rows"] = rows
    return parse_config(tree)


def files_of(folder: Path, names: tuple[str, ...] = OLD) -> dict[Path, tuple[int, int, bytes]]:
    files = (file for name in (*names, "tokenizer") for file in (folder / name).rglob("*"))
    return {f: (f.stat().st_ino, f.stat().st_mtime_ns, f.read_bytes()) for f in files}


@pytest.fixture(scope="module")
def text(tiny_data, tmp_path_factory):
    """Text of the old domains and of the new one."""
    path = tmp_path_factory.mktemp("text") / "law.jsonl"
    write_law(path, tiny_data.parent / "text.jsonl")
    return path


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    return shutil.copytree(tiny_data, tmp_path / "data")


def test_a_folder_is_added_and_nothing_else_is_touched(tiny_data, data, text):
    before = files_of(data)
    made = prepare_extension(extending(data), [text])
    assert files_of(data) == before
    old, new = PreparedData(tiny_data), data_of(extending(data))
    new.verify_all()
    tokenizer = read_prepared_tokenizer(extending(data))
    assert tokenizer.vocabulary.pieces == old.tokenizer().vocabulary.pieces
    assert (tokenizer.slot_rows[1:] == old.tokenizer().slot_rows).all(), "zh and en; law comes first"
    law = new.tokens("law", "train", tokenizer.size)
    assert (new.frequencies()[0] == np.bincount(law.read(0, law.tokens), minlength=tokenizer.size)).all()
    assert (tokenizer.row_of[0, law.read(0, law.tokens)] >= 0).all()
    assert made == new.manifest and [*made.domains] == ["law", *OLD]
    assert made.quarantined == {"unknown domain": 360}, "lines of old domains are counted"
    assert open_samples(extending(data), data, "train", tokenizer.size).counts[0] > 1
    assert [path.name for path in data.parent.iterdir()] == ["data"], "nothing is left beside it"
    assert load_manifest(data, OLD).content_hash == load_manifest(tiny_data, OLD).content_hash


def test_the_preparation_of_the_old_domains_is_still_done_and_is_not_replaced(tiny_data, data, text, caplog):
    tree = law_tree(data)
    tree["domains"], tree["data"]["domains_per_step"] = tree["domains"][1:], 2
    three, old = parse_config(tree), tiny_data.parent / "text.jsonl"
    prepare_extension(extending(data), [text])
    caplog.set_level("INFO")
    prepare(three, [old], data)
    assert "already holds this data; nothing to do" in caplog.text
    with pytest.raises(
        ConfigError, match=r"holds data that were prepared otherwise \(inputs\), which prepare-data does not replace"
    ):
        prepare(three, [text], data)
    assert (data / "law" / "manifest.json").exists()


def test_a_new_domain_in_an_old_slot_gets_the_rows_that_are_left(tiny_data, data, text):
    config = extending(data, "en", 700)
    before = read_prepared_tokenizer(parse_config(law_tree(data) | {"domains": law_tree(data)["domains"][1:]}))
    prepare_extension(config, [text])
    old, new = PreparedData(tiny_data).tokenizer(), read_prepared_tokenizer(config)
    assert new.slot_rows.shape == (2, 700)
    had, has = old.slot_rows[1], new.slot_rows[0]  # en
    assert (has[: (had >= 0).sum()] == had[had >= 0]).all()
    assert (new.slot_rows[1][:640] == old.slot_rows[0]).all()
    assert (new.slot_rows[1][640:] == -1).all()
    law = PreparedData(data).tokens("law", "train", new.size)
    assert (new.row_of[0, law.read(0, law.tokens)] >= 0).all()
    after = read_prepared_tokenizer(parse_config(law_tree(data) | {"domains": law_tree(data)["domains"][1:]}))
    assert after.hash == before.hash, "the tokenizer of the old domains alone is the same"


def test_with_rows_for_every_token_those_of_an_old_slot_come_first(tiny_data, data, text):
    config = extending(data, "en", 41_000)
    prepare_extension(config, [text])
    old, new = PreparedData(tiny_data).tokenizer(), read_prepared_tokenizer(config)
    had_R, has_R = (rows[rows >= 0] for rows in (old.slot_rows[1], new.slot_rows[0]))  # en
    assert has_R[: len(had_R)].tolist() == had_R.tolist()
    assert sorted(has_R.tolist()) == [*range(new.size)]


@pytest.mark.parametrize("place", ["write_atomically", "commit", "killed after the first domain"])
def test_a_killed_move_is_ended_by_the_same_call(data, text, monkeypatch, place):
    tree = law_tree(data)
    tree["domains"] = [{"name": name, "language": "zh", "slot": name} for name in ("law", "art")] + tree["domains"][1:]
    two = text.with_name("two.jsonl")
    two.write_text(text.read_text() + text.read_text().replace('"law"', '"art"'))
    config, quarantine = parse_config(tree), (data / "quarantine.jsonl").read_bytes()
    real, calls = extension.commit, []

    def killed(*paths):
        calls.append(paths)
        if place in ("write_atomically", "commit") or len(calls) == 2:
            raise KeyboardInterrupt
        return real(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extension, "write_atomically" if place == "write_atomically" else "commit", killed)
        prepare_extension(config, [two])
    assert [(data / name).exists() for name in ("law", "art")] == [len(calls) == 2, False]
    with pytest.raises(ConfigError, match=r"data\.path=.*data has all domains of the configuration; leave extend out"):
        prepare_extension(config, [two])  # which ended the move
    assert len((data / "quarantine.jsonl").read_bytes().splitlines()) == len(quarantine.splitlines()) + 720
    data_of(config).verify_all()
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_new_domains_with_other_token_ids_are_not_moved_and_nothing_else_takes_their_stage(data, text, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extension, "write_atomically", killed)
        prepare_extension(extending(data), [text])
    old_domains = law_tree(data)
    old_domains["domains"].pop(0)
    with pytest.raises(ConfigError, match="call prepare-data with extend first, which moves them"):
        prepare(parse_config(old_domains), [text], data)
    folder = data.parent / ".data.stage" / "write" / "output"
    law = read_manifest(folder / "law")
    models = {name: record.model_copy(update={"xxh3_128": "0" * 32}) for name, record in law.models.items()}
    law.model_copy(update={"models": models}).save(folder)
    with pytest.raises(DataError, match=rf"{folder}/law: it has other token ids than {data}; remove"):
        prepare_extension(extending(data), [text])
    assert not (data / "law").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["domains"][1].update(slot="en"), "domain zh has format, .* text, zh, zh in .*, and text, zh, en"),
        (lambda tree: tree["domains"].pop(0), "has all domains of the configuration; leave"),
        (lambda tree: tree["vocabulary"].update(english_model="x.model"), r"leave out vocabulary\.english_model=x\.model"),
        (lambda tree: tree["model"].update(slot_rows=600), r"slot zh has 640 rows in .*do not fit model\.slot_rows=600; raise"),
    ],
)  # fmt: skip
def test_what_would_change_old_domains_is_refused(data, text, change, message):
    tree = law_tree(data)
    tree["data"]["domains_per_step"] = 1
    change(tree)
    before = files_of(data)
    with pytest.raises(ConfigError, match=message):
        prepare_extension(parse_config(tree), [text])
    assert files_of(data) == before and [path.name for path in data.parent.iterdir()] == ["data"]


def test_a_domain_may_be_left_out_of_the_configuration(data, text):
    tree = law_tree(data)
    tree["domains"].pop(1)
    assert [*prepare_extension(parse_config(tree), [text]).domains] == ["law", "en", "code"]
    assert [*load_manifest(data).domains] == [*OLD, "law"]


def test_problems_of_new_text_name_the_domain(data, text, tmp_path):
    tree = law_tree(data)
    tree["domains"] = [*tree["domains"][1:], tree["domains"][0]]
    tree["data"]["min_held_out_tokens"] = 1_000_000
    tree["data"]["max_held_out_tokens"] = 2_000_000
    with pytest.raises(DataError, match=r"domain law: .* set min_held_out_tokens=\d+ in the domain's entry"):
        prepare_extension(parse_config(tree), [text])
    new_config, vocabulary = extension_of(parse_config(tree))
    _, [problem] = run_preparation(new_config, [text], data, ONE_PROCESS, vocabulary, writes=False)
    assert problem.startswith("domain law: ")
    for path in (text.parent, tmp_path / "nix"):
        tree["data"]["path"] = str(path)
        with pytest.raises(
            DataError, match=r"extend: set data\.path to prepared data .*: no folder in it has a manifest"
        ):
            prepare_extension(parse_config(tree), [text])


def test_a_damaged_file_of_an_old_domain_is_found_where_it_is_read(data, text):
    exchange_lengths(data / "en" / "train.idx")
    prepare_extension(extending(data), [text])
    with pytest.raises(DataError, match=r"en/train\.idx: bytes 0 … \d+ are not what"):
        PreparedData(data).verify_all()
    shutil.rmtree(data / "law")
    (data / "en" / "rows.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"en/rows\.npy: has 0 bytes, \d+ were written"):
        prepare_extension(extending(data), [text])


def test_the_command_extends_and_examines(data, text, tmp_path, capsys):
    config = tmp_path / "law.yaml"
    config.write_text(dump_config(extending(data)), encoding="utf-8")
    command = ["prepare-data", str(config), "--input", str(text), "--extend"]
    assert main([*command, "--check"]) == 0
    assert "law" in capsys.readouterr().out
    assert not (data / "law").exists()
    assert main(["prepare-data", str(config), "--input", str(text)]) == 2
    assert "run prepare-data with --extend to add the missing ones, or choose another" in capsys.readouterr().err
    assert main(command) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:5]] == ["law", *OLD]
    lines = (data / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["reason"] == "unknown domain"
