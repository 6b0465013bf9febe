from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.texts import ENGLISH, tiny_config

from pangu_sigma.data.indexed import TokenFile
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare import prepare
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError

CHINESE = ["中国人民的希望。", "这本书很好，推荐给大家。", "今天天气不错，我们去公园。", "新年讲话", "他说：“你好。”"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Ten documents of each domain, one copy, three unusable lines."""
    records: list[dict] = []
    for i in range(10):
        records.append({"domain": "zh", "text": CHINESE[i % 5] * (i + 1)})
        records.append({"domain": "en", "text": ENGLISH[0] + str(i)})
        records.append({"domain": "code", "text": ENGLISH[1] + f"x = {i}\n"})
        records.append({"domain": "bilingual", "text": {"zh": f"你好 {i}", "en": f"hello {i}"}})
    records += [records[0], {"domain": "fr", "text": "x"}, {"domain": "fr", "text": "y"}, {"domain": "en", "text": ""}]
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare(tiny_config(), [text], folder)
    return folder


def test_the_folder_holds_what_the_manifest_says(prepared, config):
    manifest = load_manifest(prepared)
    tokenizer = Tokenizer.load(prepared / "tokenizer")
    frequencies = np.load(prepared / "frequencies.npy")
    assert (manifest.vocabulary_hash, manifest.vocabulary_size) == (tokenizer.hash, tokenizer.size)
    assert frequencies.shape == (4, tokenizer.size)
    assert tokenizer.slot_rows.shape == (3, config.model.slot_rows)
    for domain in domains_of(config):
        record = manifest.domains[domain.name]
        assert (record.train.documents, record.held_out.documents) == (8, 2)
        for split, counts in (("train", record.train), ("held_out", record.held_out)):
            file = TokenFile(prepared / f"{domain.name}.{split}", tokenizer.size)
            assert (file.tokens, file.documents) == (counts.tokens, counts.documents)
        tokens = TokenFile(prepared / f"{domain.name}.train").read(0, record.train.tokens)
        assert (np.bincount(tokens, minlength=tokenizer.size) == frequencies[domain.index]).all()
        assert 0 < record.unigram_entropy < math.log(2 * tokenizer.size)
        assert [source.name for source in record.sources] == ["a.jsonl"]
    assert manifest.domains["zh"].duplicates == 1


def test_every_document_comes_back_from_the_files(prepared, text):
    tokenizer = Tokenizer.load(prepared / "tokenizer")
    texts = {json.loads(line)["text"] for line in text.read_text().splitlines() if '"code"' in line}
    found = []
    for split in ("train", "held_out"):
        file = TokenFile(prepared / f"code.{split}")
        ends = np.cumsum(file.lengths)
        found += [tokenizer.decode(file.read(int(e - n), int(n))) for n, e in zip(file.lengths, ends, strict=True)]
    assert sorted(found) == sorted(texts)


def test_unusable_lines_are_counted_and_kept(prepared):
    assert load_manifest(prepared).quarantined == {"unknown domain": 2, "empty text": 1}
    lines = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["unknown domain", "unknown domain", "empty text"]
    assert all(line["offset"] > 0 and line["file"].endswith("a.jsonl") for line in lines)


def test_running_again_does_nothing_and_gives_the_same_elsewhere(prepared, text, tmp_path, config, caplog):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    caplog.set_level("INFO")
    manifest = prepare(config, [text], prepared)
    assert "nothing to do" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    assert prepare(config, [text], tmp_path / "out") == manifest
    for path in prepared.rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(prepared)).read_bytes() == path.read_bytes()


def test_slots_smaller_than_the_vocabulary_hold_all_that_is_written(text, tmp_path):
    config = tiny_config(slot_rows=600)
    manifest = prepare(config, [text], tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out/tokenizer")
    assert tokenizer.slot_rows.shape == (3, 600)
    for domain in domains_of(config):
        file = TokenFile(tmp_path / "out" / f"{domain.name}.train")
        assert (tokenizer.row_of[domain.slot][file.read(0, file.tokens)] >= 0).all()
    assert manifest.domains["zh"].train.unknown == 0


def test_another_configuration_replaces_the_old_result(text, tmp_path):
    first = prepare(tiny_config(), [text], tmp_path / "out")
    second = prepare(tiny_config(slot_rows=600), [text], tmp_path / "out")
    assert first.fingerprint != second.fingerprint
    assert load_manifest(tmp_path / "out") == second
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_behind(text, tmp_path, config, monkeypatch):
    monkeypatch.setattr("pangu_sigma.data.prepare.write_tokens", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config, [text], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["en.train.bin", "zh.held_out.idx", "tokenizer/english.model", "frequencies.npy"])
def test_a_result_with_a_lost_file_is_made_again(text, prepared, tmp_path, config, name):
    shutil.copytree(prepared, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    prepare(config, [text], tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == (prepared / name).read_bytes()


def test_folders_of_others_are_left_alone(text, tmp_path, config):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="is not prepared data"):
        prepare(config, [text], tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_a_domain_without_text_is_one_error(tmp_path, config):
    path = tmp_path / "a.jsonl"
    path.write_text('{"domain": "zh", "text": "你好"}\n')
    with pytest.raises(DataError, match=r"domain zh: 1 usable documents; at least 2.*--input your\.jsonl"):
        prepare(config, [path], tmp_path / "out")
    with pytest.raises(DataError, match=r"--input .*none\.jsonl: cannot be read"):
        prepare(config, [tmp_path / "none.jsonl"], tmp_path / "out")


def test_damaged_manifests_are_refused_by_the_reader_and_replaced_by_prepare(text, tmp_path, config):
    manifest = prepare(config, [text], tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_manifest(tmp_path / "out")
    assert prepare(config, [text], tmp_path / "out") == manifest
    with pytest.raises(DataError, match="run prepare-data first"):
        load_manifest(tmp_path)
