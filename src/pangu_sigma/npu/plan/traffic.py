"""Traffic of a rank in one step: its collectives, and their bytes by link. Pure Python.

The collectives are what MindSpore makes of the strategies of `npu/sharding.py`; a test holds them against compiled graphs, in
every call and byte. The tables of `_forward` and `_routed` have a micro-batch's forward pass: hidden states [T, H] of the T tokens
of a rank and rows of experts; with uneven parts the room is what the graph knows, and about T rows travel. The rest follows:

    backward      as many: AllReduce for AllReduce, AlltoAll for AlltoAll, ReduceScatter for AllGather, Receive for Send; without
                  stages the loss has one AllReduce, because its operand is the same for all micro-batches
    recompute     forward again inside layers, except operators that no gradient needs: FFN output, the rows' way back
    stages        Send of [T, H] to the next one, Receive from the one before; the first sends the word table to the last, each
                  tensor rank its columns, once a step
    labels        AllGather of all labels and of their weights, if a tensor rank predicts neither whole sequences of a block nor
                  an even fraction of one
    gradient      once a step, float32: ReduceScatter of every dense weight that optimizer parallelism divides, AllReduce of the
                  others; and AllReduce of active experts' tensors that several ranks hold, in the compute dtype; of common
                  experts, of which each group has a copy, once more over groups
    weight        once a step, AllGather of every divided dense weight, before it is used

Each parameter counts as one collective; `parallel.fusion_mib` merges them.

Rows (`model.rows`) are added in the compute dtype, before the first LayerNorm, which then takes no float32 of the embeddings.
Behind the step their gradients are summed over all ranks, sequence by sequence; this is no part of the graph (`sums_of_rows`).

stage: the pipeline stage of the rank; without stages, 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.npu.communicators import ALL, COPIES, DATA, EXPERT, HOLDERS, REPLICAS, STAGE, TENSOR
from pangu_sigma.npu.cuts import (
    ITEM_SIZE,
    Array,
    active_buffers,
    active_elements,
    dense_weights,
    expert_arrays,
    word_table,
)
from pangu_sigma.npu.rows import chip_of, dispatch_layout, exchanged_rows, multiplied_rows, tokens_of_rank
from pangu_sigma.ranks.layout import AXES, Layout, layers_of_stage, rre_layers_of_stage
from pangu_sigma.sections import ParallelConfig

EXCHANGES = ("AlltoAll", "AlltoAllV")
"""Collectives that exchange rows with experts on other ranks, and serve no other purpose."""

STAGES = ("stages",)
"""Axis of a Send or a Receive: the other rank is in another pipeline stage."""


@dataclass(frozen=True)
class CollectiveCalls:
    """Identical calls of one collective by one rank in one training step.

    phase: forward, recompute, backward, gradient (sum over ranks with other tokens), weight (gather of a dense matrix that
        optimizer parallelism divides) or norm.
    nbytes: of all `count` calls; for each, the larger of its input and output on this rank.
    """

    op: str
    phase: str
    group_size: int
    count: int
    nbytes: int


@dataclass(frozen=True)
class PredictedCollective(CollectiveCalls):
    """Identical calls of a collective by one rank, as a plan predicts them.

    axes: axes of the layout along which the ranks of the group differ. purpose: the tensors that are sent, as text.
    """

    axes: tuple[str, ...]
    purpose: str


def collectives(config: Config, stage: int = 0) -> list[PredictedCollective]:
    """Predict the collectives of a training step in groups of more than one rank."""
    calls = [*_activations(config, stage), *_between_stages(config, stage), *_parameters(config, stage)]
    return [c for c in calls if c.group_size > 1 and c.count]


def link_bytes(config: Config, stage: int = 0) -> dict[str, int]:
    """Return the bytes that the rank of a stage that sends most over the network sends in a step: to its host and back (pcie),
    inside the host (hccs), between hosts (network)."""
    sent = [sent_bytes(config, c, stage) for c in (*collectives(config, stage), *sums_of_rows(config))]
    pcie = 2 * (pcie_bytes(config, stage) + row_pcie_bytes(config))
    return {"pcie": pcie, "hccs": sum(hccs for hccs, _ in sent), "network": sum(network for _, network in sent)}


def sent_bytes(config: Config, collective: PredictedCollective, stage: int = 0) -> tuple[int, int]:
    """Return the bytes that a rank of a stage sends within its host, and to other hosts, in the calls of one collective: the rank
    with the fewest ranks of its group in its host, for which the others wait.

    As in HCCL, the bytes go in rings inside a host, then the rest in rings between hosts.
    """
    nbytes = collective.nbytes
    if collective.op == "Receive":
        return 0, 0
    if collective.op == "Send":
        step = 1 if collective.phase == "forward" else -1
        other = stage + step * (config.parallel.stages - 1 if collective.purpose == TABLE else 1)
        own, its = (s * config.parallel.stage_ranks // chip_of(config).per_host for s in (stage, other))
        return (nbytes, 0) if own == its else (0, nbytes)
    size, (here, hosts) = _size(config, collective.axes), spread(config, collective.axes)
    if collective.op == "AlltoAllV":
        row = config.model.hidden // config.parallel.tensor * ITEM_SIZE[config.train.compute_dtype]
        nbytes = collective.count * tokens_of_rank(config) * row  # on average
    if collective.op in EXCHANGES:
        return nbytes * (here - 1) // size, nbytes * (size - here) // size
    rounds = 2 if collective.op == "AllReduce" else 1
    return rounds * nbytes * (here - 1) // here, rounds * nbytes * (hosts - 1) // (hosts * here)


class Spread(NamedTuple):
    """How a group of ranks lies on hosts: the fewest of its ranks in one host, and the number of its hosts."""

    here: int
    hosts: int


def spread(config: Config, axes: tuple[str, ...]) -> Spread:
    """Return how the groups of ranks along these axes lie on hosts, for the group that is spread most: all others wait for it."""
    sizes = tuple(getattr(config.parallel, axis) for axis in AXES)
    return _spread(sizes, axes, chip_of(config).per_host)


@cache
def _spread(sizes: tuple[int, ...], axes: tuple[str, ...], per_host: int) -> Spread:
    layout = Layout(ParallelConfig.model_validate(dict(zip(AXES, sizes, strict=True))))
    hosts = (np.unique(group // per_host, return_counts=True)[1] for group in layout.groups(*axes))
    return min((Spread(int(counts.min()), len(counts)) for counts in hosts), key=lambda s: (-s.hosts, s.here))


def pcie_bytes(config: Config, stage: int = 0) -> int:
    """Return the bytes of active experts' weights to the NPU, in the compute dtype, once a step whatever the number of passes; 0
    without ECSS. As many bytes of gradients come back. Copies of accumulators that the runtime may keep are not counted."""
    return active_elements(config, stage) * ITEM_SIZE[config.train.compute_dtype] if config.ecss.enabled else 0


def row_gradient_bytes(config: Config) -> int:
    """Return the bytes of the gradients of the rows of a step's tokens (`model.rows`), which each rank sums over all ranks."""
    return 4 * config.step_tokens * config.model.hidden if config.model.rows else 0


