"""Estimate of the time of a step, as a sum of a few quotients. Pure Python.

    compute         matrix multiplications ÷ (the chip's rate in the compute dtype · MATMUL_EFFICIENCY); the rest of the graph is in
                    the efficiency
    HCCS, network   bytes ÷ bandwidth, without overlap with computing; and MESSAGE_SECONDS for each message of an AlltoAll to
                    another host: a rank sends one to every other rank of its group, one by one (HCCL's pairwise algorithm)
    NPU update      bytes that Adam reads and writes ÷ the bandwidth of the NPU's memory
    host            active experts over PCIe before the step, their gradients after it, then Adam ÷ HOST_UPDATE_BANDWIDTH; without
                    overlap either, as in the paper, to whose step the rate is fitted; `overlapped_step` says what overlap hides
    bubble          with p stages and g micro-batches, (p - 1) ÷ g of the slowest stage's time for all of them (1F1B)

Rates and bandwidths are the chip's (`chips.py`). Three constants are fitted to four published figures of 910A: 7.5 s and 6.3x of
the paper's step, and two shares of AlltoAll from LocMoE (docs/experiments/planning.md says how its runs were read).

Trust it for bytes, for the order of magnitude of a step near the paper's size and layout, for which item grows when a setting
changes, and to choose between layouts. Do not trust it for the speed of other chips, whose efficiency, hosts and messages are taken
to be 910A's, for small models (launching operators costs nothing here), or for uneven loads of experts.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace

from pangu_sigma.chips import CHIP_DATA, Chip
from pangu_sigma.config import Config
from pangu_sigma.npu.communicators import stages_of_host
from pangu_sigma.npu.rows import multiplied_rows, tokens_of_rank
from pangu_sigma.parallel.layout import layers_of_stage, rre_layers_of_stage
from pangu_sigma.parallel.parameters import ITEM_SIZE, NPU, active_elements, all_arrays, expert_arrays
from pangu_sigma.planning.machine import chip_of
from pangu_sigma.planning.traffic import EXCHANGES, collectives, pcie_bytes, ranks_here, sent_bytes

MATMUL_EFFICIENCY = 0.457
"""Fraction of the chip's peak rate that matrix multiplications reach. Fitted to the paper's step with ECSS."""

MESSAGE_SECONDS = 4.0e-4
"""Seconds for each message of an AlltoAll to another host, in addition to the time of its bytes. Fitted to LocMoE's shares."""

HOST_UPDATE_BANDWIDTH = 10.0e9
"""Bytes per second that Adam of all ranks of a host reads and writes. Fitted to the paper's step without ECSS, so it includes every
cost that grew with the experts there. This rate is low: see MEASURED_UPDATE_BANDWIDTH."""

MEASURED_UPDATE_BANDWIDTH = 36.0e9
"""Bytes per second that the Adam of this repository reads and writes on two cores of a CPU: 39.36 ms for 50 M parameters of 28
bytes (`kernel` in docs/experiments/speed.md). `pangu-sigma doctor --speed` measures another host; no NPU host was measured."""


@dataclass(frozen=True)
class Rates:
    """Constants of the step-time estimate: three that this file fits, and five of the chip, as in `ChipData`."""

    matmul_efficiency: float
    message_seconds: float
    host_update_bandwidth: float
    peak_flops: float
    hbm_bandwidth: float
    pcie_bandwidth: float
    hccs_bandwidth: float
    network_bandwidth: float


def rates_of(config: Config) -> Rates:
    """Return the constants for a configuration: its chip's, in the compute dtype, and the fitted ones."""
    chip = chip_of(config)
    return Rates(
        matmul_efficiency=MATMUL_EFFICIENCY,
        message_seconds=MESSAGE_SECONDS,
        host_update_bandwidth=HOST_UPDATE_BANDWIDTH,
        peak_flops=chip.flops[config.train.compute_dtype],
        hbm_bandwidth=chip.hbm,
        pcie_bandwidth=chip.pcie,
        hccs_bandwidth=chip.hccs,
        network_bandwidth=chip.network,
    )


def host_rate_note(chip: Chip) -> str | None:
    """Return a warning if the hosts of a chip have another number of NPUs than those of 910A, to which Adam's rate is fitted."""
    data, fitted = CHIP_DATA[chip], CHIP_DATA["910a"].per_host
    if data.per_host == fitted:
        return None
    return (
        f"Adam's rate is a host's, fitted to 910A with {fitted} NPUs a host; one of {data.title} has {data.per_host}, on the same "
        f"{HOST_UPDATE_BANDWIDTH / 1e9:.0f} GB/s, so NPUs look slower than they may be: measure a host with doctor --speed"
    )


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one training step on the ranks of a stage, item by item; `step` is their sum.

    bubble: wait for other stages. all_to_all: seconds of hccs and network that the exchange of experts' rows takes.
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
        on_npu = self.compute + self.hccs + self.network + self.bubble + self.npu_update
        return on_npu + (self.fetch + self.gradients_back + self.host_update)


