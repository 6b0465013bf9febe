from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from helpers.texts import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.prepare.blocks import INDEX, Work, index_parts
from pangu_sigma.data.prepare.reading import BlockWriter, content_hash
from pangu_sigma.data.prepare.selection import (
    CANDIDATES_PER_DOCUMENT,
    Candidates,
    Kept,
    Lowest,
    Selection,
    held_out_candidates,
    select,
)
from pangu_sigma.data.prepare.stages.stage import Stage
from pangu_sigma.sections import DataConfig
from pangu_sigma.text.documents import Document


def records(texts: list[str]) -> np.ndarray:
    """The records of documents in the order of their hashes, then of arrival; `number` is that of arrival."""
    found = np.zeros(len(texts), INDEX)
    for number, text in enumerate(texts):
        document = Document("zh", text, "")
        key, hold = (np.frombuffer(content_hash(purpose, document)[:16], ">u8") for purpose in ("keep", "hold out"))
        found[number] = (*key.tolist(), *hold.tolist(), document.bytes, number, 0)
    return found[np.lexsort([found["number"], found["key_low"], found["key_high"]])]


def kept(texts: list[str], limit: int | None, parts: int = 1) -> tuple[list[str], Kept]:
    """The texts that are kept, in order; the records come in parts."""
    counts, found = Kept(limit), records(texts)
    numbers = [n for part in np.array_split(found, parts) for n in counts.keep(part)["number"].tolist()]
    return [texts[number] for number in sorted(numbers)], counts


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30), st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_kept_set_fits_and_does_not_depend_on_order(texts, limit, shuffle):
    found, counts = kept(texts, limit)
    assert sum(len(text.encode()) for text in found) == counts.kept_bytes <= limit
    assert len(found) == counts.kept
    shuffle.shuffle(texts)
    again, others = kept(texts, limit)
    assert (set(again), others) == (set(found), counts)


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30, unique=True), st.integers(0, 60), st.integers(1, 5))
def test_the_lowest_hashes_are_kept_that_fit_also_in_parts(texts, limit, parts):
    by_hash = [texts[number] for number in records(texts)["number"]]
    expected, size = set(), 0
    for text in (text for text in by_hash if len(text.encode()) <= limit):
        size += len(text.encode())
        if size > limit:
            break
        expected.add(text)
    assert set(kept(texts, limit, parts)[0]) == expected


def test_documents_are_spread_over_the_source_and_stay_in_order():
    found = [int(text) for text in kept([f"{i:04}" for i in range(1_000)], 400)[0]]
    assert len(found) == 100
    assert 300 < sum(found) / len(found) < 700


def test_copies_and_giants_are_counted_and_left_out():
    found, counts = kept(["a", "b", "a", "x" * 100], 50)
    assert (counts.offered, counts.duplicates, counts.too_long) == (4, 1, 1)
    assert found == ["a", "b"]


def candidates(texts: list[str], held_out: float, own: float | None = None, most: int = 10**6) -> list[str]:
    return chosen(texts, held_out, own, most)[0]


def chosen(texts: list[str], held_out: float, own: float | None, most: int = 10**6) -> tuple[list[str], Candidates]:
    lowest, found = Lowest(CANDIDATES_PER_DOCUMENT, 20 * most), records(texts)
    placed = np.zeros(len(found), lowest.found_N.dtype)
    placed["at"] = found["number"]
    for name in ("hold_high", "hold_low", "bytes"):
        placed[name] = found[name]
    for part in np.array_split(placed, 3):
        lowest.add(part)
    data = DataConfig(held_out=held_out, max_held_out_tokens=most)
    result = held_out_candidates(lowest.found_N, len(texts), data, own or held_out)
    return [texts[at] for at in result.at_N.tolist()], result


def test_candidates_are_several_for_each_that_is_wanted_and_do_not_depend_on_order():
    texts = [str(i) for i in range(100)]
    found, result = chosen(texts, 0.05, None)
    assert (len(set(found)), result.wanted) == (5 * CANDIDATES_PER_DOCUMENT, 5)
    assert candidates(random.Random(0).sample(texts, 100), 0.05) == found
    assert candidates(texts, 0.01) == found[:CANDIDATES_PER_DOCUMENT]


@given(st.integers(2, 60), st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_at_least_one_document_is_wanted_and_one_is_trained_on_in_any_case(count, share, own):
    found, result = chosen([str(i) for i in range(count)], share, own)
    assert 1 <= result.wanted <= len(found) <= max(result.wanted, count // 2) < count


def test_a_domains_own_fraction_keeps_the_candidates_unless_it_needs_more():
    texts = [str(i) for i in range(100)]
    usual = candidates(texts, 0.05)
    for own in (0.01, 0.1, 0.25):
        found, result = chosen(texts, 0.05, own)
        assert (found, result.wanted) == (usual, round(100 * own))
    assert len(candidates(texts, 0.05, 0.4)) == 40


def test_candidates_have_no_more_text_than_the_most_that_is_held_out_needs():
    texts = [f"{i:04}" for i in range(1_000)]
    assert len(candidates(texts, 0.05, most=20)) == 20 * CANDIDATES_PER_DOCUMENT, "four bytes a token"
    assert len(candidates(texts, 0.05, most=1)) == CANDIDATES_PER_DOCUMENT
    assert len(candidates(texts, 0.05, most=1_000)) == 250


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30), st.none() | st.integers(0, 60))
def test_every_document_is_kept_or_counted_with_its_reason(texts, limit):
    """Bytes too, copies excepted."""
    found, counts = kept(texts, limit)
    left_out = counts.duplicates + counts.too_long + counts.over_limit
    assert counts.offered == len(texts) == len(found) + left_out
    assert counts.offered_bytes == sum(len(text.encode()) for text in texts)
    if limit is None:
        assert set(found) == set(texts)
        assert counts.left_out_bytes == counts.too_long == counts.over_limit == 0
    if not counts.duplicates:
        assert counts.left_out_bytes == counts.offered_bytes - counts.kept_bytes


def test_the_first_of_copies_in_several_blocks_is_kept(tmp_path: Path):
    stage = Stage(tmp_path)
    blocks = []
    for number in range(3):
        block = BlockWriter(stage, f"read/{number}", index_parts(16 << 20))
        with stage.writing(f"read/{number}.documents") as file:
            for text in (f"of {number}", "of all", "of all"):
                block.add(file, 1, Document("en", text, ""))
            block.flush(file)
        blocks.append(block.close())
    found = select(Work(tiny_config(), stage, 16 << 20, None, preview=True), blocks)
    assert [found.of_block(stage, number).tolist() for number in range(3)] == [[True, True, False]] + 2 * [
        [True, False, False]
    ]
    assert found.domains[1] == Kept(None, offered=9, duplicates=5, offered_bytes=48, kept=4, kept_bytes=18)
    assert isinstance(found, Selection) and len(found.candidates[1].at_N) == 2
    assert found.uncertain(0) == {at for at in found.candidates[1].at_N.tolist() if at < 3}
