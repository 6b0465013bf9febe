"""What a loaded model shows of itself is what one computes by hand, in NumPy, from its files."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pangu_sigma as ps
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.held_out.batches import samples_of_evaluation
from pangu_sigma.held_out.text import read_documents
from pangu_sigma.stored.open import open_model

pytestmark = pytest.mark.usefixtures("graph_mode")

TEXTS = [("en", "the cat sees a small old dog"), ("zh", "今天天气不错我们去公园"), ("code", "x y total")]


@pytest.fixture(scope="module", params=["tiny_run", "drawn_segmented_run", "rows_run"])
def model(request) -> ps.Model:
    """A run of the paper's layers; a run with two own and two common segments, and ids that are spread over experts; one with
    rows for pairs of tokens."""
    return ps.load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def one(tiny_run) -> ps.Model:
    return ps.load(tiny_run)


def tensors_of(model: ps.Model) -> Callable[[str], np.ndarray]:
    stored = open_model(model.path)
    return lambda name: np.asarray(stored.tensor(name), np.float64)


def norm(x_TH: np.ndarray, tensor: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    centred = x_TH - x_TH.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * tensor(f"{name}.gain") + tensor(f"{name}.bias")


def ffn(x_H: np.ndarray, parts: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The sum of segments; a GELU is x · sigmoid(1.702 x)."""
    inner = [part["w1"] @ x_H + part["b1"] for part in parts]
    return sum(
        (u / (1 + np.exp(-1.702 * u))) @ part["w2"] + part.get("b2", 0) for u, part in zip(inner, parts, strict=True)
    )


def attention(tensor: Callable[[str], np.ndarray], at: str, query: np.ndarray, x_TH: np.ndarray, heads: int) -> Any:
    q, k, v = (
        (source @ tensor(f"{at}.{name}.weight") + tensor(f"{at}.{name}.bias")).reshape(len(x_TH), heads, -1)
        for name, source in (("query", query), ("key", x_TH), ("value", x_TH))
    )
    mixed = np.empty_like(v)
    for t in range(len(x_TH)):
        for head in range(heads):
            scores = np.exp(k[: t + 1, head] @ q[t, head] / math.sqrt(q.shape[-1]))
            mixed[t, head] = scores / scores.sum() @ v[: t + 1, head]
    return mixed.reshape(len(x_TH), -1) @ tensor(f"{at}.output.weight") + tensor(f"{at}.output.bias")


def routed_by_hand(model: ps.Model, ids: list[int], domain: int) -> np.ndarray:
    """Expert of each token, from the arrays of routing.npz."""
    arrays = np.load(model.path / "routing.npz")
    common_N = arrays["common_N"] if "common_N" in arrays else np.zeros(len(arrays["first_NDV"]), int)
    found = np.empty((len(common_N), len(ids)), int)
    for n, common in enumerate(common_N):
        for t, token in enumerate(ids):
            spread = arrays["common_spread_V"][token] if common else arrays["spread_DV"][domain, token]
            number = arrays["first_NDV"][n, domain, token] + t % spread
            found[n, t] = number % common if common else domain * arrays["experts"] + number % arrays["experts"]
    return found


def rows_by_hand(model: ps.Model, ids: list[int], domain: int) -> np.ndarray:
    """The rows of each token side by side, [T, H], by the arrays of routing.npz."""
    parts, stored, tables = [], open_model(model.path), np.load(model.path / "routing.npz")
    for e, entry in enumerate(model.config.model.rows):
        met, part = dict(zip(*stored.rows(e), strict=True)), np.zeros((len(ids), entry.width))
        for t, token in enumerate(ids):
            key = int(tables["row_EV"][e, token]) + int(tables["before_EV1"][e, ids[t - 1] if t else -1])
            part[t] = met.get(key % entry.rows + domain * entry.rows * (entry.kind == "own"), 0)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def hidden_by_hand(model: ps.Model, ids: list[int], index: int) -> list[np.ndarray]:
    tensor, sizes, slot = tensors_of(model), model.config.model, model.domains[index].slot
    assert sizes.activation == "fast_gelu"
    rows = [int(np.flatnonzero(model.tokenizer.slot_rows[slot] == token)[0]) for token in ids]
    places, experts_NT = np.arange(len(ids)), routed_by_hand(model, ids, index)
    x_TH = tensor("embedding")[[slot * sizes.slot_rows + row for row in rows]] + tensor("positions")[places]
    seen, width = [x_TH], len(sizes.segments)
    e_TH = rows_by_hand(model, ids, index) if sizes.rows else None
    for layer in range(sizes.layers):
        at, query = f"layers.{layer}", None
        if layer == sizes.layers - 1:
            x_TH = norm(x_TH, tensor, "norm")
            query = tensor("query_positions")[places]
        if e_TH is not None:
            x_TH = x_TH + tensor(f"{at}.row_scale") * e_TH
        normed = norm(x_TH, tensor, f"{at}.attention_norm")
        x_TH = x_TH + attention(tensor, f"{at}.attention", normed if query is None else query, normed, sizes.heads)
        normed, first = norm(x_TH, tensor, f"{at}.ffn_norm"), (layer - sizes.dense_layers) * width
        for t in range(len(ids)):
            if layer < sizes.dense_layers:
                parts = [{name: tensor(f"{at}.ffn.{name}") for name in ("w1", "b1", "w2", "b2")}]
            else:
                parts = [model.expert(n, int(experts_NT[n, t])) for n in range(first, first + width)]
            x_TH[t] += ffn(normed[t], parts)
        seen.append(x_TH)
    return seen