def step_time(config: Config, experts_moved: float = 1.0, rates: Rates | None = None) -> StepTime:
    """Estimate the step time of the slowest stage, with ECSS as configured.

    experts_moved: number of experts moved and updated, divided by the number of active experts. rates: constants to use instead of
    `rates_of`.
    """
    return max((time for time, _ in _stage_times(config, experts_moved, rates)), key=lambda time: time.step)


@dataclass(frozen=True)
class Sensitivity:
    """Constant with the largest effect on the step time: its name in `Rates`, and the step at half and at double of its value."""

    constant: str
    value: float
    seconds_at_half: float
    seconds_at_double: float


def most_sensitive(config: Config) -> Sensitivity:
    """Return the constant whose half and double change the estimated step time most; of equal ones the first in `Rates`."""
    rates, found = rates_of(config), []
    for name, value in asdict(rates).items():
        half, double = (step_time(config, rates=replace(rates, **{name: value * factor})).step for factor in (0.5, 2.0))
        found.append(Sensitivity(name, value, half, double))
    return max(found, key=lambda each: abs(each.seconds_at_half - each.seconds_at_double))


@dataclass(frozen=True)
class OverlappedStep:
    """Seconds of the NPU behind which Adam on the host can run with `ecss.update=worker`, on the stage that is then the slowest:
    dense layers in the backward pass of the last micro-batch (0 with `ecss.undo_gib=0`), their Adam, and dense layers in the
    next forward pass of the first micro-batch. left: seconds of Adam on the host that are more. step: seconds of the whole step.
    Layers inside the RRE stack hide something, too, which is not counted; nor is what host and NPU take from each other."""

    backward: float
    npu_update: float
    forward: float
    left: float
    step: float


def overlapped_step(config: Config) -> OverlappedStep | None:
    """Estimate the step with Adam of experts hidden behind the dense layers; None if `ecss.update=step`, or nothing to hide."""
    if not config.ecss.by_worker(npu=True) or not config.ecss.enabled or not config.model.rre_layers:
        return None
    found = (_overlapped(config, stage, time, sent) for stage, (time, sent) in enumerate(_stage_times(config)))
    return max(found, key=lambda each: each.step)


def step_time_all_experts(config: Config) -> StepTime:
    """Estimate the step time if all experts on the host are moved and updated; in the paper this takes 6.3 times longer."""
    last = config.parallel.stages - 1  # one with experts, of which all such stages have the same part
    stored = (a for a in expert_arrays(config, last, alike=True) if a.kind == "weight")
    elements = sum(a.count * math.prod(a.computed) for a in stored)
    return step_time(config, experts_moved=elements / active_elements(config, last))


def tokens_per_second(config: Config, time: StepTime) -> float:
    """Return the training speed: tokens of one step on all ranks, divided by the seconds of the step."""
    return config.train.accumulation * config.train.batch_size * config.model.seq_length / time.step


def flops(config: Config, stage: int = 0) -> float:
    """Return the floating-point operations of a rank's matrix multiplications in a step; a multiply-add counts two.

    The backward pass takes twice as many as the forward pass, and recompute repeats the forward pass of the layers. Experts' rows
    include padding, which is multiplied too.
    """
    logits = 0.0
    if stage == config.parallel.stages - 1:
        logits = 2 * (tokens_of_rank(config) / config.parallel.tensor) * config.model.slot_rows * config.model.hidden
    return config.train.accumulation * (sum(_forward_flops(config, stage)) * _rounds(config) + 3 * logits)


def _forward_flops(config: Config, stage: int) -> tuple[float, float]:
    """Return the floating-point operations of dense and of RRE layers of a stage in the forward pass of a micro-batch."""
    m, t = config.model, config.parallel.tensor
    tokens, routed = tokens_of_rank(config), len(rre_layers_of_stage(config, stage))
    attention = 2 * tokens * 4 * m.hidden**2 / t + 4 * tokens * m.seq_length * m.hidden / t
    dense_ffn = 4 * tokens * m.hidden * m.ffn / t
    routed_ffn = 4 * multiplied_rows(config) * m.hidden * m.ffn / t
    return (len(layers_of_stage(config, stage)) - routed) * (attention + dense_ffn), routed * (attention + routed_ffn)


