"""Bench of decoding on the CPU: `Decoder` against transformers' GPT-2 of the same hidden size, layers and word table.

Both begin with texts of drawn ids and add greedy tokens; the peer does so eagerly with its DynamicCache, in a process of its own
(peers.py), which sleeps while we compute. Weights are drawn, and ours come from a file as those of a run. A batch is of one domain.
The bound of a prompt is the time of its matrix products alone, by NumPy's BLAS: projections, FFNs by expert, scores and mixtures of
attention by heads and blocks of queries, as far as they are needed, and the head for the last token.
The bound of a step is the time of reading its weights alone: all of dense layers and head, and of an RRE layer the experts that its
tokens meet, each once, by all cores, from an array that is larger than caches.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ascend_ops.few_rows import Precision
from experiments.bench.harness import RUNS, Row, absent, compare, figure, limit, take_turns
from experiments.peers import Worker, peers_python, script_of
from pangu_sigma.checkpoint.safetensors_file import map_arrays, write_arrays
from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.model.pangu_sigma import FIRST_ROW_SCALE
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.text.tokenizer import Tokenizer

SIZES = {
    "tiny": {
        "hidden": 192,
        "ffn": 768,
        "heads": 6,
        "dense_layers": 4,
        "rre_layers": 2,
        "seq_length": 256,
        "slot_rows": 8192,
    },
    "small": {
        "hidden": 512,
        "ffn": 2048,
        "heads": 8,
        "dense_layers": 6,
        "rre_layers": 2,
        "seq_length": 1024,
        "slot_rows": 16384,
    },
}
"""Sizes of `sigma_tiny`, and of a model whose weights are larger than caches."""
DRAWN_DOMAINS = 4
FORM = {"segments": ["own", "own", "common", "common"], "experts_per_domain": 16, "common_experts": 64}
"""Form of the RRE layers, that of `sigma_tiny`."""
ROWS = 131_071
"""Rows of each of two entries, where rows are timed."""
READ, TOKENS = 32, 6
"""Tokens of a text before the first step, and tokens that a step adds."""
PROMPT, QUERIES = 512, 128
"""Tokens of the prompt, and queries of a block of its bound."""
RUN = Path("runs/sigma_tiny")
"""Run of which a process is started, if it is there."""
SLOWER, START = 1.3, 5.0
"""Our limits: time of a token at position 1,000 against one at 50, and seconds from the start of a process to its first token."""

_NARROW: tuple[Precision, ...] = ("float16", "int8", "int4")

Steps = dict[str, Callable[[], Any]]


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with transformers, if its environment is there."""
    python = peers_python() if peers else None
    rows = []
    with _drawn("tiny") as tiny, _drawn("small") as small:
        rows += _against_peer(tiny, 1, ("float32", "int8", "int4"), python, peers)
        rows += _against_peer(small, 1, ("float32", "float16", "int8", "int4"), python, peers)
        rows += _against_peer(small, 8, ("float32", "int8", "int4"), python, peers)
        rows += _bound(small) + _batch(small) + _position(small) + _prompt(small, python, peers) + _memory(small)
    return rows + _with_rows() + _start()


