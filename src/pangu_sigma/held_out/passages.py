"""Passages of held-out text: how a document goes on, and how the model goes on. Shape suffix: T tokens of a domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pangu_sigma.data.prepared import data_of
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request, Token

READ, CONTINUED = 64, 24
"""Tokens of a passage that the model reads, and tokens that follow; fewer for a shorter model.seq_length."""


def passages_of(engine: Engine, name: str, count: int) -> list[dict[str, Any]]:
    """Continue the beginnings of `count` held-out documents of a domain, or of fewer if fewer are long enough.

    Returns a dictionary for each passage: its "domain", the "prompt" that the model reads, the "truth" that follows in the
    document, the model's most likely "answer", and "truth_nats" and "answer_nats", the model's loss on the two continuations in
    nats per token. Raises DataError if the prepared text of the model is missing or damaged.
    """
    config, tokenizer = engine.decoder.config, engine.decoder.tokenizer
    domain, length = domains_of(config).named(name), min(READ + CONTINUED, config.model.seq_length)
    tokens = data_of(config).tokens(name, "held_out", tokenizer.size)
    ids_T, prompt_length = tokens.read(0, tokens.tokens), length * READ // (READ + CONTINUED)
    documents = np.split(ids_T, np.flatnonzero(ids_T == tokenizer.eot) + 1)
    passages = []
    for ids in [document[:length].tolist() for document in documents if len(document) > length][:count]:
        prompt, truth = ids[:prompt_length], ids[prompt_length:]
        scoring = Request(domain, tuple(ids), max_new_tokens=0, prompt_logprobs=0, scored_from=prompt_length)
        scored, answer = engine.complete([scoring, Request(domain, tuple(prompt), len(truth), logprobs=0)])
        texts = {"prompt": tokenizer.decode(prompt), "truth": tokenizer.decode(truth), "answer": answer.text}
        # the prompt's scores begin with a token that has none, the one before `scored_from`
        nats = {"truth_nats": _mean_nats(scored.prompt[1:]), "answer_nats": _mean_nats(answer.tokens)}
        passages.append({"domain": name, **texts, **nats})
    return passages


def _mean_nats(tokens: Sequence[Token]) -> float:
    """Return the mean loss of tokens in nats; a token without a probability counts 0."""
    return -float(np.mean([token.logprob or 0.0 for token in tokens]))


def format_passages(losses: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the "passages" of each domain as text: the end of the prompt, and both continuations with their losses."""
    lines = ["held-out text, how it goes on, and the model's most likely continuation; nats a token"]
    for passage in (passage for figures in losses.values() for passage in figures["passages"]):
        lines.append(f"{passage['domain']:12} … {passage['prompt'][-60:]!r}")
        for label, key in (("goes on", "truth"), ("the model", "answer")):
            lines.append(f"  {label:10} {passage[f'{key}_nats']:6.3f}  {passage[key]!r}")
    return "\n".join(lines)
