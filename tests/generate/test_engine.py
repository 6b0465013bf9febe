"""Whatever is asked together, each answer is the one that a plain loop over the model's logits gives."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.fake_decoder import EOT, FakeDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import UserError
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.engine import Engine, QueueFull
from pangu_sigma.generate.request import Answer, Request
from pangu_sigma.generate.sampling import Sampling

LENGTH = 24
DRAWN = Sampling(temperature=1.0)
SAMPLINGS = [
    Sampling(),
    DRAWN,
    Sampling(temperature=0.8, top_k=3, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
]
UP, REVERSED = FakeDecoder().up, FakeDecoder().reversed


def logits_after(decoder: FakeDecoder, domain: Domain, ids: list[int]) -> np.ndarray:
    """Logits over rows, float32 [R], asked of the fake model without lanes."""
    rows = np.full(decoder.tokenizer.slot_rows.shape[1], -np.inf, np.float32)
    rows[decoder.tokenizer.row_of[domain.slot]] = decoder._logits(domain, ids)
    return rows


def log_softmax(logits_R: np.ndarray) -> np.ndarray:
    scores = logits_R.astype(np.float64)
    return scores - np.log(np.exp(scores).sum())


def cut(whole: str, stop: tuple[str, ...]) -> str | None:
    """The text before the stop string that is complete first, the longest of several that end together; None without one."""
    for end in range(1, len(whole) + 1):
        found = [text for text in stop if whole[:end].endswith(text)]
        if found:
            return whole[: end - max(map(len, found))]
    return None


def alone(request: Request) -> tuple[list[int], str, str, list[float]]:
    """ids, text, finish and log-probabilities of an answer, by a loop without lanes, chunks or other requests."""
    decoder = FakeDecoder(seq_length=LENGTH)
    rng, ids, logprobs = np.random.default_rng(request.seed), list(request.ids), []
    start = len(ids)
    row_of, of_row = decoder.tokenizer.row_of[request.domain.slot], decoder.tokenizer.slot_rows[request.domain.slot]
    while len(ids) < min(start + request.max_new_tokens, LENGTH):
        logits_R = logits_after(decoder, request.domain, ids)
        biased_R = logits_R.copy()
        for token, bias in request.logit_bias:
            biased_R[row_of[token]] += bias
        rows = [int(row_of[token]) for token in ids]
        row = request.sampling.choose(biased_R, rows[:start], rows[start:], rng)
        logprobs.append(float(log_softmax(logits_R)[row]))
        ids.append(int(of_row[row]))
        whole = decoder.tokenizer.decode(ids[start:])
        settled = whole.rstrip("\N{REPLACEMENT CHARACTER}")
        if ids[-1] in request.stop_ids or (ids[-1] == EOT and not request.ignore_eot):
            before = decoder.tokenizer.decode(ids[start:-1])
            stopped = cut(before, request.stop)
            return ids[start:], before if stopped is None else stopped, "stop", logprobs
        if (stopped := cut(settled, request.stop)) is not None:
            return ids[start:], stopped, "stop", logprobs
    whole = decoder.tokenizer.decode(ids[start:])
    return ids[start:], whole, "length", logprobs


def check_equals_alone(answer: Answer) -> None:
    ids, text, finish, logprobs = alone(answer.request)
    assert ([token.id for token in answer.tokens], answer.text, answer.finish) == (ids, text, finish)
    assert "".join(token.text for token in answer.tokens) == text
    asked = answer.request.logprobs
    assert [token.logprob for token in answer.tokens] == (
        [None] * len(ids) if asked is None else pytest.approx(logprobs, abs=1e-9)
    )


def requests(prompt: st.SearchStrategy[list[int]]) -> st.SearchStrategy:
    """Any request that the fake model can answer; letters of few kinds, so that stop strings are met."""
    return st.builds(
        Request,
        domain=st.sampled_from([UP, REVERSED]),
        ids=prompt.map(tuple),
        max_new_tokens=st.integers(0, 12),
        sampling=st.sampled_from(SAMPLINGS),
        seed=st.integers(0, 3),
        stop=st.lists(st.text("abc i", min_size=1, max_size=3), max_size=2).map(tuple),
        stop_ids=st.lists(st.integers(0, 14), max_size=1).map(tuple),
        logprobs=st.sampled_from([None, 0, 2]),
        prompt_logprobs=st.sampled_from([None, 0, 3]),
        ignore_eot=st.booleans(),
        logit_bias=st.lists(st.tuples(st.integers(0, 14), st.floats(-5, 5)), max_size=1).map(tuple),
        scored_from=st.sampled_from([1, 4, 17, 18, 19]),
    )


COMMON = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]
"""How many prompts begin: as many first tokens as are worth a copy."""
PROMPTS = st.lists(st.integers(0, 14), min_size=1, max_size=12) | st.lists(st.integers(0, 14), max_size=4).map(
    lambda rest: COMMON + rest
)


@settings(max_examples=60)
@given(
    st.lists(st.one_of(requests(PROMPTS), st.integers(0, 12), st.none()), max_size=24),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 7),
)
def test_every_answer_is_the_one_computed_alone_and_no_lane_is_lost(events, lanes, waiting, chunk):
    """An event is a request that arrives, the number of one that is cancelled, or None: a step."""
    decoder = FakeDecoder(lanes, LENGTH)
    engine = Engine(decoder, waiting, chunk)
    answers: list[Answer] = []
    for event in [*events, *[None] * 400]:
        if isinstance(event, Request):
            room = engine.waiting < waiting
            try:
                answers.append(engine.submit(event))
                assert room
            except QueueFull:
                assert not room
        elif event is not None:
            for answer in answers[event : event + 1]:
                engine.cancel(answer)
        elif not engine.step():
            assert (engine.running, engine.waiting) == (0, 0)
        assert engine.running + len(engine._free) == lanes
        assert sorted([*engine._free, *(text.lane for text in engine._texts)]) == list(range(lanes)), "each lane once"
        assert engine.waiting <= waiting
    assert (engine.running, engine.waiting) == (0, 0), "everybody was served"
    for answer in answers:
        if answer.finish == "cancelled":
            ids, text, _, _ = alone(answer.request)
            assert [token.id for token in answer.tokens] == ids[: len(answer.tokens)]
            assert text.startswith(answer.text)
        else:
            check_equals_alone(answer)
            check_prompt(answer)


def check_prompt(answer: Answer) -> None:
    """The tokens of the prompt from the one before the first that is scored, each scored by the logits after those before it."""
    request, decoder = answer.request, FakeDecoder(seq_length=LENGTH)
    if request.prompt_logprobs is None:
        assert answer.prompt == []
        return
    ids, slot = list(request.ids), request.domain.slot
    first = min(request.scored_from, len(ids)) - 1
    assert [token.id for token in answer.prompt] == ids[first:]
    assert "".join(token.text for token in answer.prompt) == decoder.tokenizer.decode(ids[first:])
    for number, token in enumerate(answer.prompt, first):
        if number < request.scored_from:
            assert (token.logprob, token.top) == (None, ())
            continue
        scores_R = log_softmax(logits_after(decoder, request.domain, ids[:number]))
        assert token.logprob == pytest.approx(scores_R[decoder.tokenizer.row_of[slot, ids[number]]], abs=1e-9)
        best = np.argsort(-scores_R, kind="stable")[: request.prompt_logprobs]
        assert [other for other, _ in token.top] == decoder.tokenizer.slot_rows[slot, best].tolist()
        assert [value for _, value in token.top] == pytest.approx(scores_R[best].tolist(), abs=1e-9)


def test_a_step_reads_no_more_of_prompts_than_a_chunk():
    decoder = FakeDecoder(4)
    engine = Engine(decoder, chunk=5)
    for ids in ([0, 1, 2], [3, 4, 5], [6, 7, 8]):
        engine.submit(Request(UP, tuple(ids), 1))
    for read in (5, 9):
        engine.step()
        assert decoder.tokens == read
    assert decoder.asked == [2, 2], "the first two, then what was left of the second and the third"


def test_a_step_reads_less_of_prompts_while_others_are_written():
    decoder = FakeDecoder(2, seq_length=512)
    engine = Engine(decoder)
    engine.submit(Request(UP, (1,), 3, DRAWN, ignore_eot=True))
    engine.step()
    long = engine.submit(Request(UP, tuple([1] * 400), 1, DRAWN))
    read = []
    while not long.tokens:
        before = decoder.tokens
        engine.step()
        read.append(decoder.tokens - before)
    assert read == [1 + 128, 1 + 128, 400 - 2 * 128]


def test_who_came_first_is_served_first():
    decoder, order = FakeDecoder(1), []
    engine = Engine(decoder)
    asked = [engine.submit(Request(UP, (number,), 2, ignore_eot=True)) for number in range(5)]
    while engine.step():
        order += [answer.request.ids[0] for answer in engine.updated]
    assert order == sorted(order)
    assert len(order) == 2 * len(asked)


def test_prompts_that_begin_alike_are_read_once_as_far_as_they_do():
    decoder = FakeDecoder(4, seq_length=64)
    common = tuple(range(8)) * 5
    engine = Engine(decoder, chunk=16)
    answers = engine.complete(
        [
            Request(UP, (*common, *rest), 0, prompt_logprobs=1, scored_from=len(common))
            for rest in ([1, 2], [3, 4, 5], [6])
        ]
    )
    own_tokens = [1 + 1, 1 + 2, 1 + 0]  # the last common token, and of each rest all but its last token
    assert decoder.tokens == len(common) - 1 + sum(own_tokens)
    for answer in answers:
        check_prompt(answer)


def test_when_the_one_that_reads_for_others_is_cancelled_they_go_on():
    decoder = FakeDecoder(4, seq_length=64)
    engine = Engine(decoder, chunk=8)
    prompt = tuple(range(8)) * 6
    scored = {"prompt_logprobs": 0, "scored_from": len(prompt) - 1}
    first, *others = [engine.submit(Request(UP, prompt, 2, DRAWN, seed, **scored)) for seed in range(3)]
    engine.step()
    engine.step()
    assert decoder.tokens == 16
    engine.cancel(first)
    while engine.step():
        pass
    assert first.finish == "cancelled"
    for answer in others:
        check_prompt(answer)
        assert answer.tokens == Engine(FakeDecoder(1, seq_length=64)).complete([answer.request])[0].tokens


def test_a_cancelled_text_gives_its_lane_to_others_before_the_next_step_reads():
    decoder = FakeDecoder(1)
    engine = Engine(decoder)
    first = engine.submit(Request(UP, (1,), 20, DRAWN, ignore_eot=True))
    waiting = engine.submit(Request(UP, (2,), 1))
    engine.step()
    assert engine.updated == [first]
    engine.cancel(first)
    engine.step()
    assert engine.updated == [first, waiting]
    assert (first.finish, len(first.tokens), waiting.finish) == ("cancelled", 1, "length")
    engine.cancel(waiting)
    assert waiting.finish == "length" and not waiting.cancelled, "it was finished"


def saying(text: str) -> Callable[[Domain, list[int]], np.ndarray]:
    """Logits of a model that says letters after a prompt of one token, and then <eot>."""
    ids = [*FakeDecoder().tokenizer.prompt(text, None), EOT]
    return lambda domain, before: np.eye(1, 15, ids[len(before) - 1])[0]


def test_ids_are_those_of_the_answer_without_what_ended_it():
    for stop_ids, ids in (((), [0, 1, 2, 0, 1, 3]), ((2,), [0, 1])):
        (answer,) = Engine(FakeDecoder(logits=saying("abcabd"))).complete([Request(UP, (0,), 20, stop_ids=stop_ids)])
        assert (answer.ids, answer.finish, len(answer.tokens)) == (ids, "stop", len(ids) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ()}, "a prompt has no tokens"),
        ({"ids": (1,) * 25}, r"domain up has 25 tokens, more than model\.seq_length=24; shorten it"),
        ({"ids": (15,)}, "token id 15 does not exist; this model has the ids 0 … 14"),
        ({"ids": (-1,)}, "token id -1 does not exist"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 is not allowed"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"seed": True}, "seed=True is not allowed"),
        ({"seed": 0.5}, "seed=0.5 is not allowed"),
        ({"stop": ("a", "")}, "a stop string is empty"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_when_it_is_made(change, message):
    engine = Engine(FakeDecoder())
    with pytest.raises(ConfigError, match=message):
        engine.submit(dataclasses.replace(Request(UP, (1,)), **change))
    with pytest.raises(ConfigError, match=message):
        engine.complete([Request(UP, (1,)), dataclasses.replace(Request(UP, (1,)), **change)])
    assert (engine.waiting, engine.step(), engine.decoder.tokens) == (0, False, 0)


def test_a_row_that_the_slot_has_not_is_refused():
    decoder = FakeDecoder()
    decoder.tokenizer.row_of[UP.slot, 3] = -1
    with pytest.raises(ConfigError, match="token id 3 has no row in the embedding slot of domain up"):
        Engine(decoder).submit(Request(UP, (1, 3)))


def test_an_answer_comes_as_soon_as_it_is_finished_and_the_rest_is_cancelled_with_the_iterator():
    engine = Engine(FakeDecoder(2), waiting=2)
    asked = [Request(UP, (number,), 40 if number == 0 else 3, DRAWN, ignore_eot=True) for number in range(6)]
    numbers = []
    for number, answer in engine.answers_to(asked):
        assert answer.request is asked[number]
        check_equals_alone(answer)
        numbers.append(number)
    assert numbers == [1, 2, 3, 4, 5, 0]
    assert [answer.request for answer in engine.complete(asked)] == asked
    with contextlib.closing(engine.answers_to(asked)) as answers:
        assert next(answers)[0] == 1
    assert engine.step() and not engine.step()
    assert (engine.running, engine.waiting) == (0, 0)


def test_an_error_of_the_decoder_ends_what_runs_and_nothing_else(monkeypatch):
    decoder = FakeDecoder(1)
    engine = Engine(decoder)
    running, waiting = (engine.submit(Request(UP, (number,), 3, DRAWN)) for number in (1, 2))
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "read", lambda chunks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert engine.updated == [running]
    assert (running.finish, engine.running, engine.waiting) == ("cancelled", 0, 1)
    while engine.step():
        pass
    check_equals_alone(waiting)


def test_who_waits_for_whole_answers_is_told_of_one_that_was_broken_off(monkeypatch):
    """Another thread's step fails, and with it what runs; a shortened answer must not look like a whole one."""
    engine = Engine(FakeDecoder(1))
    read, times = engine.decoder.read, []

    def broken_once(chunks: list[Chunk]) -> list[np.ndarray]:
        times.append(1)
        return read(chunks) if len(times) != 2 else 1 / 0

    monkeypatch.setattr(engine.decoder, "read", broken_once)
    step = engine.step

    def step_of_another() -> bool:
        with contextlib.suppress(ZeroDivisionError):
            return step()
        return True

    monkeypatch.setattr(engine, "step", step_of_another)
    with pytest.raises(ZeroDivisionError):
        engine.complete([Request(UP, (1,), 5, DRAWN, ignore_eot=True)])


