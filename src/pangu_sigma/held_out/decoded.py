"""Loss of a model by the CPU's decoder, without MindSpore: on the held-out text of an export or a Hugging Face style folder, and
of any model on any text, which need not be prepared.

The graph of an export is not run: MindSpore executes what a MindIR names, shared libraries too. `export` compares it with the run
when it writes the graph. Rows without a token have no probability here; training gives them one, so its loss is higher where a
slot has such rows. Of other text the first token of a document has no loss, and the last sample may be shorter.

Shape suffixes: S tokens of a sample, R rows of a slot, V vocabulary, U samples.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.errors import argument
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.score import token_losses
from pangu_sigma.held_out.batches import HeldOut, HeldOutText, bytes_of_ids, counted, evenly_spread
from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.text.documents import Document

logger = logging.getLogger(__name__)


def measure_decoded(engine: Engine, batches: BatchLoader, sample_limit: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `sample_limit` held-out samples."""
    held_out, losses = HeldOut(batches, sample_limit), {}
    for domain, (name, text) in zip(batches.domains, held_out.texts().items(), strict=True):
        samples = [batches.samples.read(domain.index, n) for n in held_out.numbers(domain.index).tolist()]
        losses[name] = text.loss(_nats(engine, domain, samples))
    return losses


def measure_documents(engine: Engine, documents: Iterable[Document], sample_limit: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on documents, which are encoded as for training, each with its <eot>, joined, and cut into
    samples of model.seq_length. At most `sample_limit` samples of a domain, spread evenly, are read; a message says so. `unigram`
    is NaN, because no training text is read. Raises ConfigError for a domain without a token."""
    tokenizer, domains, losses = engine.decoder.tokenizer, domains_of(engine.decoder.config), {}
    bytes_V, length = bytes_of_ids(tokenizer), engine.decoder.config.model.seq_length
    streams = defaultdict[str, list[int]](list)
    for document in documents:
        streams[document.domain] += tokenizer.sample(document, domains.named(document.domain))
    for domain in (domain for domain in domains if domain.name in streams):
        ids = np.array(streams[domain.name], "<i4")
        if len(ids) < 2:
            raise ConfigError(f"a text of domain {domain.name} has no tokens; give at least one character")
        total = -(-(len(ids) - 1) // length)
        numbers = evenly_spread(total, min(total, sample_limit)).tolist()
        if len(numbers) < total:
            logger.info("%s: %d of %d samples; all: %s", domain.name, len(numbers), total, argument("--all-samples"))
        samples = [ids[length * number : length * (number + 1) + 1] for number in numbers]
        predicted = [sample[1:][counted(sample, tokenizer)] for sample in samples]
        units_U3 = np.array([(len(tokens), bytes_V[tokens].sum(), np.nan) for tokens in predicted])
        digest = xxhash.xxh3_128_hexdigest(np.concatenate([ids[:1], *(sample[1:] for sample in samples)]))
        losses[domain.name] = HeldOutText(digest, units_U3).loss(_nats(engine, domain, samples))
    return losses


def _nats(engine: Engine, domain: Domain, samples: Sequence[np.ndarray]) -> np.ndarray:
    """Return the loss in nats of each sample, over the tokens that count, float64 [U]."""
    tokenizer, nats = engine.decoder.tokenizer, []
    for sample in Bar(samples, desc=domain.name, unit="sample"):
        logits_SR = engine.logits(domain, sample[:-1].tolist(), len(sample) - 1)
        nats_S = token_losses(logits_SR, tokenizer.rows(sample[1:], domain))
        nats.append(nats_S[counted(sample, tokenizer)].sum())
    return np.array(nats)
