"""Bench of training tokens per second: a small sparse GPT against transformers' Mixtral of equal parameters and FLOPs.

Ours is all that `pangu-sigma train` does for a step: batch, plan, fetch, forward, backward, norm, clipping, loss scale, AdamW.
The peer is its model, `loss.backward()` and torch's fused AdamW, without clipping, in a process of its own (peers.py), which sleeps
while we compute. Both are given new, uniformly drawn token ids for each step.

Mixtral's expert is gated, three matrices of intermediate size I; ours has two, so ours is 3/2 I wide.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from experiments.bench.harness import Row, absent, compare, take_turns
from experiments.bench.synthetic import FIRST, RATE, SyntheticRun, config_of
from experiments.peers import Worker, peers_python, script_of
from pangu_sigma.config import Config
from pangu_sigma.process import use_cpu

GPT_BATCH, GPT_LENGTH, GPT_VOCABULARY = 4, 256, 8192
GPT_LAYERS, GPT_HIDDEN, GPT_HEADS, GPT_EXPERTS = 4, 256, 4, 16
GPT_INTERMEDIATE = 1024
"""Inner width of an expert of Mixtral; ours is 3/2 of it."""
SIDE = 2048
"""Number of rows and columns of the matrix product that shows the speed of the machine."""

BACKENDS = ("grouped_mm", "eager")
"""Backends of Mixtral's experts, the faster first."""


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with transformers, if its environment is there."""
    use_cpu()
    config = make_config()
    python = peers_python() if peers else None
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], Any]] = {"ours": SyntheticRun(config).advance, **products()}
        parameters = f"{config.num_params().total / 1e6:.1f} M parameters"
        if python is not None:
            workers = {backend: stack.enter_context(mixtral(python, backend)) for backend in BACKENDS}
            contenders |= {_mixtral_name(backend): worker.step for backend, worker in workers.items()}
            parameters += f", Mixtral {workers[BACKENDS[0]].started['parameters'] / 1e6:.1f} M"
        case = (
            f"MoE GPT step, {GPT_LAYERS} layers, {GPT_EXPERTS} experts, {GPT_BATCH}x{GPT_LENGTH} tokens, {parameters}"
        )
        seconds = at_sgemm_speed(take_turns(contenders), step_flops(config))
    rows = compare("train", case, seconds, work=GPT_BATCH * GPT_LENGTH, unit="tokens/s")
    if peers and python is None:
        rows += [absent("train", case, rows[0].ours, _mixtral_name(b), "tokens/s", rows[0].runs) for b in BACKENDS]
    return rows


def _mixtral_name(backend: str) -> str:
    return f"HF Mixtral, {backend}"


def make_config() -> Config:
    """The configuration of ours: one domain, every layer routed, everything else as it is by default."""
    model = {
        "hidden": GPT_HIDDEN,
        "ffn": GPT_INTERMEDIATE * 3 // 2,
        "heads": GPT_HEADS,
        "dense_layers": 0,
        "rre_layers": GPT_LAYERS,
        "experts_per_domain": GPT_EXPERTS,
        "seq_length": GPT_LENGTH,
        "slot_rows": GPT_VOCABULARY,
        "expert_init": "independent",
    }
    return config_of(1, model, train={"batch_size": GPT_BATCH})


def mixtral(python: Path, backend: str) -> Worker:
    """A worker with transformers' model and random weights; each step is one update."""
    model = {
        "vocab_size": GPT_VOCABULARY,
        "hidden_size": GPT_HIDDEN,
        "intermediate_size": GPT_INTERMEDIATE,
        "num_hidden_layers": GPT_LAYERS,
        "num_attention_heads": GPT_HEADS,
        "num_key_value_heads": GPT_HEADS,
        "num_local_experts": GPT_EXPERTS,
        "num_experts_per_tok": 1,
        "max_position_embeddings": GPT_LENGTH,
        "tie_word_embeddings": True,
    }
    settings = {
        "model": model,
        "experts": backend,
        "batch": GPT_BATCH,
        "length": GPT_LENGTH,
        "first_id": FIRST,
        "rate": RATE,
    }
    return Worker(script_of(python, Path(__file__).with_name("mixtral.py")), json.dumps(settings))


def products() -> dict[str, Callable[[], Any]]:
    """Work of one large matrix product, by the library that does it; which is faster is the machine's matter.

    NumPy's wheel brings an OpenBLAS that takes a processor that it does not know, such as a recent Xeon, for one of 2004.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    a_tensor, b_tensor = ms.Tensor(a), ms.Tensor(b)
    return {"NumPy": lambda: a @ b, "MindSpore": lambda: ms.ops.matmul(a_tensor, b_tensor).asnumpy()}


def step_flops(config: Config) -> float:
    """Number of multiplications and additions in the matrix products of a step, forward and backward; none is counted twice."""
    model, tokens = config.model, GPT_BATCH * GPT_LENGTH
    projections = 4 * model.hidden**2 + 2 * model.hidden * model.ffn
    scores = 2 * GPT_LENGTH * model.hidden
    return 6.0 * tokens * (model.layers * (projections + scores) + model.hidden * model.slot_rows)


def at_sgemm_speed(seconds: dict[str, list[float]], flops: float) -> dict[str, list[float]]:
    """The same rounds, with the products replaced by the times of `flops` at the speed of the fastest, as its new name says."""
    times = {name: seconds.pop(name) for name in ("NumPy", "MindSpore")}
    fastest = min(times, key=lambda name: statistics.median(times[name]))
    gigaflops = 2 * SIDE**3 / statistics.median(times[fastest]) / 1e9
    name = f"its FLOPs at {fastest}'s {gigaflops:.0f} GF/s"
    return {**seconds, name: [each * flops / (2 * SIDE**3) for each in times[fastest]]}
