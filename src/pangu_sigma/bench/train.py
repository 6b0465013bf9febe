"""Training tokens per second of a small sparse GPT, against transformers' Mixtral of equal parameters and FLOPs.

Ours is the training step that `pangu-sigma train` runs: routing plan, fetch, forward, backward, norm, clipping, loss scale, AdamW.
The peer is its model, `loss.backward()` and torch's fused AdamW, without clipping. Both are given the same token ids.

Mixtral's expert is gated, three matrices of intermediate size I; ours has two, so ours is 3/2 I wide.

Shape suffixes: B batch, S sequence.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from pangu_sigma.bench.harness import Row, absent, compare, take_turns
from pangu_sigma.config import Config, parse_config
from pangu_sigma.data.batches import Batch
from pangu_sigma.device import use_cpu
from pangu_sigma.ecss.store import make_store
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.routing.plan import make_plans
from pangu_sigma.routing.table import RoutingTable, draw_tables
from pangu_sigma.train.step import StepResult, TrainStep

BATCH, LENGTH, VOCABULARY = 4, 256, 8192
LAYERS, HIDDEN, HEADS, EXPERTS = 4, 256, 4, 16
INTERMEDIATE = 1024
"""Of Mixtral; ours is 3/2 of it."""
SIDE = 2048
"""Rows and columns of the matrix product that says what the machine can do."""
RATE = 1e-4

BACKENDS = ("grouped_mm", "eager")
"""Of Mixtral's experts, the faster first."""


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: with transformers, when its version 5 (the first with a choice of backends) and torch are there."""
    config, ids_BS = make_config(), draw_ids()
    contenders: dict[str, Callable[[], Any]] = {"ours": ours(config, ids_BS), "sgemm": sgemm()}
    parameters = f"{config.num_params().total / 1e6:.1f} M parameters"
    with_mixtral = peers and has_mixtral()
    if with_mixtral:
        models = {backend: mixtral(backend) for backend in BACKENDS}
        contenders |= {_mixtral_name(backend): torch_step(model, ids_BS) for backend, model in models.items()}
        parameters += f", Mixtral {models[BACKENDS[0]].num_parameters() / 1e6:.1f} M"
    case = f"MoE GPT step, {LAYERS} layers, {EXPERTS} experts, {BATCH}x{LENGTH} tokens, {parameters}"
    seconds = at_sgemm_speed(take_turns(contenders), step_flops(config))
    rows = compare("train", case, seconds, work=BATCH * LENGTH, unit="tokens/s")
    if peers and not with_mixtral:
        rows += [absent("train", case, rows[0].ours, _mixtral_name(b), "tokens/s", rows[0].runs) for b in BACKENDS]
    return rows


def _mixtral_name(backend: str) -> str:
    return f"HF Mixtral, {backend}"


def make_config() -> Config:
    """One domain, every layer routed, everything else as it is by default."""
    return parse_config(
        {
            "name": "bench",
            "model": {
                "hidden": HIDDEN,
                "ffn": INTERMEDIATE * 3 // 2,
                "heads": HEADS,
                "dense_layers": 0,
                "rre_layers": LAYERS,
                "experts_per_domain": EXPERTS,
                "seq_length": LENGTH,
                "slot_rows": VOCABULARY,
                "expert_init": "independent",
            },
            "domains": [{"name": "text"}],
            "train": {"batch_size": BATCH},
        }
    )


def draw_ids() -> np.ndarray:
    """Token ids [B, S], uniform."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH))


def ours(config: Config, ids_BS: np.ndarray) -> Callable[[], float]:
    """One update of the project's own training step; returns the loss."""
    use_cpu()
    step = TrainStep(config, PanGuSigma(config.model, config.slots), make_store(config))
    step.set_train()
    table = draw_tables(config.routing, LAYERS, 1, VOCABULARY, EXPERTS, None)

    def work() -> float:
        arrays = make_batch(config, table, ids_BS).arrays()
        result = StepResult(*step(Tensor(RATE, ms.float32), *map(as_tensor, arrays)))
        return float(result.block_loss_GM[0].asnumpy().sum())

    return work


def make_batch(config: Config, table: RoutingTable, ids_BS: np.ndarray) -> Batch:
    """Each sequence one document; every token predicts the next one, the last of a sequence its first."""
    ids_GBS = ids_BS[None].astype(np.int32)
    domains_GB = np.zeros(ids_GBS.shape[:2], np.int64)
    positions_GBS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids_GBS.shape)
    return Batch(
        domains_M=np.zeros(1, np.int64),
        slots_GM=np.zeros((1, 1), np.int32),
        ids_GBS=ids_GBS,
        rows_GBS=ids_GBS,
        positions_GBS=positions_GBS,
        documents_GBS=np.zeros_like(ids_GBS),
        labels_GBS=np.roll(ids_GBS, -1, axis=2),
        weights_GBS=np.full(ids_GBS.shape, 1 / ids_GBS.size, np.float32),
        plans=make_plans(table, ids_GBS, domains_GB, positions_GBS, config.experts, config.active_experts),
    )


def has_mixtral() -> bool:
    """Whether torch and a transformers whose experts have backends are installed."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    return installed and int(version("transformers").split(".")[0]) >= 5


def mixtral(backend: str) -> Any:
    """transformers' model with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=1,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, experts_implementation=backend).train()


def torch_step(model: Any, ids_BS: np.ndarray) -> Callable[[], float]:
    """One update of `model`; returns the loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    ids = torch.from_numpy(ids_BS)

    def work() -> float:
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return work


def sgemm() -> Callable[[], Any]:
    """A large matrix product of NumPy."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    return lambda: a @ b


def step_flops(config: Config) -> float:
    """Multiplications and additions of the matrix products of a step, forward and backward; nothing is counted twice."""
    model, tokens = config.model, BATCH * LENGTH
    projections = 4 * model.hidden**2 + 2 * model.hidden * model.ffn
    scores = 2 * LENGTH * model.hidden
    return 6.0 * tokens * (model.layers * (projections + scores) + model.hidden * model.slot_rows)


def at_sgemm_speed(seconds: dict[str, list[float]], flops: float) -> dict[str, list[float]]:
    """The same rounds, with the product's times replaced by those of `flops` at its speed; its name says the speed."""
    product = seconds.pop("sgemm")
    gigaflops = 2 * SIDE**3 / statistics.median(product) / 1e9
    name = f"its FLOPs at sgemm's {gigaflops:.0f} GF/s"
    return {**seconds, name: [each * flops / (2 * SIDE**3) for each in product]}
