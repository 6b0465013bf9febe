"""The graph with a cache gives what the network that trains gives for the whole text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy import Logits, active_weights, logits_arguments

from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.graph.cached import CachedGraph, cached_graph, open_inputs
from pangu_sigma.model.declare import as_input, as_tensor
from pangu_sigma.stored.network import build_network
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun

pytestmark = pytest.mark.usefixtures("graph_mode")

LANES = 4
TEXTS = [("en", "the cat sees a small old"), ("zh", "今天天气不错"), ("code", "x y total"), ("en", "the dog")]

New = tuple[Domain, list[int], int, int]
"""New tokens of a text: domain, ids, number of tokens before them, lane."""


@pytest.fixture(scope="module", params=[pytest.param("tiny_run", marks=pytest.mark.slow), "rows_run"])
def run(request) -> StoredRun:
    return open_model(request.getfixturevalue(request.param), "run")


@pytest.fixture(scope="module")
def graph(graph_mode, run) -> CachedGraph:
    made = cached_graph(run)
    for parameter in made.get_parameters():
        if parameter.name.endswith(
            (".keys", ".values", ".ended", ".before")
        ):  # one lane for each, with what another text has left there
            one = parameter.asnumpy()
            left = np.full((LANES, *one.shape[1:]), 7, one.dtype)
            left[:, 0] = 0 if one.ndim == 2 else 7  # nothing has ended before the first token
            parameter.set_data(as_tensor(left), slice_shape=True)
    made.set_train(False).set_inputs(*open_inputs())
    return made


@pytest.fixture(scope="module")
def texts(run) -> list[tuple[Domain, list[int]]]:
    """Prompts; the first one has a second document, ends it, and begins a third."""
    known, tokenizer = domains_of(run.config), run.tokenizer
    found = [(known.named(name), tokenizer.prompt(text, known.named(name))) for name, text in TEXTS]
    domain, ids = found[0]
    found[0] = domain, [*ids[:3], tokenizer.eot, *ids[3:], tokenizer.eot, *ids[:2]]
    return found


@pytest.fixture(scope="module")
def expected(graph_mode, run, texts) -> np.ndarray:
    """Logits after the whole text, [B, R], by the network that trains: another graph, another layout of the experts' rows."""
    tree = run.config.model_dump()
    tree["train"]["batch_size"] = tree["data"]["domains_per_step"] = 3
    config = run.config.model_validate(tree)
    samples = open_samples(config, Path(config.data.path), "train", run.tokenizer.size)
    batches = BatchLoader(config, samples, run.tokenizer, run.table)
    network, store = build_network(run)
    logits = Logits(network).set_train(False)

    def of_each(chosen: list[tuple[Domain, list[int]]]) -> list[np.ndarray]:
        """Of texts of three domains, each filled up with the id 4."""
        ids = np.full((1, 3, config.model.seq_length + 1), 4)
        for ids_S, (_, text) in zip(ids[0], chosen, strict=True):
            ids_S[: len(text)] = text
        batch = batches.assemble(ids, np.array([domain.index for domain, _ in chosen]))
        arrays = batch.arrays(store.rows.gather(batch.row_keys_EGBS) if store.rows else ())
        experts = active_weights(store, arrays.active_A)
        found_BSR = logits(*map(as_input, [*logits_arguments(arrays), experts]))[1].asnumpy()
        return [
            np.where(run.tokenizer.slot_rows[domain.slot] >= 0, found_SR[len(text) - 1], -np.inf)
            for found_SR, (domain, text) in zip(found_BSR, chosen, strict=True)
        ]

    return np.stack([*of_each(texts[:3]), of_each([texts[3], *texts[1:3]])[0]])


def call(graph: CachedGraph, new: list[New]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and most likely token after the last new token of each text; shorter ones are filled up with nonsense."""
    lengths = [len(ids) for _, ids, _, _ in new]
    ids_BC = np.full((len(new), max(lengths)), 10**6)
    for row, (_, ids, _, _) in zip(ids_BC, new, strict=True):
        row[: len(ids)] = ids
    domains, _, starts, lanes = zip(*new, strict=True)
    wanted = np.arange(len(new)) * ids_BC.shape[1] + np.array(lengths) - 1
    inputs = (ids_BC, lengths, starts, lanes, [domain.index for domain in domains], wanted)
    logits_WR, token_W = graph(*(as_tensor(np.asarray(each, np.int32)) for each in inputs))
    return logits_WR.asnumpy(), token_W.asnumpy()


def same(found_R: np.ndarray, expected_R: np.ndarray) -> None:
    used = np.isfinite(expected_R)
    assert (np.isneginf(found_R) == ~used).all()
    np.testing.assert_allclose(found_R[used], expected_R[used], rtol=0, atol=1e-5)


def test_texts_of_unequal_lengths_are_read_in_one_call(graph, texts, expected, run):
    logits_BR, token_B = call(graph, [(*text, 0, lane) for text, lane in zip(texts, (2, 0, 3, 1), strict=True)])
    for found_R, expected_R in zip(logits_BR, expected, strict=True):
        same(found_R, expected_R)
    ids = run.tokenizer.slot_rows
    rows = expected.argmax(axis=1)
    assert token_B.tolist() == [ids[domain.slot, row] for (domain, _), row in zip(texts, rows, strict=True)]


def test_the_decoder_without_mindspore_gives_them_too(run, texts, expected):
    decoder = Decoder(run.config, run.tokenizer, run.table, run)
    for lane, (domain, _) in enumerate(texts):
        decoder.begin(lane, domain)
    found = decoder.read([Chunk(lane, ids) for lane, (_, ids) in enumerate(texts)])
    for (found_R,), expected_R in zip(found, expected, strict=True):
        same(found_R, expected_R)


def test_texts_grow_by_some_tokens_a_call_each_from_its_own_place(graph, texts, expected):
    """In lanes that hold other texts, in changing company, one to three tokens at a time."""
    rng, at = np.random.default_rng(0), [0] * len(texts)
    lanes, last = (1, 3, 0, 2), [np.zeros(0)] * len(texts)
    while going := [k for k, (_, ids) in enumerate(texts) if at[k] < len(ids)]:
        chosen = [k for k in going if rng.random() < 0.8] or going
        new = [(texts[k][0], texts[k][1][at[k] : at[k] + int(rng.integers(1, 4))], at[k], lanes[k]) for k in chosen]
        for k, (_, ids, _, _), logits_R in zip(chosen, new, call(graph, new)[0], strict=True):
            at[k] += len(ids)
            last[k] = logits_R
    for found_R, expected_R in zip(last, expected, strict=True):
        same(found_R, expected_R)


def test_a_text_may_go_back_and_on_from_any_token(graph, texts, expected):
    """What a lane holds beyond the start of a call is forgotten, the ends of documents too."""
    domain, ids = texts[0]
    call(graph, [(domain, [*ids[:4], *ids[:6]], 0, 0)])
    same(call(graph, [(domain, ids[4:], 4, 0)])[0][0], expected[0])


def test_ids_that_cannot_be_give_no_numbers_and_harm_nobody(graph, texts, expected, run):
    domain, ids = texts[0]
    tokenizer = run.tokenizer
    without_row = int(np.flatnonzero(tokenizer.row_of[domain.slot] < 0)[0])
    new = [(domain, [*ids[:2], wrong, *ids[2:]], 0, lane) for lane, wrong in enumerate((10**6, -1, without_row))]
    logits_BR, _ = call(graph, [*new, (domain, ids, 0, 3)])
    assert np.isnan(logits_BR[:3]).all()
    same(logits_BR[3], expected[0])
