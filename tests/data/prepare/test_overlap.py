"""What is held out repeats nothing of its domain: by sets of tuples, with documents made of each other's pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from helpers.texts import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.indexed import TokenFile
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.overlap import WINDOW, HeldOutSize, choose_held_out
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.errors import DataError

EOT = 9


def windows(document: list[int]) -> list[tuple[int, ...]]:
    """Every window of a document with its <eot>; a short one is one window."""
    ids = document[:-1]
    return [tuple(ids[i : i + WINDOW]) for i in range(max(1, len(ids) - WINDOW + 1))] if ids else []


def stands_in(window: tuple[int, ...], document: list[int]) -> bool:
    ids, size = tuple(document[:-1]), len(window)
    return any(ids[i : i + size] == window for i in range(len(ids) - size + 1))


def share(document: list[int], others: list[list[int]]) -> float:
    own = windows(document)
    return sum(any(stands_in(window, other) for other in others) for window in own) / len(own) if own else 1.0


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


@given(repeating(), st.integers(1, 4), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.randoms(use_true_random=False))
def test_the_first_candidates_that_repeat_too_little_are_held_out(documents, wanted, limit, order):
    candidates = order.sample(range(len(documents)), max(1, len(documents) // 2))
    good = [c for c in candidates if share(documents[c], documents[:c] + documents[c + 1 :]) <= limit]
    demand = HeldOutSize(min(wanted, len(candidates)), 1, limit)
    if not good:
        with pytest.raises(DataError, match="0 tokens can be held out"):
            choose_held_out("d", arrays(documents), candidates, demand)
        return
    held_out, record = choose_held_out("d", arrays(documents), candidates, demand)
    assert held_out == sorted(good[: demand.documents])
    training = [document for number, document in enumerate(documents) if number not in held_out]
    own = [window for number in held_out for window in windows(documents[number])]
    standing = [window for window in own if any(stands_in(window, document) for document in training)]
    assert record.windows == len(own)
    assert record.share == pytest.approx(len(standing) / max(1, len(own)))
    assert record.share <= limit or not own
    last = candidates.index(good[: demand.documents][-1])
    assert record.passed_over == len([c for c in candidates[:last] if c not in good])


def test_text_of_several_chunks_is_compared_as_a_whole():
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 40_000, 20_000), EOT).astype(np.int32) for _ in range(12)]
    documents[11][5_000:5_400] = documents[0][100:500]  # 388 windows of 19,988: 1.9 %
    documents[10][5_000:5_100] = documents[1][7:107]  # 88: 0.4 %
    taken, record = choose_held_out("d", documents, [11, 10, 9], HeldOutSize(2, 1, 0.01))
    assert taken == [9, 10]
    assert (record.passed_over, record.passed_over_tokens, record.wanted) == (1, 20_001, 2)
    assert record.share == 88 / (2 * 19_988)
    assert record.by_hash_alone == (388 + 88) / (2 * 19_988)


def test_more_documents_are_held_out_until_there_are_tokens_enough():
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 40_000, 99), EOT).astype(np.int32) for _ in range(20)]
    candidates = list(range(10))
    assert choose_held_out("d", documents, candidates, HeldOutSize(2, 650, 0.01))[0] == list(range(7))
    assert choose_held_out("d", documents, candidates, HeldOutSize(2, 1, 0.01))[0] == [0, 1]
    assert choose_held_out("d", documents, candidates, HeldOutSize(2, 1_000, 0.01))[0] == candidates
    with pytest.raises(
        DataError,
        match=r"domain d: 1,000 tokens can be held out, data\.min_held_out_tokens=1,001 are wanted; of the 10 documents .*, 0 have "
        r"more than data\.max_overlap=0\.01 .* pass more --input text of this domain, raise data\.held_out",
    ):
        choose_held_out("d", documents, candidates, HeldOutSize(2, 1_001, 0.01))


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


def documents_of(folder: Path, split: str) -> list[list[int]]:
    file = TokenFile(folder / split)
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
            train, ours = (documents_of(folder, f"{name}.{split}") for split in ("train", "held_out"))
            seen = {window for document in train for window in windows(document)}
            own = [window for document in ours for window in windows(document)]
            found = sum(
                window in seen if len(window) == WINDOW else any(stands_in(window, d) for d in train) for window in own
            )
            assert (record.windows, record.share) == (len(own), found / len(own))
            assert record.share <= 0.01 < record.by_hash_alone
            assert (len(ours), len(train)) == (8, 72), "nothing is lost"
            assert record.passed_over > 0
            held_out.append({tuple(document) for document in ours})
    assert held_out[:4] == held_out[4:]


def test_text_that_repeats_itself_everywhere_is_refused_with_the_way_out(tmp_path):
    lines = [{"domain": name, "text": f"the same {'again ' * 20} {i}"} for i in range(40) for name in NAMES]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config()
    data = config.data.model_copy(update={"max_overlap": 0.01})
    with pytest.raises(
        DataError, match=r"domain zh: 0 tokens can be held out.*20 have more than data\.max_overlap=0\.01"
    ):
        prepare(config.model_copy(update={"data": data}), [tmp_path / "a.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
