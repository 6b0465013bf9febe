"""Loss of a model by the CPU's decoder, without MindSpore: on the held-out text of an export or a Hugging Face style folder, and
of any model on any text, which need not be prepared.

The graph of an export is not run: MindSpore executes what a MindIR names, shared libraries too. `export` compares it with the run
when it writes the graph. Rows without a token have no probability here; training gives them one, so its loss is higher where a
slot has such rows. Of other text the first token of a document has no loss, and the last sample may be shorter.

Shape suffixes: S tokens of a sample, R rows of a slot, V vocabulary, U samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.prepared import unigram_nats
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.score import token_losses
from pangu_sigma.held_out.batches import HeldOut
from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.text.documents import Document


def measure_decoded(engine: Engine, batches: BatchLoader, most: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `most` held-out samples."""
    held_out, losses = HeldOut(batches, most), {}
    digests, slot_rows = held_out.digests(), batches.tokenizer.slot_rows
    for domain, counts_V in zip(batches.domains, batches.frequencies(), strict=True):
        samples = [batches.samples.read(domain.index, n) for n in held_out.numbers(domain.index).tolist()]
        unigram_V = unigram_nats(counts_V, slot_rows[domain.slot])
        losses[domain.name] = _loss(engine, domain, samples, digests[domain.name], unigram_V)
    return losses


def measure_documents(engine: Engine, documents: Iterable[Document]) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on documents, which are encoded as for training, each with its <eot>, and read one after
    another. "unigram" is NaN: no training text is read. Raises ConfigError for a domain without a token."""
    decoder, losses = engine.decoder, {}
    length, streams = decoder.config.model.seq_length, defaultdict[str, list[int]](list)
    for document in documents:
        streams[document.domain] += decoder.tokenizer.sample(
            document, domains_of(decoder.config).named(document.domain)
        )
    for domain in domains_of(decoder.config):
        ids = np.array(streams.get(domain.name, []), np.int32)
        if len(ids) == 1:
            raise ConfigError(f"a text of domain {domain.name} has no tokens; give at least one character")
        samples = [ids[first : first + length + 1] for first in range(0, len(ids) - 1, length)]
        if samples:
            digest = xxhash.xxh3_128_hexdigest(ids.astype("<i4").tobytes())
            losses[domain.name] = _loss(engine, domain, samples, digest, None)
    return losses


def _loss(
    engine: Engine, domain: Domain, samples: Sequence[np.ndarray], digest: str, unigram_V: np.ndarray | None
) -> HeldOutLoss:
    tokenizer, units, unigram = engine.decoder.tokenizer, [], 0.0
    bytes_V = np.array([len(surface) for surface in tokenizer.vocabulary.surfaces])
    for sample in Bar(samples, desc=domain.name, unit="sample"):
        logits_SR = engine.logits(domain, sample[:-1].tolist(), len(sample) - 1)
        nats_S = token_losses(logits_SR, tokenizer.rows(sample[1:], domain))
        counted_S = sample[:-1] != tokenizer.eot  # nothing before it tells how the next document begins
        ids = sample[1:][counted_S]
        units.append((nats_S[counted_S].sum(), len(ids), bytes_V[ids].sum()))
        unigram += np.nan if unigram_V is None else unigram_V[ids].sum()
    nats_U, tokens_U, bytes_U = np.array(units, float).T
    return HeldOutLoss(nats_U, tokens_U, bytes_U, unigram / max(1, tokens_U.sum()), digest)
