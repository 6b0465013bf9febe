"""The decoder on the CPU against the exact path, and against itself: a text has the same bits however it is read."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.slow_decoder import SlowDecoder
from helpers.toy_weights import ToyWeights

from ascend_ops.few_rows import Matrix, Precision
from ascend_ops.large_pages import LargePages
from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.data.prepared import drawn_tables
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate import decoder as host_decoder
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.generate.weights import Weights
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun


class RoundedWeights:
    """`Weights`, of which every matrix but the tables of positions is as near as `precision` allows."""

    def __init__(self, weights: Weights, precision: Precision):
        self._weights, self._precision, self._room = weights, precision, LargePages()

    def tensor(self, name: str) -> np.ndarray:
        values = self._weights.tensor(name)
        return values if "positions" in name else self._rounded(values)

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        return self._rounded(self._weights.expert(layer, number, name))

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        return self._weights.rows(entry)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return values if values.ndim < 2 else Matrix.copy_of(values, self._precision, self._room).as_float32()


@pytest.fixture(scope="module", params=["tiny_run", "rows_run"])
def run(request) -> StoredRun:
    return open_model(request.getfixturevalue(request.param), "run")


@pytest.fixture(scope="module")
def decoder(run) -> Decoder:
    return open_decoder(run.path, lanes=4)


def ids_of(run: StoredRun, domain: Domain, count: int, seed: int = 0) -> list[int]:
    used = run.tokenizer.slot_rows[domain.slot]
    return np.random.default_rng(seed).choice(used[(used >= 0) & (used != run.tokenizer.eot)], count).tolist()


def read(decoder: Decoder, domain: Domain, *chunks: list[int], lane: int = 0) -> np.ndarray:
    """Logits after each token of a new text, read chunk by chunk."""
    decoder.begin(lane, domain)
    return np.concatenate([decoder.read([Chunk(lane, ids, len(ids))])[0] for ids in chunks])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance, as a share of the largest logit; where one has no logit, the other has none."""
    used = np.isfinite(expected)
    assert (np.isfinite(found) == used).all()
    return float(np.abs(found[used] - expected[used]).max() / np.abs(expected[used]).max())


def test_it_gives_the_logits_of_the_exact_path_in_every_domain(run, decoder):
    slow = SlowDecoder(run)
    for domain in domains_of(run.config):
        ids = ids_of(run, domain, 30)
        assert difference(read(decoder, domain, ids), read(slow, domain, ids)) < 1e-5
        assert (decoder.experts(domain, ids) == slow.experts(domain, ids)).all()


def test_chunks_and_single_tokens_and_passes_give_the_same_bits(run, decoder, monkeypatch):
    for domain in domains_of(run.config):
        ids = ids_of(run, domain, 30)
        whole = read(decoder, domain, ids)
        assert (read(decoder, domain, *([token] for token in ids)) == whole).all(), "with cache = without"
        assert (read(decoder, domain, ids[:3], ids[3:4], ids[4:]) == whole).all()
    with monkeypatch.context() as patch:
        patch.setattr(host_decoder, "PASS_TOKENS", 7)
        assert (read(decoder, domain, ids) == whole).all()
    decoder.begin(0, domain)
    (last,) = decoder.read([Chunk(0, ids, 2)])
    assert (last == whole[-2:]).all()
    decoder.begin(0, domain)
    (nothing,) = decoder.read([Chunk(0, ids, 0)])
    assert nothing.shape == (0, whole.shape[1])
    assert decoder.read([]) == []


def test_texts_of_a_batch_get_the_bits_that_they_get_alone(run, decoder):
    domains = domains_of(run.config)
    texts = [
        (domains[i % len(domains)], ids_of(run, domains[i % len(domains)], n, i)) for i, n in enumerate((9, 1, 20, 4))
    ]
    alone = [read(decoder, domain, ids) for domain, ids in texts]
    for lane, (domain, _) in enumerate(texts):
        decoder.begin(lane, domain)
    together: dict[int, list[np.ndarray]] = {lane: [] for lane in range(len(texts))}
    # lanes come in different orders, with chunks of different lengths
    for first, end in ((0, 1), (1, 6), (6, 7), (7, 20)):
        chunks = [
            Chunk(lane, ids[first:end], len(ids[first:end])) for lane, (_, ids) in enumerate(texts) if ids[first:end]
        ]
        for chunk, logits in zip(chunks[::-1], decoder.read(chunks[::-1]), strict=True):
            together[chunk.lane].append(logits)
    for lane, expected in enumerate(alone):
        assert (np.concatenate(together[lane]) == expected).all()