@pytest.mark.parametrize(("domain", "text"), TEXTS)
def test_hidden_states_and_logits_are_those_of_numpy(model, domain, text):
    ids, known = model.ids(text, domain), model.domains.named(domain)
    by_hand = hidden_by_hand(model, ids, known.index)
    found = model.hidden_states(text, domain)
    sizes = model.config.model
    assert (found.shape, found.dtype) == ((sizes.layers + 1, len(ids), sizes.hidden), np.float32)
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=2e-5)
    logits_TR = model.logits(text, domain, all_positions=True)
    used = model.tokenizer.slot_rows[known.slot] >= 0
    table = tensors_of(model)("embedding")[known.slot * sizes.slot_rows :][: sizes.slot_rows]
    np.testing.assert_allclose(logits_TR[:, used], (by_hand[-1] @ table.T)[:, used], rtol=0, atol=1e-4)
    assert np.isneginf(logits_TR[:, ~used]).all()
    assert np.array_equal(model.experts(text, domain), routed_by_hand(model, ids, known.index))


def test_all_positions_have_the_bits_of_each_alone(model):
    for domain, text in TEXTS:
        ids = model.ids(text, domain)
        logits_TR = model.logits(ids, domain, all_positions=True)
        for t in range(len(ids)):
            assert np.array_equal(logits_TR[t], model.logits(ids[: t + 1], domain)), (domain, t)


def test_a_second_document_begins_anew(one):
    ids = one.ids("the cat", "en")
    both = one.hidden_states([*ids, one.tokenizer.eot, *ids], "en")
    assert np.array_equal(both[:, len(ids) + 1 :], one.hidden_states(ids, "en"))


def test_experts_are_the_arrays_of_the_files(one, tiny_export):
    stored = open_model(one.path)
    for expert in range(6):
        found = one.expert(1, expert)
        for name, values in found.items():
            assert np.array_equal(values, stored.tensor(f"layers.2.ffn.experts.{expert}.{name}"))
            values += 1  # a copy, which is the caller's
    assert np.array_equal(one.expert(1, 0)["w1"], stored.tensor("layers.2.ffn.experts.0.w1"))
    assert np.array_equal(ps.load(tiny_export).expert(0, 3)["w2"], one.expert(0, 3)["w2"])


def test_a_slot_lists_the_token_of_each_row(one):
    decode, slot_rows = one.tokenizer.decode, one.config.model.slot_rows
    for domain in one.domains:
        table = one.slot(domain.name)
        ids_R = table["id"]
        assert table["text"] == ["" if token < 0 else decode([token]) for token in ids_R.tolist()]
        rows_U = np.flatnonzero(ids_R >= 0)
        assert len(ids_R) == slot_rows and np.array_equal(one.tokenizer.row_of[domain.slot, ids_R[rows_U]], rows_U)
    assert str(table).startswith(f"{slot_rows:,} rows") and "text" in str(table)


def loss_by_hand(model: ps.Model, ids: list[int], domain: str) -> tuple[list[float], list[int]]:
    """Nats of each sample of a stream, and its tokens: each token from those before it in its document and in the sample."""
    length, rows = model.config.model.seq_length, model.tokenizer.row_of[model.domains.named(domain).slot]
    nats, tokens = [], []
    for first in range(0, len(ids) - 1, length):
        sample = ids[first : first + length + 1]
        each = []
        for end in range(1, len(sample)):
            if sample[end - 1] == model.tokenizer.eot:
                continue
            logits = model.logits(sample[:end], domain).astype(np.float64)
            logits -= logits.max()
            each.append(math.log(np.exp(logits).sum()) - logits[rows[sample[end]]])
        nats.append(sum(each))
        tokens.append(len(each))
    return nats, tokens


