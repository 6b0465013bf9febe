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
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.score import token_losses
from pangu_sigma.held_out.batches import HeldOut, bytes_of_ids, counted
from pangu_sigma.held_out.losses import HeldOutLoss, ratio
from pangu_sigma.text.documents import Document


def measure_decoded(engine: Engine, batches: BatchLoader, sample_limit: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `sample_limit` held-out samples."""
    held_out, losses = HeldOut(batches, sample_limit), {}
    for domain, (name, text) in zip(batches.domains, held_out.texts().items(), strict=True):
        samples = [batches.samples.read(domain.index, n) for n in held_out.numbers(domain.index).tolist()]
        tokens_U, bytes_U, unigram_U = text.units_U3.T
        losses[name] = HeldOutLoss(
            _nats(engine, domain, samples), tokens_U, bytes_U, ratio(unigram_U, tokens_U).mean, text.digest
        )
    return losses


def measure_documents(engine: Engine, documents: Iterable[Document]) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on documents. They are encoded as for training, each with its <eot>, and follow each other in
    samples of model.seq_length. "unigram" is NaN, because no training text is read. Raises ConfigError for a domain without a
    token."""
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
