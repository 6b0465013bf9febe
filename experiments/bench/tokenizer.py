"""Bench of Chinese text to ids, in one process each: our tokenizer against the JIEBATokenizer of PanGu-α's authors.

Every round encodes other documents of the packaged Chinese text, and the ids of both are compared: the rounds together are the
proof that the ids are the same, and without it there is no ratio. What PanGu-α has no id for, which
is <unk> or vanishes there and is bytes here, is not compared.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.bench.harness import RUNS, Row, take_turns
from pangu_sigma.data.packaged.packages import packaged_documents
from pangu_sigma.data.prepare.reading import content_hash
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.sections import DataConfig
from pangu_sigma.text.segmentation import runs_of
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import ALPHA_SIZE, UNK

BYTES = 6_000_000
"""Bytes of the text of all rounds together."""

PEER = "pcl-pangu JIEBATokenizer"
_CHINESE = Domain(0, "zh", "text", "zh", 0, 0, 1, 1.0)

Encoder = Callable[[list[str]], list[list[int]]]
"""A function from documents to the ids of each."""


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: has no effect, because the peer comes with the project. Raises DataError if any id differs."""
    return compare_encoders(_chinese_text(), {"ours": _our_encoder(), PEER: _pangu_alpha_encoder()})


def compare_encoders(texts: list[str], encoders: dict[str, Encoder]) -> list[Row]:
    """The row of ours and a peer over `texts`, of which every round takes others; raises DataError if ids differ."""
    rounds = [texts[i :: RUNS + 1] for i in range(RUNS + 1)]
    ids: dict[str, list[list[int]]] = {name: [] for name in encoders}
    seconds = take_turns({name: _taking(rounds, encode, ids[name]) for name, encode in encoders.items()})
    ours, peer = encoders
    for text, mine, theirs in zip(itertools.chain(*rounds), ids[ours], ids[peer], strict=True):
        if _known(mine) != _known(theirs):
            raise DataError(f"bench tokenizer: {peer} gives other ids for {text[:60]!r}…; there is nothing to compare")
    sizes = [_megabytes(of_round) for of_round in rounds]
    speeds = {
        name: [size / time for size, time in zip(sizes[1:], times, strict=True)] for name, times in seconds.items()
    }
    return [
        Row(
            bench="tokenizer",
            case=f"{sum(sizes):.1f} MB zh, ids equal",
            ours=statistics.median(speeds[ours]),
            peer=peer,
            peer_value=statistics.median(speeds[peer]),
            ratio=statistics.median(a / b for a, b in zip(speeds[ours], speeds[peer], strict=True)),
            unit="MB/s",
            runs=RUNS,
        )
    ]


def _known(ids: list[int]) -> list[int]:
    """The ids that are PanGu-α's pieces."""
    return [i for i in ids if UNK < i < ALPHA_SIZE]


def _taking(rounds: list[list[str]], encode: Encoder, ids: list[list[int]]) -> Callable[[], None]:
    """Work for a round: the next texts, their ids appended to `ids`."""
    remaining = iter(rounds)
    return lambda: ids.extend(encode(next(remaining)))


def _megabytes(texts: Iterable[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _chinese_text() -> list[str]:
    """The documents that `prepare-data` has for Chinese, spread over all of them."""
    folder = Path(DataConfig().path).parent / "packages"
    documents = {content_hash("keep", document): document for document in packaged_documents(_CHINESE, folder)}
    ranked = sorted(documents)
    sizes = itertools.accumulate(documents[key].bytes for key in ranked)
    kept = {key for key, size in zip(ranked, sizes, strict=True) if size <= BYTES}
    return [text for key, document in documents.items() if key in kept for _, text in document.segments]


def _our_encoder() -> Encoder:
    """Our encoder, used as `prepare-data` does it: the words of all documents, then the ids."""
    tokenizer = Tokenizer.whole(alpha_model(), train_english([], 0), 1)

    def encode(texts: list[str]) -> list[list[int]]:
        documents = [runs_of(text, _CHINESE.language) for text in texts]
        return [tokenizer.encode_runs(runs, _CHINESE).tolist() for runs in documents]

    return encode


def _pangu_alpha_encoder() -> Encoder:
    """The peer's encoder, loaded from its file: importing the package would pull in a training framework."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    package: Any = importlib.util.find_spec("pcl_pangu")
    folder = Path(package.submodule_search_locations[0]) / "tokenizer"
    spec: Any = importlib.util.spec_from_file_location("tokenization_jieba", folder / "tokenization_jieba.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.JIEBATokenizer(str(folder / "bpe_4w_pcl/vocab"))
    return lambda texts: [tokenizer.encode(text) for text in texts]