class DrawnWeights:
    """`Weights` of a configuration, drawn once into a file that is mapped; of rows that could be met, half were."""

    def __init__(self, config: Config, file: Path):
        model, rng = config.model, np.random.default_rng(config.seed)
        matrix = (model.hidden, model.hidden)
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (config.slots * model.slot_rows, model.hidden),
            "positions": (model.seq_length, model.hidden),
            "query_positions": (model.seq_length, model.hidden),
        }
        for layer in range(model.layers):
            for name in ("query", "key", "value", "output"):
                shapes |= {f"layers.{layer}.attention.{name}.weight": matrix}
                shapes |= {f"layers.{layer}.attention.{name}.bias": (model.hidden,)}
        for layer in range(model.dense_layers):
            shapes |= {f"layers.{layer}.ffn.{name}": shape for name, shape in _ffn_shapes(model.ffn, model.hidden)}
        for n, kind in enumerate(model.routed):
            of_expert = _ffn_shapes(model.segment_ffn, model.hidden)
            shapes |= {f"experts.{n}.{name}": (config.stored_experts(kind), *shape) for name, shape in of_expert}
        drawn = {n: model.init_std * rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}
        write_arrays(file, drawn)
        self._arrays = map_arrays(file)
        self._norm = {"gain": np.ones(model.hidden, np.float32), "bias": np.zeros(model.hidden, np.float32)}
        self._norm["row_scale"] = np.full(1, FIRST_ROW_SCALE, np.float32)
        keys = [np.flatnonzero(rng.random(config.stored_rows(entry)) < 0.5) for entry in model.rows]
        self._rows = [
            (keys_U, rng.standard_normal((len(keys_U), entry.width), np.float32))
            for keys_U, entry in zip(keys, model.rows, strict=True)
        ]

    def tensor(self, name: str) -> np.ndarray:
        return self._arrays[name] if name in self._arrays else self._norm[name.rpartition(".")[2]]

    def expert(self, segment: int, number: int, name: str) -> np.ndarray:
        return self._arrays[f"experts.{segment}.{name}"][number]

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows[entry]


def _ffn_shapes(ffn: int, hidden: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("w1", (ffn, hidden)), ("b1", (ffn,)), ("w2", (ffn, hidden)), ("b2", (hidden,))]


