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
from pangu_sigma.npu import cuts
from pangu_sigma.npu.communicators import ALL, COPIES, DATA, EXPERT, HOLDERS, REPLICAS, STAGE, TENSOR
from pangu_sigma.npu.row_counts import chip_of, dispatch_layout, exchanged_rows, multiplied_rows, tokens_of_rank
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
    return [call for call in calls if call.group_size > 1 and call.count]


def link_bytes(config: Config, stage: int = 0) -> dict[str, int]:
    """Return the bytes that a rank of a stage sends in a step, by link: to its host and back (pcie), to ranks in its host (hccs),
    to ranks of other hosts (network). The numbers are for the rank that sends most over the network."""
    sent = [sent_bytes(config, c, stage) for c in (*collectives(config, stage), *sums_of_rows(config))]
    pcie = 2 * (pcie_bytes(config, stage) + row_pcie_bytes(config))
    return {"pcie": pcie, "hccs": sum(hccs for hccs, _ in sent), "network": sum(network for _, network in sent)}


def sent_bytes(config: Config, collective: PredictedCollective, stage: int = 0) -> tuple[int, int]:
    """Return the bytes that a rank of a stage sends in the calls of one collective: (to ranks in its host, to ranks of other
    hosts). The rank is one with the fewest ranks of its group in its host, because the other ranks wait for it.

    As in HCCL, the bytes go in rings inside a host, then what is left goes in rings between hosts.
    """
    nbytes = collective.nbytes
    if collective.op == "Receive":
        return 0, 0
    if collective.op == "Send":
        direction = 1 if collective.phase == "forward" else -1
        # the word table goes from the first stage to the last one, hidden states to the next one
        peer_stage = stage + direction * (config.parallel.stages - 1 if collective.purpose == TABLE else 1)
        hosts_of_ends = {s * config.parallel.stage_ranks // chip_of(config).per_host for s in (stage, peer_stage)}
        return (nbytes, 0) if len(hosts_of_ends) == 1 else (0, nbytes)
    size, (in_host, hosts) = _size(config, collective.axes), spread(config, collective.axes)
    if collective.op == "AlltoAllV":
        row_bytes = config.model.hidden // config.parallel.tensor * cuts.ITEM_SIZE[config.train.compute_dtype]
        nbytes = collective.count * tokens_of_rank(config) * row_bytes  # on average: a row for each token
    if collective.op in EXCHANGES:  # equal parts for all ranks of the group; the rank keeps one of them
        return nbytes * (in_host - 1) // size, nbytes * (size - in_host) // size
    nbytes *= 2 if collective.op == "AllReduce" else 1  # two rounds: a ReduceScatter, then an AllGather
    return nbytes * (in_host - 1) // in_host, nbytes * (hosts - 1) // (hosts * in_host)


class Spread(NamedTuple):
    """Spread of a group of ranks over hosts. fewest_in_host: number of its ranks in the host that has fewest of them. hosts: number
    of hosts that have some."""

    fewest_in_host: int
    hosts: int


def spread(config: Config, axes: tuple[str, ...]) -> Spread:
    """Return the spread of the group along these axes that lies on most hosts: all other groups wait for it."""
    sizes = tuple(getattr(config.parallel, axis) for axis in AXES)
    return _spread(sizes, axes, chip_of(config).per_host)


@cache
def _spread(sizes: tuple[int, ...], axes: tuple[str, ...], per_host: int) -> Spread:
    """Return the result of `spread` for a layout. sizes: size of each of AXES. per_host: number of ranks on a host."""
    layout = Layout(ParallelConfig.model_validate(dict(zip(AXES, sizes, strict=True))))
    hosts = (np.unique(group // per_host, return_counts=True)[1] for group in layout.groups(*axes))
    return min((Spread(int(counts.min()), len(counts)) for counts in hosts), key=lambda s: (-s.hosts, s.fewest_in_host))


def pcie_bytes(config: Config, stage: int = 0) -> int:
    """Return the bytes of active experts' weights that are copied to the NPU in a step, in the compute dtype; 0 without ECSS. They
    are copied once for all micro-batches. As many bytes of gradients are copied back. Copies of accumulators that the runtime may
    keep are not counted."""
    elements = cuts.active_elements(config, stage) if config.ecss.enabled else 0
    return elements * cuts.ITEM_SIZE[config.train.compute_dtype]


def row_gradient_bytes(config: Config) -> int:
    """Return the bytes of the gradients of the rows of a step's tokens (`model.rows`), which each rank sums over all ranks."""
    return 4 * config.step_tokens * config.model.hidden if config.model.rows else 0


def row_pcie_bytes(config: Config) -> int:
    """Return the bytes, in float32, that rows (`model.rows`) add to the copies to the NPU in a step: the rows of the rank's tokens,
    and on several ranks the gradients of all tokens, to be summed. As many bytes of gradients and sums are copied back."""
    rank_tokens = config.train.accumulation * tokens_of_rank(config) if config.model.rows else 0
    return 4 * rank_tokens * config.model.hidden + (row_gradient_bytes(config) if config.parallel.ranks > 1 else 0)


def sums_of_rows(config: Config) -> list[PredictedCollective]:
    """Return the collective that sums the gradients of rows over all ranks after the step, outside its graph, with one call for
    each sequence; [] without rows or on one rank."""
    size, calls = config.parallel.ranks, config.train.batch_size
    sums = PredictedCollective("AllReduce", "rows", size, calls, row_gradient_bytes(config), ALL, "gradients of rows")
    return [sums] if config.model.rows and size > 1 else []


def _activations(config: Config, stage: int) -> Iterator[PredictedCollective]:
    """Yield the collectives of the forward pass inside a stage, of recompute, and of the backward pass, which follow from it."""
    micro_batches, stages = config.train.accumulation, config.parallel.stages
    for purpose, op, axes, count, nbytes, is_recomputed in _forward(config, stage):
        size = _size(config, axes)
        backward_op = {"AllGather": "ReduceScatter"}.get(op, op)
        forward = micro_batches * count
        # without stages the gradient of the loss is the same for all micro-batches, and is summed once
        backward = count if purpose == LOSS and stages == 1 else forward
        if purpose == TO_TOKENS and dispatch_layout(config) == "dropless":
            backward //= len(config.model.segments)  # the segments' outputs are added: one gradient serves all of them
        yield PredictedCollective(op, "forward", size, forward, forward * nbytes, axes, purpose)
        yield PredictedCollective(backward_op, "backward", size, backward, backward * nbytes, axes, purpose)
        if config.parallel.recompute and is_recomputed:
            yield PredictedCollective(op, "recompute", size, forward, forward * nbytes, axes, purpose)
    blocks, tensor = config.data.domains_per_step // config.parallel.groups, config.parallel.tensor
    sequences = tokens_of_rank(config) // blocks // config.model.seq_length
    # a tensor rank predicts neither whole sequences of a block nor an even fraction of one
    if stage == stages - 1 and sequences % tensor and tensor % sequences:
        nbytes, calls = 4 * config.train.batch_size * config.model.seq_length, 2 * micro_batches
        size, purpose = _size(config, REPLICAS), "labels and their weights"
        yield PredictedCollective("AllGather", "forward", size, calls, calls * nbytes, REPLICAS, purpose)


LOSS, TABLE, TO_EXPERTS, FROM_EXPERTS = "loss of blocks", "word table", "rows to experts", "rows from experts"
TO_TOKENS = "rows of tokens, whole"
"""Purposes of collectives that have rules of their own."""


def _forward(config: Config, stage: int) -> Iterator[tuple[str, str, tuple[str, ...], int, int, bool]]:
    """Yield the collectives of a micro-batch's forward pass, each as a tuple: purpose, operator, axes of its group, number of
    calls, bytes of one call, True if recompute repeats it."""
    m, item = config.model, cuts.ITEM_SIZE[config.train.compute_dtype]
    elements = tokens_of_rank(config) * m.hidden
    tokens = elements * item
    blocks = config.data.domains_per_step // config.parallel.groups
    layers, routed = len(layers_of_stage(config, stage)), len(rre_layers_of_stage(config, stage))
    is_first, is_last = stage == 0, stage == config.parallel.stages - 1
    # embeddings are gathered in the compute dtype for the layers, and in float32 for the first LayerNorm if it reads them so
    for_layers = m.layers > 1  # with one layer only the norm outside of layers reads the embeddings
    for_norm = not for_layers or (item < 4 and not m.rows)  # rows are added in the compute dtype, before the norm
    yield "embeddings", "AllGather", TENSOR, int(is_first and for_layers), tokens, True
    yield "embeddings, for LayerNorm", "AllGather", TENSOR, int(is_first and for_norm), 4 * elements, for_layers
    yield "query positions", "AllGather", TENSOR, int(is_last), tokens, True
    yield "attention output", "AllReduce", TENSOR, layers, tokens, True
    yield "FFN output", "AllReduce", TENSOR, layers - routed, tokens, False
    yield from _routed(config, routed * len(m.segments))
    yield "slots of the logits", "AllGather", TENSOR, int(is_last), blocks * m.slot_rows * m.hidden * item, False
    yield LOSS, "AllReduce", TENSOR, int(is_last), 4 * blocks, False


def _routed(config: Config, segments: int) -> Iterator[tuple[str, str, tuple[str, ...], int, int, bool]]:
    """Yield the collectives of RRE layers in a micro-batch's forward pass, each as a tuple: purpose, operator, axes of its group,
    number of calls, bytes of one call, True if recompute repeats it. segments: number of segments of all these layers."""
    row_bytes = config.model.hidden * cuts.ITEM_SIZE[config.train.compute_dtype]
    sent, multiplied = exchanged_rows(config) * row_bytes, multiplied_rows(config) * row_bytes
    is_dropless = dispatch_layout(config) == "dropless"
    exchange, tensor = ("AlltoAllV" if is_dropless else "AlltoAll"), config.parallel.tensor
    yield TO_EXPERTS, exchange, EXPERT, segments, sent // tensor, True
    yield "rows of experts, whole", "AllGather", TENSOR, segments, multiplied, True
    yield "experts' output", "AllReduce", TENSOR, segments, multiplied, False
    # dropless: the graph knows the room for rows, and one empty row, but not how many rows there are
    returned_bytes = multiplied + row_bytes if is_dropless else sent
    token_bytes = tokens_of_rank(config) * row_bytes if is_dropless else sent
    yield FROM_EXPERTS, exchange, EXPERT, segments, returned_bytes // tensor, False
    yield TO_TOKENS, "AllGather", TENSOR, segments, token_bytes, False


def _between_stages(config: Config, stage: int) -> Iterator[PredictedCollective]:
    """Yield the sends and receives of a stage: hidden states to the next stage, the word table from the first to the last one, and
    the gradients of both back."""
    micro_batches, last = config.train.accumulation, config.parallel.stages - 1
    hidden = tokens_of_rank(config) * config.model.hidden * cuts.ITEM_SIZE[config.train.compute_dtype]
    states = micro_batches, micro_batches * hidden, STAGES, "hidden states"  # calls, their bytes, axes, purpose
    table = 1, cuts.word_table(config).used_nbytes, STAGES, TABLE
    outgoing = [states] * (stage < last) + [table] * (stage == 0 and last > 0)
    incoming = [states] * (stage > 0) + [table] * (stage == last and last > 0)
    for calls in outgoing:
        yield PredictedCollective("Send", "forward", 2, *calls)
        yield PredictedCollective("Receive", "backward", 2, *calls)
    for calls in incoming:
        yield PredictedCollective("Receive", "forward", 2, *calls)
        yield PredictedCollective("Send", "backward", 2, *calls)


def _parameters(config: Config, stage: int) -> Iterator[PredictedCollective]:
    """Yield the collectives of weights and of their gradients, and the sums of the gradient norm."""
    dense = cuts.dense_weights(config, stage, alike=True)
    # ranks with the same slice of a weight: all of the stage for a weight that tensor ranks do not cut, else its replicas
    uncut, cut = [a for a in dense if a.computed == a.shape], [a for a in dense if a.computed != a.shape]
    axes: tuple[str, ...]
    for axes, weights in ((REPLICAS, cut), (STAGE, uncut)):
        divided, undivided = [a for a in weights if a.divided], [a for a in weights if not a.divided]
        yield _of_arrays(config, "AllGather", axes, divided, "dense weights", "weight")
        yield _of_arrays(config, "ReduceScatter", axes, divided, "dense gradients", "gradient")
        yield _of_arrays(config, "AllReduce", axes, undivided, "dense gradients", "gradient")
    stored = [a for a in cuts.expert_arrays(config, stage, alike=True) if a.kind == "weight"]
    experts = cuts.active_buffers(config, stage, alike=True) or stored  # without ECSS all stored experts
    for axes in (DATA, HOLDERS):  # tensor ranks cut every tensor of an expert but b2
        arrays_of_axes = [a for a in experts if a.name.endswith(".b2") == (axes == HOLDERS)]
        yield _of_arrays(config, "AllReduce", axes, arrays_of_axes, "experts' gradients", "gradient")
    common = [a for a in experts if a.copies > 1]
    yield _of_arrays(config, "AllReduce", COPIES, common, "common experts' gradients", "gradient")
    calls = 1 + chip_of(config).saturates  # where overflow is infinity, the norm shows it
    purpose = "norm of all gradients, and overflow"
    yield PredictedCollective("AllReduce", "norm", _size(config, ALL), calls, 4 * calls, ALL, purpose)


def _of_arrays(
    config: Config, op: str, axes: tuple[str, ...], arrays: Iterable[cuts.Array], purpose: str, phase: str
) -> PredictedCollective:
    """Return one collective's calls for all `arrays`, one call for each array. Dense gradients are sent in float32, other arrays in
    the dtype in which the network reads them."""
    in_float32 = phase == "gradient" and purpose.startswith("dense")
    sizes = [(a.count, math.prod(a.computed) * (4 if in_float32 else cuts.ITEM_SIZE[a.used_as])) for a in arrays]
    count, nbytes = sum(count for count, _ in sizes), sum(count * size for count, size in sizes)
    return PredictedCollective(op, phase, _size(config, axes), count, nbytes, axes, purpose)


def _size(config: Config, axes: tuple[str, ...]) -> int:
    """Return the number of ranks in a group along these axes."""
    return math.prod(getattr(config.parallel, name) for name in axes)