def broken_where(fails: Callable[[Domain, Sequence[int]], bool], value: float = np.nan) -> FakeDecoder:
    """A decoder that gives one row this logit after the texts for which `fails` is true."""
    decoder = FakeDecoder(4, LENGTH)

    def logits(domain: Domain, ids: Sequence[int]) -> np.ndarray:
        drawn_V = decoder._drawn(domain, ids)
        drawn_V[3] = value if fails(domain, ids) else drawn_V[3]
        return drawn_V

    decoder._logits = logits
    return decoder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("more", [{}, {"prompt_logprobs": 1, "max_new_tokens": 0}, {"logit_bias": ((3, 5.0),)}])
def test_logits_that_are_not_finite_end_their_own_text_alone(value, more):
    engine = Engine(broken_where(lambda domain, ids: domain == REVERSED, value), waiting=2 * len(SAMPLINGS))
    broken = [Request(REVERSED, (1, 2), **{"max_new_tokens": 5, "sampling": each} | more) for each in SAMPLINGS]
    healthy = [Request(UP, (1, 2), 8, sampling, logprobs=1) for sampling in SAMPLINGS]
    answers = [engine.submit(request) for pair in zip(broken, healthy, strict=True) for request in pair]
    while engine.step():
        pass
    for answer in answers[::2]:
        assert (answer.finish, answer.tokens, answer.text) == ("cancelled", [], "")
        assert isinstance(answer.error, UserError)
        assert "domain reversed: the logits after " in str(answer.error) and "are not finite" in str(answer.error)
    for answer in answers[1::2]:
        check_equals_alone(answer)
    with pytest.raises(UserError, match=r"domain reversed: .* not finite"):
        engine.complete([healthy[0], broken[0]])


