"""Bench of benchmarks: short multiple-choice items as lm-evaluation-harness asks them, together and one text after the other.

An item is a question with four letters after it. One peer is the same decoder with one lane: it reads each letter after its
question by itself, so nothing is computed together, and a question four times. The other is the graph of an export, run by
MindSpore, one text after the other. They do a part of the items in a round; times are of an item.
Weights are drawn, of `sigma_tiny`'s size, and the tokenizer is the real one. All three must give the same log-probabilities.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from experiments.bench.decode import DrawnWeights
from experiments.bench.harness import Row, compare, take_turns
from experiments.bench.serve import drawn_config, real_tokenizer
from pangu_sigma.data.prepared import drawn_tables
from pangu_sigma.domains import Domain
from pangu_sigma.evaluate.harness import HarnessModel
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graph.cached import CachedGraph
from pangu_sigma.generate.graph.exported import ExportedGraph
from pangu_sigma.process import use_cpu

_ITEMS, _ALONE, _LANES, _ROUNDS = 1000, 50, 16, 3
_QUESTION, _LETTERS = 61, "ABCD"
"""Characters of a question with its options, before "答案："; and the candidates, as C-Eval and CMMLU have them."""
_PEERS = ("one by one", "MindSpore graph, one by one")
_MOST_DIFFERENCE = 1e-4


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: has no effect, because the peer is this project's own decoder."""
    return compare_items(_ITEMS, _ALONE, _ROUNDS)


def compare_items(items: int, alone: int, rounds: int) -> list[Row]:
    """Items a second of a model of `sigma_tiny`'s size, against the first `alone` of them one by one.

    Raises RuntimeError if the answers differ by more than the rounding of float32.
    """
    with _models() as (together, *one_by_one):
        asked = _asked(together, items)
        some = asked[: alone * len(_LETTERS)]
        _check_alike([model.loglikelihood(some, disable_tqdm=True) for model in (together, *one_by_one)])
        whole = {"ours": lambda: together.loglikelihood(asked, disable_tqdm=True)}
        parts = {
            name: partial(model.loglikelihood, some, disable_tqdm=True)
            for name, model in zip(_PEERS, one_by_one, strict=True)
        }
        seconds = take_turns(whole | parts, rounds)
    for name in _PEERS:
        seconds[name] = [each * items / alone for each in seconds[name]]
    case = (
        f"tiny, {items:,} items of {_QUESTION + 3} characters and {len(_LETTERS)} candidates, {_LANES} texts at a time"
    )
    return compare("evaluate", case, seconds, work=items, unit="items/s")


def _check_alike(answers: list[list[tuple[float, bool]]]) -> None:
    first, *others = (np.array([score for score, _ in each]) for each in answers)
    worst = max(float(np.abs(each - first).max()) for each in others)
    if worst > _MOST_DIFFERENCE:
        raise RuntimeError(f"log-probabilities differ by {worst:.1e}, and may by {_MOST_DIFFERENCE:g}")


@contextmanager
def _models() -> Iterator[list[HarnessModel]]:
    """The same drawn model as the harness asks it: together, and each of `_PEERS`."""
    config = drawn_config("tiny", "zh")
    tokenizer = real_tokenizer(config)
    table = drawn_tables(config, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        weights = DrawnWeights(config, Path(folder) / "weights.safetensors")
        decoders: list[Any] = [Decoder(config, tokenizer, table, weights, lanes) for lanes in (_LANES, 1)]
        use_cpu()
        graph = CachedGraph(config, tokenizer, table, weights).set_train(False)
        decoders.append(_GraphDecoder(ExportedGraph(graph), decoders[0]))
        yield [HarnessModel(Engine(each), "d0") for each in decoders]


class _GraphDecoder:
    """The graph of an export as a decoder of one text at a time. other: decoder of the same model."""

    lanes = 1

    def __init__(self, graph: ExportedGraph, other: Decoder):
        self.config, self.tokenizer, self._graph = other.config, other.tokenizer, graph

    def begin(self, lane: int, domain: Domain) -> None:
        self._domain, self._length = domain, 0

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        (chunk,) = chunks
        logits_TR, _ = self._graph.read(self._domain, chunk.ids, self._length)
        self._length += len(chunk.ids)
        return [logits_TR[len(chunk.ids) - chunk.wanted :]]


def _asked(model: HarnessModel, items: int) -> list[Instance]:
    """Drawn text of Chinese characters that are one token each."""
    rng, tokenizer = np.random.default_rng(0), model.tokenizer
    common = [chr(code) for code in range(0x4E00, 0x9FA6) if len(tokenizer.encode(chr(code), model.domain)) == 1]
    questions = ["".join(each) for each in rng.choice(common, (items, _QUESTION))]
    return [
        Instance("loglikelihood", {}, (f"{question}答案：", letter), number)
        for question in questions
        for number, letter in enumerate(_LETTERS)
    ]