def test_rows_that_nobody_asks_for_change_no_bit(run, decoder):
    """The query layer computes those that are asked for: none, some or all of each lane, of several documents and slots."""
    domains, eot = domains_of(run.config), run.tokenizer.eot
    texts = [ids_of(run, domain, 12, i) for i, domain in enumerate(domains)]
    texts = [[*ids[:5], eot, *ids[5:], eot] for ids in texts]
    whole = [read(decoder, domain, ids) for domain, ids in zip(domains, texts, strict=True)]
    for wanted in ((0, 0, 0), (1, 0, 9), (0, 14, 1), (3, 2, 1)):
        for lane, domain in enumerate(domains):
            decoder.begin(lane, domain)
        found = decoder.read([Chunk(lane, ids, wanted[lane]) for lane, ids in enumerate(texts)])
        after = decoder.read([Chunk(lane, ids[:3], 1) for lane, ids in enumerate(texts)])
        for lane, count in enumerate(wanted):
            assert (found[lane] == whole[lane][len(texts[lane]) - count :]).all()
            assert (after[lane] == read(decoder, domains[lane], texts[lane][:3], lane=3)[-1:]).all(), (
                "the cache is whole"
            )


def test_a_copied_lane_goes_on_by_itself(run, decoder):
    domain = domains_of(run.config)[0]
    common, *ends = ids_of(run, domain, 8), ids_of(run, domain, 5, 1), ids_of(run, domain, 5, 2)
    read(decoder, domain, common, lane=1)
    decoder.copy(1, 2)
    both = decoder.read([Chunk(1, ends[0], 5), Chunk(2, ends[1], 5)])
    for end, found in zip(ends, both, strict=True):
        assert (found == read(decoder, domain, common + end)[-5:]).all()


def test_a_document_does_not_see_the_one_before(run, decoder):
    """Its tokens get the logits of a text that begins with it, and their experts too."""
    for domain in domains_of(run.config):
        before, after, eot = ids_of(run, domain, 6), ids_of(run, domain, 9, 1), run.tokenizer.eot
        alone = read(decoder, domain, after)
        for chunks in ([[*before, eot, *after]], [[*before, eot], after], [[*before], [eot], after[:1], after[1:]]):
            assert (read(decoder, domain, *chunks)[-9:] == alone).all()
        text = [eot, *before, eot, eot, *after]
        assert (read(decoder, domain, text)[-9:] == alone).all(), "an empty document"
        assert (decoder.experts(domain, text)[:, -9:] == decoder.experts(domain, after)).all()


def test_what_cannot_be_read_is_refused_and_changes_nothing(run, decoder):
    domain, size = domains_of(run.config)[0], run.tokenizer.size
    ids, length = ids_of(run, domain, 5), run.config.model.seq_length
    missing = int(np.flatnonzero(run.tokenizer.row_of[domain.slot] < 0)[0])
    read(decoder, domain, ids)
    decoder.begin(1, domain)
    for wrong, said in (
        ([-1], "token id -1 does not exist"),
        ([3, size], f"token id {size} does not exist"),
        ([missing], "has no row in the embedding slot of domain zh"),
        (ids_of(run, domain, length - 4), f"{length + 1} tokens is longer than model.seq_length={length}"),
        ([], "give each lane one chunk"),
    ):
        with pytest.raises(ConfigError, match=said):
            decoder.read([Chunk(1, ids), Chunk(0, wrong)])
    with pytest.raises(ConfigError, match="want at most as many"):
        decoder.read([Chunk(0, ids, 6)])
    with pytest.raises(ConfigError, match="give each lane one chunk"):
        decoder.read([Chunk(0, ids), Chunk(0, ids)])
    with pytest.raises(ConfigError, match="lane 4 does not exist"):
        decoder.begin(4, domain)
    assert (decoder.read([Chunk(0, ids, 5)])[0] == read(decoder, domain, ids + ids)[-5:]).all()
    assert (decoder.read([Chunk(1, ids, 5)])[0] == read(decoder, domain, ids)).all()