def test_the_loss_of_any_text_is_that_of_its_tokens_and_its_end(one):
    for domain, text in TEXTS:
        nats, tokens = loss_by_hand(one, [*one.ids(text, domain), one.tokenizer.eot], domain)
        found = one.evaluate(text, domain)
        assert found.keys() == {domain}
        assert found[domain]["loss"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-6)
        assert (found[domain]["tokens"], found[domain]["unigram"]) == (sum(tokens), None)
        one_less = -one.score(text, domain).total
        assert one_less < found[domain]["loss"] * sum(tokens), "the end of the text costs too"
    assert str(found).startswith("domain ") and "held-out" not in str(found)


def test_the_loss_of_a_file_is_that_of_its_documents_one_after_another(one, tmp_path, caplog):
    records = [{"domain": domain, "text": text * 4} for domain, text in TEXTS] * 2
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join([*lines, '{"domain": "fr", "text": "bonjour"}', "no JSON"]), "utf-8")
    found = one.evaluate(input=file)
    assert "2 lines cannot be used" in caplog.text and "unknown domain" not in str(found)
    assert found == ps.evaluate(one, input=[file]) and list(found) == ["zh", "en", "code"]
    for domain, text in TEXTS:
        ids = [*one.ids(text * 4, domain), one.tokenizer.eot] * 2
        nats, tokens = loss_by_hand(one, ids, domain)
        assert found[domain]["per_sample"]["nats"] == pytest.approx(nats, abs=1e-3)
        assert found[domain]["per_sample"]["tokens"] == tokens
        counted = [token for before, token in pairwise(ids) if before != one.tokenizer.eot]
        assert found[domain]["bytes"] == sum(len(one.tokenizer.vocabulary.surfaces[token]) for token in counted)
    assert one.evaluate(input=file, domain="en").keys() == {"en"}


def test_of_a_long_file_as_many_samples_are_read_as_training_evaluates_spread_evenly(one, tmp_path, caplog):
    limit, length = samples_of_evaluation(one.config), one.config.model.seq_length
    file, texts = tmp_path / "mine.jsonl", ["the cat sees a dog " * 40, "a bird " * 90, "the cat " * 100]
    file.write_text("\n".join(json.dumps({"domain": "en", "text": text}) for text in texts * 3))
    every_sample = one.evaluate(input=file, all_samples=True)["en"]
    assert caplog.messages == [] and every_sample["samples"] > 2 * limit
    with caplog.at_level(logging.INFO):
        found = one.evaluate(input=file)["en"]
    total = every_sample["samples"]
    assert caplog.messages == [f"en: {limit} of {total} samples; all: all_samples"]
    numbers = [(2 * n + 1) * total // (2 * limit) for n in range(limit)]
    for key, values in every_sample["per_sample"].items():
        assert found["per_sample"][key] == [values[number] for number in numbers]
    assert found["held_out"] != every_sample["held_out"], "other samples cannot be compared"
    text = " ".join(texts)
    assert one.evaluate(text, "en")["en"]["samples"] >= len(one.ids(text, "en")) // length > limit, (
        "a text is read whole"
    )