def test_who_shared_the_beginning_of_a_text_that_fails_is_answered():
    """The prompts begin alike; the logits after three tokens are wanted by the first text alone, which scores its prompt."""
    engine = Engine(broken_where(lambda domain, ids: len(ids) == 3), chunk=2)
    failed = engine.submit(Request(UP, (*COMMON, 4), 3, prompt_logprobs=0))
    shared = [engine.submit(Request(UP, (*COMMON, number), 3, DRAWN)) for number in (4, 5)]
    while engine.step():
        pass
    assert "the logits after 3 tokens" in str(failed.error)
    for answer in shared:
        check_equals_alone(answer)
    assert engine.running == 0


def test_who_follows_and_fails_does_not_end_the_text_that_it_followed():
    """The second text needs the logits after the common beginning, which are not finite; the first one reads on."""
    engine = Engine(broken_where(lambda domain, ids: len(ids) == len(COMMON)))
    reads_on = engine.submit(Request(UP, (*COMMON, 4), 3, DRAWN))
    failed = engine.submit(Request(UP, tuple(COMMON), 3, DRAWN))
    while engine.step():
        pass
    assert f"the logits after {len(COMMON)} tokens" in str(failed.error)
    check_equals_alone(reads_on)


def test_an_error_in_the_use_of_logits_ends_one_answer_and_is_logged(caplog):
    class Broken(Sampling):
        def choose(self, *arguments: object) -> int:
            return 1 // 0

    engine = Engine(FakeDecoder(2))
    failed, answered = engine.submit(Request(UP, (1,), 3, Broken())), engine.submit(Request(UP, (2,), 3, DRAWN))
    while engine.step():
        pass
    assert isinstance(failed.error, ZeroDivisionError)
    check_equals_alone(answered)
    assert "an answer failed; the others go on" in caplog.text and "ZeroDivisionError" in caplog.text


