from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import combinations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tiny import tiny_tree
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.near_duplicates import (
    _SLICE,
    GRAM_WORDS,
    PERMUTATIONS,
    NearDuplicates,
    bands_of,
    near_duplicates,
    shingles,
    signature,
)
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.text.documents import Document
from pangu_sigma.text.words import words

CHINESE = re.findall(
    "..",
    "我们天气公园经济发展学校老师今天非常高兴研究历史北京上海城市电影音乐医院工作问题技术科学国家社会"
    "文化市场企业农村环境水果汽车飞机火车朋友家庭孩子健康运动足球新闻报纸电视网络手机电脑软件数据语言",
)


def text_of(language: str, seed: int, words: int = 300) -> list[str]:
    """Words of a random text; any two texts have next to no 5-gram in common."""
    draw = random.Random(f"{language}{seed}")
    if language == "zh":
        return [draw.choice(CHINESE) for _ in range(words)]
    return ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(words)]


def joined(language: str, words: list[str]) -> Document:
    return Document(language, ("" if language == "zh" else " ").join(words))


def grams(document: Document) -> set[int]:
    return {number for part in shingles(str(document.text), GRAM_WORDS) for number in part.tolist()}


def jaccard(a: Document, b: Document) -> float:
    """Exact, from sets."""
    one, other = grams(a), grams(b)
    return len(one & other) / len(one | other)


def changed(language: str, words: list[str], similarity: float, seed: int) -> Document:
    """A copy with other words at its end, so many that the Jaccard similarity is as wanted or a little more."""
    kept = 2 * similarity / (1 + similarity)
    end = text_of(language, 10**6 + seed, len(words))
    cut = len(words) - int(len(words) * (1 - kept))
    copy = joined(language, words[:cut] + end[cut:])
    while jaccard(joined(language, words), copy) < similarity:
        cut += 1
        copy = joined(language, words[:cut] + end[cut:])
    return copy


