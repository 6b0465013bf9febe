"""Loss of a model by the CPU's decoder, without MindSpore: on the held-out text of an export or a Hugging Face style folder, and
of any model on any text, which need not be prepared; and passages of held-out text: how a document goes on, and how the model does.

The graph of an export is not run: MindSpore executes what a MindIR names, shared libraries too. `export` compares it with the run
when it writes the graph. Rows without a token have no probability here; training gives them one, so its loss is higher where a
slot has such rows. Of other text the first token of a document has no loss, and the last sample may be shorter.

Shape suffixes: S tokens of a sample, T of a domain, R rows of a slot, V vocabulary, U samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.prepared import data_of
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.score import token_losses
from pangu_sigma.held_out.batches import HeldOut, bytes_of_ids, counted
from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.text.documents import Document

READ, CONTINUED = 64, 24
"""Tokens of a passage that the model reads, and tokens that follow; fewer for a shorter model.seq_length."""


def measure_decoded(engine: Engine, batches: BatchLoader, most: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `most` held-out samples."""
    held_out, losses = HeldOut(batches, most), {}
    for domain, (name, text) in zip(batches.domains, held_out.texts().items(), strict=True):
        samples = [batches.samples.read(domain.index, n) for n in held_out.numbers(domain.index).tolist()]
        tokens_U, bytes_U, unigram_U = text.units_U3.T
        unigram = unigram_U.sum() / tokens_U.sum()
        losses[name] = HeldOutLoss(_nats(engine, domain, samples), tokens_U, bytes_U, unigram, text.digest)
    return losses


def measure_documents(engine: Engine, documents: Iterable[Document]) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on documents, which are encoded as for training, each with its <eot>, and read one after
    another. "unigram" is NaN: no training text is read. Raises ConfigError for a domain without a token."""
    tokenizer, domains, losses = engine.decoder.tokenizer, domains_of(engine.decoder.config), {}
    bytes_V, length = bytes_of_ids(tokenizer), engine.decoder.config.model.seq_length
    streams = defaultdict[str, list[int]](list)
    for document in documents:
        streams[document.domain] += tokenizer.sample(document, domains.named(document.domain))
    for domain in (domain for domain in domains if domain.name in streams):
        ids = np.array(streams[domain.name], np.int32)
        if len(ids) < 2:
            raise ConfigError(f"a text of domain {domain.name} has no tokens; give at least one character")
        samples = [ids[first : first + length + 1] for first in range(0, len(ids) - 1, length)]
        predicted = [sample[1:][counted(sample, tokenizer)] for sample in samples]
        tokens_U, bytes_U = np.array([(len(p), bytes_V[p].sum()) for p in predicted], float).T
        digest = xxhash.xxh3_128_hexdigest(ids.astype("<i4").tobytes())
        losses[domain.name] = HeldOutLoss(_nats(engine, domain, samples), tokens_U, bytes_U, np.nan, digest)
    return losses


def _nats(engine: Engine, domain: Domain, samples: Sequence[np.ndarray]) -> np.ndarray:
    """Return the loss in nats of each sample, over the tokens that count, float64 [U]."""
    tokenizer, nats = engine.decoder.tokenizer, []
    for sample in Bar(samples, desc=domain.name, unit="sample"):
        logits_SR = engine.logits(domain, sample[:-1].tolist(), len(sample) - 1)
        nats_S = token_losses(logits_SR, tokenizer.rows(sample[1:], domain))
        nats.append(nats_S[counted(sample, tokenizer)].sum())
    return np.array(nats)


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
