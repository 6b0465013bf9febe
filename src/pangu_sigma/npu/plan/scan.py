"""Scan a configuration over 8, 16, … 4,096 NPUs: its fastest layout on each, whether it fits, and its speed. Pure Python."""

from __future__ import annotations

from typing import Any

from pangu_sigma.chips import GIB
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.plan.cost import step_time, tokens_per_second
from pangu_sigma.npu.plan.memory import TIGHT_FRACTION, chip_of, host_peak, npu_peak, total
from pangu_sigma.npu.plan.plan import layout_text
from pangu_sigma.npu.plan.suggest import least_devices, suggest_layout, with_parallel

SCANNED = tuple(8 << power for power in range(10))
"""Numbers of NPUs for which a scan finds layouts."""


def scan(config: Config) -> dict[str, Any]:
    """Return the fastest layout on each number of NPUs in SCANNED on which the configuration can be laid out, as plain values for
    JSON and `format_tree`. fits: yes, no, or tight if less than a tenth of a memory is left; the time of a layout that does not fit
    is for comparison.

    Raises ConfigError if the configuration cannot be laid out on any of them.
    """
    rows, chip = [], chip_of(config)
    for devices in SCANNED:
        try:
            planned = with_parallel(config, **suggest_layout(config, devices).model_dump())
        except ConfigError as error:
            refusal = error
            continue
        time, npu, host = step_time(planned), total(npu_peak(planned)), total(host_peak(planned))
        left, speed = 1 - max(npu / chip.memory, host / chip.host_memory), tokens_per_second(planned, time)
        rows.append(
            {
                "devices": devices,
                "fits": "no" if left < 0 else "tight" if left < TIGHT_FRACTION else "yes",
                "layout": layout_text(planned.parallel),
                "npu_gib": npu / GIB,
                "host_gib": host / GIB,
                "step_seconds": time.step,
                "tokens_per_second": speed,
                "tokens_per_npu": speed / devices,
            }
        )
    if not rows:
        raise refusal
    return {"name": config.name, "chip": config.parallel.chip, "least_devices": least_devices(config), "scan": rows}
