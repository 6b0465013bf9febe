"""How far held-out text is from a random sample of its domain, measured with a unigram model.

Passing documents over may leave held-out text that is unlike the rest, whose losses then say little about the domain.

Shape suffixes: N documents, V vocabulary, R rows of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import DOCUMENT, final_tokenizer, ids_of
from pangu_sigma.data.prepare.selection import Lowest
from pangu_sigma.data.prepare.stages.stage import UnitResults
from pangu_sigma.data.prepared import unigram_nats

_DRAWS = 20
"""Maximum number of random samples."""


def find_shift(
    work: Work, encoded: UnitResults, domain: int, train_V: np.ndarray, held_out_V: np.ndarray
) -> tuple[float, float, float]:
    """Compare the held-out text of a domain with random text of it, see `held_out_shift`. encoded: results of the pass `encode`."""
    first = _first_by_hash(work, encoded, domain, int(held_out_V.sum()))
    return held_out_shift(train_V, held_out_V, first, final_tokenizer(work).slot_rows[work.domains[domain].slot])


def held_out_shift(
    train_V: np.ndarray, held_out_V: np.ndarray, documents: Iterable[np.ndarray], slot_R: np.ndarray
) -> tuple[float, float, float]:
    """Return the unigram loss of the held-out tokens in nats, how much that is above random samples, and their standard deviation.

    A sample consists of successive documents with as many tokens as the held-out text. Its loss is what it would be if
    it were held out: the model counts all other tokens of the domain. train_V, held_out_V: token counts. documents: token ids of
    all documents in random order, or of as many as `_DRAWS` samples need. slot_R: id of each row of the domain's slot, -1 for a row
    without one.
    """
    total_V = train_V + held_out_V
    loss = _loss(train_V, held_out_V, slot_R)
    losses = [_loss(total_V - sample_V, sample_V, slot_R) for sample_V in _samples(documents, held_out_V)]
    if not losses:
        return loss, 0.0, 0.0
    return loss, loss - float(np.mean(losses)), float(np.std(losses))


def _samples(documents: Iterable[np.ndarray], held_out_V: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the token counts [V] of random samples with at least the number of held-out tokens each."""
    size, drawn = int(held_out_V.sum()), 0
    some, tokens = list[np.ndarray](), 0
    for ids in documents if size else ():
        some.append(ids)
        tokens += len(ids)
        if tokens >= size:
            yield np.bincount(np.concatenate(some), minlength=len(held_out_V))
            drawn, some, tokens = drawn + 1, [], 0
        if drawn == _DRAWS:
            return


def _loss(rest_V: np.ndarray, part_V: np.ndarray, slot_R: np.ndarray) -> float:
    """Return the loss of a part of the tokens in nats, with a unigram model of the rest; 0 for no tokens."""
    ids = slot_R[slot_R >= 0]
    return float(part_V[ids] @ unigram_nats(rest_V, slot_R)[ids] / max(1, part_V[ids].sum()))


def _first_by_hash(work: Work, encoded: UnitResults, domain: int, tokens: int) -> Iterator[np.ndarray]:
    """Yield the token ids of a domain's documents in the order of their hashes, as many as `_DRAWS` samples of `tokens` need."""
    longest = max((int(block.documents[domain]["tokens"].max(initial=0)) for block in encoded), default=0)
    lowest = Lowest(0, _DRAWS * (tokens + longest), "tokens", DOCUMENT)
    names = list[str]()
    for block in encoded:
        lowest.add(block.documents[domain])
        names.append(block.name)
    blocks_N = work.stage.load("selection").blocks_of(lowest.found_N["at"])
    for document, number in zip(lowest.found_N, blocks_N.tolist(), strict=True):
        yield ids_of(work.stage, names[number], document)