def test_an_interrupted_caller_leaves_nothing_running(monkeypatch):
    engine = Engine(FakeDecoder(2))
    read, times = engine.decoder.read, []

    def interrupted(chunks: list[Chunk]) -> list[np.ndarray]:
        times.append(1)
        if len(times) == 3:
            raise KeyboardInterrupt
        return read(chunks)

    monkeypatch.setattr(engine.decoder, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.complete([Request(UP, (number,), 20, DRAWN, ignore_eot=True) for number in range(5)])
    engine.step()
    assert (engine.running, engine.waiting) == (0, 0)


def test_several_threads_may_ask_and_step():
    engine = Engine(FakeDecoder(3), waiting=2)
    asked = [[Request(UP, (number, thread), 6, DRAWN, number) for number in range(6)] for thread in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(engine.complete, asked):
            for answer in answers:
                check_equals_alone(answer)


def test_logits_of_a_text_are_those_after_its_last_token_and_disturb_nobody():
    decoder = FakeDecoder(1)
    engine = Engine(decoder, chunk=3)
    answer = engine.submit(Request(UP, (1,), 3, DRAWN))
    engine.step()
    for ids in ([4], [1, 2, 3], [1, 2, 3, 4, 5, 6, 7]):
        (logits_R,) = engine.logits(REVERSED, ids)
        np.testing.assert_array_equal(logits_R, logits_after(decoder, REVERSED, ids))
        expected = [logits_after(decoder, REVERSED, ids[: end + 1]) for end in range(len(ids))]
        np.testing.assert_array_equal(engine.logits(REVERSED, ids, len(ids)), expected)
    check_equals_alone(answer)
    with pytest.raises(ConfigError, match="no tokens"):
        engine.logits(UP, [])
