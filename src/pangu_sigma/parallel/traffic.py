"""What a rank sends in one step: collectives, and bytes by the link that carries them. Pure Python.

Rules, for each pass over a micro-batch (T tokens of a rank, W rows of its RRE layer, H hidden; spec §3.5):

    attention     forward   AllReduce [T, H] of the output rows, in the tensor group
                  backward  AllReduce [T, H] of the input's gradient, once each for the query, key and value matrices
    dense FFN     forward   AllReduce [T, H]; backward AllReduce [T, H]
    RRE FFN       forward   AlltoAll [W, H/t] among the expert ranks, AllGather [W, H] in the tensor group: rows are there
                            ReduceScatter [W, H] in the tensor group, AlltoAll [W, H/t], AllGather [W, H]: and back
                  backward  as many of each: the way back is the gradient of the way there
    logits        backward  AllGather [T, H]: the ranks of a tensor group divide the tokens
    recompute     forward again, but for what no gradient needs: the attention's AllReduce, the rows' way there

    gradients     ReduceScatter of every dense weight that optimizer parallelism divides, AllReduce of the others

and once a step an AllGather of every divided dense weight, before it is used, and an AllReduce of the active experts' gradients
among data ranks. Each parameter counts as one collective; `parallel.fusion_mib` merges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pangu_sigma.config import Config
from pangu_sigma.parallel.layout import Layout
from pangu_sigma.parallel.machine import NPUS_PER_HOST
from pangu_sigma.parallel.memory import exchanged_rows, tokens_of_rank
from pangu_sigma.parallel.parameters import ITEM_SIZE, Array, active_weights, dense_weights, expert_arrays

TENSOR, EXPERT, DATA, REPLICAS, ALL = (
    ("tensor",),
    ("expert",),
    ("data",),
    ("groups", "expert", "data"),
    ("groups", "expert", "data", "tensor"),
)
"""Axes along which the ranks of a group differ."""


@dataclass(frozen=True)
class Collective:
    """Equal calls of one rank in one step.

    nbytes: of all `count` calls, of the larger side: what is summed, gathered or exchanged on this rank.
    purpose: what for. phase: forward, backward, recompute or update.
    """

    op: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    nbytes: int
    purpose: str
    phase: str


@dataclass(frozen=True)
class LinkBytes:
    """Bytes that a rank sends in a step. pcie: both directions together."""

    pcie: int
    hccs: int
    network: int


def collectives(config: Config) -> list[Collective]:
    """All of a step, in groups of more than one rank."""
    found = [*_activations(config), *_parameters(config)]
    return [c for c in found if c.group_size > 1 and c.count]


def link_bytes(config: Config) -> LinkBytes:
    """Bytes of a rank by link. Rings inside a host, then rings between hosts over what is left, as HCCL does it."""
    sent = [sent_bytes(config, c) for c in collectives(config)]
    return LinkBytes(sum(pcie_bytes(config)), sum(hccs for hccs, _ in sent), sum(network for _, network in sent))


def sent_bytes(config: Config, collective: Collective) -> tuple[int, int]:
    """Bytes that a rank sends to ranks of its host, and to others, in the calls of one row."""
    peers = Layout(config.parallel).peers(0, *collective.axes)
    here = sum(peer < NPUS_PER_HOST for peer in peers)
    size, hosts, nbytes = len(peers), math.ceil(len(peers) / here), collective.nbytes
    if collective.op == "AlltoAll":
        return nbytes * (here - 1) // size, nbytes * (size - here) // size
    rounds = 2 if collective.op == "AllReduce" else 1
    return rounds * nbytes * (here - 1) // here, rounds * nbytes * (hosts - 1) // (hosts * here)


def pcie_bytes(config: Config) -> tuple[int, int]:
    """Weights to the NPU and gradients back, of the active experts, in the compute dtype; nothing without ECSS."""
    if not config.ecss.enabled:
        return 0, 0
    one_way = sum(math.prod(shape) for shape in active_weights(config)) * ITEM_SIZE[config.train.compute_dtype]
    return one_way, one_way


def _activations(config: Config) -> Iterator[Collective]:
    m, passes = config.model, config.train.accumulation
    item = ITEM_SIZE[config.train.compute_dtype]
    tokens, rows = (n * m.hidden * item for n in (tokens_of_rank(config), exchanged_rows(config)))
    slices = rows // config.parallel.tensor
    recompute = config.parallel.recompute

    def row(op: str, axes: tuple[str, ...], count: int, nbytes: int, purpose: str, phase: str) -> Collective:
        calls = passes * count
        return Collective(op, axes, _size(config, axes), calls, calls * nbytes, purpose, phase)

    yield row("AllReduce", TENSOR, m.layers, tokens, "attention output", "forward")
    yield row("AllReduce", TENSOR, m.dense_layers, tokens, "FFN output", "forward")
    yield row("AllReduce", TENSOR, 3 * m.layers, tokens, "query, key and value inputs", "backward")
    yield row("AllReduce", TENSOR, m.dense_layers, tokens, "FFN input", "backward")
    for phase in ("forward", "backward"):
        yield row("AlltoAll", EXPERT, 2 * m.rre_layers, slices, "rows to experts and back", phase)
        yield row("AllGather", TENSOR, 2 * m.rre_layers, rows, "hidden axis of rows", phase)
        yield row("ReduceScatter", TENSOR, m.rre_layers, rows, "hidden axis of rows", phase)
    yield row("AllGather", TENSOR, 1, tokens, "tokens of the logits", "backward")
    if recompute:
        yield row("AllReduce", TENSOR, m.layers, tokens, "attention output", "recompute")
        yield row("AlltoAll", EXPERT, m.rre_layers, slices, "rows to experts", "recompute")
        yield row("AllGather", TENSOR, m.rre_layers, rows, "hidden axis of rows", "recompute")


def _parameters(config: Config) -> Iterator[Collective]:
    dense, passes = dense_weights(config), config.train.accumulation
    for axes in (REPLICAS, ALL):
        shared = [a for a in dense if _whole_on_tensor_ranks(a) == (axes == ALL)]
        divided, whole = [a for a in shared if a.divided], [a for a in shared if not a.divided]
        yield _of_arrays(config, "AllGather", axes, divided, "dense weights", "forward")
        yield _of_arrays(config, "ReduceScatter", axes, passes * divided, "dense gradients", "backward")
        yield _of_arrays(config, "AllReduce", axes, passes * whole, "dense gradients", "backward")
    experts = [a for a in expert_arrays(config) if a.kind == "weight"]
    shapes = active_weights(config) if config.ecss.enabled else [a.computed for a in experts]
    nbytes = sum(math.prod(shape) for shape in shapes) * ITEM_SIZE[config.train.compute_dtype]
    size = _size(config, DATA)
    yield Collective("AllReduce", DATA, size, len(shapes), nbytes, "experts' gradients", "update")
    yield Collective("AllReduce", ALL, _size(config, ALL), 1, 4, "norm of all gradients", "update")


def _of_arrays(
    config: Config, op: str, axes: tuple[str, ...], arrays: Iterable[Array], purpose: str, phase: str
) -> Collective:
    sizes = [array.used_nbytes for array in arrays]
    return Collective(op, axes, _size(config, axes), len(sizes), sum(sizes), purpose, phase)


def _whole_on_tensor_ranks(array: Array) -> bool:
    return array.computed == array.shape


def _size(config: Config, axes: tuple[str, ...]) -> int:
    return math.prod(Layout(config.parallel).axes[name] for name in axes)
