"""Held-out batches are the same samples for every form, and every number of ranks."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.numbered import SAMPLES, VOCABULARY, config_of, counted_rows, open_batches, samples_of, sets_config

from pangu_sigma.data.batches import Batches
from pangu_sigma.data.held_out import HeldOut
from pangu_sigma.rre.table import draw_tables


def test_held_out_batches_read_in_file_order_and_weigh_what_fills_them_up_nothing(folder, tokenizer):
    batches = open_batches(config_of(blocks=2, batch=4), folder, tokenizer, "held_out")
    found = HeldOut(batches, 8).of_domain(1)
    assert len(found) == 3, "11 samples fill 3 batches of 4"
    numbers = []
    for batch in found:
        assert batch.domains_M.tolist() == [1, 1]
        counts = batch.weights_GBS[0].sum(axis=1) > 0
        numbers += [number for (_, number), c in zip(samples_of(batch.ids_GBS, batch.domains_M), counts) if c]  # noqa: B905
        assert batch.weights_GBS.sum() == pytest.approx(1, abs=1e-6)
    assert numbers == list(range(11))
    assert (found[-1].weights_GBS[0, 3] == 0).all()
    assert len(HeldOut(batches, 2).of_domain(1)) == 2


def test_held_out_batches_like_training_have_its_micro_batches_and_a_domain_for_each_block(folder, tokenizer):
    config = config_of(blocks=2, batch=4)
    config = config.model_copy(update={"train": config.train.model_copy(update={"accumulation": 2})})
    batches = open_batches(config, folder, tokenizer, "held_out")
    counted: dict[int, list[int]] = {}
    for batch in HeldOut(batches, 8).like_training():
        assert batch.ids_GBS.shape[:2] == (2, 4)
        assert len(set(batch.domains_M)) == 2
        counts = (batch.weights_GBS.sum(axis=2) > 0).ravel()
        for (domain, number), counts_here in zip(samples_of(batch.ids_GBS, batch.domains_M), counts, strict=True):
            if counts_here:
                counted.setdefault(domain, []).append(number)
    assert {domain: sorted(numbers) for domain, numbers in counted.items()} == {
        domain: list(range(samples)) for domain, samples in enumerate(SAMPLES)
    }


def test_held_out_batches_of_ranks_are_the_samples_of_one_process(four, tokenizer):
    one, config = sets_config({}), sets_config({"groups": 2, "expert": 2})
    whole = open_batches(one, four, tokenizer, "held_out")
    table = draw_tables(config.routing, 2, 4, VOCABULARY, 2, None)
    ranks = [Batches(config, four, tokenizer, table, "held_out", rank) for rank in range(4)]  # type: ignore[arg-type]
    for domain in range(4):
        expected = Counter(r.tobytes() for b in HeldOut(whole, 2).of_domain(domain) for r in counted_rows(b))
        shares = [HeldOut(batches, 2).of_domain(domain) for batches in ranks]
        assert Counter(r.tobytes() for share in shares for b in share for r in counted_rows(b)) == expected
        groups = [bool(share) for share in shares]
        assert groups in ([True, True, False, False], [False, False, True, True])
        assert all(b.plan.dropped == 0 for share in shares for b in share)
        assert len({b.plan.plans[0].order_NT.shape for share in shares for b in share}) == 1, "one graph for all"
