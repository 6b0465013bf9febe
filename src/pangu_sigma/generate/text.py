"""Text from prompts. Every step reads the whole sequence again: the key-value cache belongs to serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.generate.sampling import Sampling, check_request, check_text

Prompt = tuple[str, str]
"""Name of a domain, and the text that it continues."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Generated:
    """The answer to a prompt.

    ids: prompt and continuation, without the final <eot>. text: the continuation alone. finished: True if it ended with <eot>.
    """

    domain: str
    prompt: str
    text: str
    ids: list[int]
    finished: bool


@dataclass
class _Growing:
    """A sequence while tokens are added. start: number of tokens of its prompt."""

    domain: Domain
    prompt: str
    ids: list[int]
    start: int
    finished: bool = False


def generate(
    predictor: Predictor,
    prompts: list[Prompt],
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> list[Generated]:
    """Continue each prompt. Sequences stop at <eot>, after max_new_tokens, or at model.seq_length.

    Raises ConfigError for an unknown domain, for a prompt that is no text or does not fit, and for numbers that cannot be.
    """
    check_request(max_new_tokens, seed)
    sequences = _begin(predictor, prompts)
    steps = _grow(predictor, sequences, max_new_tokens, sampling, seed)
    for _ in tqdm(steps, total=max_new_tokens, desc="generate", unit="token", leave=False):
        pass
    return [Generated(s.domain.name, s.prompt, _text(predictor, s), s.ids, s.finished) for s in sequences]


def stream(
    predictor: Predictor,
    prompt: Prompt,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Iterator[str]:
    """The continuation that `generate` gives, as it comes; a character appears when all its bytes are there.

    Raises ConfigError, before anything is generated, for what `generate` refuses.
    """
    check_request(max_new_tokens, seed)
    sequences = _begin(predictor, [prompt])
    return _new_text(predictor, sequences, _grow(predictor, sequences, max_new_tokens, sampling, seed))


def _new_text(predictor: Predictor, sequences: list[_Growing], steps: Iterator[None]) -> Iterator[str]:
    told = 0
    for _ in steps:
        whole = _text(predictor, sequences[0]).rstrip(_BROKEN)  # the next token may complete a character
        if len(whole) > told:
            yield whole[told:]
            told = len(whole)
    if rest := _text(predictor, sequences[0])[told:]:
        yield rest


def _text(predictor: Predictor, sequence: _Growing) -> str:
    return predictor.tokenizer.decode(sequence.ids[sequence.start :])


def _begin(predictor: Predictor, prompts: list[Prompt]) -> list[_Growing]:
    """The prompts as sequences that fit into the model."""
    known, limit = domains_of(predictor.config), predictor.config.model.seq_length
    sequences = []
    for name, text in prompts:
        domain = known.named(name)
        check_text(text, f"a prompt of domain {name}")
        ids = predictor.tokenizer.prompt(text, domain)
        if len(ids) > limit:
            raise ConfigError(
                f"a prompt of domain {name} has {len(ids)} tokens, more than model.seq_length={limit}; shorten it"
            )
        sequences.append(_Growing(domain, text, ids, len(ids)))
    return sequences


def _grow(
    predictor: Predictor, sequences: list[_Growing], max_new_tokens: int, sampling: Sampling, seed: int
) -> Iterator[None]:
    """Add a token to every sequence that goes on, and stop in between; ends when none goes on."""
    rng, limit = np.random.default_rng(seed), predictor.config.model.seq_length
    for _ in range(min(max_new_tokens, limit)):
        going = [s for s in sequences if not s.finished and len(s.ids) < limit]
        if not going:
            return
        logits_BR = predictor.next_logits([s.ids for s in going], [s.domain for s in going])
        for sequence, logits_R in zip(going, logits_BR, strict=True):
            token = _next_token(predictor, sequence, logits_R, sampling, rng)
            sequence.finished = token == predictor.tokenizer.eot
            if not sequence.finished:
                sequence.ids.append(token)
        yield


def _next_token(
    predictor: Predictor, sequence: _Growing, logits_R: np.ndarray, sampling: Sampling, rng: np.random.Generator
) -> int:
    tokenizer, slot = predictor.tokenizer, sequence.domain.slot
    row = sampling.choose(logits_R, tokenizer.row_of[slot, sequence.ids].tolist(), rng)
    return int(tokenizer.slot_rows[slot, row])