def search(signatures: np.ndarray, threshold: float, memory: str = "1GB") -> NearDuplicates:
    """Find the near-duplicates among documents of these signatures."""
    documents = {
        "document": np.arange(len(signatures)) * 7,
        "domain": np.zeros(len(signatures), np.int16),
        "signature": pa.array([each.tobytes() for each in signatures], pa.binary()),
    }
    with duckdb.connect(config={"memory_limit": memory, "threads": 1}) as database:
        database.register("documents", pa.table(documents))
        found = near_duplicates(database, bands_of(threshold, signatures.shape[1]))
    return replace(found, dropped=found.dropped // 7, first=found.first // 7)


def first_of(found: NearDuplicates, count: int) -> np.ndarray:
    """The document that stays in place of each."""
    first = np.arange(count)
    first[found.dropped] = found.first
    return first


def hashes_of(text: str, size: int = GRAM_WORDS) -> list[int]:
    return np.concatenate([np.empty(0, np.uint32), *shingles(text, size)]).tolist()


@given(st.text("abcDE，。!# \n中文字１1２_", max_size=40), st.integers(1, 4))
def test_equal_shingles_are_equal_words(text, size):
    """As many distinct hashes as n-grams, whatever jieba makes of the Chinese in it."""
    spaced = words(text).replace("\u2582", " ").replace("\u2583", " ") if re.search("[中文字]", text) else text
    narrow = "".join(chr(ord(c) - 0xFEE0) if 0xFF01 <= ord(c) <= 0xFF5E else c for c in spaced).replace("。", ".")
    cut = re.findall(r"[^\W_]+|[^\s\w]|_", narrow.lower())
    count = min(size, len(cut))
    expected = [tuple(cut[i : i + count]) for i in range(len(cut) - count + 1)] if cut else []
    found = hashes_of(text, size)
    assert len({*zip(found, expected, strict=True)}) == len(set(expected)) == len(set(found))


def test_case_width_and_blanks_do_not_count_and_marks_do():
    assert hashes_of("Hello,  World!\nＡ１") == hashes_of(" hello, world! a1 ")
    assert hashes_of("天气，很好") == hashes_of("天气,很好")
    assert hashes_of("1 + 1") != hashes_of("1 - 1") != hashes_of("1 1")
    assert hashes_of("ab c") != hashes_of("a bc") != hashes_of("c ab")


def test_long_text_is_cut_and_loses_few_shingles():
    numbered = [f"w{i}" for i in range(40_000)]
    every, shifted = set(hashes_of(" ".join(numbered))), set(hashes_of(" ".join(numbered[3:])))
    assert len(every & shifted) / len(every | shifted) > 0.999
    assert [len(hashes_of(text)) for text in ("x" * (_SLICE + 1), "one two three four five six", "one")] == [2, 2, 1]


@given(st.text("ab 中文，", min_size=1, max_size=60))
def test_a_signature_is_datasketchs_own(text):
    """Against one value after the other, as its documentation shows."""
    sketch = MinHash(PERMUTATIONS, hashfunc=int)
    for part in shingles(text, GRAM_WORDS):
        for number in part.tolist():
            sketch.update(number)
    found = signature(Document("zh", text))
    assert (found.dtype, found.tolist()) == (np.uint32, sketch.hashvalues.tolist())


def test_a_signature_depends_on_text_alone():
    sides = (("zh", "今天天气很好"), ("en", "the weather is good today"))
    one = signature(Document("bilingual", sides))
    assert (one == signature(Document("zh", "\n".join(text for _, text in sides)))).all()
    long = Document("en", " ".join(text_of("en", 1, 6_000)))
    assert np.mean(signature(long) == signature(Document("en", f"x {long.text}"))) > 0.98


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
    bands = bands_of(threshold)
    assert bands.number * bands.rows <= PERMUTATIONS
    assert 1 - (1 - threshold**bands.rows) ** bands.number >= 0.99
    assert bands.equal <= PERMUTATIONS * threshold
    draw = np.random.default_rng(1)
    equal = draw.random((4_000, PERMUTATIONS)) < threshold
    in_a_band = equal[:, : bands.number * bands.rows].reshape(4_000, bands.number, bands.rows).all(axis=2).any(axis=1)
    assert np.mean(in_a_band & (equal.sum(axis=1) >= bands.equal)) >= 0.95


@pytest.mark.parametrize("language", ["zh", "en"])
def test_planted_copies_are_found_and_unrelated_documents_are_not(language):
    """Recall by exact similarity; 100 originals for each, and their copies after all of them."""
    count, similarities = 100, (0.7, 0.8, 0.9, 1.0)
    originals = [text_of(language, seed) for seed in range(len(similarities) * count)]
    documents = [joined(language, words) for words in originals]
    copies = [changed(language, words, similarities[i // count], i) for i, words in enumerate(originals)]
    exact = np.array([jaccard(one, other) for one, other in zip(documents, copies, strict=True)])
    assert (exact >= np.repeat(similarities, count)).all()
    assert (exact < np.repeat(similarities, count) + 0.03).all()
    assert max(jaccard(a, b) for a, b in combinations(documents[:40], 2)) < 0.3
    found = search(np.stack([signature(each) for each in documents + copies]), 0.8)
    assert (found.dropped >= len(documents)).all()
    dropped = np.isin(np.arange(len(copies)), found.dropped - len(documents))
    shares = dropped.reshape(len(similarities), count).mean(axis=1)
    assert (shares[1:] >= 0.95).all(), shares
    assert shares[3] == 1
    assert shares[0] <= 0.5
    assert (found.first == np.flatnonzero(dropped)).all(), "each for its own original"
    assert found.groups == dropped.sum()


def connected(pairs: list[tuple[int, int]], count: int) -> list[int]:
    """The first of each one's group, in plain Python."""
    first = list(range(count))
    for a, b in pairs:
        low, high = sorted((first[a], first[b]))
        first = [low if each == high else each for each in first]
    return first


def oracle(signatures: np.ndarray, threshold: float) -> list[int]:
    """Pairs with enough equal values, of which a band has the second one after the first one of that band, or next to the other."""
    bands = bands_of(threshold, signatures.shape[1])
    pairs = []
    for band in range(bands.number):
        part = slice(band * bands.rows, (band + 1) * bands.rows)
        for number, signature_P in enumerate(signatures):
            same = [n for n in range(number) if (signatures[n, part] == signature_P[part]).all()]
            ends = {same[0], same[-1]} if same else set()
            pairs += [(n, number) for n in ends if (signatures[n] == signature_P).sum() >= bands.equal]
    return connected(pairs, len(signatures))


@st.composite
def related(draw: st.DrawFn) -> np.ndarray:
    """Signatures that share values with earlier ones."""
    count, seed = draw(st.integers(1, 40)), draw(st.integers(0, 1_000))
    random_ = np.random.default_rng(seed)
    signatures = random_.integers(0, 1 << 32, (count, 32), np.uint32)
    for number in range(1, count):
        source, share = random_.integers(number), random_.choice([0.0, 0.5, 0.85, 0.95, 1.0])
        same = random_.random(32) < share
        signatures[number, same] = signatures[source, same]
    return signatures


@settings(max_examples=25)
@given(related(), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_groups_are_connected_by_pairs(signatures, threshold):
    found = search(signatures, threshold)
    first = oracle(signatures, threshold)
    assert first_of(found, len(signatures)).tolist() == first
    assert found.groups == len({f for n, f in enumerate(first) if n != f})


def test_thousands_of_copies_of_one_template_are_one_group_in_little_memory():
    signatures = np.repeat(np.random.default_rng(0).integers(0, 1 << 32, (1, PERMUTATIONS), np.uint32), 5_000, axis=0)
    found = search(signatures, 0.8, "64MB")
    assert (found.dropped.tolist(), set(found.first.tolist()), found.groups) == ([*range(1, 5_000)], {0}, 1)


def test_no_documents_are_no_duplicates():
    found = search(np.empty((0, PERMUTATIONS), np.uint32), 0.8)
    assert (found.dropped.tolist(), found.first.tolist(), found.groups) == ([], [], 0)


def lines_of(documents: list[tuple[str, str]]) -> str:
    return "".join(
        json.dumps({"domain": domain, "text": text}, ensure_ascii=False) + "\n" for domain, text in documents
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_preparation_counts_what_near_duplicates_left_out(tmp_path, workers):
    words = [f"w{n}" for n in range(400)]
    stories = [" ".join(words[n : n + 60]) + f" number {n}" for n in range(0, 340, 12)]
    near = [stories[5] + " again", stories[7] + " indeed"]
    documents = [*(("en", text) for text in stories), *(("code", text) for text in near), ("en", stories[3])]
    documents += [
        *(("zh", f"今天天气不错，我们去公园看花{n}号，他说你好。") for n in range(20)),
    ]
    documents += [
        ("code", f"def f_{n}(a, b):\n    total = a * {n} + b\n    return [total, {n * 7}, 'x{n}']") for n in range(20)
    ]
    (tmp_path / "text.jsonl").write_text(lines_of(documents), encoding="utf-8")
    tree = tiny_tree(tmp_path / "out")
    config = parse_config(tree | {"data": tree["data"] | {"near_duplicates": 0.8}})
    prepare(config, [tmp_path / "text.jsonl"], tmp_path / "out", Options(workers=workers))
    manifest = load_manifest(tmp_path / "out")
    en, code = manifest.domains["en"], manifest.domains["code"]
    assert en.duplicates == 1 and en.near_duplicates == 0
    assert code.near_duplicates == 2
    for record in manifest.domains.values():
        left = record.duplicates + record.near_duplicates
        assert record.offered == left + record.train.documents + record.held_out.documents
    assert manifest.near_duplicates.lost["code to en"] == 2
    one, other = manifest.near_duplicates.examples[0]
    assert one[:40] == other[:40]
    assert manifest.quarantined == {}
