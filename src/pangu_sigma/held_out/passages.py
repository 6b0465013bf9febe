"""Passages of held-out text: how a document goes on, and how the model goes on.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.prepared import data_of
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request

READ, CONTINUED = 64, 24
"""Tokens of a passage that the model reads, and tokens that follow; fewer for a shorter model.seq_length."""


@dataclass(frozen=True)
class Passage:
    """Passage of a domain's held-out text. truth: the text that follows `prompt`. answer: the model's most likely continuation.
    truth_nats, answer_nats: loss of their tokens by the model, in nats a token."""

    domain: str
    prompt: str
    truth: str
    truth_nats: float
    answer: str
    answer_nats: float


def passages_of(engine: Engine, count: int) -> list[Passage]:
    """Continue the beginnings of `count` held-out documents of each domain; fewer if a domain has fewer that are long enough.

    Raises DataError if the prepared text of the model is missing or damaged.
    """
    config, tokenizer = engine.decoder.config, engine.decoder.tokenizer
    data, found, most = data_of(config), [], min(READ + CONTINUED, config.model.seq_length)
    for domain in domains_of(config):
        tokens = data.tokens(domain.name, "held_out", tokenizer.size)
        ids_T = tokens.read(0, tokens.tokens)
        documents = np.split(ids_T, np.flatnonzero(ids_T == tokenizer.eot) + 1)
        long = [document for document in documents if len(document) > most]
        found += [_continued(engine, domain, document[:most].tolist()) for document in long[:count]]
    return found


def _continued(engine: Engine, domain: Domain, ids: list[int]) -> Passage:
    read = len(ids) * READ // (READ + CONTINUED)
    prompt, truth = ids[:read], ids[read:]
    scored, answer = engine.complete(
        [
            Request(domain, tuple(ids), max_new_tokens=0, prompt_logprobs=0, scored_from=read),
            Request(domain, tuple(prompt), len(truth), logprobs=0),
        ]
    )
    decode = engine.decoder.tokenizer.decode
    nats = [-float(np.mean([token.logprob or 0.0 for token in part])) for part in (scored.prompt[1:], answer.tokens)]
    return Passage(domain.name, decode(prompt), decode(truth), nats[0], answer.text, nats[1])


def format_passages(found: Sequence[Passage]) -> str:
    """Format passages: the end of what was read, and both continuations with their losses."""
    lines = ["held-out text, how it goes on, and the model's most likely continuation; nats a token"]
    for passage in found:
        lines.append(f"{passage.domain:12} … {passage.prompt[-60:]!r}")
        lines += [
            f"  {name:10} {nats:6.3f}  {text!r}"
            for name, nats, text in (
                ("goes on", passage.truth_nats, passage.truth),
                ("the model", passage.answer_nats, passage.answer),
            )
        ]
    return "\n".join(lines)
