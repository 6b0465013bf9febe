"""The time of a step, as a sum of a few quotients. Pure Python.

    compute         matrix multiplications ÷ (PEAK_FLOPS · MATMUL_EFFICIENCY); the rest of the graph is in the efficiency
    HCCS, network   bytes ÷ bandwidth, nothing hidden behind computing
    NPU update      what Adam reads and writes ÷ HBM_BANDWIDTH
    host            active experts over PCIe before the step, their gradients after it, then Adam ÷ HOST_UPDATE_BANDWIDTH; nothing
                    hidden either: the Ascend step fetches its own experts first, whatever ecss.prefetch says
    bubble          with p stages and g micro-batches, (p - 1) ÷ g of what the slowest stage does for all of them (1F1B)

Two constants are fitted to two figures of the paper: 512 Ascend 910 take 7.5 s a step with ECSS (derived from 69,905 tokens/s,
which others report of it), and 6.3 times as long when all experts are moved and updated in every step. Those two are therefore
reproduced by construction, and say nothing for the model; how much of 6.3 is Adam, PCIe or software cannot be told from them.

The one check that is left fails: LocMoE (arXiv 2401.13920) measured that AlltoAll takes 18 % of the time on 128 of these NPUs and
29 % on 256, with 16 experts a layer. For `sigma_38b`, which has that shape, this model gives 1.7 % and 1.3 %: a tenth or less, and
falling where theirs rises. Either AlltoAll is not divided among tensor ranks there, which is a factor of 8, or it is far from a
port's bandwidth, or both.

Trust it for bytes, for the order of magnitude of a step near the paper's size and layout, and for which item grows when a setting
changes. Do not trust it for the time of AlltoAll, other chips, float32, small models (launching operators costs nothing here), or
uneven loads of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pangu_sigma.config import Config
from pangu_sigma.parallel.layout import layers_of_stage, rre_layers_of_stage, stages_of_host, tokens_of_rank
from pangu_sigma.parallel.parameters import ITEM_SIZE, NPU, active_weights, all_arrays
from pangu_sigma.planning.machine import (
    HBM_BANDWIDTH,
    HCCS_BANDWIDTH,
    NETWORK_BANDWIDTH,
    NPUS_PER_HOST,
    PCIE_BANDWIDTH,
    PEAK_FLOPS,
)
from pangu_sigma.planning.memory import multiplied_rows
from pangu_sigma.planning.traffic import (
    FROM_EXPERTS,
    TO_EXPERTS,
    PredictedCollective,
    collectives,
    link_bytes,
    pcie_bytes,
    sent_bytes,
)

MATMUL_EFFICIENCY = 0.465
"""The fraction of PEAK_FLOPS that matrix multiplications reach. Fitted to the paper's step with ECSS."""

HOST_UPDATE_BANDWIDTH = 10.0e9
"""Bytes per second that the Adam of all ranks of a host reads and writes. Fitted to the paper's step without ECSS, so it holds
everything that grew with the experts there. It is low: the Adam of this repository moves 35e9 on two cores of a CPU (`kernel` in
bench/README.md, 28 bytes for each parameter)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one update of all parameters on the ranks of a stage, item by item; the step is their sum.

    bubble: the wait for other stages. all_to_all: seconds of hccs and network that the exchange of rows takes.
    """

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
        return self.compute + self.hccs + self.network + self.bubble + self.npu_update + self.host

    @property
    def host(self) -> float:
        """Seconds that experts on the host add: their way to the NPU, the way of their gradients back, and Adam."""
        return self.fetch + self.gradients_back + self.host_update


def step_time(config: Config) -> StepTime:
    """The time of the slowest stage, with ECSS as configured: only active experts move and are updated."""
    return _slowest(config, 1.0)


def step_time_all_experts(config: Config) -> StepTime:
    """The time of the step that the paper beats 6.3 times: all experts are on the host, moved and updated in every step."""
    active = config.data.domains_per_step * config.model.experts_per_domain
    return _slowest(config, config.experts / active)


def tokens_per_second(config: Config, time: StepTime) -> float:
    """Number of tokens of one update, on all ranks, over the seconds of a step."""
    return config.train.accumulation * config.train.batch_size * config.model.seq_length / time.step