def test_a_function_that_the_call_names_reads_the_records(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text('{"text": "the cat sees", "domain": "en"}\n')
    Path("reads.py").write_text("def read(record):\n    return {**record, 'domain': 'code'}\n")
    assert one.evaluate(input="text.jsonl").keys() == {"en"}
    assert one.evaluate(input="text.jsonl", reader="reads.py:read").keys() == {"code"}


def test_records_of_a_run_whose_text_a_reader_read_are_read_as_they_are_with_a_warning(
    one, tmp_path, monkeypatch, caplog
):
    """Domains may have been prepared one after another, and read by different functions or by none."""
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "the cat sees", "domain": "en"}\n')
    readers = {"zh": None, "en": "reads.py:read", "code": "other.py:read"}

    def read_manifest(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(config={"reader": [readers[folder.name], "a hash"]})

    monkeypatch.setattr("pangu_sigma.held_out.text.read_manifest", read_manifest)
    assert one.evaluate(input=file).keys() == {"en"}
    assert "text of the run was read by other.py:read" in caplog.text
    assert "to read them by it, add reader='reads.py:read'" in caplog.text
    for domain, count in (("zh", 0), ("code", 1)):
        caplog.clear()
        assert one.evaluate(input=file, domain=domain).keys() == {domain}
        assert caplog.text.count("was read by") == count


def test_the_held_out_text_as_any_text_has_the_loss_that_training_measured(one, tiny_data):
    """But for rows without a token, which have a probability in training, so that its loss is a little higher."""
    measured = one.evaluate(all_samples=True)
    for domain in one.domains:
        file = PreparedData(tiny_data).tokens(domain.name, "held_out", one.tokenizer.size)
        length = one.config.model.seq_length
        nats, _ = loss_by_hand(one, file.read(0, 2 * length + 1).tolist(), domain.name)
        for mine, theirs in zip(nats, measured[domain.name]["per_sample"]["nats"], strict=False):
            assert theirs - 0.005 * theirs < mine < theirs + 1e-3


def test_what_cannot_be_shown_is_one_message(one, tmp_path):
    (tmp_path / "empty.jsonl").write_text("{}\n")
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: one.hidden_states("", "en"), "no tokens"),
        (lambda: one.hidden_states("the " * 99, "en"), r"more than model\.seq_length=32"),
        (lambda: one.hidden_states([10**6], "en"), "token id 1000000 does not exist"),
        (lambda: one.experts([1.5], "en"), r"text_or_ids=\[1\.5\] is not allowed"),
        (lambda: one.logits("the", "en", all_positions=1), "all_positions=1 is not allowed: it must be true or false"),
        (lambda: one.expert(2, 0), "segment=2 is not allowed: the RRE layers have the segments 0 … 1"),
        (lambda: one.expert(0, 6), "number=6 is not allowed: segment 0 has the experts 0 … 5"),
        (lambda: one.slot("fr"), "unknown domain 'fr'"),
        (lambda: one.evaluate("mine.jsonl"), "text: give it a domain, .*; the name of a file is input=…"),
        (lambda: one.evaluate("the", "en", input="x.jsonl"), "and no input"),
        (lambda: one.evaluate("", "en"), "a text of domain en has no tokens"),
        (lambda: ps.train(one.config, tmp_path / "x", on_step=3), "on_step=3 is not allowed: it must be callable"),
        (lambda: one.evaluate(input=tmp_path / "empty.jsonl"), "no line can be used; the first: .*empty.jsonl:1"),
        (lambda: one.evaluate(input=tmp_path / "none.jsonl"), "none.jsonl"),
        (lambda: one.evaluate(input=tmp_path / "x.txt"), r"must end in \.jsonl"),
    ]
    for call, message in calls:
        with pytest.raises(ps.UserError, match=message):
            call()


def test_what_has_no_effect_on_a_measure_is_warned_of(one, tmp_path, caplog):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "the cat", "domain": "en"}\n')
    alone = one.evaluate(input=file)
    assert caplog.messages == []
    of_text, body = "against, passages has no effect", {"data.text_key": "body"}
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: one.evaluate("the", "en", passages=1), of_text),
        (lambda: ps.evaluate(one, one, input=file), of_text),
        (lambda: one.evaluate(overrides=body), "domain, reader or overrides has no effect: held-out text"),
        (lambda: one.evaluate("the", "en", overrides=body), "overrides has no effect: they say how"),
        (lambda: one.evaluate(input=file, overrides={"train.steps": 1}), "overrides train.steps has no"),
    ]
    for call, message in calls:
        caplog.clear()
        assert call() is not None
        assert message in caplog.text
    assert calls[-1][0]() == alone


def test_records_without_the_runs_keys_are_read_by_the_key_text(one, tmp_path, caplog):
    (tmp_path / "mine.jsonl").write_text('{"text": "the cat"}\n')
    config = ps.load_config(one.path, {"data.text_key": "content"})
    (document,) = read_documents(config, [tmp_path / "mine.jsonl"], "en")
    assert (document.domain, document.text) == ("en", "the cat")
    assert "no record has the key content of the run's text; the key text is read" in caplog.messages
    with pytest.raises(
        ps.UserError, match=r"no line can be used; the first: .*; say with domain which domain reads them"
    ):
        one.evaluate(input=tmp_path / "mine.jsonl")


