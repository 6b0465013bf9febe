"""Bytes on one NPU and on one host, item by item. All ranks are alike, because a layout divides everything evenly. Pure Python.

Symbols: T tokens of a rank in one pass, B = T/S its sequences, H hidden, F ffn, n heads, S sequence, R rows of a slot, t tensor
ranks, c bytes of the compute dtype, W rows that the RRE layer of a rank multiplies. What is kept for the backward pass:

    every layer   T·H·(2c + 2c + 8)     inputs of both halves; what both LayerNorms return; their inputs in float32
                  4·c·T·H/t             q, k, v, and their mixture
                  B·n/t·S·S·(4 + c)     softmax in float32, and its cast (none when c is 4)
    dense FFN     2·c·T·F/t             before and after the activation
    RRE FFN       c·W·H + 2·c·W·F/t     rows that arrived, before and after the activation

With `recompute` a layer keeps c·T·H, its input, and the rest is there for one layer at a time. While the backward pass is in a
layer, each tensor kept of it has a gradient of its size (an upper bound: some are gone before others come).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pangu_sigma.config import Config
from pangu_sigma.parallel.layout import Layout
from pangu_sigma.parallel.machine import (
    COMMUNICATOR_BUFFERS,
    GIB,
    HOST_RESERVE,
    MIB,
    NPU_RESERVE,
    NPUS_PER_HOST,
    PROCESS_RESERVE,
)
from pangu_sigma.parallel.parameters import (
    HOST,
    ITEM_SIZE,
    Array,
    active_experts,
    active_weights,
    all_arrays,
    dense_weights,
)


@dataclass(frozen=True)
class Item:
    """One line of a memory table. how: the rule, for people."""

    name: str
    nbytes: int
    how: str


def total(items: Iterable[Item]) -> int:
    return sum(item.nbytes for item in items)


def npu_items(config: Config) -> list[Item]:
    """Everything on one NPU at the fullest moment of a step."""
    return [
        *_dense_items(config),
        *_expert_items(config),
        *_activation_items(config),
        Item(
            "communication buffers",
            COMMUNICATOR_BUFFERS * len(communicators(config)),
            f"{len(communicators(config))} groups of ranks, 2 x 200 MB each",
        ),
        Item("reserve", NPU_RESERVE, "streams, graph, fragmentation (assumed)"),
    ]


def host_items(config: Config) -> list[Item]:
    """Everything in the memory of one host."""
    ranks = min(NPUS_PER_HOST, config.parallel.ranks)
    stored = [array for array in all_arrays(config) if array.device == HOST]
    rows = sum(math.prod(shape) for shape in active_weights(config)) * _item(config) if stored else 0
    items = [
        Item(f"experts: {what}", ranks * _nbytes(stored, *kinds), how)
        for what, kinds, how in (
            ("weights", ("weight",), "float32, all that its ranks store"),
            ("moments", ("moment", "variance"), f"{config.ecss.moments}"),
            ("step counts", ("step",), "int32"),
        )
    ]
    if config.ecss.store == "file":
        mapped = int(ranks * config.ecss.cache_gib * GIB)
        items = [Item("experts: mapped files", min(mapped, total(items)), "ecss.cache_gib of each rank")]
    return [
        *items,
        Item("rows on their way", ranks * 3 * rows, "two sets of active weights and one of gradients"),
        Item("processes", ranks * PROCESS_RESERVE, f"{ranks} ranks, 4 GiB each (assumed)"),
        Item("operating system", HOST_RESERVE, "assumed"),
    ]


def tokens_of_rank(config: Config) -> int:
    """T, tokens that a rank's network sees in one pass; ranks of a tensor group see the same."""
    parallel = config.parallel
    return config.train.batch_size // (parallel.ranks // parallel.tensor) * config.model.seq_length


def capacity(config: Config) -> int:
    """C, rows that a rank can send to one expert."""
    return math.ceil(config.parallel.capacity_factor * tokens_of_rank(config) / active_experts(config))


def exchanged_rows(config: Config) -> int:
    """W, rows [expert ranks, local active experts, C] that a rank sends, receives and multiplies in an RRE layer."""
    return active_experts(config) * capacity(config)


def communicators(config: Config) -> set[tuple[int, ...]]:
    """Groups of more than one rank that rank 0 belongs to."""
    layout = Layout(config.parallel)
    axes = [("tensor",), ("groups", "expert", "data"), ("groups", "expert", "data", "tensor")]
    if config.model.rre_layers:
        axes += [("expert",), ("data",)]
    return {peers for names in axes if len(peers := tuple(layout.peers(0, *names))) > 1}