def row_pcie_bytes(config: Config) -> int:
    """Return the bytes of rows to the NPU in a step, and as many come back, in float32: the rows of the rank's tokens, for their
    gradients; and on several ranks the gradients of the whole step, for their sums."""
    own = 4 * config.train.accumulation * tokens_of_rank(config) * config.model.hidden if config.model.rows else 0
    return own + (row_gradient_bytes(config) if config.parallel.ranks > 1 else 0)


def sums_of_rows(config: Config) -> list[PredictedCollective]:
    """Return the sum over all ranks of the gradients of rows, sequence by sequence, behind the step and no part of its graph."""
    size, calls = config.parallel.ranks, config.train.batch_size
    sums = PredictedCollective("AllReduce", "rows", size, calls, row_gradient_bytes(config), ALL, "gradients of rows")
    return [sums] if config.model.rows and size > 1 else []


def _activations(config: Config, stage: int) -> Iterator[PredictedCollective]:
    passes, stages = config.train.accumulation, config.parallel.stages
    for purpose, op, axes, count, nbytes, again in _forward(config, stage):
        size = _size(config, axes)
        back = {"AllGather": "ReduceScatter"}.get(op, op)
        forward = passes * count
        backward = count if purpose == LOSS and stages == 1 else forward
        if purpose == TO_TOKENS and dispatch_layout(config) == "dropless":
            backward //= len(config.model.segments)  # a sum has one gradient, and here it travels as it is
        yield PredictedCollective(op, "forward", size, forward, forward * nbytes, axes, purpose)
        yield PredictedCollective(back, "backward", size, backward, backward * nbytes, axes, purpose)
        if config.parallel.recompute and again:
            yield PredictedCollective(op, "recompute", size, forward, forward * nbytes, axes, purpose)
    blocks, tensor = config.data.domains_per_step // config.parallel.groups, config.parallel.tensor
    sequences = tokens_of_rank(config) // blocks // config.model.seq_length
    # a tensor rank predicts neither whole sequences of a block nor an even fraction of one
    if stage == stages - 1 and sequences % tensor and tensor % sequences:
        labels, calls, size = 4 * config.train.batch_size * config.model.seq_length, 2 * passes, _size(config, REPLICAS)
        purpose = "labels and their weights"
        yield PredictedCollective("AllGather", "forward", size, calls, calls * labels, REPLICAS, purpose)


