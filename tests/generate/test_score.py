"""Scores are the logits of the model, normalised, for each beginning of the text."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.score import score
from pangu_sigma.generate.text import open_decoder

pytestmark = pytest.mark.usefixtures("graph_mode")

TEXTS = [("en", "the cat sees a small old dog"), ("zh", "今天天气不错我们去公园"), ("code", "x y total")]


@pytest.fixture(scope="module")
def decoder(tiny_run) -> Decoder:
    return open_decoder(tiny_run)


@pytest.fixture(scope="module")
def engine(decoder) -> Engine:
    return Engine(decoder)


def log_probability(logits_R: np.ndarray, row: int) -> float:
    """By the definition, in float64."""
    used = logits_R[np.isfinite(logits_R)].astype(np.float64)
    return float(logits_R[row]) - float(np.log(np.sum(np.exp(used))))


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_each_token_is_scored_by_the_logits_after_those_before_it(decoder, engine, name, text):
    domain = domains_of(decoder.config).named(name)
    ids = decoder.tokenizer.prompt(text, domain)
    found = score(engine, text, domain)
    assert found.ids == ids[1:]
    expected = []
    for i in range(1, len(ids)):
        decoder.begin(0, domain)
        ((logits_R,),) = decoder.read([Chunk(0, ids[:i])])
        expected.append(log_probability(logits_R, decoder.tokenizer.row_of[domain.slot, ids[i]]))
    np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=1e-5)
    assert found.total == pytest.approx(sum(expected), abs=1e-4)
    assert found.total < 0
    assert "".join(found.tokens) == decoder.tokenizer.decode(ids[1:])


def test_of_code_the_tag_is_what_stands_before_the_first_token(decoder, engine):
    domain = domains_of(decoder.config).named("code")
    assert score(engine, "x y", domain).ids == decoder.tokenizer.encode("x y", domain)


def test_one_token_has_nothing_to_score_and_no_token_is_refused(decoder, engine):
    domain = domains_of(decoder.config).named("en")
    token = decoder.tokenizer.decode(decoder.tokenizer.prompt("the cat", domain)[:1])
    assert score(engine, token, domain).logprobs == []
    assert score(engine, token, domain).total == 0
    with pytest.raises(ConfigError, match="no tokens"):
        score(engine, "", domain)
