"""Text from prompts. Every step reads the whole sequence again: the key-value cache belongs to serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.generate.sampling import Sampling


@dataclass(frozen=True)
class Generated:
    """ids: prompt and continuation, without the final <eot>. text: the continuation alone. finished: it ended with <eot>."""

    domain: str
    prompt: str
    text: str
    ids: list[int]
    finished: bool


def generate(
    predictor: Predictor,
    prompts: list[tuple[str, str]],
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> list[Generated]:
    """Continue each (domain name, text). Sequences stop at <eot>, after max_new_tokens, or at model.seq_length.

    Raises ConfigError for an unknown domain and for a prompt that does not fit.
    """
    known = domains_of(predictor.config)
    domains = [known.named(name) for name, _ in prompts]
    sequences = [predictor.tokenizer.prompt(text, domain) for (_, text), domain in zip(prompts, domains, strict=True)]
    starts = [len(ids) for ids in sequences]
    limit = predictor.config.model.seq_length
    for (name, _), length in zip(prompts, starts, strict=True):
        if length > limit:
            raise ConfigError(
                f"a prompt of domain {name} has {length} tokens, more than model.seq_length={limit}; shorten it"
            )
    open_, finished = list(range(len(prompts))), [False] * len(prompts)
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(max_new_tokens), desc="generate", unit="token", leave=False):
        open_ = [i for i in open_ if len(sequences[i]) < limit]
        if not open_:
            break
        logits_BR = predictor.next_logits([sequences[i] for i in open_], [domains[i] for i in open_])
        for i, logits_R in zip(list(open_), logits_BR, strict=True):
            token = _next_token(predictor, domains[i], sequences[i], logits_R, sampling, rng)
            finished[i] = token == predictor.tokenizer.eot
            if finished[i]:
                open_.remove(i)
            else:
                sequences[i].append(token)
    return [
        Generated(name, text, predictor.tokenizer.decode(ids[start:]), ids, done)
        for (name, text), ids, start, done in zip(prompts, sequences, starts, finished, strict=True)
    ]


def _next_token(
    predictor: Predictor,
    domain: Domain,
    ids: list[int],
    logits_R: np.ndarray,
    sampling: Sampling,
    rng: np.random.Generator,
) -> int:
    tokenizer = predictor.tokenizer
    row = sampling.choose(logits_R, tokenizer.row_of[domain.slot, ids].tolist(), rng)
    return int(tokenizer.slot_rows[domain.slot, row])