LOSS, TABLE, TO_EXPERTS, FROM_EXPERTS = "loss of blocks", "word table", "rows to experts", "rows from experts"
TO_TOKENS = "rows of tokens, whole"
"""Purposes of collectives that have rules of their own."""


def _forward(config: Config, stage: int) -> Iterator[tuple[str, str, tuple[str, ...], int, int, bool]]:
    """Yield the collectives of a micro-batch: purpose, operator, axes, calls, bytes of a call, True if recompute repeats it."""
    m, item = config.model, ITEM_SIZE[config.train.compute_dtype]
    elements = tokens_of_rank(config) * m.hidden
    tokens = elements * item
    blocks = config.data.domains_per_step // config.parallel.groups
    layers, routed = len(layers_of_stage(config, stage)), len(rre_layers_of_stage(config, stage))
    first, last = stage == 0, stage == config.parallel.stages - 1
    for_layers = m.layers > 1  # with one layer only the norm outside of layers reads the embeddings
    for_norm = not for_layers or (item < 4 and not m.rows)  # rows are added in the compute dtype, before the norm
    yield "embeddings", "AllGather", TENSOR, int(first and for_layers), tokens, True
    yield "embeddings, for LayerNorm", "AllGather", TENSOR, int(first and for_norm), 4 * elements, for_layers
    yield "query positions", "AllGather", TENSOR, int(last), tokens, True
    yield "attention output", "AllReduce", TENSOR, layers, tokens, True
    yield "FFN output", "AllReduce", TENSOR, layers - routed, tokens, False
    yield from _routed(config, routed * len(m.segments))
    yield "slots of the logits", "AllGather", TENSOR, int(last), blocks * m.slot_rows * m.hidden * item, False
    yield LOSS, "AllReduce", TENSOR, int(last), 4 * blocks, False


