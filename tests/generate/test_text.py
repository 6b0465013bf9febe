from __future__ import annotations

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.sentencepieces import alpha_model, learn_english
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import _BROKEN, generate, stream

EOT, ROWS, LENGTH = 9, 12, 10


class Counting:
    """In place of a predictor: ids are numbers in text; the model likes the last number + 1, and 9 is <eot>.

    Slot 1 holds the ids in reverse, so that rows are not ids.
    """

    def __init__(self):
        self.config = parse_config(
            {
                "name": "counting",
                "model": {"hidden": 4, "ffn": 4, "heads": 1, "dense_layers": 1, "rre_layers": 0, "seq_length": LENGTH},
                "domains": [{"name": "up", "slot": "a"}, {"name": "reversed", "slot": "b"}],
            }
        )
        ids = np.arange(ROWS)
        self.tokenizer = SimpleNamespace(
            eot=EOT,
            slot_rows=np.stack([ids, ids[::-1]]),
            row_of=np.stack([ids, ids[::-1]]),
            prompt=lambda text, domain: [int(word) for word in text.split()],
            decode=lambda ids: " ".join(map(str, ids)),
        )
        self.asked: list[int] = []

    def next_logits(self, sequences, domains):
        if any(not ids for ids in sequences):
            raise ConfigError("a prompt has no tokens")
        self.asked.append(len(sequences))
        logits = np.ones((len(sequences), ROWS))
        for row, ids, domain in zip(logits, sequences, domains, strict=True):
            row[self.tokenizer.row_of[domain.slot, (ids[-1] + 1) % ROWS]] = 5.0
        return logits


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_it_stops_at_eot_which_is_not_part_of_the_answer(counting):
    answer = generate(counting, [("up", "5 6")])[0]
    assert (answer.ids, answer.text, answer.finished) == ([5, 6, 7, 8], "7 8", True)
    assert (answer.domain, answer.prompt) == ("up", "5 6")


def test_it_stops_after_as_many_tokens_as_asked(counting):
    answer = generate(counting, [("up", "1")], max_new_tokens=3)[0]
    assert (answer.ids, answer.text, answer.finished) == ([1, 2, 3, 4], "2 3 4", False)
    assert generate(counting, [("up", "1")], max_new_tokens=0)[0].text == ""


def test_it_stops_where_the_model_ends(counting):
    answer = generate(counting, [("up", "1 1 1 1 1 1 1 1")])[0]
    assert (len(answer.ids), answer.finished) == (LENGTH, False)
    assert generate(counting, [("up", "1 " * LENGTH)])[0].text == ""


def test_rows_of_a_slot_become_ids_of_the_vocabulary(counting):
    assert generate(counting, [("reversed", "2")], max_new_tokens=3)[0].ids == [2, 3, 4, 5]


def test_prompts_answer_together_as_alone_and_leave_when_they_are_done(counting):
    prompts = [("up", "6"), ("reversed", "1"), ("up", "1 1 1 1 1 1 1 1 1")]
    together = generate(counting, prompts, max_new_tokens=5)
    assert counting.asked == [3, 2, 2, 1, 1]
    assert together == [generate(counting, [prompt], max_new_tokens=5)[0] for prompt in prompts]


def test_the_seed_decides_what_is_drawn(counting):
    def draw(seed: int) -> list[int]:
        return generate(counting, [("up", "1")], 8, Sampling(temperature=4.0), seed)[0].ids

    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_the_repetition_penalty_sees_rows_of_the_domains_slot(counting):
    """2 follows 1, but 2 has occurred: with a strong penalty something else must come."""
    for domain in ("up", "reversed"):
        ids = generate(counting, [(domain, "2 1")], 1, Sampling(repetition_penalty=1e9))[0].ids
        assert ids[-1] != 2
        assert generate(counting, [(domain, "2 1")], 1)[0].ids[-1] == 2


def test_unknown_domains_and_empty_prompts_are_refused(counting):
    with pytest.raises(ConfigError, match="unknown domain 'down'; this configuration has up, reversed"):
        generate(counting, [("up", "1"), ("down", "1")])
    with pytest.raises(ConfigError, match="no tokens"):
        generate(counting, [("up", "")])
    with pytest.raises(ConfigError, match=r"domain up has 11 tokens, more than model\.seq_length=10"):
        generate(counting, [("reversed", "1"), ("up", "1 " * (LENGTH + 1))])


