"""What lm-evaluation-harness is told is what the logits of a model say, and what its own client of our interface would tell."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate import harness
from pangu_sigma.evaluate.harness import HarnessModel
from pangu_sigma.evaluate.result_cache import ResultCache
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.text import generate

PAIRS = [
    ("the cat sees", " a small old red dog"),
    ("the cat sees", " a bird"),
    ("the cat sees ", "a bird"),
    ("", "the cat"),
    ("the cat sees a small old", " red"),
    ("the cat " * 20, " sees"),
    ("the cat", ""),
]
"""Contexts and continuations; the last but one is longer than the model, the last continuation has no token."""


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [
        Instance(kind, {}, each if isinstance(each, tuple) else (each,), number)
        for number, each in enumerate(arguments)
    ]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tiny_run) -> HarnessModel:
    return HarnessModel(str(tiny_run), "en", batch_size=4)


def scored(model: HarnessModel, ids: list[int], count: int) -> tuple[float, bool]:
    """Log-probability of the last `count` ids of a text, in float64, and whether each is the most likely."""
    if not count:
        return 0.0, True
    logits_TR = model.engine.logits(model.domain, ids[:-1], count).astype(np.float64)
    scores_TR = logits_TR - np.log(np.exp(logits_TR).sum(axis=-1, keepdims=True))
    scores_T = scores_TR[np.arange(count), model.tokenizer.row_of[model.domain.slot, ids[-count:]]]
    return float(scores_T.sum()), bool((scores_T >= scores_TR.max(axis=-1)).all())


def test_log_likelihoods_are_those_of_the_logits(model, caplog):
    expected = []
    for context, continuation in PAIRS:
        context_text = context.rstrip()
        continuation = context[len(context_text) :] + continuation
        ids_of_both = model.tokenizer.encode(context_text + continuation, model.domain)
        before = model.tokenizer.encode(context_text, model.domain)
        assert ids_of_both[: len(before)] == before
        ids = ([model.tokenizer.eot] if not context_text else []) + ids_of_both
        expected.append(scored(model, ids[-31:], len(ids_of_both) - len(before)))
    with caplog.at_level(logging.WARNING):
        scores = model.loglikelihood(asked("loglikelihood", *PAIRS))
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert caplog.messages == ["1 of 7 contexts lost their beginning: 31 tokens fit"]


def test_what_greedy_generation_gives_is_greedy(model):
    (text,) = model.generate_until(asked("generate_until", ("the cat", {"max_gen_toks": 3})))
    pairs = [("the cat", text), ("the cat", " tree tree")]
    assert [greedy for _, greedy in model.loglikelihood(asked("loglikelihood", *pairs))] == [True, False]


def test_a_long_text_is_scored_in_windows_each_token_once(model):
    """Windows of 31 ids: an <eot> and 30 tokens, then always as full as possible."""
    texts = ["the cat sees a dog", "a small old red green house and then " * 12, ""]
    expected = []
    for text in texts:
        ids = model.tokenizer.encode(text, model.domain)
        total = 0.0
        for first in range(0, len(ids), 30):
            new = ids[first : first + 30]
            window = [model.tokenizer.eot, *new] if first == 0 else ids[first + len(new) - 31 : first + len(new)]
            total += scored(model, window, len(new))[0]
        expected.append(total)
    assert len(model.tokenizer.encode(texts[1], model.domain)) % 30
    found = model.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[2] == 0.0


def test_text_is_what_generate_gives_before_the_first_stop_string(model):
    asks = [
        ("the cat", {"until": ["a", "tree"], "max_gen_toks": 8}),
        ("the cat", {"until": "tree", "max_gen_toks": 8, "do_sample": False, "temperature": 0.7}),
        ("the cat", {"until": [""], "max_gen_toks": 8, "temperature": 1.0, "top_k": 5}),
        ("", {"max_gen_toks": 2}),
    ]
    found = model.generate_until(asked("generate_until", *asks))
    greedy = generate(model.engine, [("en", "the cat")], 8)[0].text
    stopped = [generate(model.engine, [("en", "the cat")], 8, stop=stop)[0].text for stop in (["a", "tree"], ["tree"])]
    assert found[:2] == stopped
    assert found[2] != greedy
    assert model.generate_until(asked("generate_until", *asks)) == found
    with pytest.raises(ConfigError, match="the task asks for num_beams, which this model does not know"):
        model.generate_until(asked("generate_until", ("the", {"num_beams": 4})))


def test_an_answer_that_leaves_no_room_for_a_prompt_has_half_of_it_and_that_is_said(model, caplog):
    with caplog.at_level(logging.WARNING):
        found = model.generate_until(asked("generate_until", ("the", {}), ("the", {"max_gen_toks": 16})))
    assert found[0] == found[1] == generate(model.engine, [("en", "the")], 16)[0].text
    assert (
        caplog.messages[0]
        == "1 of 2 answers have half of the 31 tokens that the model can read, and not what the task asks for"
    )


def test_repeats_of_a_request_have_seeds_that_follow_one_another(model, tiny_run):
    options = {"max_gen_toks": 8, "temperature": 1.0}
    one, other = asked("generate_until", ("the cat", options), ("a small", options))
    found = model.generate_until([one, one, one, other, other])
    for number, text in enumerate(found[:3]):
        alone = HarnessModel(model.engine, "en", seed=1234 + number)
        assert alone.generate_until([one]) == [text]
        assert number == 2 or alone.generate_until([other]) == [found[3 + number]]
    assert len(set(found)) > 2


def test_a_prompt_loses_its_beginning_where_the_answer_needs_room(model, caplog):
    with caplog.at_level(logging.WARNING):
        (found,) = model.generate_until(asked("generate_until", ("dog the cat " * 20, {"max_gen_toks": 8})))
    ids = model.tokenizer.encode("dog the cat " * 20, model.domain)[-23:]
    assert found == generate(model.engine, [("en", model.tokenizer.decode(ids))], 8)[0].text
    lost, blank, *others = caplog.messages
    assert lost == "1 of 1 prompts lost their beginning, to leave room for the answer"
    assert "1 of 1 prompts" in blank and "the prompt ends in a blank" in blank, "as this one does"
    assert not others


def test_a_token_that_reaches_over_the_end_of_a_context_is_not_lost(tiny_run, caplog):
    """天气 is one token, so the context's own tokens are not how the whole text begins."""
    model = HarnessModel(str(tiny_run), "zh")
    before, after = (model.tokenizer.encode(text, model.domain) for text in ("今天天", "气不错"))
    assert model.tokenizer.encode("今天天气不错", model.domain)[: len(before)] != before
    with caplog.at_level(logging.WARNING):
        ((score, _),) = model.loglikelihood(asked("loglikelihood", ("今天天", "气不错")))
    assert score == pytest.approx(scored(model, [*before, *after], len(after))[0], abs=1e-5)
    assert caplog.messages[-1].startswith("in 1 of 1 requests a token would reach over the end of the context")


