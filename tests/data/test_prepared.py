"""A damaged or exchanged file of prepared data is refused by name before anything of it is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.prepared import reseal

from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import open_samples
from pangu_sigma.data.manifest import load_manifest, read_manifest
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.data.prepared import (
    DOMAIN_KEYS,
    SPLITS,
    PreparedData,
    data_of,
    encodes,
    is_prepared,
    read_prepared_tokenizer,
    unlike_prepared,
)
from pangu_sigma.errors import DataError

SIZE = 50_000
"""A number of ids that is larger than the tiny vocabulary."""


@pytest.fixture
def copy(tiny_data, tmp_path) -> Path:
    return shutil.copytree(tiny_data, tmp_path / "prepared")


def use(folder: Path) -> None:
    """Read everything that training and evaluation read."""
    names = ("zh", "en", "code")
    prepared = PreparedData(folder, names)
    prepared.tokenizer()
    prepared.frequencies()
    for domain in names:
        for split in SPLITS:
            tokens = prepared.tokens(domain, split, SIZE)
            tokens.read(0, tokens.tokens)
            assert len(tokens.lengths)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


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
        file = copy / config.domains[domain].name / f"{split}.bin"
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
    for name in files_of(copy):
        if not name.endswith((".bin", "quarantine.jsonl")):
            size = (copy / name).stat().st_size
            for at, bit in ((0, 0), (size - 1, 7), (int(rng.integers(size)), 3)):
                flip(copy / name, at, bit)
                with pytest.raises(DataError, match=f"{name}: .*run prepare-data again"):
                    use(copy)
                flip(copy / name, at, bit)


@pytest.mark.parametrize("damage", ["missing", "cut", "no bytes"])
def test_a_file_that_is_missing_or_cut_is_refused_by_name(copy, damage):
    for name in (name for name in files_of(copy) if not name.endswith("quarantine.jsonl")):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        if damage != "missing":
            (copy / name).write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        with pytest.raises(DataError, match=f"{name}: .*prepare-data"):
            use(copy)
        (copy / name).write_bytes(content)
    use(copy)


def test_the_text_of_another_domain_is_refused(copy):
    for ending in ("bin", "idx"):
        shutil.copy(copy / "code" / f"train.{ending}", copy / "en" / f"train.{ending}")
    with pytest.raises(DataError, match=r"en/train\.bin: has \d+ bytes, \d+ were written; first difference at byte"):
        use(copy)
    with pytest.raises(DataError, match=r"en/dev\.bin: is not among the files"):
        PreparedData(copy).tokens("en", "dev", SIZE)
    shutil.rmtree(copy / "en")
    (copy / "code").rename(copy / "en")
    with pytest.raises(DataError, match=r"en/manifest\.json: is that of domain code; give the folder its name back"):
        PreparedData(copy)


def test_data_of_other_domains_are_refused_with_the_names_of_both(copy):
    config = tiny_config(copy)
    law = config.domains[0].model_copy(update={"name": "law"})
    config = config.model_copy(update={"domains": [law, *config.domains[1:]]})
    said = (
        r"data\.path=.*prepared holds domains code, en, zh, this configuration has law, en, code; run prepare-data with"
    )
    with pytest.raises(ConfigError, match=said):
        read_prepared_tokenizer(config)
    with pytest.raises(ConfigError, match=said):
        open_samples(config, copy, "held_out", SIZE)


def test_keys_that_the_data_were_not_prepared_with_are_said_once_each(copy):
    config = tiny_config(copy)
    assert unlike_prepared(config) == []
    data = config.data.model_copy(update={"held_out": 0.3})
    en = read_manifest(copy / "en")
    en.settings("en")[DOMAIN_KEYS.index("max_overlap")] = 0.5
    en.save(copy)
    before = load_manifest(copy).config["held_out"]
    assert unlike_prepared(config.model_copy(update={"data": data})) == [
        f"data.held_out=0.3: {copy} was prepared with {before}; remove the folder and run prepare-data again to use it",
        f"domains.1.max_overlap=null: {copy} was prepared with 0.5; remove the folder and run prepare-data again to use it",
    ]
    fewer = config.model_copy(update={"domains": [config.domains[n] for n in (2, 0)]})
    assert unlike_prepared(fewer) == [], "what is held out of a domain does not depend on others"


def test_a_vocabulary_that_is_whole_but_of_other_data_is_refused(copy):
    models = load_manifest(copy).models
    other = {"english.model": models["english.model"].model_copy(update={"xxh3_128": "0" * 32})}
    read_manifest(copy / "en").model_copy(update={"models": models | other}).save(copy)
    with pytest.raises(DataError, match=r"prepared/en: it has other token ids than .*prepared/zh; prepare both"):
        PreparedData(copy)
    with pytest.raises(DataError, match=r"english\.model: xxh3_128 is .*of another preparation"):
        PreparedData(copy, ["en"]).tokenizer()


def test_a_manifest_of_another_format_is_refused(copy):
    reseal(copy, format=9)
    with pytest.raises(
        DataError,
        match=r"en/manifest\.json: data format 9, this version reads 8; remove the folder and run prepare-data again",
    ):
        PreparedData(copy, ["en"])


def test_a_folder_of_an_older_format_is_refused_with_the_version_that_reads_it(tmp_path):
    """One manifest for all domains, and their files beside each other."""
    old = tmp_path / "old"
    for name in ("manifest.json", "frequencies.npy", "zh.train.bin", "tokenizer/english.model"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("{}")
    said = r"old/manifest\.json: data of format 5 or older, this version reads 8; prepare the text again, .*commit 677a3e74"
    with pytest.raises(DataError, match=said):
        PreparedData(old)
    with pytest.raises(DataError, match=said):
        read_prepared_tokenizer(tiny_config(old))
    with pytest.raises(DataError, match=said):
        prepare(tiny_config(old), [], old)
    assert (old / "zh.train.bin").exists() and is_prepared(old)


def test_text_in_shards_is_the_same_samples(tiny_data, tmp_path, monkeypatch):
    """The same text, prepared with shards of 1,000 bytes."""
    config = tiny_config(tmp_path / "shards")
    monkeypatch.setattr("pangu_sigma.data.token_files.TOKEN_SHARD_BYTES", 1_000)
    prepare(config, [tiny_data.parent / "text.jsonl"], tmp_path / "shards")
    assert len([*(tmp_path / "shards" / "en").glob("train.*.bin")]) > 3
    assert not (tmp_path / "shards" / "en" / "train.bin").exists()
    one, many = PreparedData(tiny_data), PreparedData(tmp_path / "shards")
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
    (tmp_path / "shards" / "en" / "train.00002.bin").unlink()
    with pytest.raises(DataError, match=r"en/train\.00002\.bin: No such file"):
        use(tmp_path / "shards")


def test_only_whole_data_of_this_format_is_whole(tiny_data, copy):
    PreparedData(tiny_data).verify_all()
    flip(copy / "en" / "held_out.idx", 40, 0)
    PreparedData(copy, ["zh", "code"]).verify_all()
    with pytest.raises(DataError, match=r"en/held_out\.idx: .*run prepare-data again"):
        PreparedData(copy).verify_all()


@pytest.mark.parametrize("name", ["en/train", "zh/held_out"])
def test_data_without_tokens_that_were_counted_are_not_whole(copy, name):
    """Their manifest is right about what is there."""
    (domain, split), file = name.split("/"), copy / f"{name}.bin"
    os.truncate(file, file.stat().st_size - 4)
    reseal(copy)
    said = rf"{domain}: the files of {split} have [\d,]+ tokens, [\d,]+ were counted; .*run prepare-data again"
    with pytest.raises(DataError, match=said):
        PreparedData(copy).verify_all()
    file.unlink()
    reseal(copy)
    with pytest.raises(DataError, match=rf"{name}\.bin: is not among the files"):
        PreparedData(copy).verify_all()


def test_the_content_hash_is_that_of_the_text(tiny_data, copy):
    manifest = load_manifest(tiny_data)
    assert manifest.content_hash == load_manifest(copy).content_hash
    reseal(copy, quarantined={"empty text": 3})
    assert manifest.content_hash == load_manifest(copy).content_hash
    flip(copy / "en" / "held_out.bin", 0, 0)
    reseal(copy)
    assert manifest.content_hash != load_manifest(copy).content_hash


def test_a_configuration_names_the_domains_whose_data_it_is_and_their_order(tiny_data, copy):
    """A subset is a configuration of fewer domains; nothing of the others is read."""
    config = tiny_config(copy)
    fewer = config.model_copy(update={"domains": [config.domains[2], config.domains[0]]})
    (copy / "en" / "manifest.json").write_text("{")
    whole, data = PreparedData(tiny_data), data_of(fewer)
    assert [*data.manifest.domains] == ["code", "zh"]
    np.testing.assert_array_equal(data.frequencies(), whole.frequencies()[[2, 0]])
    np.testing.assert_array_equal(read_prepared_tokenizer(fewer).slot_rows, whole.tokenizer().slot_rows[[1, 0]])
    assert data.manifest.content_hash != load_manifest(tiny_data, ["zh", "code"]).content_hash, "another order"
    assert data.manifest.content_hash == load_manifest(tiny_data, ["code", "zh"]).content_hash
    samples, all_of_them = (open_samples(each, tiny_data, "train", SIZE) for each in (fewer, tiny_config(tiny_data)))
    np.testing.assert_array_equal(samples.read(0, 5), all_of_them.read(2, 5))


def test_rows_that_do_not_fit_a_configuration_are_refused(copy):
    config = tiny_config(copy)
    for slot, rows, said in (
        ("zh", 600, r"domain zh was prepared with 640 rows, which do not fit"),
        ("en", 640, "its other"),
    ):
        domains = [config.domains[0].model_copy(update={"slot": slot}), *config.domains[1:]]
        model = config.model.model_copy(update={"slot_rows": rows})
        with pytest.raises(ConfigError, match=said):
            read_prepared_tokenizer(config.model_copy(update={"domains": domains, "model": model}))


def test_a_tokenizer_with_more_rows_encodes_the_text_and_one_with_moved_rows_does_not(tiny_data):
    """Such as that of a run of old domains which was extracted after their slots had got rows of a new one."""
    own = PreparedData(tiny_data).tokenizer()
    rows = own.slot_rows
    fewer, moved = rows.copy(), rows.copy()
    fewer[:, 600:] = -1
    moved[0, [10, 11]] = rows[0, [11, 10]]
    assert encodes(own, own) and encodes(own, own.with_rows(fewer))
    for prepared in (moved, rows[:1], np.pad(rows, ((0, 0), (0, 1)), constant_values=-1)):
        assert not encodes(own, own.with_rows(prepared))
    assert not encodes(own.with_rows(fewer), own)
