"""Memory of one NPU and of one host, item by item. Pure Python. All ranks of a stage are alike: everything divides evenly.

Symbols: T tokens of a rank, H hidden, S sequence, t tensor ranks, c bytes of the compute dtype. `layer_bytes` has what the backward
pass of the compiled step (`npu/step.py`) reads of its forward pass.

These are the tensors of one micro-batch: the next one begins when the gradients of the previous one are computed. With stages,
stage s of p has started p - s micro-batches before the first gradient comes back (1F1B), and keeps the tensors of all of them.

With `recompute` a layer keeps its input, c·T·H, and the query layer its query rows; the first input and those rows are still cut,
c·T·H/t. The rest exists for one layer at a time. While the backward pass is in a layer, each tensor that is kept of the layer has a
gradient of its size (an upper bound: some are gone before others come).

The tensors that are kept, and the copies of weights, were counted in compiled graphs. Three things are our assumption, because only
the device's runtime knows them: a tensor is freed after its last reader, one layer after the other is recomputed, and the highest
of the peaks comes on top of all that is kept. Two things are left out, because as much is there at other moments: Adam's scaled
copy of one gradient at a time, and the copy of rows that CANN's Gather reads (`parallel.gather`), gone before the FFN begins. A
gradient in the compute dtype, before it is cast to be summed, is in the reserve. Without ECSS the numbers are for comparison: no
compiled step stands behind them.

stage: the pipeline stage of the rank; without stages, 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pangu_sigma.chips import GIB
from pangu_sigma.config import Config
from pangu_sigma.host_memory import row_bytes
from pangu_sigma.npu import cuts
from pangu_sigma.npu.communicators import ALL, COPIES, DATA, EXPERT, HOLDERS, REPLICAS, STAGE, TENSOR, stages_of_host
from pangu_sigma.npu.plan.traffic import pcie_bytes, row_gradient_bytes
from pangu_sigma.npu.row_counts import chip_of, multiplied_rows, tokens_of_rank
from pangu_sigma.ranks.layout import AXES, layers_of_stage, rre_layers_of_stage

MIB = 1 << 20
COMMUNICATOR_BUFFERS = 2 * 200 * MIB
"""Bytes that HCCL allocates per communication group by default: HCCL_BUFFSIZE = 200 MB each way (CANN's documentation)."""
NPU_RESERVE = 1 * GIB
"""Bytes of an NPU reserved for streams, graph, constants and fragmentation of the allocator. Our assumption."""
PROCESS_RESERVE = 4 * GIB
"""Bytes of host memory for one rank's process: Python, MindSpore, compiled graph, batches. Our assumption."""
HOST_RESERVE = 16 * GIB
"""Bytes of host memory for the operating system and its page cache. Our assumption."""
TIGHT_FRACTION = 0.1
"""Fraction of an NPU's or a host's memory that should stay free: a plan that leaves less fits with a warning. Our choice: the
reserves above, the allocator's peak and the lifetimes of tensors are assumptions, and together may be wrong by some GiB."""


def npu_items(config: Config, stage: int = 0) -> dict[str, int]:
    """Return the bytes of one NPU at the peak of a step, item by item."""
    accumulators = cuts.accumulator_arrays(config, stage, alike=True)
    return {
        **_dense_items(config, stage),
        **_expert_items(config, stage),
        **({"gradients added up": _nbytes(accumulators, "accumulator")} if accumulators else {}),
        **_activation_items(config, stage),
        "communication buffers": COMMUNICATOR_BUFFERS * len(communicators(config, stage)),
        "reserve": NPU_RESERVE,
    }


def npu_peak(config: Config) -> dict[str, int]:
    """Return the memory items of an NPU of the pipeline stage that needs most memory, or of the first stage of several equal."""
    return max((npu_items(config, stage) for stage in range(config.parallel.stages)), key=_total)


def host_peak(config: Config) -> dict[str, int]:
    """Return the memory items of the host that needs most memory, or of the first of several equal. Ranks fill hosts in order."""
    per_host = chip_of(config).per_host
    # without stages no host has more ranks than the first
    hosts = math.ceil(config.parallel.ranks / per_host) if config.parallel.stages > 1 else 1
    # hosts with ranks of the same stages need the same memory, so only the first of them is counted
    first_hosts = dict[tuple[int, ...], int]()
    for host in range(hosts):
        first_hosts.setdefault(tuple(stages_of_host(config.parallel, host, per_host)), host)
    return max((host_items(config, host) for host in first_hosts.values()), key=_total)


def host_items(config: Config, host: int = 0) -> dict[str, int]:
    """Return the bytes of one host, item by item. host: number of the host."""
    stages = stages_of_host(config.parallel, host, chip_of(config).per_host)  # of each rank of the host
    arrays = {stage: cuts.expert_arrays(config, stage, alike=True) for stage in set(stages)}
    items = _stored_items([array for stage in stages for array in arrays[stage] if array.device == cuts.HOST])
    if config.ecss.store == "file":
        items = {"experts: mapped files": min(int(len(stages) * config.ecss.cache_gib * GIB), _total(items))}
    if config.model.rows:
        items["rows: all that can be met"] = len(stages) * row_bytes(config)
        items["rows: gradients of the batch"] = len(stages) * row_gradient_bytes(config)
    # of active experts: weights, placeholders (with `only_micro_batches_sum` a copy of them), and gradients twice
    copies = 5 if cuts.only_micro_batches_sum(config) else 4
    items["experts: on their way"] = copies * sum(pcie_bytes(config, stage) for stage in stages)
    return items | {"processes": len(stages) * PROCESS_RESERVE, "operating system": HOST_RESERVE}


def _total(items: dict[str, int]) -> int:
    return sum(items.values())


def _stored_items(stored: list[cuts.Array]) -> dict[str, int]:
    """Return the bytes of stored experts in two items, weights (with step counts) and moments. stored: arrays of experts."""
    weights, moments = _nbytes(stored, "weight", "step"), _nbytes(stored, "moment", "variance")
    return {"experts: weights": weights, "experts: moments": moments}


def communicators(config: Config, stage: int = 0) -> set[tuple[str, ...]]:
    """Return the communication groups, of two or more ranks, of a stage's rank, each as the axes along which its ranks differ.
    Sends between stages need no group of their own: they use the group of all ranks."""
    groups = [TENSOR, REPLICAS, STAGE, ALL]
    if rre_layers_of_stage(config, stage):
        groups += [EXPERT, DATA, HOLDERS, *([COPIES] if config.model.common_experts else [])]
    long_axes = {axis for axis in AXES if getattr(config.parallel, axis) > 1}
    return {tuple(axis for axis in axes if axis in long_axes) for axes in groups} - {()}  # (): a rank alone


def _dense_items(config: Config, stage: int) -> dict[str, int]:
    """Return the bytes of dense weights, their gradients and moments, and the copies that the network and the sums use."""
    table, weights = cuts.word_table(config), cuts.dense_weights(config, stage, alike=True)
    other_weights = [weight for weight in weights if weight.name != table.name]
    weight_bytes = _nbytes(weights, "weight")
    used_bytes = sum(a.count * a.used_nbytes for a in other_weights if a.divided or a.used_as != a.dtype)
    # the last stage has a copy of the word table for the logits, gathered or sent by the first stage
    embedding_bytes = table.used_nbytes if stage == config.parallel.stages - 1 else 0
    return {
        "dense: weights": weight_bytes,
        "dense: gradients": weight_bytes,
        "dense: moments": 2 * weight_bytes,
        "dense: weights in use": used_bytes,
        "dense: embedding in use": embedding_bytes,
        "dense: gradients being summed": _largest_reduction_bytes(config, other_weights),
    }


def _largest_reduction_bytes(config: Config, weights: list[cuts.Array]) -> int:
    """Return the most bytes of float32 gradients that one collective (AllReduce or ReduceScatter) sums over ranks.

    weights: dense weights of a stage without the embedding, whose gradient is summed last, when activations are freed.
    """
    sizes = [(a.count, math.prod(a.computed) * cuts.ITEM_SIZE["float32"]) for a in weights if a.replicas > 1]
    largest, total = max((size for _, size in sizes), default=0), sum(count * size for count, size in sizes)
    # one collective sums up to fusion_mib of gradients; a gradient larger than that has a collective of its own
    return max(largest, min(total, config.parallel.fusion_mib * MIB))


def _expert_items(config: Config, stage: int) -> dict[str, int]:
    """Return the bytes that experts take on the NPU: the active experts with ECSS, all stored experts without."""
    if config.ecss.enabled:
        active_bytes = pcie_bytes(config, stage)
        return {"experts: active weights": active_bytes, "experts: gradients of the active": active_bytes}
    stored = cuts.expert_arrays(config, stage, alike=True)
    elements = sum(array.count * math.prod(array.computed) for array in stored if array.kind == "weight")
    used_bytes = elements * _item(config)  # in the compute dtype; float32 weights are used without a copy
    in_use = {"experts: weights in use": used_bytes if _item(config) < 4 else 0, "experts: gradients": used_bytes}
    return _stored_items(stored) | in_use


def _activation_items(config: Config, stage: int) -> dict[str, int]:
    """Return the bytes of the tensors that the forward pass keeps for the backward pass, and of the largest tensors for a
    moment."""
    m, tensor, layers, item = config.model, config.parallel.tensor, layer_bytes(config, stage), _item(config)
    hidden, micro_batches = tokens_of_rank(config) * m.hidden, config.train.accumulation  # elements of [T, H]
    is_first, is_last = stage == 0, stage == config.parallel.stages - 1
    layers_bytes, largest_layer = sum(layers), max(layers)
    if config.parallel.recompute:
        # each layer keeps its input, the last one also the query rows; tensor ranks divide the first input and the query rows. A
        # model of one layer has its norm before the first input is kept
        divided_inputs = int(is_first and m.layers > 1) + int(is_last)
        full_inputs = len(layers) + int(is_last) - divided_inputs
        layers_bytes = item * (full_inputs * hidden + divided_inputs * hidden // tensor)
        largest_layer *= 2  # a recomputed layer's tensors, and their gradients
    in_flight = min(config.parallel.stages - stage, micro_batches)  # micro-batches between their two passes
    last_norm_bytes = 4 * hidden if is_last else 0  # its input, in float32
    masks = in_flight if config.parallel.recompute else 1  # an input of every layer
    peaks = [largest_layer]  # the backward pass of one layer
    if is_last:
        # in float32, for the tokens that this rank predicts: log-softmax, its gradient, the gradient of the logits; in the compute
        # dtype, gathered over tensor ranks: the slot of each block, and its gradient
        slots = config.data.domains_per_step // config.parallel.groups * m.slot_rows * m.hidden
        peaks.append(12 * (tokens_of_rank(config) // tensor * m.slot_rows) + 2 * item * slots)
    if is_first:  # the embedding's gradient, from the lookup and whole
        peaks.append(2 * cuts.word_table(config).used_nbytes)
    # in float32 the rows of all tokens and an array as large for the gradient, of several micro-batches one for each and their sum;
    # in the compute dtype the rows and the gradient of one micro-batch
    rows = (4 * micro_batches * (1 + micro_batches + (micro_batches > 1)) + 2 * item) * hidden
    return {
        "activations kept": in_flight * (layers_bytes + last_norm_bytes),
        **({"rows of tokens and their gradients": rows} if m.rows else {}),
        "largest transient": max(peaks),
        "attention mask": masks * 4 * tokens_of_rank(config) * m.seq_length,  # float32 [S, S] of each sequence
    }


def layer_bytes(config: Config, stage: int = 0) -> list[int]:
    """Return, for each layer of a stage, the bytes that its backward pass reads on one rank, if nothing is recomputed."""
    m, tensor, item = config.model, config.parallel.tensor, _item(config)
    tokens, rows = tokens_of_rank(config), multiplied_rows(config)
    # the output of the first LayerNorm, and the inputs of both in float32; query, key, value, and their mixture
    shared = tokens * m.hidden * (item + 8) + 4 * item * tokens * m.hidden // tensor
    # of each token and head its scores of a sequence: softmax in float32, and its cast
    shared += tokens * m.seq_length * (m.heads // tensor) * (4 + (item if item < 4 else 0))
    # the output of the second LayerNorm, or the rows that arrived for each segment; before and after the activation
    dense = shared + item * tokens * m.hidden + 2 * item * tokens * m.ffn // tensor
    routed = shared + len(m.segments) * item * rows * m.hidden + 2 * item * rows * m.ffn // tensor
    query = item * tokens * m.hidden  # the query table's rows, gathered over tensor ranks
    return [
        (dense if layer < m.dense_layers else routed) + (query if layer == m.layers - 1 else 0)
        for layer in layers_of_stage(config, stage)
    ]


def _item(config: Config) -> int:
    return cuts.ITEM_SIZE[config.train.compute_dtype]


def _nbytes(arrays: Iterable[cuts.Array], *kinds: str) -> int:
    """Return the bytes that a rank keeps of the arrays of some kinds."""
    return sum(array.count * array.nbytes for array in arrays if array.kind in kinds)