def _dense_items(config: Config) -> list[Item]:
    dense = [array for array in all_arrays(config) if not array.expert]
    weights = dense_weights(config)
    kept = _nbytes(dense, "weight")
    whole = sum(a.nbytes for a in weights if not a.divided and a.replicas > 1)
    largest = max(array.used_nbytes for array in weights)
    slots = _slots_of_logits(config)
    return [
        Item("dense: weights", kept, f"float32; {whole / GIB:.2f} GiB of them not divided by optimizer parallelism"),
        Item("dense: gradients", _sums(config) * kept, f"float32, divided like the weights{_sums_text(config)}"),
        Item("dense: moments", _nbytes(dense, "moment", "variance"), "two, float32, divided like the weights"),
        Item("dense: weights in use", sum(map(_copy_nbytes, weights)), "gathered or cast, for the whole step"),
        Item(
            "dense: slots of the logits",
            slots * config.model.slot_rows * config.model.hidden * _item(config),
            f"{config.train.compute_dtype}, one a block, {slots} in all",
        ),
        Item(
            "dense: gradients being summed",
            max(largest, config.parallel.fusion_mib * MIB) if config.parallel.ranks > 1 else 0,
            "the largest, or parallel.fusion_mib",
        ),
    ]


def _copy_nbytes(array: Array) -> int:
    """Bytes of the gathered or cast copy of a dense weight; none where the network reads what is kept."""
    return array.used_nbytes if array.divided or array.used_as != array.dtype else 0


def _expert_items(config: Config) -> list[Item]:
    active = sum(math.prod(shape) for shape in active_weights(config)) * _item(config)
    dtype = config.train.compute_dtype
    if config.ecss.enabled:
        sets = 2 if config.ecss.prefetch else 1
        return [
            Item("experts: active weights", sets * active, f"{dtype}, {sets} sets"),
            Item("experts: gradients of the active", _sums(config) * active, f"{dtype}{_sums_text(config)}"),
        ]
    stored = [array for array in all_arrays(config) if array.expert]
    elements = sum(math.prod(array.computed) for array in stored if array.kind == "weight")
    copies = elements * _item(config)
    return [
        Item("experts: weights", _nbytes(stored, "weight", "step"), "float32, all that the rank stores"),
        Item("experts: moments", _nbytes(stored, "moment", "variance"), "two, float32"),
        Item("experts: weights in use", copies if _item(config) < 4 else 0, dtype),
        Item("experts: gradients", _sums(config) * copies, f"{dtype}{_sums_text(config)}"),
    ]


def _sums(config: Config) -> int:
    """Sets of gradients: those of a pass, and the sum over the passes before it."""
    return 2 if config.train.accumulation > 1 else 1


def _sums_text(config: Config) -> str:
    return ", of a pass and of those before" if _sums(config) > 1 else ""


def _activation_items(config: Config) -> list[Item]:
    m, layers = config.model, layer_bytes(config)
    kept, fullest = sum(layers), max(layers)
    if config.parallel.recompute:
        kept, fullest = m.layers * _item(config) * tokens_of_rank(config) * m.hidden, 2 * fullest
    table = m.slot_rows * m.hidden * config.slots * ITEM_SIZE["float32"]
    peaks = {
        "one layer's backward": fullest,
        "logits": _logits_bytes(config),
        "second part of the embedding's gradient": table,
    }
    highest = max(peaks, key=lambda name: peaks[name])
    return [
        Item("activations kept", kept, "inputs of layers" if config.parallel.recompute else "all of all layers"),
        Item("largest transient", peaks[highest], highest),
        Item("attention mask", _sequences(config) * m.seq_length**2 * 4, "float32"),
    ]


def layer_bytes(config: Config) -> list[int]:
    """What the backward pass needs of each layer without recompute; the formulas of the module's text."""
    m, t, c = config.model, config.parallel.tensor, _item(config)
    tokens, rows = tokens_of_rank(config), exchanged_rows(config)
    scores = _sequences(config) * (m.heads // t) * m.seq_length**2 * (4 + (c if c < 4 else 0))
    shared = tokens * m.hidden * (4 * c + 8) + 4 * c * tokens * m.hidden // t + scores
    dense = shared + 2 * c * tokens * m.ffn // t
    routed = shared + c * rows * m.hidden + 2 * c * rows * m.ffn // t
    return [dense] * m.dense_layers + [routed] * m.rre_layers


def _logits_bytes(config: Config) -> int:
    """Logits, their log-softmax and the gradient in float32; logits and gradient in the compute dtype, if it is another; the slots
    in float32, where they have to be looked up."""
    m, c = config.model, _item(config)
    tokens = tokens_of_rank(config) // config.parallel.tensor
    looked_up = _slots_of_logits(config) * m.slot_rows * m.hidden * 4 if config.slots > 1 else 0
    return tokens * m.slot_rows * (12 + (2 * c if c < 4 else 0)) + looked_up


def _slots_of_logits(config: Config) -> int:
    """Embedding slots that a rank multiplies with: one for each of its blocks, or the only one."""
    return 1 if config.slots == 1 else config.data.domains_per_step // config.parallel.groups


def _sequences(config: Config) -> int:
    return tokens_of_rank(config) // config.model.seq_length


def _item(config: Config) -> int:
    return ITEM_SIZE[config.train.compute_dtype]


def _nbytes(arrays: Iterable[Array], *kinds: str) -> int:
    return sum(array.nbytes for array in arrays if array.kind in kinds)