def _rounds(config: Config) -> int:
    """Return the time of a layer's forward and backward pass in forward passes."""
    return 4 if config.parallel.recompute else 3


def host_update_bytes(config: Config, stage: int = 0) -> int:
    """Return the bytes that Adam reads and writes on the host for the active experts of one rank: weights, moments, gradients."""
    if not config.ecss.enabled:
        return 0
    element = 2 * 4 + 4 * ITEM_SIZE[config.ecss.moments] + ITEM_SIZE[config.train.compute_dtype]
    return element * active_elements(config, stage)


@dataclass(frozen=True)
class _Sent:
    """Seconds of a collective's calls, by link. in_passes: True if it belongs to the forward and backward passes."""

    op: str
    in_passes: bool
    hccs: float
    network: float

    @property
    def seconds(self) -> float:
        return self.hccs + self.network


def _sent(config: Config, stage: int, rates: Rates) -> list[_Sent]:
    times = []
    for c in collectives(config, stage):
        hccs, network = sent_bytes(config, c, stage)
        in_passes = c.phase in ("forward", "backward", "recompute")
        messages = c.count * (c.group_size - ranks_here(config, c.axes)) if c.op in EXCHANGES else 0
        seconds = network / rates.network_bandwidth + messages * rates.message_seconds
        times.append(_Sent(c.op, in_passes, hccs / rates.hccs_bandwidth, seconds))
    return times


def _stage_times(
    config: Config, experts_moved: float = 1.0, rates: Rates | None = None
) -> list[tuple[StepTime, list[_Sent]]]:
    """Return the step time of each stage, and the collectives in it. The arguments are those of `step_time`."""
    p, rates = config.parallel.stages, rates or rates_of(config)
    sent = [_sent(config, stage, rates) for stage in range(p)]
    passes = (_compute(config, s, rates) + _seconds_in_passes(calls) for s, calls in enumerate(sent))
    bubble = (p - 1) / config.train.accumulation * max(passes)
    return [(_stage_time(config, s, calls, experts_moved, rates, bubble), calls) for s, calls in enumerate(sent)]


def _seconds_in_passes(sent: list[_Sent]) -> float:
    return sum(c.seconds for c in sent if c.in_passes)


def _overlapped(config: Config, stage: int, time: StepTime, sent: list[_Sent]) -> OverlappedStep:
    dense, _ = _forward_flops(config, stage)
    all_flops = flops(config, stage) / config.train.accumulation
    round_seconds = (time.compute + _seconds_in_passes(sent)) / config.train.accumulation * dense / all_flops
    backward = round_seconds * (_rounds(config) - 1) if config.ecss.undo_gib else 0.0
    left = max(0.0, time.host_update - backward - time.npu_update - round_seconds)
    return OverlappedStep(backward, time.npu_update, round_seconds, left, time.step - time.host_update + left)


def _stage_time(
    config: Config, stage: int, sent: list[_Sent], experts_moved: float, rates: Rates, bubble: float
) -> StepTime:
    per_host, (there, back) = chip_of(config).per_host, pcie_bytes(config, stage)
    host = stage * config.parallel.stage_ranks // per_host
    ranks = Counter(stages_of_host(config.parallel, host, per_host))
    updated = sum(count * host_update_bytes(config, s) for s, count in ranks.items())
    return StepTime(
        compute=_compute(config, stage, rates),
        hccs=sum(c.hccs for c in sent),
        network=sum(c.network for c in sent),
        npu_update=_npu_update_bytes(config, stage) / rates.hbm_bandwidth,
        fetch=experts_moved * there / rates.pcie_bandwidth,
        gradients_back=experts_moved * back / rates.pcie_bandwidth,
        host_update=experts_moved * updated / rates.host_update_bandwidth,
        bubble=bubble,
        all_to_all=sum(c.seconds for c in sent if c.op in EXCHANGES),
    )


def _compute(config: Config, stage: int, rates: Rates) -> float:
    return flops(config, stage) / (rates.peak_flops * rates.matmul_efficiency)


def _npu_update_bytes(config: Config, stage: int) -> int:
    """Return the bytes that Adam moves on the NPU: it reads and writes weights and moments, and reads float32 gradients."""
    kept = [array for array in all_arrays(config, stage, alike=True) if array.device == NPU]
    weights = sum(array.count * array.nbytes for array in kept if array.kind == "weight")
    return weights + 2 * sum(array.count * array.nbytes for array in kept)
