"""What llguidance allows is what the bytes of a slot's tokens allow, and a whole answer has its structure."""

from __future__ import annotations

import itertools
import json
import re

import jsonschema_rs
import numpy as np
import pytest
from helpers.served import toy_decoder
from helpers.structures import SCHEMAS

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer, Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.structure import Structures

TEMPERATURES = (0.0, 1.2)


@pytest.fixture(scope="module")
def engine(tiny_data) -> Engine:
    return Engine(toy_decoder(tiny_data, lanes=8, seq_length=256))


@pytest.fixture(scope="module")
def structures(engine) -> Structures:
    return Structures(engine.decoder.tokenizer)


@pytest.fixture(scope="module")
def domains(engine):
    return domains_of(engine.decoder.config)


def fits(schema, text: str) -> bool:
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(json.loads(text))


def request(structures, domain, kind, what, temperature=1.0, seed=0, most=200, **more) -> Request:
    structure = structures.compile(kind, what, domain)
    return Request(domain, (9,), most, Sampling(temperature=temperature), seed, structure=structure, **more)


def complete(engine, *asked: Request) -> list[Answer]:
    answers = engine.complete(asked)
    for answer in answers:
        surfaces = engine.decoder.tokenizer.vocabulary.surfaces
        assert b"".join(surfaces[token] for token in answer.ids).decode(errors="replace") == answer.text
        assert "".join(token.text for token in answer.tokens) == answer.text
    return answers


def test_200_answers_fit_10_schemas(engine, structures, domains):
    asked = [
        (schema, request(structures, domains.named(name), "json", schema, temperature, seed))
        for schema, temperature, name, seed in itertools.product(SCHEMAS.values(), TEMPERATURES, ("zh", "en"), range(5))
    ]
    answers = complete(engine, *(each for _, each in asked))
    assert len(answers) == 200
    for (schema, _), answer in zip(asked, answers, strict=True):
        assert answer.finish == "stop" and fits(schema, answer.text), answer.text
    assert len({answer.text for answer in answers}) > 100, "they are the model's, not one answer for all"


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{4}", r"[一-龥]{2,5}。|a/b\n", r"^(猫|dog)\.$", r"[a-z]+@[a-z]{1,3}\.com"]
)
def test_a_regular_expression_matches_the_whole_answer(engine, structures, domains, pattern):
    asked = [
        request(structures, domains.named(name), "regex", pattern, temperature, seed)
        for name, temperature, seed in itertools.product(("zh", "en"), TEMPERATURES, range(3))
    ]
    for answer in complete(engine, *asked):
        match = re.fullmatch(pattern, answer.text)
        assert match if answer.finish == "stop" else answer.finish == "length", answer.text


def test_one_of_the_texts_is_chosen(engine, structures, domains):
    texts = [" yes", "yes", 'no "\n', "也许/", "\\", "\x00\u2028"]
    asked = [request(structures, domains.named("en"), "choice", texts, 9.0, seed) for seed in range(40)]
    answers = complete(engine, *asked)
    assert {answer.text for answer in answers} == {*texts}
    assert all(answer.finish == "stop" for answer in answers)


def test_what_may_follow_is_what_bytes_allow(engine, structures, domains):
    """Each row of a slot that a look at its bytes allows, also where a character is not complete, and none without bytes."""
    tokenizer, domain = engine.decoder.tokenizer, domains.named("en")
    ids, surfaces = tokenizer.slot_rows[domain.slot], tokenizer.vocabulary.surfaces
    answer = structures.compile("choice", ["the 猫", "them"], domain).begin()
    (row_of_the,) = (row for row, token in enumerate(ids) if token >= 0 and surfaces[token] == b"the")
    for taken, rest in ((None, [b"the \xe7\x8c\xab", b"them"]), (row_of_the, [b" \xe7\x8c\xab", b"m"])):
        if taken is not None:
            answer.take(taken)
        allowed_R = np.isfinite(answer.allowed(np.zeros(len(ids), np.float32)))
        spelled = [surfaces[token] if token >= 0 else b"" for token in ids]
        assert allowed_R.tolist() == [bool(s) and any(each.startswith(s) for each in rest) for s in spelled]


def test_other_answers_stay_bit_equal(engine, structures, domains):
    plain = [
        Request(domains.named(name), (9,), 24, Sampling(temperature=t), 3, logprobs=2)
        for name in ("zh", "en")
        for t in TEMPERATURES
    ]
    before = engine.complete(plain)
    beside = engine.complete([*plain, request(structures, domains.named("en"), "json", SCHEMAS["nested"])])
    assert [answer.tokens for answer in beside[:-1]] == [answer.tokens for answer in before]


def test_what_does_not_end_in_time_is_the_beginning_of_an_answer(engine, structures, domains):
    whole, cut = complete(
        engine, *(request(structures, domains.named("en"), "json", SCHEMAS["weather"], 0.0, most=n) for n in (200, 9))
    )
    assert (whole.finish, cut.finish, len(cut.tokens)) == ("stop", "length", 9)
    assert whole.text.startswith(cut.text) and whole.text != cut.text
    (exact,) = complete(
        engine, request(structures, domains.named("en"), "json", SCHEMAS["weather"], 0.0, most=len(whole.tokens))
    )
    assert (exact.finish, exact.text) == ("stop", whole.text), "what is whole at the last token is not cut"


def test_stop_strings_still_end_an_answer(engine, structures, domains):
    (answer,) = engine.complete([request(structures, domains.named("en"), "regex", "a{50}", stop=("aaa",))])
    assert (answer.text, answer.finish) == ("", "stop")


def test_logprobs_are_the_models_own(engine, structures, domains):
    (answer,) = complete(engine, request(structures, domains.named("en"), "choice", ["the cat"], logprobs=1))
    assert all(token.logprob < 0 for token in answer.tokens), "of all tokens, not of those that may follow"


@pytest.mark.parametrize(
    ("kind", "what", "reason"),
    [
        ("json", {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ("json", {"items": {"uniqueItems": True, "x-guidance": {"lenient": True}}}, "uniqueItems"),
        ("json", {"type": "strin"}, "strin"),
        ("json", {"$ref": "file:///etc/passwd"}, "does not fetch"),
        ("json", {"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ("json", {"const": "\ud800"}, "surrogate"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", r"a[^\s\S]", "^cannot be followed: no text has it$"),
        ("json", {"$ref": "#"}, "^cannot be followed: no text has it$"),
        ("json", {"not": {}}, r'^cannot be followed: Unimplemented keys: \["not"\]$'),
        ("choice", ["\ud800"], "surrogate"),
    ],
)
def test_what_cannot_be_followed_is_refused(structures, domains, kind, what, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        structures.compile(kind, what, domains.named("en"))
    assert not re.search(r"llguidance|%json|\d\(\d+\)|start:|NoExtension", str(error.value)), "nothing of its grammar"
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_too_many_levels_are_refused(structures, domains):
    for levels in (200, 5000):
        schema: dict = {}
        for _ in range(levels):
            schema = {"items": schema}
        with pytest.raises(ConfigError, match="recursion"):
            structures.compile("json", schema, domains.named("en"))


def test_long_repetitions_take_no_longer(structures, domains):
    """A step of all answers waits for the rows that may follow."""
    answer = structures.compile("regex", "((a{1000}){1000}){1000}", domains.named("en")).begin()
    allowed_R = np.isfinite(answer.allowed(np.zeros(len(structures._tokenizer.slot_rows[0]), np.float32)))
    assert 0 < allowed_R.sum() < 5
