"""A damaged or exchanged file of prepared data is refused by name before anything of it is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.prepared import exchange_lengths, reseal, seal

from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.data.prepared import (
    _DOMAIN_KEYS,
    SPLITS,
    PreparedData,
    read_frequencies,
    read_prepared_tokenizer,
    unlike_prepared,
)
from pangu_sigma.data.samples import open_samples
from pangu_sigma.errors import DataError
from pangu_sigma.inspection.prepared_report import measure_prepared

SIZE = 50_000
"""A number of ids that is larger than the tiny vocabulary."""


@pytest.fixture
def copy(tiny_data, tmp_path) -> Path:
    return shutil.copytree(tiny_data, tmp_path / "prepared")


def use(folder: Path) -> None:
    """Read everything that training and evaluation read."""
    prepared = PreparedData(folder)
    prepared.tokenizer()
    prepared.frequencies()
    for domain in ("zh", "en", "code"):
        for split in SPLITS:
            file = prepared.tokens(domain, split, SIZE)
            file.read(0, file.tokens)
            for shard in file.shards:
                assert len(shard.lengths)


def flip(file: Path, at: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def test_every_flipped_bit_of_the_text_is_found_before_a_sample_has_it(tiny_data, copy):
    """20 of 20; a sample before it is either the right one or refused, too."""
    rng, config = np.random.default_rng(0), tiny_config(tiny_data)
    right = {split: open_samples(config, tiny_data, split, SIZE) for split in SPLITS}
    found = 0
    for _ in range(20):
        domain, split = int(rng.integers(3)), SPLITS[rng.integers(2)]
        file = copy / f"{config.domains[domain].name}.{split}.bin"
        at, bit = int(rng.integers(4 * 32 * right[split].counts[domain])), int(rng.integers(8))
        flip(file, at, bit)
        samples = open_samples(config, copy, split, SIZE)
        with pytest.raises(
            DataError, match=rf"{file.name}: bytes 0 … \d+ are not what prepare-data wrote.*run prepare"
        ):
            for number in range(samples.counts[domain]):
                np.testing.assert_array_equal(samples.read(domain, number), right[split].read(domain, number))
        found += 1
        flip(file, at, bit)
    assert found == 20
    use(copy)


def test_every_flipped_bit_of_the_other_files_is_found(copy):
    rng = np.random.default_rng(1)
    for name in load_manifest(copy).files:
        if not name.endswith((".bin", "quarantine.jsonl")):
            size = (copy / name).stat().st_size
            for at, bit in ((0, 0), (size - 1, 7), (int(rng.integers(size)), 3)):
                flip(copy / name, at, bit)
                with pytest.raises(DataError, match=f"{name}: .*run prepare-data again"):
                    use(copy)
                flip(copy / name, at, bit)


@pytest.mark.parametrize("damage", ["missing", "cut", "no bytes"])
def test_a_file_that_is_missing_or_cut_is_refused_by_name(copy, damage):
    names = [name for name in load_manifest(copy).files if not name.endswith("quarantine.jsonl")]
    for name in [*names, "manifest.json"]:
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        if damage != "missing":
            (copy / name).write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        with pytest.raises(DataError, match=f"{name}: .*prepare-data"):
            use(copy)
        (copy / name).write_bytes(content)
    use(copy)


def test_other_lengths_of_the_same_sum_are_refused(copy, tmp_path):
    exchange_lengths(copy / "en.train.idx")
    with pytest.raises(DataError, match=r"en\.train\.idx: xxh3_128 is .* was written; .* run prepare-data again"):
        use(copy)
    with pytest.raises(DataError, match=r"en\.train\.idx: xxh3_128 is"):
        measure_prepared(PreparedData(copy))


def test_the_text_of_another_domain_is_refused(copy):
    for ending in ("bin", "idx"):
        shutil.copy(copy / f"code.train.{ending}", copy / f"en.train.{ending}")
    with pytest.raises(DataError, match=r"en\.train\.bin: has \d+ bytes, \d+ were written; first difference at byte"):
        use(copy)
    with pytest.raises(DataError, match=r"law\.train\.bin: is not among the files"):
        PreparedData(copy).tokens("law", "train", SIZE)


def test_data_of_other_domains_are_refused_with_the_names_of_both(copy):
    config = tiny_config(copy)
    law = config.domains[0].model_copy(update={"name": "law"})
    config = config.model_copy(update={"domains": [law, *config.domains[1:]]})
    said = r"data\.path=.*prepared holds domains code, en, zh, this configuration has law, en, code; set data\.path to data of"
    with pytest.raises(ConfigError, match=said):
        read_prepared_tokenizer(config)
    with pytest.raises(ConfigError, match=said):
        open_samples(config, copy, "held_out", SIZE)


def test_keys_that_the_data_were_not_prepared_with_are_said_once_each(copy):
    config = tiny_config(copy)
    assert unlike_prepared(config) == []
    data = config.data.model_copy(update={"held_out": 0.3})
    own = load_manifest(copy).config["domains"]
    own[1][_DOMAIN_KEYS.index("max_overlap")] = 0.5
    reseal(copy, config=load_manifest(copy).config | {"domains": own})
    before = load_manifest(copy).config["held_out"]
    assert unlike_prepared(config.model_copy(update={"data": data})) == [
        f"data.held_out=0.3: {copy} was prepared with {before}; run prepare-data again to use it",
        f"domains.1.max_overlap=null: {copy} was prepared with 0.5; run prepare-data again to use it",
    ]
    reordered = config.model_copy(update={"domains": [config.domains[n] for n in (1, 0, 2)]})
    assert unlike_prepared(reordered)[0] == (
        f'domains=["en", "zh", "code"]: {copy} was prepared with ["zh", "en", "code"]; run prepare-data again to use it'
    )


def test_a_vocabulary_that_is_whole_but_of_other_data_is_refused(copy):
    reseal(copy, vocabulary_hash="0" * 64)
    with pytest.raises(DataError, match=r"tokenizer: its hash is .*of another preparation"):
        PreparedData(copy).tokenizer()


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_not_a_signal(copy):
    file = PreparedData(copy).tokens("en", "train", SIZE)
    file.read(0, 10)
    os.truncate(copy / "en.train.bin", 400)
    with pytest.raises(DataError, match=r"en\.train\.bin: ends at byte 400"):
        file.read(file.tokens - 10, 10)


def test_a_file_that_changes_while_it_is_open_is_verified_again(copy):
    file = PreparedData(copy).tokens("en", "train", SIZE)
    file.read(0, 10)
    with (copy / "en.train.bin").open("r+b") as stream:
        stream.write(b"\1")
    os.utime(copy / "en.train.bin", ns=(1, 1))
    with pytest.raises(DataError, match="are not what prepare-data wrote"):
        file.read(0, 10)


def test_a_manifest_of_another_format_is_refused(copy):
    reseal(copy, format=4)
    with pytest.raises(
        DataError,
        match=r"manifest\.json: data format 4, this version reads 5; run prepare-data again\. Version 0\.1\.0 \(commit",
    ):
        use(copy)


def test_text_in_shards_is_the_same_samples(tiny_data, tmp_path, monkeypatch):
    """The same text, prepared with shards of 1,000 bytes."""
    config = tiny_config(tmp_path / "shards")
    monkeypatch.setattr("pangu_sigma.data.indexed.TOKEN_SHARD_BYTES", 1_000)
    prepare(config, [tiny_data.parent / "text.jsonl"], tmp_path / "shards")
    assert len([*(tmp_path / "shards").glob("en.train.*.bin")]) > 3
    assert not (tmp_path / "shards" / "en.train.bin").exists()
    one, many = PreparedData(tiny_data), PreparedData(tmp_path / "shards")
    many.require_domains(config)
    many.verify_all()
    for split in SPLITS:
        whole, cut = (open_samples(config, each.folder, split, SIZE) for each in (one, many))
        assert whole.counts == cut.counts
        for domain, count in enumerate(whole.counts):
            for number in range(count):
                np.testing.assert_array_equal(whole.read(domain, number), cut.read(domain, number))
    prepare(
        config, [tiny_data.parent / "text.jsonl"], tmp_path / "shards"
    )  # its files are its own, and it is up to date
    shard = tmp_path / "shards" / "en.train.00002.bin"
    flip(shard, 10, 3)
    with pytest.raises(DataError, match=r"en\.train\.00002\.bin: bytes 0 … \d+ are not what prepare-data wrote"):
        use(tmp_path / "shards")
    os.truncate(shard, 400)
    with pytest.raises(DataError, match=r"en\.train\.00002\.bin: has 400 bytes, \d+ were written; .* at byte 400"):
        use(tmp_path / "shards")
    shard.unlink()
    with pytest.raises(DataError, match=r"en\.train\.00002\.bin: No such file"):
        use(tmp_path / "shards")


def test_only_whole_data_of_this_format_is_whole(tiny_data, copy):
    PreparedData(tiny_data).verify_all()
    (copy / "quarantine.jsonl").write_bytes(b"{}\n")
    with pytest.raises(DataError, match=r"quarantine\.jsonl: .*run prepare-data again"):
        PreparedData(copy).verify_all()


@pytest.mark.parametrize("name", ["en.train.bin", "zh.held_out.bin"])
def test_data_without_tokens_that_were_counted_are_not_whole(copy, name):
    """Their manifest is right about what is there."""
    os.truncate(copy / name, (copy / name).stat().st_size - 4)
    reseal(copy)
    with pytest.raises(
        DataError, match=rf"{name[:-4]} have [\d,]+ tokens, [\d,]+ were counted; .*run prepare-data again"
    ):
        PreparedData(copy).verify_all()
    (copy / name).unlink()
    reseal(copy)
    with pytest.raises(DataError, match=rf"{name[:-4]} have 0 tokens"):
        PreparedData(copy).verify_all()


def test_the_content_hash_is_that_of_the_text(tiny_data, copy):
    manifest = load_manifest(tiny_data)
    assert manifest.content_hash == load_manifest(copy).content_hash
    reseal(copy, quarantined={"empty text": 3})
    assert manifest.content_hash == load_manifest(copy).content_hash
    flip(copy / "en.held_out.bin", 0, 0)
    reseal(copy)
    assert manifest.content_hash != load_manifest(copy).content_hash


def test_frequencies_that_do_not_fit_are_refused_by_name(tmp_path):
    (tmp_path / "frequencies.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"frequencies\.npy: cannot be read: .*; run prepare-data again"):
        read_frequencies(seal(tmp_path), 3, 10)
    np.save(tmp_path / "frequencies.npy", np.zeros((2, 10), np.int64))
    seal(tmp_path)
    with pytest.raises(DataError, match=r"has the shape \(2, 10\), 3 domains and 10 ids need \(3, 10\)"):
        read_frequencies(tmp_path, 3, 10)
    assert read_frequencies(tmp_path, 2, 10).shape == (2, 10)