class Drawn:
    """A model of drawn weights, and its decoders."""

    def __init__(self, name: str, file: Path, rows: Sequence[Mapping[str, Any]] = ()):
        domains = [{"name": f"d{i}"} for i in range(DRAWN_DOMAINS)]
        tree = {"name": name, "model": SIZES[name] | FORM | {"rows": list(rows)}, "domains": domains}
        self.name, self.config = name, parse_config(tree)
        self.rows = self.config.model.slot_rows
        self._weights = DrawnWeights(self.config, file)
        model = self.config.model
        own, common = model.experts_per_domain, model.common_experts
        table = (self.config.routing, model.rre_layers, DRAWN_DOMAINS, self.rows, own, None, model.segments, common)
        self._table = draw_tables(*table, model.rows)

    def decoder(self, lanes: int, precision: Precision = "float32") -> Decoder:
        """A decoder of it. Its tokenizer has as many ids as a slot has rows, and no document ends."""
        rows = np.arange(self.rows, dtype=np.int32)[None]
        ids = cast(Tokenizer, SimpleNamespace(size=self.rows, eot=-1, slot_rows=rows, row_of=rows))
        return Decoder(self.config, ids, self._table, self._weights, lanes, precision)

    def texts(
        self, batch: int, tokens: int, precision: Precision = "float32", greedy: bool = True
    ) -> Callable[[], None]:
        """The step of texts of so many tokens: it adds TOKENS to each, greedy ones, or drawn ones, the same to every model."""
        decoder, rng = self.decoder(batch, precision), np.random.default_rng(1)
        new = self._begin(decoder, batch, tokens)

        def step() -> None:
            for _ in range(TOKENS):
                logits = decoder.read([Chunk(lane, [new[lane]]) for lane in range(batch)])
                new[:] = (
                    [int(each[0].argmax()) for each in logits] if greedy else rng.integers(0, self.rows, batch).tolist()
                )

        return step

    def weights_alone(self, batch: int) -> Callable[[], None]:
        """The step of reading, in float32, the weights that TOKENS drawn tokens of each text need, and of computing nothing."""
        model, rng, threads = self.config.model, np.random.default_rng(1), len(os.sched_getaffinity(0))
        shared = model.layers * 4 * model.hidden**2 + (2 * model.dense_layers * model.ffn + self.rows) * model.hidden
        of_expert, pool = 2 * model.segment_ffn * model.hidden, ThreadPoolExecutor(threads)
        weights = np.ones(shared + batch * len(model.routed) * of_expert, np.float32)

        def read() -> None:
            for _ in range(TOKENS):
                ids_T = rng.integers(0, self.rows, batch)
                experts_NT = self._table.route(ids_T, np.zeros_like(ids_T), np.ones_like(ids_T))
                values = shared + of_expert * sum(len(set(experts)) for experts in experts_NT.tolist())
                list(pool.map(np.max, np.array_split(weights[:values], threads)))

        return read

    def prompts(self) -> Callable[[], None]:
        """The step of reading a new text of PROMPT tokens."""
        decoder = self.decoder(1)
        return lambda: cast(None, self._begin(decoder, 1, PROMPT))

    def _begin(self, decoder: Decoder, batch: int, tokens: int) -> list[int]:
        """Begin texts of drawn ids; returns the token after each."""
        ids = np.random.default_rng(0).integers(0, self.rows, (batch, tokens))
        for lane in range(batch):
            decoder.begin(lane, domains_of(self.config)[0])
        logits = decoder.read([Chunk(lane, ids[lane].tolist()) for lane in range(batch)])
        return [int(each[0].argmax()) for each in logits]

    def products(self) -> Callable[[], None]:
        """The matrix products of reading a prompt, alone; see the module."""
        model, rng = self.config.model, np.random.default_rng(0)
        x, up = (rng.standard_normal((PROMPT, width), np.float32) for width in (model.hidden, model.ffn))
        square = rng.standard_normal((model.hidden, model.hidden), np.float32)
        w1, w2 = (rng.standard_normal((model.ffn, model.hidden), np.float32) for _ in range(2))
        experts = [model.experts_per_domain if kind == "own" else model.common_experts for kind in model.segments]
        of_segments = [
            [rng.standard_normal((2, model.segment_ffn, model.hidden), np.float32) for _ in range(number)]
            for number in experts
        ]
        heads = rng.standard_normal((model.heads, PROMPT, model.hidden // model.heads), np.float32)
        head = rng.standard_normal((self.rows, model.hidden), np.float32)

        def multiply() -> None:
            for layer in range(model.layers):
                for _ in range(4):
                    x @ square
                for end in range(QUERIES, PROMPT + 1, QUERIES):
                    scores = heads[:, end - QUERIES : end] @ heads[:, :end].transpose(0, 2, 1)
                    scores @ heads[:, :end]
                if layer < model.dense_layers:
                    x @ w1.T
                    up @ w2
                    continue
                for of_segment in of_segments:
                    rows = PROMPT // len(of_segment)
                    for e1, e2 in of_segment:
                        x[:rows] @ e1.T
                        up[:rows, : model.segment_ffn] @ e2
            head @ x[0]

        return multiply


@contextmanager
def _drawn(name: str, rows: Sequence[Mapping[str, Any]] = ()) -> Iterator[Drawn]:
    with tempfile.TemporaryDirectory() as folder:
        yield Drawn(name, Path(folder) / "weights.safetensors", rows)


def _peer(python: Path, model: Drawn, batch: int, read: int, tokens: int, prompt: bool = False) -> Worker:
    """A worker with transformers' model of the same size."""
    sizes = model.config.model
    settings = {
        "model": {
            "vocab_size": sizes.slot_rows,
            "n_positions": sizes.seq_length,
            "n_embd": sizes.hidden,
            "n_inner": sizes.ffn,
            "n_layer": sizes.layers,
            "n_head": sizes.heads,
        },
        "batch": batch,
        "read": read,
        "tokens": tokens,
        "prompt": prompt,
    }
    return Worker(script_of(python, Path(__file__).with_name("gpt2.py")), json.dumps(settings))


def _against_peer(
    model: Drawn, batch: int, precisions: tuple[Precision, ...], python: Path | None, peers: bool
) -> list[Row]:
    """Tokens a second of a batch in each precision, against the peer in float32."""
    ours: Steps = {precision: model.texts(batch, READ, precision) for precision in precisions}
    with ExitStack() as stack:
        theirs: Steps = {}
        if python is not None:
            theirs = {"transformers": stack.enter_context(_peer(python, model, batch, READ, TOKENS)).step}
        seconds = take_turns(ours | theirs)
    rows, work = [], batch * TOKENS
    for precision in precisions:
        last = READ + TOKENS * (RUNS + 1)
        case = f"{model.name}, batch {batch}, {precision}, positions {READ} to {last}"
        if theirs:
            both = {"ours": seconds[precision], "transformers": seconds["transformers"]}
            rows += compare("decode", case, both, work=work, unit="tokens/s")
        else:
            rate = work / statistics.median(seconds[precision])
            rows.append(absent("decode", case, rate, "transformers" if peers else "no peer", "tokens/s", RUNS))
    return rows


def _with_rows() -> list[Row]:
    """Tokens a second with rows of one id and of pairs, against the same model without."""
    rows = []
    entries = [{"order": order, "rows": ROWS, "width": SIZES["tiny"]["hidden"] // 2} for order in (1, 2)]
    with _drawn("tiny") as plain, _drawn("tiny", entries) as model:
        rounds = (model.config.model.seq_length - READ) // TOKENS - 1
        for batch in (1, 8):
            steps = {"ours": model, "without rows": plain}
            seconds = take_turns({name: of.texts(batch, READ, greedy=False) for name, of in steps.items()}, rounds)
            case = f"tiny with 2 x {ROWS:,} rows, batch {batch}, float32"
            rows += compare("decode", case, seconds, work=batch * TOKENS, unit="tokens/s")
    return rows


def _bound(model: Drawn) -> list[Row]:
    """Tokens a second against reading the weights alone, of one text, of eight, and of as many as the bench of serving has."""
    rows = []
    for batch in (1, 8, 16):
        steps: Steps = {"ours": model.texts(batch, READ, greedy=False), "its weights alone": model.weights_alone(batch)}
        case = f"{model.name}, batch {batch}, float32, against memory"
        rows += compare("decode", case, take_turns(steps), work=batch * TOKENS, unit="tokens/s")
    return rows


def _batch(model: Drawn) -> list[Row]:
    steps: Steps = {"ours": model.texts(8, READ), "ours, batch 1": model.texts(1, READ)}
    seconds = take_turns(steps)
    seconds["ours, batch 1"] = [8 * each for each in seconds["ours, batch 1"]]  # as long as eight texts would take
    return compare(
        "decode", f"{model.name}, batch 8 against batch 1, float32", seconds, work=8 * TOKENS, unit="tokens/s"
    )


def _position(model: Drawn) -> list[Row]:
    rounds = TOKENS * (RUNS + 1)
    near, far = model.texts(1, 50 - rounds // 2), model.texts(1, model.config.model.seq_length - rounds)
    seconds = take_turns({"near": near, "far": far})
    ratio = statistics.median(f / n for n, f in zip(seconds["near"], seconds["far"], strict=True))
    case = f"{model.name}, a token around position {model.config.model.seq_length - rounds // 2}, float32"
    return [limit("decode", case, "time of a token around position 50", ratio, SLOWER, "times")]


def _prompt(model: Drawn, python: Path | None, peers: bool) -> list[Row]:
    case = f"{model.name}, first token after a prompt of {PROMPT}, float32"
    steps: Steps = {"ours": model.prompts(), "its products alone": model.products()}
    with ExitStack() as stack:
        if python is not None:
            steps["transformers"] = stack.enter_context(_peer(python, model, 1, 0, PROMPT, prompt=True)).step
        rows = compare("decode", case, take_turns(steps))
    return (
        rows
        if python is not None or not peers
        else [*rows, absent("decode", case, rows[0].ours, "transformers", "ms", RUNS)]
    )


def _memory(model: Drawn) -> list[Row]:
    sizes = {p: model.decoder(1, p).resident_bytes / (1 << 20) for p in ("float32", *_NARROW)}
    case = f"{model.name}, resident weights of {DRAWN_DOMAINS} domains and cache of a lane"
    return [
        figure("decode", case, f"float32, against {p}", sizes[p], sizes["float32"], "MiB", lower=True) for p in _NARROW
    ]


def _start() -> list[Row]:
    """The row of a whole process, of the run of the quickstart if it is there."""
    if not RUN.exists():
        return []
    prompt = ["--domain", "en", "--prompt", "The", "--max-new-tokens", "1"]
    command = [sys.executable, "-m", "pangu_sigma", "generate", str(RUN), *prompt]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    case = f"{RUN}, the process of `generate` with one token"
    return [limit("decode", case, "seconds from its start to its end", statistics.median(seconds), START, "s")]