def test_a_stream_tells_each_token_when_it_comes(counting):
    new = stream(counting, ("up", "5 6"))
    assert counting.asked == []
    assert next(new) == "7"
    assert counting.asked == [1]
    assert list(new) == [" 8"]
    assert counting.asked == [1, 1, 1], "the last one was <eot>"
    assert list(stream(counting, ("up", "5"), max_new_tokens=0)) == []


def test_a_streamed_character_appears_whole_and_what_stays_broken_comes_last(counting):
    """Each id is a byte of 今, which is broken off in the second answer."""
    surfaces = {5: b"\xe4", 6: b"\xbb", 7: b"\x8a", 8: b"!"}
    counting.tokenizer.decode = lambda ids: b"".join(surfaces[i] for i in ids).decode("utf-8", errors="replace")
    assert list(stream(counting, ("up", "4"))) == ["今", "!"]
    assert list(stream(counting, ("up", "4"), max_new_tokens=2)) == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("text", ["好🙂人\t\u3000𪚥、龘👩‍👩‍👧", "用 🙂 写\r\n▂▃▁。", "結局\ufffd完"])
@pytest.mark.parametrize("domain", ["zh", "bilingual"])
def test_characters_spelled_by_bytes_stream_whole(counting, domain, text):
    """The model repeats `text` as the tokenizer writes it: no chunk ends within a character."""
    tokenizer = Tokenizer.whole(alpha_model(), learn_english([], 0), 2)
    counting.config = parse_config(
        {
            "name": "saying",
            "model": counting.config.model.model_dump() | {"seq_length": 200},
            "domains": [
                {"name": "zh", "language": "zh", "slot": "a"},
                {"name": "bilingual", "language": "mixed", "slot": "b"},
            ],
        }
    )
    saying = tokenizer.encode(text, domains_of(counting.config).named(domain))
    start = len(tokenizer.prompt("你", domains_of(counting.config).named(domain)))
    counting.tokenizer = tokenizer

    def next_logits(sequences, domains):
        (ids,) = sequences
        return np.eye(1, tokenizer.size, [*saying, EOT][len(ids) - start])

    counting.next_logits = next_logits
    chunks = list(stream(counting, (domain, "你"), max_new_tokens=100))
    back = tokenizer.decode(saying)
    assert "".join(chunks) == generate(counting, [(domain, "你")], 100)[0].text == back
    assert unicodedata.normalize("NFKC", back) == unicodedata.normalize("NFKC", text)
    assert len(chunks) > 1 and all(_BROKEN not in chunk or _BROKEN in text for chunk in chunks)


def test_a_stream_is_what_generate_returns(counting):
    for seed in range(5):
        options = (8, Sampling(temperature=4.0), seed)
        assert "".join(stream(counting, ("up", "1"), *options)) == generate(counting, [("up", "1")], *options)[0].text


def test_a_stream_refuses_before_the_first_token(counting):
    with pytest.raises(ConfigError, match="unknown domain 'down'"):
        stream(counting, ("down", "1"))


@pytest.mark.usefixtures("graph_mode")
def test_greedy_tokens_of_a_trained_model_are_its_best_one_after_another(tiny_run):
    predictor = Predictor.from_run(tiny_run)
    prompts = [("en", "the cat "), ("zh", "今天"), ("code", "")]
    known = domains_of(predictor.config)
    for answer, (name, text) in zip(generate(predictor, prompts, 6), prompts, strict=True):
        domain = known.named(name)
        ids = predictor.tokenizer.prompt(text, domain)
        start = len(ids)
        assert answer.ids[:start] == ids
        for token in answer.ids[start:]:
            best = predictor.next_logits([ids], [domain])[0].argmax()
            assert token == predictor.tokenizer.slot_rows[domain.slot, best]
            ids.append(token)
        assert answer.text == predictor.tokenizer.decode(answer.ids[start:])
        assert answer.finished or len(answer.ids) == start + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([("up", "1")], -5), "max_new_tokens=-5 is not allowed"),
        (([("up", "1")], 3, Sampling(), -1), "seed=-1 is not allowed"),
        (([("up", "1\udcff")],), "a prompt of domain up is not Unicode text: character 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is(arguments, message):
    predictor = Counting()
    with pytest.raises(ConfigError, match=message):
        generate(predictor, *arguments)
    with pytest.raises(ConfigError, match=message):
        stream(predictor, arguments[0][0], *arguments[1:])
    assert predictor.asked == []
