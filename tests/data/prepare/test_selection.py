from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import duckdb
import pyarrow as pa
from helpers.texts import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.data.prepare.reading import ROW_BITS, ROWS, content_hash, row_of
from pangu_sigma.data.prepare.selection import CANDIDATES_PER_DOCUMENT, held_out_count, select
from pangu_sigma.data.prepare.stage import Stage, Work
from pangu_sigma.text.documents import Document


def selected(
    blocks: Sequence[list[str]], limit: int | None = None, own: float | None = None, **data
) -> SimpleNamespace:
    """What is selected of documents of `zh`, which come in blocks: the texts that are kept, the candidates, first choice first,
    and the counts. data: keys of the section."""
    config = tiny_config()
    domains = [config.domains[0].model_copy(update={"held_out": own}), *config.domains[1:]]
    data["max_mib_per_domain"] = None if limit is None else limit / (1 << 20)
    config = config.model_copy(update={"data": config.data.model_copy(update=data), "domains": domains})
    rows, texts, zh = list[dict](), dict[int, str](), Work(config, Stage(Path())).domains[0]
    for n, block in enumerate(blocks):
        for row, text in enumerate(block):
            texts[n << ROW_BITS | row] = text
            rows.append({"document": n << ROW_BITS | row, **row_of(Document("zh", text), zh, False)})
    with TemporaryDirectory() as folder, duckdb.connect() as database:
        work = Work(config, Stage(Path(folder)))
        work.stage.path("select").mkdir()
        database.register("documents", pa.Table.from_pylist(rows, ROWS))
        selection = select(work, database)
        found = work.stage.read("select/documents").to_pylist()
    counts = selection.domains[0]
    assert selection.blocks == sorted({row["document"] >> ROW_BITS for row in found})
    assert counts.blocks == [*range(len(selection.blocks))], "there is one domain"
    counts = counts.model_copy(update={"blocks": []})
    ranked = sorted((row["rank"], texts[row["document"]]) for row in found if row["rank"] is not None)
    kept = [texts[row["document"]] for row in found]
    return SimpleNamespace(kept=kept, candidates=[text for _, text in ranked], counts=counts)


def by(purpose: str, texts: list[str]) -> list[str]:
    """The texts in the order of their hashes."""
    return sorted(texts, key=lambda text: content_hash(purpose, Document("zh", text)))


TEXTS = st.lists(st.text("ab中文 ", min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=25)
@given(TEXTS, st.none() | st.integers(0, 60), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_lowest_hashes_are_kept_that_fit_and_everything_is_counted_whatever_the_order(
    texts, limit, blocks, shuffle
):
    found = selected([texts[n::blocks] for n in range(blocks)], limit)
    expected, size = list[str](), 0
    for text in by("keep", [*{text for text in texts if limit is None or len(text.encode()) <= limit}]):
        size += len(text.encode())
        if limit is not None and size > limit:
            break
        expected.append(text)
    assert set(found.kept) == set(expected) and len(found.kept) == len(expected)
    counts = found.counts
    assert (counts.offered, counts.offered_bytes) == (len(texts), sum(len(text.encode()) for text in texts))
    assert counts.offered == counts.kept + counts.duplicates + counts.too_long + counts.over_limit
    assert counts.kept == len(expected)
    if limit is None:
        assert counts.left_out_bytes == counts.too_long == counts.over_limit == 0
    if not counts.duplicates:
        assert counts.left_out_bytes == counts.offered_bytes - sum(len(text.encode()) for text in found.kept)
    shuffle.shuffle(texts)
    again = selected([texts], limit)
    assert (set(again.kept), again.counts, again.candidates) == (set(found.kept), counts, found.candidates)


def test_documents_are_spread_over_the_source_and_stay_in_order():
    texts = [f"{i:04}" for i in range(1_000)]
    found = [int(text) for text in selected([texts], 400).kept]
    assert len(found) == 100 and found == sorted(found)
    assert 300 < sum(found) / len(found) < 700


def test_the_first_of_copies_in_several_blocks_is_kept():
    found = selected([[f"of {n}", "of all", "of all"] for n in range(3)])
    assert found.kept == ["of 0", "of all", "of 1", "of 2"]
    assert (found.counts.duplicates, found.counts.kept) == (5, 4)
    assert len(found.candidates) == 2


def test_candidates_are_several_for_each_that_is_wanted():
    texts = [str(i) for i in range(100)]
    found = selected([texts], held_out=0.05).candidates
    assert found == by("hold out", texts)[: 5 * CANDIDATES_PER_DOCUMENT]
    assert selected([random.Random(0).sample(texts, 100)], held_out=0.05).candidates == found
    assert selected([texts], held_out=0.01).candidates == found[:CANDIDATES_PER_DOCUMENT]


@settings(max_examples=25)
@given(st.integers(2, 60), st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_at_least_one_document_is_wanted_and_one_is_trained_on_in_any_case(count, share, own):
    found = selected([[str(i) for i in range(count)]], held_out=share, own=own).candidates
    assert 1 <= held_out_count(count, own) <= len(found) <= max(held_out_count(count, own), count // 2) < count


def test_a_domains_own_fraction_keeps_the_candidates_unless_it_needs_more():
    texts = [str(i) for i in range(100)]
    usual = selected([texts], held_out=0.05).candidates
    for own in (0.01, 0.1, 0.25):
        assert selected([texts], held_out=0.05, own=own).candidates == usual
        assert held_out_count(100, own) == round(100 * own)
    assert len(selected([texts], held_out=0.05, own=0.4).candidates) == 40


def test_candidates_have_no_more_text_than_the_most_that_is_held_out_needs():
    texts = [f"{i:04}" for i in range(1_000)]
    sizes = {
        most: len(selected([texts], held_out=0.05, max_held_out_tokens=most).candidates) for most in (1, 20, 1_000)
    }
    assert sizes == {1: CANDIDATES_PER_DOCUMENT, 20: 20 * CANDIDATES_PER_DOCUMENT, 1_000: 250}, "four bytes a token"