def flops(config: Config, stage: int = 0) -> float:
    """Floating-point operations of a rank's matrix multiplications in a step; a multiplication with addition counts two.

    The backward pass takes twice as many as the forward pass, and recompute repeats the forward pass of the layers. Rows of
    experts count with the empty ones, which are multiplied, too.
    """
    m, t = config.model, config.parallel.tensor
    tokens, layers, routed = (
        tokens_of_rank(config),
        len(layers_of_stage(config, stage)),
        rre_layers_of_stage(config, stage),
    )
    attention = 2 * tokens * 4 * m.hidden**2 / t + 4 * tokens * m.seq_length * m.hidden / t
    dense_ffn = 4 * tokens * m.hidden * m.ffn / t
    routed_ffn = 4 * multiplied_rows(config) * m.hidden * m.ffn / t
    once = layers * attention + (layers - len(routed)) * dense_ffn + len(routed) * routed_ffn
    logits = 2 * (tokens / t) * m.slot_rows * m.hidden if stage == config.parallel.stages - 1 else 0
    return config.train.accumulation * (once * (4 if config.parallel.recompute else 3) + 3 * logits)


def host_update_bytes(config: Config, stage: int = 0) -> int:
    """Bytes that Adam reads and writes on the host for the active experts of one rank: weights, moments, gradients."""
    if not config.ecss.enabled:
        return 0
    element = 2 * 4 + 4 * ITEM_SIZE[config.ecss.moments] + ITEM_SIZE[config.train.compute_dtype]
    return element * sum(math.prod(shape) for shape in active_weights(config, stage))


def _slowest(config: Config, experts_moved: float) -> StepTime:
    """The time of the slowest stage. experts_moved: number of experts that are moved and updated, over that of the active ones."""
    stages = range(config.parallel.stages)
    passes = max(_passes_seconds(config, stage) for stage in stages)
    bubble = (config.parallel.stages - 1) / config.train.accumulation * passes
    return max((_stage_time(config, stage, experts_moved, bubble) for stage in stages), key=lambda time: time.step)


def _passes_seconds(config: Config, stage: int) -> float:
    """Seconds of all forward and backward passes of a stage."""
    moved = [c for c in collectives(config, stage) if c.phase in ("forward", "backward", "recompute")]
    return _compute(config, stage) + sum(_seconds(config, c, stage) for c in moved)


def _stage_time(config: Config, stage: int, experts_moved: float, bubble: float) -> StepTime:
    links, (there, back) = link_bytes(config, stage), pcie_bytes(config, stage)
    host = stage * config.parallel.stage_ranks // NPUS_PER_HOST
    updated = sum(host_update_bytes(config, s) for s in stages_of_host(config.parallel, host, NPUS_PER_HOST))
    return StepTime(
        compute=_compute(config, stage),
        hccs=links.hccs / HCCS_BANDWIDTH,
        network=links.network / NETWORK_BANDWIDTH,
        npu_update=_npu_update_bytes(config, stage) / HBM_BANDWIDTH,
        fetch=experts_moved * there / PCIE_BANDWIDTH,
        gradients_back=experts_moved * back / PCIE_BANDWIDTH,
        host_update=experts_moved * updated / HOST_UPDATE_BANDWIDTH,
        bubble=bubble,
        all_to_all=sum(
            _seconds(config, c, stage) for c in collectives(config, stage) if c.purpose in (TO_EXPERTS, FROM_EXPERTS)
        ),
    )


def _compute(config: Config, stage: int) -> float:
    return flops(config, stage) / (PEAK_FLOPS * MATMUL_EFFICIENCY)


def _npu_update_bytes(config: Config, stage: int) -> int:
    """Bytes that Adam moves on the NPU: it reads and writes weights and moments, and reads float32 gradients."""
    kept = [array for array in all_arrays(config, stage) if array.device == NPU]
    weights = sum(array.nbytes for array in kept if array.kind == "weight")
    return weights + 2 * sum(array.nbytes for array in kept)


def _seconds(config: Config, collective: PredictedCollective, stage: int) -> float:
    hccs, network = sent_bytes(config, collective, stage)
    return hccs / HCCS_BANDWIDTH + network / NETWORK_BANDWIDTH
