from __future__ import annotations

import json
import random
from itertools import combinations

import numpy as np
import pytest

from experiments.near_duplicates import (
    _EVERY,
    LANGUAGES,
    SIMILARITIES,
    documents,
    grams,
    hold_out,
    jaccard,
    judge,
    make_signatures,
    near_copy,
    search,
)


@pytest.fixture(scope="module")
def pool() -> dict[str, list[str]]:
    draw = random.Random(0)
    return {
        language: [" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(8)) + "." for _ in range(3_000)]
        for language in LANGUAGES
    }


def test_copies_are_as_similar_as_wanted(pool):
    text, other = (" ".join(pool["en"][first : first + 30]) for first in (0, 30))
    for wanted in SIMILARITIES:
        copy, exact = near_copy(text, other, wanted)
        assert exact == jaccard(grams(text), grams(copy))
        assert wanted <= exact < wanted + 0.02
    assert jaccard(grams(text), grams(other)) == 0


def test_what_is_planted_is_found_and_counted(pool, tmp_path):
    every = list(documents(pool, 600_000))
    copies = [each for each in every if each["original"] is not None]
    assert len(every) // (2 * _EVERY) < len(copies) <= -(-len(every) // _EVERY)
    assert all(every[each["original"]]["domain"] == each["domain"] for each in copies)
    originals = [grams(each["text"]) for each in every[:60] if each["original"] is None]
    assert max(jaccard(a, b) for a, b in combinations(originals, 2)) < 0.3
    corpus, signatures = tmp_path / "corpus", tmp_path / "signatures"
    corpus.mkdir()
    signatures.mkdir()
    (tmp_path / "search").mkdir()
    for block, first in enumerate((0, 100)):
        some = every[first : 100 if block == 0 else None]
        (corpus / f"{block}.jsonl").write_text("\n".join(map(json.dumps, some)), "utf-8")
    measured = make_signatures(signatures, corpus)
    assert sum(measured[f"{language} bytes"] for language in LANGUAGES) == sum(len(each["text"]) for each in every)
    assert search(tmp_path / "search", signatures, 0.8, 64 << 20)["documents"] == len(every)
    said = judge(corpus, np.load(tmp_path / "search" / "first.npy"))
    assert said["precision"].startswith("1.00000: 0 of ")
    assert [said[f"found of {language} at 100%"].split()[0] for language in LANGUAGES] == ["1.0000"] * 2
    assert all(np.array([said["unrelated pairs"].split()[-1]], float) < 0.3)


def test_near_duplicates_of_held_out_text_are_counted_and_leave(pool, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "0.jsonl").write_text("\n".join(map(json.dumps, documents(pool, 3_000_000))), "utf-8")
    counts = []
    for name, threshold in (("off", None), ("on", 0.8)):
        (tmp_path / name).mkdir()
        counts.append(hold_out(tmp_path / name, corpus, threshold))
    assert counts[0]["near-duplicate trained on"] > 0 == counts[1]["near-duplicate trained on"]
    assert counts[0]["held out"] >= counts[1]["held out"] > 50
