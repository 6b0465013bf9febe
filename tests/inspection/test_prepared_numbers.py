"""The numbers of a prepared folder are those that counting its tokens one by one gives."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest

from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import DataError
from pangu_sigma.inspection.prepared_numbers import EXPERT_COUNTS, expected_load, is_prepared, measure_prepared
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.sections import RoutingConfig


@pytest.fixture(scope="module")
def numbers(tiny_data):
    return measure_prepared(tiny_data)


@pytest.fixture(scope="module")
def read(tiny_data):
    """Domain → split → ids of every document, read from the token files."""
    data = PreparedData(tiny_data)
    size, found = data.tokenizer().size, {}
    for name in data.manifest.domains:
        found[name] = {}
        for split in ("train", "held_out"):
            (file,) = data.tokens(name, split, size).shards
            ends = np.cumsum(file.lengths)
            found[name][split] = [
                file.read(int(end - length), int(length)).tolist()
                for end, length in zip(ends, file.lengths, strict=True)
            ]
    return found


def test_tokens_lengths_and_shares_are_those_of_the_files(numbers, read):
    assert [each.name for each in numbers.domains] == ["zh", "en", "code"]
    total = sum(len(ids) for of in read.values() for documents in of.values() for ids in documents)
    assert numbers.tokens == total
    tree = numbers.as_dict()
    for each in numbers.domains:
        lengths = [len(ids) for documents in read[each.name].values() for ids in documents]
        assert sorted(each.lengths.tolist()) == sorted(lengths)
        assert each.length(50) == np.median(lengths)
        assert each.length(100) == max(lengths)
        assert tree["domains"][each.name]["share"] == sum(lengths) / total
        assert tree["domains"][each.name]["documents"] == 120


def test_fertility_is_tokens_over_the_characters_and_bytes_of_the_text(tiny_data, numbers, read):
    tokenizer, by_slot = PreparedData(tiny_data).tokenizer(), Counter()
    for each in numbers.domains:
        training = read[each.name]["train"]
        text = "".join(tokenizer.decode(ids) for ids in training)
        tokens = sum(map(len, training))
        assert each.characters == len(text)
        assert each.per_character == tokens / len(text)
        assert each.per_byte == tokens / len(text.encode()), "this text is as it was given"
        by_slot[each.record.slot, "tokens"] += tokens
        by_slot[each.record.slot, "characters"] += len(text)
    for name, slot in numbers.slots().items():
        assert slot["tokens_per_character"] == by_slot[name, "tokens"] / by_slot[name, "characters"]


def test_the_most_frequent_tokens_are_named_with_their_counts(tiny_data, numbers, read):
    tokenizer = PreparedData(tiny_data).tokenizer()
    for each in numbers.domains:
        counts = Counter(token for ids in read[each.name]["train"] for token in ids)
        assert each.distinct == len(counts)
        assert [count for _, count in each.frequent] == sorted(counts.values(), reverse=True)[:10]
        named = {  # "我们" and "▁我们" decode to the same text
            (repr(text) if (text := tokenizer.decode([token])) else tokenizer.vocabulary.pieces[token], count)
            for token, count in counts.items()
        }
        assert named >= set(each.frequent)
    assert "'我们'" in dict(numbers.domains[0].frequent)


def test_the_expected_load_is_that_of_the_tokens_routed_by_the_tables(numbers, read):
    for domain in numbers.domains:
        for table in ("random", "balanced"):
            ids = np.concatenate(read[domain.name]["train"])
            size = int(ids.max()) + 1
            counts_V = np.bincount(ids, minlength=size)
            drawn = draw_tables(RoutingConfig(table=table), 4, 1, size, 4, counts_V[None])
            positions = np.arange(len(ids)) if table == "random" else np.zeros(len(ids), int)
            if (drawn.spread_DV > 1).any():  # spread evenly: count each position
                loads = np.zeros((4, 4))
                for token, count in enumerate(counts_V):
                    width = int(drawn.spread_DV[0, token])
                    for n in range(4):
                        for step in range(width):
                            loads[n, (drawn.first_NDV[n, 0, token] + step) % 4] += count / width
            else:
                routed = drawn.route(ids, np.zeros(len(ids), int), positions)
                loads = np.array([np.bincount(each, minlength=4) for each in routed])
            by_hand = (loads.max(axis=1) / loads.mean(axis=1)).mean()
            assert expected_load(counts_V, table, 4) == pytest.approx(by_hand)
        assert len(domain.load["random"]) == len(EXPERT_COUNTS)
        assert all(1 <= b <= r for b, r in zip(domain.load["balanced"], domain.load["random"], strict=True))


def test_a_domain_without_tokens_is_even():
    assert expected_load(np.zeros(50, np.int64), "random", 4) == 1.0


def test_quarantined_lines_are_counted_with_examples(tiny_data, tmp_path):
    from experiments.tiny import tiny_config
    from pangu_sigma.data.prepare.prepare import prepare

    text = tmp_path / "text.jsonl"
    lines = (tiny_data.parent / "text.jsonl").read_text(encoding="utf-8")
    text.write_text(lines + '{"text": "a", "domain": "fr"}\nno JSON\n' * 5, encoding="utf-8")
    prepare(tiny_config(tmp_path / "data"), [text], tmp_path / "data")
    numbers = measure_prepared(tmp_path / "data")
    assert numbers.manifest.quarantined["unknown domain"] == 5
    assert len(numbers.examples) == 2
    for shown in numbers.examples.values():
        assert len(shown) == 3
    assert "text.jsonl:361 (byte " in numbers.examples["unknown domain"][0]


def test_a_damaged_file_is_refused_and_other_folders_are_no_prepared_data(tiny_data, tmp_path):
    assert is_prepared(tiny_data)
    assert not is_prepared(tmp_path)
    data = shutil.copytree(tiny_data, tmp_path / "data")
    file = data / "frequencies.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"frequencies\.npy: "):
        measure_prepared(data)
    manifest = load_manifest(tiny_data)
    file.write_bytes((tiny_data / "frequencies.npy").read_bytes())
    manifest.model_copy(update={"config": manifest.config | {"domains": []}}).save(data)
    with pytest.raises(DataError, match=r"has the shape .*, the manifest lists 0 domains"):
        measure_prepared(data)
