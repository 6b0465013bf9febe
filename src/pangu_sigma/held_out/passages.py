"""Passages of held-out text: how a document goes on, and how the model goes on. Shape suffix: T tokens of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pangu_sigma.data.prepared import data_of
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request

READ, CONTINUED = 64, 24
"""Tokens of a passage that the model reads, and tokens that follow; fewer for a shorter model.seq_length."""


def passages_of(engine: Engine, name: str, count: int) -> list[dict[str, Any]]:
    """Continue the beginnings of `count` held-out documents of a domain; fewer if it has fewer that are long enough.

    Returns for each its "domain", its "prompt", the "truth" that follows, the model's most likely "answer", and "truth_nats" and
    "answer_nats", the loss of their tokens by the model, in nats a token. Raises DataError if the prepared text of the model is
    missing or damaged.
    """
    config, tokenizer = engine.decoder.config, engine.decoder.tokenizer
    domain, most = domains_of(config).named(name), min(READ + CONTINUED, config.model.seq_length)
    tokens = data_of(config).tokens(name, "held_out", tokenizer.size)
    ids_T, read = tokens.read(0, tokens.tokens), most * READ // (READ + CONTINUED)
    documents = np.split(ids_T, np.flatnonzero(ids_T == tokenizer.eot) + 1)
    found, decode = [], tokenizer.decode
    for ids in [document[:most].tolist() for document in documents if len(document) > most][:count]:
        whole = Request(domain, tuple(ids), max_new_tokens=0, prompt_logprobs=0, scored_from=read)
        scored, answer = engine.complete([whole, Request(domain, tuple(ids[:read]), most - read, logprobs=0)])
        parts = {"truth_nats": scored.prompt[1:], "answer_nats": answer.tokens}
        nats = {key: -float(np.mean([token.logprob or 0.0 for token in part])) for key, part in parts.items()}
        texts = {"prompt": decode(ids[:read]), "truth": decode(ids[read:]), "answer": answer.text}
        found.append({"domain": name, **texts, **nats})
    return found


def format_passages(losses: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the "passages" of each domain: the end of what was read, and both continuations with their losses."""
    lines = ["held-out text, how it goes on, and the model's most likely continuation; nats a token"]
    for passage in (passage for figures in losses.values() for passage in figures["passages"]):
        lines.append(f"{passage['domain']:12} … {passage['prompt'][-60:]!r}")
        for said, key in (("goes on", "truth"), ("the model", "answer")):
            lines.append(f"  {said:10} {passage[f'{key}_nats']:6.3f}  {passage[key]!r}")
    return "\n".join(lines)