def test_a_lane_holds_as_many_tokens_as_the_model(run, decoder):
    domain, length = domains_of(run.config)[1], run.config.model.seq_length
    ids = ids_of(run, domain, length)
    assert (read(decoder, domain, ids[:-1], ids[-1:]) == read(decoder, domain, ids)).all()


@pytest.mark.parametrize(("precision", "most"), [("float16", 5e-3), ("int8", 0.02)])
def test_less_precise_weights_change_logits_a_little(run, decoder, precision, most):
    """They are those of a float32 model whose matrices are rounded, and near the model."""
    less = open_decoder(run.path, lanes=1, weights=precision)
    rounded = Decoder(run.config, run.tokenizer, run.table, RoundedWeights(run, precision), lanes=1)
    for domain in domains_of(run.config):
        ids = ids_of(run, domain, 30)
        assert difference(read(less, domain, ids), read(rounded, domain, ids)) < 1e-5
        assert 0 < difference(read(less, domain, ids), read(decoder, domain, ids)) < most
    assert less.resident_bytes < decoder.resident_bytes


@pytest.mark.parametrize("segments", [{}, {"segments": ["own", "common"], "common_experts": 3}], ids=["one", "two"])
def test_four_bits_are_those_of_a_rounded_model_however_they_are_read(run, segments):
    config = tiny_config(Path("unused"), model={"hidden": 64, **segments})
    weights, table = ToyWeights(config), drawn_tables(config, run.tokenizer)
    less = Decoder(config, run.tokenizer, table, weights, lanes=2, precision="int4")
    rounded = Decoder(config, run.tokenizer, table, RoundedWeights(weights, "int4"), lanes=1)
    for domain in domains_of(config):
        ids = ids_of(run, domain, 30)
        whole = read(less, domain, ids)
        assert difference(whole, read(rounded, domain, ids)) < 1e-5
        assert (read(less, domain, *([token] for token in ids), lane=1) == whole).all()
    assert less.resident_bytes - less.cache_bytes < 0.2 * (rounded.resident_bytes - rounded.cache_bytes)


def test_four_bits_need_whole_groups(tiny_run):
    wrong = r"a scale for 64 columns, and model.hidden=24 is not a multiple of 64; take weights of int8"
    with pytest.raises(ConfigError, match=wrong):
        open_decoder(tiny_run, lanes=1, weights="int4")


def test_another_thread_gets_the_same_bits(run, decoder):
    domain, found = domains_of(run.config)[0], []
    ids = ids_of(run, domain, 20)
    expected = read(decoder, domain, ids)
    thread = threading.Thread(target=lambda: found.append(read(decoder, domain, *([token] for token in ids))))
    thread.start()
    thread.join()
    assert (found[0] == expected).all()


@pytest.mark.parametrize(("activation", "dense", "rre"), [("fast_gelu", 3, 0), ("tanh", 1, 0), ("erf", 0, 2)])
def test_any_layers_and_activations_are_those_of_the_exact_path(run, activation, dense, rre):
    """Also a model without RRE layers, and one whose first layer is the query layer."""
    model = {"dense_layers": dense, "rre_layers": rre, "activation": activation}
    config = tiny_config(Path("unused"), model=model)
    weights, domain = ToyWeights(config), domains_of(config)[1]
    table = run.table if rre else type(run.table)(run.table.first_NDV[:0], run.table.spread_DV, run.table.experts)
    decoder = Decoder(config, run.tokenizer, table, weights, lanes=1)
    ids = np.array(ids_of(run, domain, 12))
    first = domain.slot * config.model.slot_rows
    used_R = run.tokenizer.slot_rows[domain.slot] >= 0
    experts_NT = table.route(ids, np.full_like(ids, domain.index), np.arange(len(ids)))
    rows_T, wanted_R = first + run.tokenizer.row_of[domain.slot, ids], first + np.flatnonzero(used_R)
    expected = ExactModel(config.model, weights, activation).logits(rows_T, experts_NT, wanted_R)
    assert difference(read(decoder, domain, ids.tolist())[:, used_R], expected) < 1e-5
