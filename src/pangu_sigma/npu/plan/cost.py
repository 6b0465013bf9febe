"""Estimate of the time of a step, as a sum of a few quotients. Pure Python.

    compute         matrix multiplications ÷ (the chip's rate in the compute dtype · MATMUL_EFFICIENCY); the rest of the graph is in
                    the efficiency
    HCCS, network   bytes ÷ bandwidth, without overlap with computing; and MESSAGE_SECONDS for each message of an AlltoAll to
                    another host: a rank sends one to every other rank of its group, one by one (HCCL's pairwise algorithm)
    NPU update      bytes that Adam reads and writes ÷ the bandwidth of the NPU's memory
    host            active experts over PCIe before the step, their gradients after it, then Adam ÷ HOST_UPDATE_BANDWIDTH; without
                    overlap either, as in the paper, to whose step the rate is fitted
    bubble          with p stages and g micro-batches, (p - 1) ÷ g of the slowest stage's time for all of them (1F1B)

Rates and bandwidths are the chip's (`chips.py`). Three constants are fitted to four published figures of 910A: 7.5 s and 6.3x of
the paper's step, and two shares of AlltoAll from LocMoE (docs/experiments/planning.md says how its runs were read).

Trust it for bytes, for the order of magnitude of a step near the paper's size and layout, for which item grows when a setting
changes, and to choose between layouts. Do not trust it for the speed of other chips, whose efficiency, hosts and messages are taken
to be 910A's, for small models (launching operators costs nothing here), or for uneven loads of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ascend_ops.rows import record_size
from pangu_sigma.config import Config
from pangu_sigma.npu.communicators import stages_of_host
from pangu_sigma.npu.cuts import ITEM_SIZE, NPU, active_elements, all_arrays, expert_arrays
from pangu_sigma.npu.plan import traffic
from pangu_sigma.npu.row_counts import chip_of, multiplied_rows, tokens_of_rank
from pangu_sigma.ranks.layout import layers_of_stage, rre_layers_of_stage

MATMUL_EFFICIENCY = 0.457
"""Fraction of the chip's peak rate that matrix multiplications reach. Fitted to the paper's step with ECSS."""

MESSAGE_SECONDS = 4.0e-4
"""Seconds for each message of an AlltoAll to another host, in addition to the time of its bytes. Fitted to LocMoE's shares."""

HOST_UPDATE_BANDWIDTH = 10.0e9
"""Bytes per second that Adam of all ranks of a host reads and writes. Fitted to the paper's step without ECSS, so it includes every
cost that grew with the experts there. It is low: this repository's Adam reads and writes 36 GB/s on two cores of a CPU (`kernel` in
docs/experiments/speed.md)."""


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one training step on the ranks of a stage, item by item; `step` is their sum. bubble: wait for other
    stages. all_to_all: seconds of hccs and network that the exchange of experts' rows takes."""

    compute: float
    hccs: float
    network: float
    npu_update: float
    fetch: float
    gradients_back: float
    host_update: float
    bubble: float
    all_to_all: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        on_npu = self.compute + self.hccs + self.network + self.bubble + self.npu_update
        return on_npu + (self.fetch + self.gradients_back + self.host_update)


def step_time(config: Config, experts_moved: float = 1.0) -> StepTime:
    """Estimate the step time of the slowest stage, with ECSS as configured. experts_moved: number of experts that are copied to the
    NPU and updated, divided by the number of active experts."""
    stages = range(config.parallel.stages)
    calls_of_stages = [_timed_calls(config, stage) for stage in stages]
    slowest = max(_compute(config, stage) + _pass_seconds(calls_of_stages[stage]) for stage in stages)
    bubble = (len(stages) - 1) / config.train.accumulation * slowest
    times = (_stage_time(config, stage, calls_of_stages[stage], experts_moved, bubble) for stage in stages)
    return max(times, key=lambda time: time.step)


def step_time_all_experts(config: Config) -> StepTime:
    """Estimate the step time if all experts on the host are moved and updated; in the paper this takes 6.3 times longer."""
    last = config.parallel.stages - 1  # a stage with experts; all stages with experts have equally many
    stored = (a for a in expert_arrays(config, last, alike=True) if a.kind == "weight")
    elements = sum(a.count * math.prod(a.computed) for a in stored)
    return step_time(config, experts_moved=elements / active_elements(config, last))


def flops(config: Config, stage: int = 0) -> float:
    """Return the floating-point operations of a rank's matrix multiplications in a step; a multiply-add counts two. The backward
    pass takes twice as many as the forward pass, and recompute repeats the forward pass of the layers. Experts' rows include
    padding, which is multiplied too."""
    m, tensor, tokens = config.model, config.parallel.tensor, tokens_of_rank(config)
    layers, routed = len(layers_of_stage(config, stage)), len(rre_layers_of_stage(config, stage))
    # four products with [H, H], and two with all tokens of the sequence
    attention = 2 * tokens * 4 * m.hidden**2 / tensor + 4 * tokens * m.seq_length * m.hidden / tensor
    dense_ffn, routed_ffn = (4 * rows * m.hidden * m.ffn / tensor for rows in (tokens, multiplied_rows(config)))
    forward = layers * attention + (layers - routed) * dense_ffn + routed * routed_ffn
    logits = 2 * (tokens / tensor) * m.slot_rows * m.hidden if stage == config.parallel.stages - 1 else 0.0
    return config.train.accumulation * (forward * (4 if config.parallel.recompute else 3) + 3 * logits)