def _routed(config: Config, segments: int) -> Iterator[tuple[str, str, tuple[str, ...], int, int, bool]]:
    """Yield the collectives of a number of segments, which are alike, in the form of `_forward`."""
    row = config.model.hidden * ITEM_SIZE[config.train.compute_dtype]
    sent, multiplied = exchanged_rows(config) * row, multiplied_rows(config) * row
    uneven = dispatch_layout(config) == "dropless"
    exchange, tensor = ("AlltoAllV" if uneven else "AlltoAll"), config.parallel.tensor
    yield TO_EXPERTS, exchange, EXPERT, segments, sent // tensor, True
    yield "rows of experts, whole", "AllGather", TENSOR, segments, multiplied, True
    yield "experts' output", "AllReduce", TENSOR, segments, multiplied, False
    back = multiplied + row if uneven else sent  # the graph knows the room for uneven rows, not how many there are
    yield FROM_EXPERTS, exchange, EXPERT, segments, back // tensor, False
    yield TO_TOKENS, "AllGather", TENSOR, segments, tokens_of_rank(config) * row if uneven else sent, False


def _between_stages(config: Config, stage: int) -> Iterator[PredictedCollective]:
    passes, last = config.train.accumulation, config.parallel.stages - 1
    hidden = tokens_of_rank(config) * config.model.hidden * ITEM_SIZE[config.train.compute_dtype]
    table = word_table(config)
    for behind, ahead, count, nbytes, purpose in (
        (stage < last, stage > 0, passes, passes * hidden, "hidden states"),
        (stage == 0 < last, 0 < stage == last, 1, table.used_nbytes, TABLE),
    ):
        if behind:
            yield PredictedCollective("Send", "forward", 2, count, nbytes, STAGES, purpose)
            yield PredictedCollective("Receive", "backward", 2, count, nbytes, STAGES, purpose)
        if ahead:
            yield PredictedCollective("Receive", "forward", 2, count, nbytes, STAGES, purpose)
            yield PredictedCollective("Send", "backward", 2, count, nbytes, STAGES, purpose)


def _parameters(config: Config, stage: int) -> Iterator[PredictedCollective]:
    dense = dense_weights(config, stage, alike=True)
    axes: tuple[str, ...]
    for axes in (REPLICAS, STAGE):
        shared = [a for a in dense if (a.computed == a.shape) == (axes == STAGE)]
        divided, whole = [a for a in shared if a.divided], [a for a in shared if not a.divided]
        yield _of_arrays(config, "AllGather", axes, divided, "dense weights", "weight")
        yield _of_arrays(config, "ReduceScatter", axes, divided, "dense gradients", "gradient")
        yield _of_arrays(config, "AllReduce", axes, whole, "dense gradients", "gradient")
    experts = active_buffers(config, stage, alike=True)
    experts = experts or [a for a in expert_arrays(config, stage, alike=True) if a.kind == "weight"]
    for axes in (DATA, HOLDERS):
        held = [a for a in experts if a.name.endswith(".b2") == (axes == HOLDERS)]
        yield _of_arrays(config, "AllReduce", axes, held, "experts' gradients", "gradient")
    common = [a for a in experts if a.copies > 1]
    yield _of_arrays(config, "AllReduce", COPIES, common, "common experts' gradients", "gradient")
    calls = 1 + chip_of(config).saturates  # where overflow is infinity, the norm shows it
    purpose = "norm of all gradients, and overflow"
    yield PredictedCollective("AllReduce", "norm", _size(config, ALL), calls, 4 * calls, ALL, purpose)


def _of_arrays(
    config: Config, op: str, axes: tuple[str, ...], arrays: Iterable[Array], purpose: str, phase: str
) -> PredictedCollective:
    """Return the collective of some arrays. Weights are gathered in the dtype of their use, dense gradients in float32."""
    whole = phase == "gradient" and purpose.startswith("dense")
    sizes = [(a.count, math.prod(a.computed) * (4 if whole else ITEM_SIZE[a.used_as])) for a in arrays]
    count, nbytes = sum(count for count, _ in sizes), sum(count * size for count, size in sizes)
    return PredictedCollective(op, phase, _size(config, axes), count, nbytes, axes, purpose)


def _size(config: Config, axes: tuple[str, ...]) -> int:
    return math.prod(getattr(config.parallel, name) for name in axes)
