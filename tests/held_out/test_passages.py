"""Passages of held-out text: what stands in the text, and what the model says of it."""

from __future__ import annotations

import numpy as np

import pangu_sigma as ps
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.generate import text
from pangu_sigma.held_out import run
from pangu_sigma.held_out.passages import CONTINUED, READ, format_passages
from pangu_sigma.stored.open import open_model


def test_passages_are_held_out_text_and_have_the_losses_of_their_tokens(graph_mode, tiny_run, tiny_data, monkeypatch):
    """The run, whose files take long to read and verify, is opened once."""
    model, opened = ps.load(tiny_run), list[object]()
    for name, value in (("READ", 8), ("CONTINUED", 4)):
        monkeypatch.setattr(f"pangu_sigma.held_out.passages.{name}", value)
    for opener in (run, text):
        monkeypatch.setattr(opener, "open_model", lambda path, *kinds: opened.append(path) or open_model(path, *kinds))
    losses = run.evaluate_run(tiny_run, passages=1)
    assert opened == [tiny_run]
    assert list(losses) == ["zh", "en", "code"]
    for figures, domain in zip(losses.values(), model.domains, strict=True):
        (passage,) = figures["passages"]
        assert passage["domain"] == domain.name
        tokens = PreparedData(tiny_data).tokens(domain.name, "held_out", model.tokenizer.size)
        ids_T = tokens.read(0, tokens.tokens)
        ends = np.flatnonzero(ids_T == model.tokenizer.eot)
        ids = next(d for d in np.split(ids_T, ends + 1) if len(d) > 12)[:12].tolist()
        assert (passage["prompt"], passage["truth"]) == tuple(map(model.tokenizer.decode, (ids[:8], ids[8:])))
        logits_TR = model.engine.logits(domain, ids, len(ids)).astype(np.float64)
        logprobs_TR = logits_TR - np.log(np.exp(logits_TR).sum(axis=1, keepdims=True))
        rows = model.tokenizer.row_of[domain.slot, ids[8:]]
        np.testing.assert_allclose(passage["truth_nats"], -logprobs_TR[7:11][range(4), rows].mean(), rtol=1e-4)
        assert 0 < passage["answer_nats"] < passage["truth_nats"] + 1
    lines = format_passages(losses).splitlines()
    assert len(lines) == 1 + 3 * len(losses)
    assert (READ, CONTINUED) == (64, 24)
