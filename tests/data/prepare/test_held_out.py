"""What is held out repeats nothing of its domain: by sets of tuples, with documents made of each other's pieces."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.texts import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.manifest import OverlapRecord, load_manifest
from pangu_sigma.data.prepare.held_out import WINDOW, Finder, HeldOutChoice, choose_held_out
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.sections import DataConfig

EOT = 9


def windows(document: list[int]) -> list[tuple[int, ...]]:
    """Every window of a document with its <eot>; a short one is one window."""
    ids = document[:-1]
    return [tuple(ids[i : i + WINDOW]) for i in range(max(1, len(ids) - WINDOW + 1))] if ids else []


def stands_in(window: tuple[int, ...], document: list[int]) -> bool:
    ids, size = tuple(document[:-1]), len(window)
    return any(ids[i : i + size] == window for i in range(len(ids) - size + 1))


def counts(document: list[int], documents: list[list[int]]) -> list[int]:
    """In how many documents each of its windows stands, itself included."""
    return [sum(stands_in(window, other) for other in documents) for window in windows(document)]


def common_tokens(document: list[int], documents: list[list[int]], boilerplate: int) -> list[bool]:
    """Which of its tokens, without <eot>, are in a window that stands in more documents than that."""
    common = [False] * (len(document) - 1)
    for start, count in enumerate(counts(document, documents)):
        if count > boilerplate:
            common[start : start + WINDOW] = [True] * len(common[start : start + WINDOW])
    return common


def own_windows(document: list[int], documents: list[list[int]], boilerplate: int) -> list[tuple[int, ...]]:
    """Its windows without boilerplate."""
    common = common_tokens(document, documents, boilerplate)
    return [w for start, w in enumerate(windows(document)) if not any(common[start : start + len(w)])]


def overlap(document: list[int], documents: list[list[int]], boilerplate: int, max_boilerplate: float) -> float:
    own = own_windows(document, documents, boilerplate)
    if sum(count > boilerplate for count in counts(document, documents)) > max_boilerplate * len(windows(document)):
        return 1.0
    repeated = [window for window in own if sum(stands_in(window, other) for other in documents) > 1]
    return len(repeated) / len(windows(document)) if own else 1.0


@dataclass(frozen=True)
class Demand:
    """The last arguments of `choose_held_out`."""

    data: DataConfig
    documents: int
    sample: int


def size(
    documents: int,
    tokens: int = 1,
    limit: float = 0.01,
    boilerplate: int = 1_000,
    most: int = 10**6,
    max_boilerplate: float = 1.0,
) -> Demand:
    limits = {"min_held_out_tokens": tokens, "max_held_out_tokens": most, "max_overlap": limit}
    limits |= {"boilerplate_documents": boilerplate, "max_boilerplate": max_boilerplate}
    return Demand(tiny_config().data.model_copy(update=limits), documents, 5)


def chosen(documents: list[np.ndarray], candidates: list[int], demand: Demand) -> HeldOutChoice:
    """The choice, with numbers of documents; the other documents come in two parts."""
    first = [documents[number] for number in candidates]
    others = [documents[number] for number in range(len(documents)) if number not in candidates]
    finder = Finder(first)
    counts = [finder.count(others[part::2]) for part in range(2)]
    choice = choose_held_out(first, finder, counts, demand.data, demand.documents, demand.sample)
    return replace(choice, numbers=sorted(candidates[number] for number in choice.numbers))


def choose(documents: list[np.ndarray], candidates: list[int], demand: Demand) -> tuple[list[int], OverlapRecord]:
    choice = chosen(documents, candidates, demand)
    assert choice.shortage == ""
    return choice.numbers, choice.overlap


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, np.int32) for document in documents]


@st.composite
def repeating(draw) -> list[list[int]]:
    """Documents cut from two long rows of few different ids, some short, some with a change in the middle."""
    rows = [draw(st.lists(st.integers(0, 3), min_size=40, max_size=60)) for _ in range(2)]
    documents = []
    for _ in range(draw(st.integers(2, 9))):
        row, start = draw(st.sampled_from(rows)), draw(st.integers(0, 30))
        ids = row[start : start + draw(st.integers(0, 30))]
        if draw(st.booleans()):
            ids = [*ids, *draw(st.lists(st.integers(0, 3), max_size=20))]
        documents.append([*ids, EOT])
    return documents


@given(
    repeating(),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 2, 3, 100]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.randoms(use_true_random=False),
)
def test_the_first_candidates_that_repeat_too_little_are_held_out(documents, wanted, limit, boilerplate, most, order):
    candidates = order.sample(range(len(documents)), max(1, len(documents) // 2))
    good = [c for c in candidates if overlap(documents[c], documents, boilerplate, most) <= limit]
    demand = size(min(wanted, len(candidates)), limit=limit, boilerplate=boilerplate, max_boilerplate=most)
    choice = chosen(arrays(documents), candidates, demand)
    assert choice.numbers == sorted(good[: demand.documents])
    assert ("0 tokens can be held out" in choice.shortage) == (not good)
    training = [document for number, document in enumerate(documents) if number not in choice.numbers]
    count = sum(len(windows(documents[number])) for number in choice.numbers)
    own = [w for number in choice.numbers for w in own_windows(documents[number], documents, boilerplate)]
    common = [token for number in choice.numbers for token in common_tokens(documents[number], documents, boilerplate)]
    standing = [window for window in own if any(stands_in(window, document) for document in training)]
    record = choice.overlap
    assert record.windows == count
    assert record.boilerplate == pytest.approx(sum(common) / max(1, len(common)))
    assert record.share == pytest.approx(len(standing) / max(1, count))
    assert record.share <= limit or not own
    before = candidates[: candidates.index(good[: demand.documents][-1])] if good else candidates
    assert record.passed_over == len([c for c in before if c not in good])
    seen = {window for number in candidates for window in windows(documents[number])}
    assert record.boilerplate_windows == sum(
        sum(stands_in(window, document) for document in documents) > boilerplate for window in seen
    )


def test_text_of_several_chunks_is_compared_as_a_whole():
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 40_000, 20_000), EOT).astype(np.int32) for _ in range(12)]
    documents[11][5_000:5_400] = documents[0][100:500]  # 388 windows of 19,988: 1.9 %
    documents[10][5_000:5_100] = documents[1][7:107]  # 88: 0.4 %
    taken, record = choose(documents, [11, 10, 9], size(2))
    assert taken == [9, 10]
    assert (record.passed_over, record.passed_over_tokens, record.wanted) == (1, 20_001, 2)
    assert record.share == 88 / (2 * 19_988)


def test_more_documents_are_held_out_until_there_are_tokens_enough():
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 40_000, 99), EOT).astype(np.int32) for _ in range(20)]
    candidates = list(range(10))
    assert choose(documents, candidates, size(2, 650))[0] == list(range(7))
    assert choose(documents, candidates, size(2))[0] == [0, 1]
    assert choose(documents, candidates, size(2, 1_000))[0] == candidates
    shortage = chosen(documents, candidates, size(2, 1_001)).shortage
    assert shortage == (
        "1,000 tokens can be held out, min_held_out_tokens=1,001 are wanted; of the 10 documents that may be held out, 0 have "
        "more than max_overlap=0.01 of their windows of 13 tokens in other documents, or are mostly boilerplate; set "
        "min_held_out_tokens=1000 in the domain's entry; or raise its max_overlap or data.max_boilerplate, up to 1; or"
    )
    needs_more = chosen(documents, candidates, replace(size(2, 1_001), sample=1_001)).shortage
    assert "set min_held_out_tokens" not in needs_more, "training needs a sample"


def with_footer(documents: int, footer: int, common: int, seed: int = 0) -> list[np.ndarray]:
    """Documents of 99 new ids, the first `common` of them with the same `footer` ids at the end."""
    rng = np.random.default_rng(seed)
    last = rng.integers(0, 40_000, footer)
    return [
        np.concatenate([rng.integers(0, 40_000, 99), last if n < common else [], [EOT]]).astype(np.int32)
        for n in range(documents)
    ]


def test_windows_in_more_than_k_documents_are_boilerplate_and_pass_no_document_over():
    documents = with_footer(30, footer=30, common=12)
    candidates = list(range(15))
    numbers, record = choose(documents, candidates, size(5, boilerplate=11))
    assert (numbers, record.passed_over) == ([0, 1, 2, 3, 4], 0)
    assert record.share == 0.0
    assert record.boilerplate == 30 / (99 + 30), "and windows that touch the footer do not count"
    numbers, record = choose(documents, candidates, size(5, boilerplate=12))
    assert (numbers, record.passed_over) == ([12, 13, 14], 12), "12 documents are not more than 12"
    assert (record.boilerplate, record.boilerplate_windows) == (0.0, 0)


def test_a_document_that_is_mostly_boilerplate_is_passed_over():
    """Such as the files of 60 codecs, which differ in a table: 488 of 587 windows stand in twelve documents."""
    documents, candidates = with_footer(30, footer=500, common=12), list(range(15))
    numbers, record = choose(documents, candidates, size(5, boilerplate=10, max_boilerplate=0.5))
    assert (numbers, record.passed_over, record.boilerplate) == ([12, 13, 14], 12, 0.0)
    numbers, _ = choose(documents, candidates, size(5, boilerplate=10, max_boilerplate=488 / 587))
    assert numbers == [0, 1, 2, 3, 4], "the limit itself is allowed"
    shortage = chosen(documents, candidates, size(5, tokens=301, boilerplate=10, max_boilerplate=0.5)).shortage
    assert "or are mostly boilerplate" in shortage
    assert "; or raise its max_overlap or data.max_boilerplate, up to 1; or" in shortage


def test_held_out_tokens_are_capped_also_by_documents_that_are_too_long():
    documents = with_footer(20, footer=0, common=0)
    candidates = list(range(10))
    assert choose(documents, candidates, size(8, tokens=150, most=450))[0] == [0, 1, 2, 3]
    documents[0] = np.concatenate([documents[0][:-1]] * 5 + [[EOT]]).astype(np.int32)
    assert choose(documents, candidates, size(8, tokens=150, most=450))[0] == [1, 2, 3, 4], "the first is skipped"
    shortage = chosen(documents, [0], size(1, most=450)).shortage
    assert "; 1 of them longer than data.max_held_out_tokens=450; raise it; " in shortage


NAMES = ("zh", "en", "bilingual", "code")


def write_repeating(path: Path, order: random.Random) -> None:
    """Documents of every domain in some order: 40 of new words, 20 that begin like one of those, 20 short ones."""
    rng, lines = random.Random(0), []
    for name in NAMES:
        letters = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏" if name == "zh" else "abcdefghijklmnopqrstuvwxyz"
        texts = [" ".join("".join(rng.choices(letters, k=4)) for _ in range(30)) for _ in range(40)]
        texts += [f"{text[: 20 + i * 4]} {''.join(rng.choices(letters, k=30))}" for i, text in enumerate(texts[:20])]
        texts += [f"{letters[i]}{letters[i + 1]}" for i in range(20)]
        lines += [json.dumps({"domain": name, "text": text}) + "\n" for text in texts]
    order.shuffle(lines)
    path.write_text("".join(lines))


def documents_of(folder: Path, name: str, split: str) -> list[list[int]]:
    file = PreparedData(folder).tokens(name, split, 1 << 31)
    ends = np.cumsum(file.lengths)
    return [file.read(int(end - size), int(size)).tolist() for size, end in zip(file.lengths, ends, strict=True)]


def test_what_was_written_repeats_at_most_what_the_manifest_says_whatever_the_order(tmp_path):
    config = tiny_config()
    data = config.data.model_copy(update={"held_out": 0.1, "max_overlap": 0.01, "min_held_out_tokens": 100})
    held_out = []
    for seed in range(2):
        write_repeating(tmp_path / "a.jsonl", random.Random(seed))
        folder = tmp_path / f"out_{seed}"
        prepare(config.model_copy(update={"data": data}), [tmp_path / "a.jsonl"], folder)
        records = load_manifest(folder).domains
        for name in NAMES:
            record = records[name].overlap
            train, ours = (documents_of(folder, name, split) for split in ("train", "held_out"))
            seen = {window for document in train for window in windows(document)}
            own = [window for document in ours for window in windows(document)]
            found = sum(
                window in seen if len(window) == WINDOW else any(stands_in(window, d) for d in train) for window in own
            )
            assert (record.windows, record.share) == (len(own), found / len(own))
            assert record.share <= 0.01
            assert (len(ours), len(train)) == (8, 72), "nothing is lost"
            assert record.passed_over > 0
            held_out.append({tuple(document) for document in ours})
    assert held_out[:4] == held_out[4:]
