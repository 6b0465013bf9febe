"""Held-out batches are the same samples for every form, and every number of ranks."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.numbered import (
    EOT,
    FIRST,
    LENGTH,
    PAD,
    SAMPLES,
    VOCABULARY,
    config_of,
    counted_rows,
    open_batches,
    samples_of,
    sets_config,
)
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.data.prepared import unigram_nats
from pangu_sigma.held_out.batches import HeldOut, HeldOutBatch
from pangu_sigma.ranks.plans import RankPlanner
from pangu_sigma.rre.table import draw_tables


def test_held_out_batches_read_every_sample_once_and_weigh_what_fills_them_up_nothing(folder, tokenizer):
    batches = open_batches(config_of(blocks=2, batch=4), folder, tokenizer, "held_out")
    found = HeldOut(batches, 8 * 4).domain_batches(1)
    assert len(found) == 3, "11 samples fill 3 batches of 4"
    numbers = []
    for batch in (held_out.batch for held_out in found):
        assert batch.domains_M.tolist() == [1, 1]
        counts = batch.weights_GBS[0].sum(axis=1) > 0
        numbers += [number for (_, number), c in zip(samples_of(batch.ids_GBS, batch.domains_M), counts) if c]  # noqa: B905
        assert batch.weights_GBS.sum() == pytest.approx(1, abs=1e-6)
    assert numbers == list(range(11))
    assert (found[-1].batch.weights_GBS[0, 3] == 0).all()
    assert len(HeldOut(batches, 2 * 4).domain_batches(1)) == 2


def test_batches_of_both_forms_have_the_same_samples(folder, tokenizer):
    held_out = HeldOut(open_batches(config_of(blocks=2, batch=4), folder, tokenizer, "held_out"), 4)
    expected = [(2, number) for number in (3, 11, 18, 26)]
    assert held_out.numbers(2).tolist() == [number for _, number in expected], "of 30: the middle of each quarter"
    (found,) = held_out.domain_batches(2)
    assert samples_of(found.batch.ids_GBS, found.batch.domains_M) == expected
    assert found.units_U.tolist() == [0, 1, 2, 3]
    assert [pair for pair in counted_samples(held_out.training_shaped_batches()) if pair[0] == 2] == expected


@given(count=st.integers(1, 5_000), most=st.integers(1, 5_000))
def test_any_number_of_samples_is_spread_evenly(count, most):
    held_out = HeldOut.__new__(HeldOut)
    held_out._sample_counts = [min(count, most)]
    held_out._batches = SimpleNamespace(samples=SimpleNamespace(counts=[count]))  # type: ignore[assignment]
    numbers = held_out.numbers(0)
    assert len(numbers) == min(count, most)
    gaps = np.diff(numbers)
    if most >= count:
        assert numbers.tolist() == list(range(count)), "all of them, each once"
    elif len(gaps):
        assert gaps.max() - gaps.min() <= 1
    ends = numbers[0], count - 1 - numbers[-1]
    assert abs(ends[0] - ends[1]) <= 1, "as much text is left out before the first as behind the last"


def digests(batches: BatchLoader, most: int = 8, size: int = 1) -> dict[str, str]:
    return HeldOut(batches, most).digests(size)


def test_the_digest_tells_other_samples_other_pieces_and_other_units_apart(folder, tokenizer):
    def read_as(pieces: list[str], **others) -> dict[str, str]:
        vocabulary = SimpleNamespace(pieces=pieces)
        other = SimpleNamespace(**vars(tokenizer) | others | {"vocabulary": vocabulary})
        return digests(open_batches(config_of(), folder, other, "held_out"))

    pieces = tokenizer.vocabulary.pieces
    batches = open_batches(config_of(blocks=2, batch=4), folder, tokenizer, "held_out")
    first = digests(batches)
    assert first == digests(open_batches(config_of(batch=8), folder, tokenizer, "held_out"))
    assert first.keys() == {"a", "b", "c"}
    for other in (
        digests(batches, 9),
        digests(batches, 8, 4),
        read_as([f"another {piece}" for piece in pieces]),
    ):
        assert all(first[name] != other[name] for name in first)
    assert first == read_as([*pieces, "a piece that no sample has"], hash="other"), "a vocabulary may grow"


@pytest.mark.parametrize("form", ["of_domain", "like_training"])
def test_unigram_and_bytes_are_of_exactly_the_tokens_that_count(folder, tokenizer, form):
    """Against NumPy over the ids of the file, in which each id says where it stands."""
    config = config_of(accumulation=2 if form == "like_training" else 1, blocks=2, batch=4)
    batches = open_batches(config, folder, tokenizer, "held_out")
    counts_DV = np.random.default_rng(0).integers(0, 9, (3, VOCABULARY))
    batches.samples.frequencies = lambda: counts_DV  # type: ignore[method-assign]
    held_out = HeldOut(batches, 7)
    found = (
        held_out.training_shaped_batches()
        if form == "like_training"
        else [b for d in range(3) for b in held_out.domain_batches(d)]
    )
    size = held_out.block if form == "like_training" else 1
    units = [text.units_U3 for text in held_out.texts(size).values()]
    assert [len(units_U3) for units_U3 in units] == [-(-len(held_out.numbers(d)) // size) for d in range(3)]
    weighed = [np.zeros(len(units_U3)) for units_U3 in units]
    for each in found:
        weights_GUS = each.batch.weights_GBS.reshape(len(each.batch.weights_GBS), len(each.units_U), -1)
        for d, u, tokens in zip(each.domains_U, each.units_U, (weights_GUS > 0).sum((0, 2)), strict=True):
            weighed[d][u] += tokens
    np.testing.assert_equal(weighed, [units_U3[:, 0] for units_U3 in units])
    for domain in range(3):
        nats_V = -np.log((counts_DV[domain] + 0.5) / (counts_DV[domain] + 0.5).sum())
        for unit, numbers in enumerate(np.split(held_out.numbers(domain), range(size, 7, size))):
            ids = FIRST[domain] + np.concatenate([n * LENGTH + np.arange(LENGTH) for n in numbers])
            counted = [i + 1 for i in ids if i != EOT and i + 1 != PAD]
            expected = [len(counted), sum(i % 5 for i in counted), nats_V[counted].sum()]
            np.testing.assert_allclose(units[domain][unit], expected, rtol=1e-12)


def test_counting_knows_the_rows_of_its_slot_alone():
    nats_V = unigram_nats(np.array([3, 0, 100, 1]), np.array([3, 0, 1, -1]))
    assert np.isinf(nats_V[2])
    np.testing.assert_allclose(np.exp(-nats_V[[0, 1, 3]]), np.array([3.5, 0.5, 1.5]) / 5.5)


def counted_samples(found: list[HeldOutBatch]) -> list[tuple[int, int]]:
    """(domain, sample number) of every sequence that counts."""
    pairs = []
    for batch in (held_out.batch for held_out in found):
        counts = (batch.weights_GBS.sum(axis=2) > 0).ravel()
        pairs += [pair for pair, c in zip(samples_of(batch.ids_GBS, batch.domains_M), counts, strict=True) if c]
    return pairs


def test_held_out_batches_like_training_have_its_micro_batches_and_a_domain_for_each_block(folder, tokenizer):
    config = config_of(blocks=2, batch=4)
    config = config.model_copy(update={"train": config.train.model_copy(update={"accumulation": 2})})
    held_out = HeldOut(open_batches(config, folder, tokenizer, "held_out"), 8 * 4).training_shaped_batches()
    for batch in (each.batch for each in held_out):
        assert batch.ids_GBS.shape[:2] == (2, 4)
        assert len(set(batch.domains_M)) == 2
    assert sorted(counted_samples(held_out)) == [(d, n) for d, samples in enumerate(SAMPLES) for n in range(samples)]


def test_held_out_batches_of_ranks_are_the_samples_of_one_process(four, tokenizer):
    one, config = sets_config({}), sets_config({"groups": 2, "expert": 2})
    whole = open_batches(one, four, tokenizer, "held_out")
    table = draw_tables(config.routing, 2, 4, VOCABULARY, 2, None)
    samples = open_samples(config, four, "held_out", VOCABULARY)
    ranks = [
        BatchLoader(config, samples, tokenizer, table, rank, RankPlanner(config, rank))  # type: ignore[arg-type]
        for rank in range(4)
    ]
    for domain in range(4):
        expected = Counter(
            r.tobytes() for b in HeldOut(whole, 32).domain_batches(domain) for r in counted_rows(b.batch)
        )
        found = [HeldOut(batches, 32).domain_batches(domain) for batches in ranks]
        assert sorted(u for share in found for b in share for u in b.units_U[weighs(b)]) == list(
            range(sum(expected.values()))
        )
        shares = [[held_out.batch for held_out in share] for share in found]
        assert Counter(r.tobytes() for share in shares for b in share for r in counted_rows(b)) == expected
        groups = [bool(share) for share in shares]
        assert groups in ([True, True, False, False], [False, False, True, True])
        assert all(b.dropped == 0 for share in shares for b in share)
        assert len({b.plans[0].order_GT.shape for share in shares for b in share}) == 1, "one graph for all"


def weighs(held_out: HeldOutBatch) -> np.ndarray:
    """True for each sequence that counts."""
    return held_out.batch.weights_GBS[0].sum(axis=1) > 0
