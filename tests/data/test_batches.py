"""Batches as arrays: blocks, labels, weights and loads, and the shares of ranks."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.numbered import LENGTH, VOCABULARY, config_of, open_batches, samples_of, sets_config

from pangu_sigma.data.batches import Batch, BatchLoader, open_samples
from pangu_sigma.data.order import Cursor
from pangu_sigma.errors import DataError
from pangu_sigma.ranks.plans import RankPlanner
from pangu_sigma.rre.table import draw_tables


def test_a_batch_is_cut_into_blocks_of_one_domain(folder, tokenizer):
    """Also over the passes of an update: block m has the same domain in each."""
    batches = open_batches(config_of(accumulation=3, blocks=2, batch=4), folder, tokenizer)
    cursor = Cursor([0] * len(batches.domains))
    for _ in range(10):
        batch = batches.next(cursor)
        assert batch.ids_GBS.shape == (3, 4, LENGTH)
        assert batch.domains_M.shape == (2,)
        samples_of(batch.ids_GBS, batch.domains_M)
        slots = [[0, 1, 0][d] for d in batch.domains_M]
        assert batch.slots_GM.tolist() == [slots] * 3
        assert batch.tokens == 3 * 4 * LENGTH


def test_labels_are_the_inputs_shifted_by_one_in_the_rows_of_the_slot(folder, tokenizer):
    batches = open_batches(config_of(blocks=3, batch=3), folder, tokenizer)
    batch = batches.next(Cursor([0] * len(batches.domains)))
    for b, domain in enumerate(batch.domains_M):
        slot = [0, 1, 0][domain]
        ids = batch.ids_GBS[0, b]
        rows, labels = batch.rows_GBS[0, b] - slot * VOCABULARY, batch.labels_GBS[0, b]
        if slot == 1:
            rows, labels = VOCABULARY - 1 - rows, VOCABULARY - 1 - labels
        assert (rows == ids).all()
        assert (labels == ids + 1).all()


def test_load_counts_every_token_once_in_every_layer(folder, tokenizer):
    batches = open_batches(config_of(accumulation=2, blocks=2, batch=4), folder, tokenizer)
    cursor = Cursor([0] * len(batches.domains))
    for _ in range(5):
        batch = batches.next(cursor)
        expected = np.zeros((2, 6), int)
        for g in range(2):
            for ids, domain in zip(batch.ids_GBS[g], np.repeat(batch.domains_M, 2), strict=True):
                for n in range(2):
                    np.add.at(expected[n], domain * 2 + batches.table.first_NDV[n, domain, ids], 1)
        assert (batch.load_NK == expected).all()
        arrays = batch.arrays()
        for active_A, used_A1, expected_K in zip(arrays.active_A, arrays.used_A1, expected, strict=True):
            used = active_A < 6
            assert (np.diff(used_A1)[used] == expected_K[active_A[used]]).all()
            assert (np.diff(used_A1)[~used] == 0).all()


def test_a_model_without_rre_layers_has_batches_of_the_same_form(folder, tokenizer):
    routed, dense = (open_batches(config_of(blocks=2, layers=n), folder, tokenizer) for n in (2, 0))
    one, two = (b.next(Cursor([0] * len(b.domains))).arrays() for b in (routed, dense))
    assert len(one) == len(two)
    for name in ("rows_GBS", "positions_GBS", "documents_GBS", "slots_GM", "labels_GBS", "weights_GBS"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert two[len(one) - 5 :] == ((),) * 5, "there is nothing to plan"


def test_an_id_without_a_row_is_refused_by_domain_id_and_slot(folder, tokenizer):
    row_of = tokenizer.row_of.copy()
    row_of[1, 250:260] = -1
    batches = open_batches(
        config_of(blocks=3, batch=3), folder, SimpleNamespace(**vars(tokenizer) | {"row_of": row_of})
    )
    ids = np.full((1, 3, LENGTH + 1), 20)
    batches.assemble(ids, np.array([0, 1, 2]))
    for position in (2, LENGTH):  # as input, as label
        wrong = ids.copy()
        wrong[0, 1, position] = 255
        with pytest.raises(DataError, match=r"domain b: token id 255 has no row in embedding slot 'two'.*prepare-data"):
            batches.assemble(wrong, np.array([0, 1, 2]))
        batches.assemble(wrong[:, [0, 2, 1]], np.array([0, 1, 2]))  # the slot of domain c has it


def rows_and_draws(batch: Batch, g: int) -> Counter:
    return Counter(
        rows.tobytes() + draws.tobytes() for rows, draws in zip(batch.rows_GBS[g], batch.draws_GB4[g], strict=True)
    )


def test_every_sample_of_a_run_has_a_number_of_its_own_to_draw_by(folder, tokenizer):
    """The order in which samples are taken, from which micro-batches take nothing away."""
    numbers = []
    for accumulation, batch in ((1, 12), (3, 4)):
        batches = open_batches(config_of(accumulation=accumulation, blocks=2, batch=batch), folder, tokenizer)
        cursor, number_of = Cursor([0] * len(batches.domains)), {}
        for step in range(10):
            taken = batches.next(cursor)
            assert (taken.draws_GB4[..., :2] == [batches.config.seed, 0]).all()
            found = taken.draws_GB4[..., 2] + (taken.draws_GB4[..., 3].astype(int) << 32)
            assert sorted(found.ravel()) == list(range(12 * step, 12 * (step + 1)))
            number_of |= dict(zip(found.ravel().tolist(), map(bytes, taken.rows_GBS.reshape(12, -1)), strict=True))
        numbers.append(number_of)
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("parallel", [{"groups": 2}, {"expert": 2}, {"groups": 2, "expert": 2, "data": 2}], ids=str)
def test_shares_of_ranks_make_up_the_batch_of_one_process(four, tokenizer, parallel):
    whole = open_batches(sets_config({}, 2), four, tokenizer)
    config = sets_config(parallel, 2)
    ranks, samples = [], open_samples(config, four, "train", VOCABULARY)
    for rank in range(config.parallel.ranks):
        table = draw_tables(config.routing, 2, 4, VOCABULARY, 2, None)
        ranks.append(BatchLoader(config, samples, tokenizer, table, rank=rank, planner=RankPlanner(config, rank)))  # type: ignore[arg-type]
    cursors = [Cursor([0] * len(batches.domains)) for batches in (whole, *ranks)]
    for _ in range(5):
        expected, *found = (b.next(c) for b, c in zip((whole, *ranks), cursors, strict=True))
        assert {batch.digest for batch in found} == {expected.digest}
        assert all(cursor == cursors[0] for cursor in cursors)
        for g in range(2):
            assert sum((rows_and_draws(batch, g) for batch in found), Counter()) == rows_and_draws(expected, g)
        assert sum(batch.weights_GBS.sum() for batch in found) == pytest.approx(1, abs=1e-5)
        for batch in found:
            assert (batch.load_NK == expected.load_NK).all()
            assert (batch.block_weights_GM == expected.block_weights_GM).all()
            assert (batch.tokens, batch.counted) == (expected.tokens, expected.counted)
            assert (batch.slots_GM == expected.slots_GM[:, batch.blocks]).all()


def test_only_positions_that_count_weigh_and_nothing_else_changes(folder, tokenizer):
    """A mask of what counts, beside what never does: what follows the end of a document, and padding."""
    batches = open_batches(config_of(blocks=2, batch=4), folder, tokenizer)
    rng = np.random.default_rng(0)
    ids_GBS1 = rng.integers(400, 600, (1, 4, LENGTH + 1)).astype(np.int32)
    ids_GBS1[0, 0, 3], ids_GBS1[0, 1, 5:] = tokenizer.eot, tokenizer.pad
    counted_GBS = rng.random((1, 4, LENGTH)) < 0.5
    whole, some = (batches.assemble(ids_GBS1, np.array([0, 2]), counted_GBS=c) for c in (None, counted_GBS))
    expected_GBS = (ids_GBS1[..., :-1] != tokenizer.eot) & (ids_GBS1[..., 1:] != tokenizer.pad) & counted_GBS
    assert some.counted == expected_GBS.sum()
    assert some.weights_GBS.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(some.weights_GBS, expected_GBS / expected_GBS.sum(), rtol=1e-6)
    blocks = expected_GBS.reshape(1, 2, -1).sum(-1) / expected_GBS.sum()
    np.testing.assert_allclose(some.block_weights_GM, blocks, rtol=1e-5)
    for name, values in whole.arrays()._asdict().items():
        if name != "weights_GBS":
            np.testing.assert_equal(values, getattr(some.arrays(), name), name)
    every = batches.assemble(ids_GBS1, np.array([0, 2]), counted_GBS=np.ones_like(counted_GBS))
    assert every.weights_GBS.tobytes() == whole.weights_GBS.tobytes()
