from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.order import Cursor
from pangu_sigma.domains import domain_sets
from pangu_sigma.errors import DataError
from pangu_sigma.rre.table import draw_tables

VOCABULARY, PAD, EOT = 700, 6, 9
LENGTH = 8
SAMPLES = (20, 11, 30)
"""Whole samples in the text of each domain."""
FIRST = (10, 210, 400)
"""Token i of a domain is FIRST + i: an id says where it was read."""


def config_of(accumulation: int = 1, blocks: int = 1, batch: int = 4, seed: int = 0, layers: int = 2) -> Config:
    model = {"hidden": 8, "ffn": 8, "heads": 1, "dense_layers": 1, "rre_layers": layers, "experts_per_domain": 2}
    return parse_config(
        {
            "name": "test",
            "seed": seed,
            "model": model | {"seq_length": LENGTH, "slot_rows": VOCABULARY},
            "domains": [
                {"name": "a", "slot": "one", "weight": 1.0},
                {"name": "b", "slot": "two", "weight": 2.0},
                {"name": "c", "slot": "one", "weight": 5.0},
            ],
            "data": {"domains_per_step": blocks},
            "train": {"batch_size": batch, "accumulation": accumulation},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    for name, samples, first in zip("abc", SAMPLES, FIRST, strict=True):
        text = list(range(first, first + samples * LENGTH + 3))
        for split in ("train", "held_out"):
            write_tokens(path / f"{name}.{split}", [text[:50], text[50:]])
    return path


@pytest.fixture(scope="module")
def tokenizer() -> SimpleNamespace:
    """Two slots that hold all ids, the second one in reverse."""
    rows = np.arange(VOCABULARY, dtype=np.int32)
    return SimpleNamespace(size=VOCABULARY, eot=EOT, pad=PAD, row_of=np.stack([rows, rows[::-1]]))


def open_batches(config: Config, folder: Path, tokenizer: SimpleNamespace, split: str = "train") -> Batches:
    domains, layers = len(config.domains), config.model.rre_layers
    table = draw_tables(config.routing, layers, domains, VOCABULARY, config.model.experts_per_domain, None)
    return Batches(config, folder, tokenizer, table, split)  # type: ignore[arg-type]


def samples_of(ids_GBS: np.ndarray, domains_M: np.ndarray) -> list[tuple[int, int]]:
    """(domain, sample number) of every sequence of a batch; checks that each is a whole sample of its block's domain."""
    found = []
    for ids_BS in ids_GBS:
        for ids, domain in zip(ids_BS, np.repeat(domains_M, len(ids_BS) // len(domains_M)), strict=True):
            number, rest = divmod(int(ids[0]) - FIRST[domain], LENGTH)
            assert rest == 0
            assert 0 <= number < SAMPLES[domain]
            assert (ids == ids[0] + np.arange(LENGTH)).all()
            found.append((int(domain), number))
    return found


def test_the_order_follows_from_the_cursor_alone(folder, tokenizer):
    config = config_of(blocks=2)
    batches = open_batches(config, folder, tokenizer)
    cursor, states, expected = batches.start(), [], []
    for _ in range(20):
        states.append(json.dumps(cursor.state()))
        expected.append(batches.next(cursor))
    for start in (19, 0, 7):  # any order of asking
        other = open_batches(config, folder, tokenizer)
        resumed = Cursor.from_state(json.loads(states[start]))
        for batch in expected[start:]:
            found = other.next(resumed)
            for one, two in zip(found.arrays(), batch.arrays(), strict=True):
                assert (one == two).all()
        assert resumed == cursor


def test_another_seed_gives_another_order(folder, tokenizer):
    def order(seed: int) -> list[tuple[int, int]]:
        batches = open_batches(config_of(seed=seed), folder, tokenizer)
        cursor, found = batches.start(), []
        for _ in range(10):
            batch = batches.next(cursor)
            found += samples_of(batch.ids_GBS, batch.domains_M)
        return found

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize(("accumulation", "blocks", "batch"), [(1, 1, 4), (1, 3, 3), (2, 2, 4)])
def test_every_sample_of_a_pass_comes_once_before_any_comes_again(folder, tokenizer, accumulation, blocks, batch):
    batches = open_batches(config_of(accumulation, blocks, batch), folder, tokenizer)
    cursor, taken = batches.start(), [[], [], []]
    for _ in range(60):
        found = batches.next(cursor)
        for domain, number in samples_of(found.ids_GBS, found.domains_M):
            taken[domain].append(number)
    assert cursor.taken == [len(numbers) for numbers in taken]
    for numbers, samples in zip(taken, SAMPLES, strict=True):
        passes = [numbers[i : i + samples] for i in range(0, len(numbers), samples)]
        assert len(passes) > 1
        for one in passes[:-1]:
            assert sorted(one) == list(range(samples))
        assert len(set(passes[-1])) == len(passes[-1])
        if len(passes) > 2:
            assert passes[0] != passes[1], "each pass should be shuffled anew"
        assert passes[0] != sorted(passes[0])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_domain_shares_follow_the_weights_at_all_times(folder, tokenizer, blocks):
    batches = open_batches(config_of(blocks=blocks, batch=6), folder, tokenizer)
    cursor, drawn = batches.start(), Counter()
    for step in range(1, 161):
        batch = batches.next(cursor)
        drawn.update(batch.domains_M.tolist())
        for domain, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
            assert abs(drawn[domain] - step * blocks * share) < 2
    assert cursor.taken == [drawn[d] * 6 // blocks for d in range(3)]


def test_a_batch_is_cut_into_blocks_of_one_domain(folder, tokenizer):
    """Also over the passes of an update: block m has the same domain in each."""
    batches = open_batches(config_of(accumulation=3, blocks=2, batch=4), folder, tokenizer)
    cursor = batches.start()
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
    batch = batches.next(batches.start())
    for b, domain in enumerate(batch.domains_M):
        slot = [0, 1, 0][domain]
        ids = batch.ids_GBS[0, b]
        rows, labels = batch.rows_GBS[0, b] - slot * VOCABULARY, batch.labels_GBS[0, b]
        if slot == 1:
            rows, labels = VOCABULARY - 1 - rows, VOCABULARY - 1 - labels
        assert (rows == ids).all()
        assert (labels == ids + 1).all()


def test_weights_are_a_mean_over_what_should_be_predicted(folder, tokenizer):
    """Not after <eot>, where another document begins, and not of <pad>."""
    config = config_of(accumulation=2, blocks=2, batch=4)
    batches = open_batches(config, folder, tokenizer)
    rng = np.random.default_rng(0)
    ids = rng.choice([EOT, PAD, *range(10, 20)], (2, 4, LENGTH + 1))
    batch = batches.assemble(ids, np.array([0, 1]))
    counted = (ids[..., :-1] != EOT) & (ids[..., 1:] != PAD)
    assert 0 < counted.sum() < counted.size
    assert batch.weights_GBS.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(batch.weights_GBS, counted / counted.sum(), rtol=1e-6)
    blocks = counted.reshape(2, 2, -1).sum(-1) / counted.sum()
    np.testing.assert_allclose(batch.block_weights_GM, blocks, rtol=1e-5)


def test_load_counts_every_token_once_in_every_layer(folder, tokenizer):
    batches = open_batches(config_of(accumulation=2, blocks=2, batch=4), folder, tokenizer)
    cursor = batches.start()
    for _ in range(5):
        batch = batches.next(cursor)
        expected = np.zeros((2, 6), int)
        for g in range(2):
            for ids, domain in zip(batch.ids_GBS[g], np.repeat(batch.domains_M, 2), strict=True):
                for n in range(2):
                    np.add.at(expected[n], domain * 2 + batches.table.first_NDV[n, domain, ids], 1)
        assert (batch.load_NK == expected).all()
        arrays = batch.arrays()
        active_NA, used_NA1 = arrays.active_NA, arrays.used_NA1
        for n in range(2):
            used = active_NA[n] < 6
            assert (np.diff(used_NA1[n])[used] == expected[n, active_NA[n][used]]).all()
            assert (np.diff(used_NA1[n])[~used] == 0).all()


def test_a_model_without_rre_layers_has_batches_of_the_same_form(folder, tokenizer):
    routed, dense = (open_batches(config_of(blocks=2, layers=n), folder, tokenizer) for n in (2, 0))
    one, two = (b.next(b.start()).arrays() for b in (routed, dense))
    assert len(one) == len(two)
    for name in ("rows_GBS", "positions_GBS", "documents_GBS", "slots_GM", "labels_GBS", "weights_GBS"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert all(array.size for array in two)


def test_held_out_batches_read_in_file_order_and_weigh_what_fills_them_up_nothing(folder, tokenizer):
    batches = open_batches(config_of(blocks=2, batch=4), folder, tokenizer, "held_out")
    found = batches.held_out(1, 8)
    assert len(found) == 3, "11 samples fill 3 batches of 4"
    numbers = []
    for batch in found:
        assert batch.domains_M.tolist() == [1, 1]
        counts = batch.weights_GBS[0].sum(axis=1) > 0
        numbers += [number for (_, number), c in zip(samples_of(batch.ids_GBS, batch.domains_M), counts) if c]  # noqa: B905
        assert batch.weights_GBS.sum() == pytest.approx(1, abs=1e-6)
    assert numbers == list(range(11))
    assert (found[-1].weights_GBS[0, 3] == 0).all()
    assert len(batches.held_out(1, 2)) == 2


def test_held_out_batches_like_training_have_its_micro_batches_and_a_domain_for_each_block(folder, tokenizer):
    config = config_of(blocks=2, batch=4)
    config = config.model_copy(update={"train": config.train.model_copy(update={"accumulation": 2})})
    batches = open_batches(config, folder, tokenizer, "held_out")
    counted: dict[int, list[int]] = {}
    for batch in batches.held_out_like_training(8):
        assert batch.ids_GBS.shape[:2] == (2, 4)
        assert len(set(batch.domains_M)) == 2
        counts = (batch.weights_GBS.sum(axis=2) > 0).ravel()
        for (domain, number), counts_here in zip(samples_of(batch.ids_GBS, batch.domains_M), counts, strict=True):
            if counts_here:
                counted.setdefault(domain, []).append(number)
    assert {domain: sorted(numbers) for domain, numbers in counted.items()} == {
        domain: list(range(samples)) for domain, samples in enumerate(SAMPLES)
    }


def test_a_domain_with_less_text_than_a_sample_is_refused_by_name(folder, tokenizer, tmp_path):
    for name, tokens in (("a", LENGTH + 1), ("b", LENGTH), ("c", 100)):
        write_tokens(tmp_path / f"{name}.train", [list(range(10, 10 + tokens))])
    with pytest.raises(DataError, match=r"domain b: the train split has 8 tokens.*9.*seq_length"):
        open_batches(config_of(), tmp_path, tokenizer)


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


def test_missing_text_says_to_prepare(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"a\.train.*prepare-data"):
        open_batches(config_of(), tmp_path, tokenizer)


def sets_config(parallel: dict[str, int], accumulation: int = 1) -> Config:
    """Four domains in two sets of unequal weights, four blocks."""
    tree = config_of(accumulation, 2, 16).model_dump(mode="json")
    tree["domains"] = [{"name": n, "weight": w} for n, w in (("a", 1.0), ("b", 2.0), ("c", 5.0), ("d", 3.0))]
    tree["data"] |= {"domains_per_step": 4, "domain_sets": 2}
    return parse_config(tree | {"parallel": parallel | {"overflow": "drop"}})


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory) -> Path:
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("four") / "tokens")
    for split in ("train", "held_out"):
        write_tokens(copy / f"d.{split}", [list(range(10, 10 + 25 * LENGTH))])
    return copy


def test_a_block_draws_from_its_set_by_the_weights_there(four, tokenizer):
    config = sets_config({})
    sets, batches = domain_sets(config), open_batches(config, four, tokenizer)
    assert sets == [[0, 2], [1, 3]]
    cursor, drawn = batches.start(), Counter()
    for step in range(1, 121):
        domains_M = batches.next(cursor).domains_M
        assert all(domain in sets[m % 2] for m, domain in enumerate(domains_M.tolist()))
        drawn.update(domains_M.tolist())
        for domain, share in ((0, 1 / 6), (2, 5 / 6), (1, 2 / 5), (3, 3 / 5)):
            assert abs(drawn[domain] - step * 2 * share) < 2


@pytest.mark.parametrize("parallel", [{"groups": 2}, {"expert": 2}, {"groups": 2, "expert": 2, "data": 2}], ids=str)
def test_shares_of_ranks_make_up_the_batch_of_one_process(four, tokenizer, parallel):
    whole = open_batches(sets_config({}, 2), four, tokenizer)
    config = sets_config(parallel, 2)
    ranks = []
    for rank in range(config.parallel.ranks):
        table = draw_tables(config.routing, 2, 4, VOCABULARY, 2, None)
        ranks.append(Batches(config, four, tokenizer, table, rank=rank))  # type: ignore[arg-type]
    cursors = [batches.start() for batches in (whole, *ranks)]
    for _ in range(5):
        expected, *found = (b.next(c) for b, c in zip((whole, *ranks), cursors, strict=True))
        assert {batch.digest for batch in found} == {expected.digest}
        assert all(cursor == cursors[0] for cursor in cursors)
        for g in range(2):
            rows = Counter(row.tobytes() for batch in found for row in batch.rows_GBS[g])
            assert rows == Counter(row.tobytes() for row in expected.rows_GBS[g])
        assert sum(batch.weights_GBS.sum() for batch in found) == pytest.approx(1, abs=1e-5)
        for batch in found:
            assert (batch.load_NK == expected.load_NK).all()
            assert (batch.block_weights_GM == expected.block_weights_GM).all()
            assert (batch.tokens, batch.counted) == (expected.tokens, expected.counted)
            assert (batch.slots_GM == expected.slots_GM[:, batch.blocks]).all()


def test_held_out_batches_of_ranks_are_the_samples_of_one_process(four, tokenizer):
    one, config = sets_config({}), sets_config({"groups": 2, "expert": 2})
    whole = open_batches(one, four, tokenizer, "held_out")
    table = draw_tables(config.routing, 2, 4, VOCABULARY, 2, None)
    ranks = [Batches(config, four, tokenizer, table, "held_out", rank) for rank in range(4)]  # type: ignore[arg-type]
    for domain in range(4):
        expected = Counter(r.tobytes() for b in whole.held_out(domain, 2) for r in counted_rows(b))
        shares = [batches.held_out(domain, 2) for batches in ranks]
        assert Counter(r.tobytes() for share in shares for b in share for r in counted_rows(b)) == expected
        groups = [bool(share) for share in shares]
        assert groups in ([True, True, False, False], [False, False, True, True])
        assert all(b.plan.dropped == 0 for share in shares for b in share)
        assert len({b.plan.plans[0].order_NT.shape for share in shares for b in share}) == 1, "one graph for all"


def counted_rows(batch: Batch) -> np.ndarray:
    return batch.rows_GBS[0][batch.weights_GBS[0].sum(axis=1) > 0]