def test_a_model_stays_the_one_that_was_loaded_while_its_run_trains_on(tiny_run, tmp_path):
    model = ps.load(shutil.copytree(tiny_run, tmp_path / "run"))
    expected, w1 = model.logits("the cat", "en"), model.expert(0, 0)["w1"]
    for path in (model.path / "checkpoints").iterdir():
        path.rename(path.with_name(f".{path.name}"))
    assert np.array_equal(model.logits("the cat", "en"), expected) and np.array_equal(model.expert(0, 0)["w1"], w1)
    assert not np.array_equal(model.without(segment=0).logits("the cat", "en"), expected)


def test_it_shows_itself_while_it_answers(one):
    """In any thread: a lane is taken when one is free."""
    alone = one.hidden_states("the cat sees", "en")
    with ThreadPoolExecutor(2) as pool:
        shown = pool.map(lambda _: one.hidden_states("the cat sees", "en"), range(40))
        texts = one.generate(["the ", "a "] * 6, "en", max_new_tokens=20)
        assert all(np.array_equal(states, alone) for states in shown)
    assert texts == one.generate(["the ", "a "] * 6, "en", max_new_tokens=20)


def test_a_run_that_has_moved_shows_itself(one, tmp_path):
    """Nothing here reads the prepared text or a place that the run was in. Records are read as overrides say."""
    moved, file = ps.load(shutil.copytree(one.path, tmp_path / "moved")), tmp_path / "mine.jsonl"
    file.write_text('{"content": "the cat"}\n')
    changes = {"data.text_key": "content", "data.domain_of": {"*": "en"}}
    assert np.array_equal(moved.hidden_states("the cat", "en"), one.hidden_states("the cat", "en"))
    assert (
        moved.evaluate("the cat", "en")
        == one.evaluate("the cat", "en")
        == moved.evaluate(input=file, overrides=changes)
    )


def test_a_model_without_its_rows_or_an_expert_is_the_model_whose_weights_are_zeros(rows_run, tmp_path):
    model, text = ps.load(rows_run), "the cat sees a small old dog"
    whole = model.logits(text, "en")
    bare, stored = model.without(rows=True), open_model(model.path)
    assert np.array_equal(
        model.without(rows=0).without(rows=1).without(rows=2).logits(text, "en"), bare.logits(text, "en")
    )
    assert not np.array_equal(bare.logits(text, "en"), whole) and np.array_equal(model.logits(text, "en"), whole)
    plain = stored.config.model_copy(update={"model": stored.config.model.model_copy(update={"rows": []})})
    ids, domain = model.ids(text, "en"), model.domains.named("en")
    network = ExactModel(plain.model, stored, plain.model.activation)
    first = domain.slot * plain.model.slot_rows
    rows_T = first + stored.tokenizer.row_of[domain.slot, ids]
    experts_NT, slot = model.experts(ids, "en"), first + np.arange(plain.model.slot_rows)
    expected = network.logits(rows_T, experts_NT, slot)[-1]
    found = bare.logits(text, "en")
    used = np.isfinite(found)
    np.testing.assert_allclose(found[used], expected[used], atol=1e-5)
    number = int(experts_NT[0, -1])
    without = model.without(segment=0, expert=number)
    assert not np.array_equal(without.logits(text, "en"), whole)
    others = set(range(6)) - set(experts_NT[0].tolist())
    assert np.array_equal(model.without(segment=0, expert=others.pop()).logits(text, "en"), whole), (
        "no token is sent there"
    )
    assert bare.score(text, "en").logprobs != model.score(text, "en").logprobs
    for refused in (lambda: bare.export(tmp_path / "x"), bare.evaluate, lambda: ps.evaluate(bare)):
        with pytest.raises(ps.UserError, match="changed in memory"):
            refused()
    for wrong in ({}, {"rows": 3}, {"rows": False}, {"segment": 99}, {"expert": 1}, {"rows": 0, "segment": 0}):
        with pytest.raises(ps.UserError):
            model.without(**wrong)


def test_other_routing_tables_answer_and_the_folder_keeps_its_own(one, tmp_path):
    table, text = open_model(one.path).table, "the cat sees a small old dog"
    replace(table, first_NDV=1 - table.first_NDV).save(tmp_path / "other.npz")
    other = ps.load(one, routing=tmp_path / "other.npz")
    swapped = one.experts(text, "en") ^ 1
    assert np.array_equal(other.experts(text, "en"), swapped), "of two experts a domain the other one"
    assert not np.array_equal(other.logits(text, "en"), one.logits(text, "en"))
    replace(table, first_NDV=table.first_NDV[:1]).save(tmp_path / "short.npz")
    with pytest.raises(ps.UserError, match=r"short\.npz is for .* this run has"):
        ps.load(one, routing=tmp_path / "short.npz")
