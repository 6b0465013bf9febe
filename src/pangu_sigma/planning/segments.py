"""What a step costs with several segments in its RRE layers, against one own segment in their place. Pure Python.

Each of N segments exchanges as many rows as one does, and multiplies as many, by matrices of an N-th of the width. A product of
[W, H] with the matrices [A, H, f] reads and writes c · (W·H + A·H·f + W·f) bytes, forward and in both of its gradients; W rows, H
hidden, f inner units on a rank, A experts of a rank, c bytes of the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from pangu_sigma.config import Config
from pangu_sigma.npu.communicators import COPIES
from pangu_sigma.npu.rows import multiplied_rows
from pangu_sigma.parallel.layout import active_entries, rre_layers_of_stage
from pangu_sigma.parallel.parameters import ITEM_SIZE
from pangu_sigma.planning.cost import host_update_bytes, step_time
from pangu_sigma.planning.machine import chip_of
from pangu_sigma.planning.traffic import EXCHANGES, collectives
from pangu_sigma.sections import Segment


@dataclass(frozen=True)
class SegmentCosts:
    """Costs of an NPU of the last stage in a step that depend on the segments of RRE layers; bytes as `CollectiveCalls.nbytes`."""

    segments: list[Segment]
    exchanges: int
    """Number of exchanges of rows (AlltoAll, or AlltoAllV)."""
    exchange_bytes: int
    exchange_seconds: float
    """Estimated seconds of the exchanges."""
    products: int
    """Number of products of rows and experts' matrices (GroupedMatmul, or BatchMatMul)."""
    width: int
    """Inner units of an expert on the NPU."""
    product_bytes: int
    """Bytes that the products read and write."""
    flops_per_byte: float
    """Floating-point operations of the products for each of these bytes."""
    common_bytes: int
    """Bytes of common experts' gradients that are summed over groups."""
    host_update_bytes: int
    """Bytes that Adam reads and writes on the host for the NPU's experts."""
    step_seconds: float


@dataclass(frozen=True)
class SegmentComparison:
    """Costs with the segments of a plan, and with one.

    chip_flops_per_byte: the chip's rate over the bandwidth of its memory; products of fewer operations a byte wait for the memory.
    """

    planned: SegmentCosts
    single: SegmentCosts
    chip_flops_per_byte: float


def compare_segments(config: Config) -> SegmentComparison | None:
    """Return the costs of the segments of RRE layers; None if there is one, or no RRE layer."""
    if len(config.model.routed) == config.model.rre_layers:
        return None
    model = config.model.model_copy(update={"segments": ["own"], "common_experts": 0})
    chip = chip_of(config)
    ridge = chip.flops[config.train.compute_dtype] / chip.hbm
    return SegmentComparison(_costs(config), _costs(config.model_copy(update={"model": model})), ridge)


def _costs(config: Config) -> SegmentCosts:
    m, stage, time = config.model, config.parallel.stages - 1, step_time(config)
    calls, rows, width = collectives(config, stage), multiplied_rows(config), m.segment_ffn // config.parallel.tensor
    exchanges = [c for c in calls if c.op in EXCHANGES]
    # two products forward, of which recompute repeats the first, and two gradients of each
    of_segment = config.train.accumulation * len(rre_layers_of_stage(config, stage)) * (6 + config.parallel.recompute)
    moved = sum(rows * (m.hidden + width) + active_entries(config, k) * m.hidden * width for k in m.segments)
    flops = 2 * rows * m.hidden * width * len(m.segments)
    item = ITEM_SIZE[config.train.compute_dtype]
    return SegmentCosts(
        segments=m.segments,
        exchanges=sum(c.count for c in exchanges),
        exchange_bytes=sum(c.nbytes for c in exchanges),
        exchange_seconds=time.all_to_all,
        products=of_segment * len(m.segments),
        width=width,
        product_bytes=of_segment * moved * item,
        flops_per_byte=flops / (moved * item),
        common_bytes=sum(c.nbytes for c in calls if c.axes == COPIES and c.phase == "gradient"),
        host_update_bytes=host_update_bytes(config, stage),
        step_seconds=time.step,
    )