def host_update_bytes(config: Config, stage: int = 0) -> int:
    """Return the bytes that Adam reads and writes on the host for the active experts of one rank: weights, moments, gradients."""
    if not config.ecss.enabled:
        return 0
    # of an element: the weight and two moments, each read and written, and the gradient
    element_bytes = 2 * 4 + 2 * 2 * ITEM_SIZE[config.ecss.moments] + ITEM_SIZE[config.train.compute_dtype]
    return element_bytes * active_elements(config, stage)


def _row_update_bytes(config: Config) -> int:
    """Return the bytes that Adam of rows (`model.rows`) moves on one rank, which updates the rows of all tokens of a step. It reads
    the gradient of each token, and reads and writes the weight, two moments and step count of each row, all of four bytes. An upper
    bound: each token is taken to have a row of its own."""
    touched_rows = ((entry, min(config.stored_rows(entry), config.step_tokens)) for entry in config.model.rows)
    record_bytes = sum(count * 2 * 4 * record_size(entry.width) for entry, count in touched_rows)
    return traffic.row_gradient_bytes(config) + record_bytes


class _TimedCalls(NamedTuple):
    """All calls of a collective in a step, with their seconds inside hosts (hccs) and between hosts (network)."""

    collective: traffic.PredictedCollective
    hccs: float
    network: float


def _pass_seconds(calls: list[_TimedCalls]) -> float:
    """Return the seconds of the collectives in the forward and backward passes of all micro-batches, which the bubble repeats."""
    return sum(c.hccs + c.network for c in calls if c.collective.phase in ("forward", "backward", "recompute"))


def _timed_calls(config: Config, stage: int) -> list[_TimedCalls]:
    """Estimate the seconds of all collectives of a stage: bytes ÷ bandwidth, and for an exchange (all-to-all) a constant for each
    message to another host. Other collectives send few messages."""
    timed, chip = [], chip_of(config)
    for c in (*traffic.collectives(config, stage), *traffic.sums_of_rows(config)):
        hccs_bytes, network_bytes = traffic.sent_bytes(config, c, stage)
        # of the rank that has the fewest others of its group in its host
        ranks_elsewhere = c.group_size - traffic.spread(config, c.axes).fewest_in_host
        messages = c.count * ranks_elsewhere if c.op in traffic.EXCHANGES else 0
        seconds = network_bytes / chip.network + messages * MESSAGE_SECONDS
        timed.append(_TimedCalls(c, hccs_bytes / chip.hccs, seconds))
    return timed


def _stage_time(config: Config, stage: int, calls: list[_TimedCalls], moved: float, bubble: float) -> StepTime:
    """Estimate the step time of one stage. calls: collectives of the stage. moved: number of experts that are copied and updated,
    divided by the number of active experts. bubble: seconds of waiting for other stages."""
    chip = chip_of(config)
    host = stage * config.parallel.stage_ranks // chip.per_host  # of the stage's first rank
    stages = stages_of_host(config.parallel, host, chip.per_host)  # of all ranks of the host, which share its memory
    expert_bytes = moved * sum(host_update_bytes(config, s) for s in stages)
    over_pcie = (moved * traffic.pcie_bytes(config, stage) + traffic.row_pcie_bytes(config)) / chip.pcie
    return StepTime(
        compute=_compute(config, stage),
        hccs=sum(c.hccs for c in calls),
        network=sum(c.network for c in calls),
        npu_update=_npu_update_bytes(config, stage) / chip.hbm,
        fetch=over_pcie,
        gradients_back=over_pcie,
        host_update=(expert_bytes + len(stages) * _row_update_bytes(config)) / HOST_UPDATE_BANDWIDTH,
        bubble=bubble,
        all_to_all=sum(c.hccs + c.network for c in calls if c.collective.op in traffic.EXCHANGES),
    )


def _compute(config: Config, stage: int) -> float:
    """Return the seconds of a stage's matrix multiplications in a step."""
    return flops(config, stage) / (chip_of(config).flops[config.train.compute_dtype] * MATMUL_EFFICIENCY)


def _npu_update_bytes(config: Config, stage: int) -> int:
    """Return the bytes that Adam moves on the NPU: it reads and writes weights and moments, and reads float32 gradients."""
    arrays = [array for array in all_arrays(config, stage, alike=True) if array.device == NPU]
    # as large as the weights, which are kept in float32
    gradients = sum(array.count * array.nbytes for array in arrays if array.kind == "weight")
    return gradients + 2 * sum(array.count * array.nbytes for array in arrays)
