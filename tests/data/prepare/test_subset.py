from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.prepared import reseal

from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.subset import write_subset
from pangu_sigma.data.prepared import SPLITS, PreparedData
from pangu_sigma.data.samples import open_samples
from pangu_sigma.data.token_files import TokenFile
from pangu_sigma.errors import DataError

NAMES = ["zh", "en", "code"]


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    """Of the slot of en and code alone."""
    return PreparedData(tiny_data).tokenizer().of_slots([1])


@pytest.fixture(scope="module")
def subset(tiny_data, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("subset") / "data"
    write_subset(tiny_data, path, NAMES, ["en", "code"], tokenizer)
    return path


def test_it_is_prepared_data_of_these_domains_with_every_file_verified(tiny_data, subset, tokenizer):
    whole, prepared = PreparedData(tiny_data), PreparedData(subset)
    prepared.verify_all()
    assert prepared.tokenizer().hash == tokenizer.hash != whole.tokenizer().hash
    for name in ("en", "code"):
        for split in SPLITS:
            mine, its = (p.tokens(name, split, tokenizer.size) for p in (prepared, whole))
            assert (mine.read(0, mine.tokens) == its.read(0, its.tokens)).all()
            assert (tokenizer.row_of[0, mine.read(0, mine.tokens)] >= 0).all(), "every id has a row in its one slot"
    assert (prepared.frequencies() == whole.frequencies()[1:]).all()
    assert sorted(path.name for path in subset.glob("*zh*")) == []
    config = tiny_config(subset)
    config = config.model_copy(update={"domains": config.domains[1:]})
    assert open_samples(config, subset, "train", tokenizer.size).counts[0] > 1


def test_the_manifest_says_where_it_comes_from_and_is_its_own(tiny_data, subset, tokenizer, tmp_path):
    whole, mine = load_manifest(tiny_data), load_manifest(subset)
    assert list(mine.domains) == ["code", "en"]
    assert mine.domains["en"] == whole.domains["en"]
    assert mine.config["subset_of"] == whole.fingerprint
    assert [each[0] for each in mine.config["domains"]] == ["en", "code"]
    assert mine.fingerprint != whole.fingerprint
    again = write_subset(tiny_data, tmp_path / "again", NAMES, ["en", "code"], tokenizer)
    assert (again.fingerprint, again.content_hash) == (mine.fingerprint, mine.content_hash)
    other = write_subset(tiny_data, tmp_path / "other", NAMES, ["en"], tokenizer)
    assert other.fingerprint != mine.fingerprint
    assert other.content_hash != mine.content_hash


def test_token_files_take_no_room_where_links_can_be_made(tiny_data, subset):
    assert (subset / "en.train.bin").samefile(tiny_data / "en.train.bin")


def test_without_links_they_are_copied(tiny_data, tokenizer, tmp_path, monkeypatch):
    def refuse(*unused):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    write_subset(tiny_data, tmp_path / "data", NAMES, ["en"], tokenizer)
    PreparedData(tmp_path / "data").verify_all()
    assert not (tmp_path / "data" / "en.train.bin").samefile(tiny_data / "en.train.bin")


def test_shards_are_kept_whole(tiny_data, tokenizer, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "whole")
    for split in SPLITS:
        file = TokenFile(data / f"en.{split}")
        documents = np.split(file.read(0, file.tokens), np.cumsum(file.lengths)[:-1])
        for path in data.glob(f"en.{split}.*"):
            path.unlink()
        write_tokens(data / f"en.{split}", documents, 500)
    reseal(data)
    write_subset(data, tmp_path / "subset", NAMES, ["en"], tokenizer)
    PreparedData(tmp_path / "subset").verify_all()
    for split in SPLITS:
        mine, its = (PreparedData(each).tokens("en", split, tokenizer.size) for each in (tmp_path / "subset", data))
        assert len(mine.shards) == len(its.shards)
        assert len(mine.shards) > 1
        assert (mine.read(0, mine.tokens) == its.read(0, its.tokens)).all()


def test_text_that_is_not_what_was_prepared_is_refused_by_name(tiny_data, tokenizer, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "damaged")
    content = bytearray((data / "en.held_out.bin").read_bytes())
    content[8] ^= 1
    (data / "en.held_out.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"en\.held_out\.bin: xxh3_128 is .* was written"):
        write_subset(data, tmp_path / "one", NAMES, ["en"], tokenizer)
    write_subset(data, tmp_path / "two", NAMES, ["code"], tokenizer)  # the damage is in a domain that stays behind
    with pytest.raises(ConfigError, match="domain 'fr' is not in"):
        write_subset(tiny_data, tmp_path / "three", NAMES, ["fr"], tokenizer)
    with pytest.raises(DataError, match=r"cannot write .*: File exists"):
        write_subset(tiny_data, tmp_path / "two", NAMES, ["en"], tokenizer)
    with pytest.raises(DataError, match=r"manifest\.json: No such file"):
        write_subset(tmp_path, tmp_path / "four", NAMES, ["en"], tokenizer)
