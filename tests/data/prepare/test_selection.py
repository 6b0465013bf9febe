from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.prepare.selection import CANDIDATES_PER_DOCUMENT, Candidates, Selection, held_out_candidates
from pangu_sigma.sections import DataConfig
from pangu_sigma.text.documents import Document


def select(texts: list[str], limit: int | None) -> Selection:
    selection = Selection(limit)
    for text in texts:
        selection.add(Document("zh", text, ""))
    return selection


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30), st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_kept_set_fits_and_does_not_depend_on_order(texts, limit, shuffle):
    kept = {document.text for document in select(texts, limit).documents()}
    assert sum(len(text.encode()) for text in kept) <= limit
    shuffle.shuffle(texts)
    assert {document.text for document in select(texts, limit).documents()} == kept


def test_documents_are_spread_over_the_source_and_stay_in_order():
    texts = [f"{i:04}" for i in range(1_000)]
    kept = [int(document.text) for document in select(texts, 400).documents()]
    assert len(kept) == 100
    assert kept == sorted(kept)
    assert 300 < sum(kept) / len(kept) < 700


def test_copies_and_giants_are_counted_and_left_out():
    selection = select(["a", "b", "a", "x" * 100], 50)
    assert (selection.offered, selection.duplicates, selection.too_long) == (4, 1, 1)
    assert [document.text for document in selection.documents()] == ["a", "b"]


def candidates(documents: list[Document], held_out: float, own: float | None = None, most: int = 10**6) -> Candidates:
    return held_out_candidates(documents, DataConfig(held_out=held_out, max_held_out_tokens=most), own or held_out)


def test_candidates_are_several_for_each_that_is_wanted_and_do_not_depend_on_order():
    documents = [Document("zh", str(i), "") for i in range(100)]
    found = candidates(documents, 0.05)
    assert (len(set(found.numbers)), found.wanted) == (5 * CANDIDATES_PER_DOCUMENT, 5)
    assert sorted(found.order) == list(range(100))
    shuffled = random.Random(0).sample(documents, 100)
    assert [shuffled[number] for number in candidates(shuffled, 0.05).order] == [documents[n] for n in found.order]
    assert candidates(documents, 0.01).numbers == found.numbers[:CANDIDATES_PER_DOCUMENT]


@given(st.integers(2, 60), st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_at_least_one_document_is_wanted_and_one_is_trained_on_in_any_case(count, share, own):
    found = candidates([Document("zh", str(i), "") for i in range(count)], share, own)
    assert 1 <= found.wanted <= found.count <= max(found.wanted, count // 2) < count


def test_a_domains_own_fraction_keeps_the_candidates_unless_it_needs_more():
    documents = [Document("zh", str(i), "") for i in range(100)]
    usual = candidates(documents, 0.05)
    for own in (0.01, 0.1, 0.25):
        found = candidates(documents, 0.05, own)
        assert (found.numbers, found.wanted) == (usual.numbers, round(100 * own))
    assert candidates(documents, 0.05, 0.4).count == 40


def test_candidates_have_no_more_text_than_the_most_that_is_held_out_needs():
    documents = [Document("zh", f"{i:04}", "") for i in range(1_000)]
    assert candidates(documents, 0.05, most=20).count == 20 * CANDIDATES_PER_DOCUMENT, "four bytes a token"
    assert candidates(documents, 0.05, most=1).count == CANDIDATES_PER_DOCUMENT
    assert candidates(documents, 0.05, most=1_000).count == 250


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30), st.none() | st.integers(0, 60))
def test_every_document_is_kept_or_counted_with_its_reason(texts, limit):
    """Bytes too, copies excepted."""
    selection = select(texts, limit)
    kept = selection.documents()
    left_out = selection.duplicates + selection.too_long + selection.over_limit
    assert selection.offered == len(texts) == len(kept) + left_out
    assert selection.offered_bytes == sum(len(text.encode()) for text in texts)
    assert selection.left_out_bytes <= selection.offered_bytes - sum(document.bytes for document in kept)
    if limit is None:
        assert {document.text for document in kept} == set(texts)
        assert selection.left_out_bytes == selection.too_long == selection.over_limit == 0
    if not selection.duplicates:
        assert selection.left_out_bytes == selection.offered_bytes - sum(document.bytes for document in kept)