def test_a_tag_stands_before_the_text_where_it_is_asked_for(tiny_run, caplog):
    with caplog.at_level(logging.WARNING):
        plain = HarnessModel(str(tiny_run), "code")
    assert caplog.messages[0].startswith("domain code was trained with a tag of the language before each text")
    tagged = HarnessModel(str(tiny_run), "code", tags=True)
    after = tagged.tokenizer.encode(" total", tagged.domain)
    for model, before in (
        (plain, plain.tokenizer.encode("x y", plain.domain)),
        (tagged, tagged.tokenizer.prompt("x y", tagged.domain)),
    ):
        ((score, _),) = model.loglikelihood(asked("loglikelihood", ("x y", " total")))
        assert score == pytest.approx(scored(model, [*before, *after], len(after))[0], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "fr"}, "unknown domain 'fr'; this configuration has zh, en, code"),
        ({"batch_size": 0}, "batch_size=0 is not allowed: 1 or more, or auto, which is 8"),
        ({"max_length": 33}, r"max_length=33 is not allowed: 3 to model\.seq_length=32"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tiny_run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        HarnessModel(**{"path": str(tiny_run), "domain": "en", "batch_size": "auto", **arguments})


def test_a_continuation_that_is_longer_than_the_model_is_scored_in_windows(model, caplog):
    """As a rolling text is, but after the last token of its context instead of an <eot>."""
    ids = model.tokenizer.encode("the cat" + " dog cat" * 20, model.domain)
    before = model.tokenizer.encode("the cat", model.domain)
    after, expected = ids[len(before) :], 0.0
    for first in range(0, len(after), 30):
        end = min(first + 30, len(after))
        expected += scored(model, [before[-1], *after][max(0, end + 1 - 31) : end + 1], end - first)[0]
    with caplog.at_level(logging.WARNING):
        ((found, _),) = model.loglikelihood(asked("loglikelihood", ("the cat", " dog cat" * 20)))
    assert found == pytest.approx(expected, abs=1e-4)
    assert caplog.messages == [
        "1 of 1 continuations have 31 tokens or more, so that they do not fit; they were scored in windows"
    ]


def test_it_notes_whose_text_was_cut(tiny_run):
    model = HarnessModel(str(tiny_run), "en")
    texts = [("the cat", " sees"), ("the cat " * 20, " sees"), ("the cat", " dog cat" * 20)]
    scored = [Instance("loglikelihood", {}, pair, 0, ("a", number, 1)) for number, pair in enumerate(texts)]
    model.loglikelihood(scored, disable_tqdm=True)
    prompts = [("the cat", {"max_gen_toks": 3}), ("the cat " * 20, {"max_gen_toks": 3})]
    model.generate_until(
        [Instance("generate_until", {}, pair, 0, ("b", number, 1)) for number, pair in enumerate(prompts)],
        disable_tqdm=True,
    )
    assert model.truncated == {("a", 1), ("a", 2), ("b", 1)}


def test_the_longest_texts_are_first_and_those_that_begin_alike_together(model):
    def request(*ids: int) -> Request:
        return Request(model.domain, ids)

    alike = list(range(16))
    requests = [request(1, 2), request(*alike, 5), request(7, 8, 9), request(*alike, 4, 4, 4), request(2, *alike, 1)]
    assert harness._submission_order(requests) == [3, 1, 4, 2, 0]


def test_answers_that_were_kept_are_not_asked_for_again(tiny_run, tmp_path, monkeypatch):
    """Broken off while the longest answer is written; what comes afterwards is what comes without a break, and only the rest is
    asked for."""
    model = HarnessModel(str(tiny_run), "en", batch_size=2)
    lengths = {"the cat": 12, "a small": 3, "dog": 3, "house tree": 3}
    prompts = [(text, {"max_gen_toks": n, "temperature": float(n == 3)}) for text, n in lengths.items()]
    whole = model.generate_until(asked("generate_until", *prompts), disable_tqdm=True)
    scores = model.loglikelihood(asked("loglikelihood", *PAIRS[:4]), disable_tqdm=True)
    requested: list[list[Request]] = []
    answers_to, read, readings = model.engine.answers_to, model.engine.decoder.read, iter(range(9))

    def recorded(requests: list[Request]) -> Any:
        requested.append(requests)
        return answers_to(requests)

    def killed(chunks: Any) -> Any:
        if next(readings) == 8:
            raise KeyboardInterrupt
        return read(chunks)

    model.cache = ResultCache(tmp_path / "kept", {})
    monkeypatch.setattr(model.engine, "answers_to", recorded)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.engine.decoder, "read", killed)
        model.generate_until(asked("generate_until", *prompts), disable_tqdm=True)
    model.cache = ResultCache(tmp_path / "kept", {})
    assert model.generate_until(asked("generate_until", *prompts), disable_tqdm=True) == whole
    assert model.loglikelihood(asked("loglikelihood", *PAIRS[:4]), disable_tqdm=True) == scores
    first, rest, scored = requested
    assert 0 < len(rest) < len(first) == len(scored) and 12 in [request.max_new_tokens for request in rest]
    model.cache = ResultCache(tmp_path / "kept", {})
    again = model.loglikelihood(asked("loglikelihood", *PAIRS[:4]), disable_tqdm=True)
    assert again == scores and requested[3:] == [[]], "the numbers come back from the file as they were"


def test_without_the_harness_there_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(
        ConfigError, match=r"lm-evaluation-harness cannot be loaded .*pip install 'pangu-sigma\[evaluate\]'"
    ):
        importlib.reload(harness)


def test_the_harness_knows_the_model_beside_its_own():
    """In a process of its own, where nothing else has loaded the harness's models."""
    code = (
        "from pangu_sigma.evaluate import harness; from lm_eval.api.registry import get_model;"
        "print(get_model('pangu-sigma').__name__, get_model('dummy').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["HarnessModel", "DummyLM"]
