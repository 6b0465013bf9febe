from __future__ import annotations

import json
from collections import Counter

import pytest

from experiments.tiny import tiny_tree
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.cleaning.sieve import Sample, Sieve, Sifted
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.text.documents import Document, Rejected

SHORT, LONG = "two words", "the quick brown fox jumps over the lazy dog near a quiet river bank today"


def config_of(path, **data):
    tree = tiny_tree(path)
    return parse_config(tree | {"data": tree["data"] | data})


def test_documents_are_dropped_counted_and_sampled(tmp_path):
    sieve = Sieve(config_of(tmp_path, filters={"min_words": 5}))
    bad = Rejected("a.jsonl", 3, 40, "not JSON", "…")
    items = [Document("en", LONG, "a.jsonl:0"), bad, *(Document("en", SHORT, f"a.jsonl:{n}") for n in range(8))]
    found = list(sieve.sift(items))
    assert found[:2] == items[:2]
    assert [type(each) for each in found[2:]] == [Sample] * 5
    assert (found[2].file, found[2].line, found[2].offset) == ("a.jsonl", None, 0)
    assert (found[2].reason, str(found[3])) == ("filter min_words", "a.jsonl (byte 1): two words")
    assert sieve.sifted.of(1) == ({"min_words": 8}, 8 * len(SHORT))
    assert sieve.sifted.of(0) == ({}, 0)


def test_counts_add_up():
    one = Sifted(Counter({(0, "a"): 1}), Counter({0: 5}))
    assert (one + one).of(0) == ({"a": 2}, 10)


def lines(documents: list[tuple[str, str]]) -> str:
    return "".join(
        json.dumps({"domain": domain, "text": text}, ensure_ascii=False) + "\n" for domain, text in documents
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_preparation_counts_what_filters_and_near_duplicates_left_out(tmp_path, workers):
    words = [f"w{n}" for n in range(400)]
    stories = [" ".join(words[n : n + 60]) + f" number {n}" for n in range(0, 340, 12)]
    near = [stories[5] + " again", stories[7] + " indeed"]
    documents = [*(("en", text) for text in stories), *(("code", text) for text in near), ("en", stories[3])]
    documents += [
        ("en", SHORT),
        ("en", "short one"),
        *(("zh", f"今天天气不错，我们去公园看花{n}号，他说你好。") for n in range(20)),
    ]
    documents += [
        ("code", f"def f_{n}(a, b):\n    total = a * {n} + b\n    return [total, {n * 7}, 'x{n}']") for n in range(20)
    ]
    (tmp_path / "text.jsonl").write_text(lines(documents), encoding="utf-8")
    config = config_of(tmp_path / "out", filters={"min_words": 4}, near_duplicates=0.8)
    prepare(config, [tmp_path / "text.jsonl"], tmp_path / "out", Options(workers=workers))
    manifest = load_manifest(tmp_path / "out")
    en, code = manifest.domains["en"], manifest.domains["code"]
    assert en.filtered == {"min_words": 2} and en.duplicates == 1 and en.near_duplicates == 0
    assert code.near_duplicates == 2
    for record in manifest.domains.values():
        left = sum(record.filtered.values()) + record.duplicates + record.near_duplicates
        assert record.offered == left + record.train.documents + record.held_out.documents
    assert manifest.near_duplicates.lost["code to en"] == 2
    one, other = manifest.near_duplicates.examples[0]
    assert one[:40] == other[:40]
    kept = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(each["reason"], each["line"]) for each in kept] == [("filter min_words", None)] * 2
    assert manifest.quarantined == {}
