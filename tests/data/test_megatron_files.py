"""Token files as they are written: MindFormers' bytes, shards that end with a document, an index that follows from its lengths."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.token_files import lengths_of, paths_of, token_shards, write_tokens

DOCUMENTS = [[5, 6, 7, 9], [9], [100, 200, 9]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "zh.train", DOCUMENTS)
    return tmp_path / "zh.train"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def theirs(prefix: Path, documents: list[list[int]]) -> list[bytes]:
    """What MindFormers writes of documents, under another name."""
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDatasetBuilder

    paths = paths_of(prefix.with_name("theirs"))
    builder = IndexedDatasetBuilder(str(paths[0]), dtype=np.int32)
    for ids in documents:
        builder.add_document(np.array(ids, np.int32), [len(ids)])
    builder.finalize(str(paths[1]))
    return [path.read_bytes() for path in paths]


def test_mindformers_writes_and_reads_the_same(prefix):
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDataset

    assert [path.read_bytes() for path in paths_of(prefix)] == theirs(prefix, DOCUMENTS)
    dataset = IndexedDataset(str(prefix))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]


def test_every_shard_is_a_token_file_that_mindformers_reads(tmp_path):
    from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDataset

    write_tokens(tmp_path / "zh.train", DOCUMENTS, 17)
    for number, part in enumerate((DOCUMENTS[:2], DOCUMENTS[2:])):  # 16 bytes are not yet 17, 20 are
        shard = tmp_path / f"zh.train.{number:05d}"
        assert [path.read_bytes() for path in paths_of(shard)] == theirs(shard, part)
        dataset = IndexedDataset(str(shard))
        assert [dataset[i].tolist() for i in range(len(dataset))] == part


@given(st.data())
def test_shards_are_the_text_cut_at_the_first_end_of_a_document_after_their_size(tmp_path_factory, data):
    documents = data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=12))
    size = data.draw(st.integers(1, 80))
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "x.y", documents, size)
    shards, read = token_shards("x.y", names_in(folder)), []
    assert names_in(folder) == sorted(path.name for shard in shards for path in paths_of(folder / shard))
    for number, shard in enumerate(shards):
        ids, lengths = (
            np.fromfile(folder / f"{shard}.bin", "<i4").tolist(),
            lengths_of((folder / f"{shard}.idx").read_bytes()),
        )
        assert sum(lengths) == len(ids)
        if number + 1 < len(shards):
            assert 4 * len(ids) >= size > 4 * (len(ids) - lengths[-1]), "its last document reached the size"
        at = 0
        for length in lengths.tolist():
            read.append(ids[at : at + length])
            at += length
    assert read == documents


def test_one_shard_has_the_name_and_the_bytes_of_today(tmp_path):
    write_tokens(tmp_path / "one", DOCUMENTS)
    write_tokens(tmp_path / "two", DOCUMENTS, 32)  # exactly its size, and nothing comes after
    assert names_in(tmp_path) == ["one.bin", "one.idx", "two.bin", "two.idx"]
    for one, two in zip(paths_of(tmp_path / "one"), paths_of(tmp_path / "two"), strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "one.bin").read_bytes() == np.array(list(chain(*DOCUMENTS)), "<i4").tobytes()


def test_shards_are_found_in_order_and_of_their_own_text_alone():
    files = [f"zh.train.{number:05d}.bin" for number in (2, 0, 1)] + ["zh.held_out.bin", "en.train.00000.bin"]
    assert token_shards("zh.train", files) == ["zh.train.00000", "zh.train.00001", "zh.train.00002"]
    assert token_shards("zh.held_out", files) == ["zh.held_out"]
    assert token_shards("en.held_out", files) == []
    many = [f"zh.train.{number:05d}.bin" for number in range(100_002)]
    assert token_shards("zh.train", set(many))[-1] == "zh.train.100001"
