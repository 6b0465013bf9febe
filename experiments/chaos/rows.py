"""The rows of the table, the longest first."""

from __future__ import annotations

from functools import partial

from experiments.chaos import (
    crash_points,
    damage,
    disk,
    drift,
    ill,
    inputs,
    launches,
    layouts,
    not_finite,
    resumes,
    soak,
    stops,
    worker_kills,
)
from experiments.chaos.cases import FaultRow

ROWS = {
    row.name: row
    for row in (
        FaultRow("R1-crash-2-ranks", "no HARD_FAIL, LOST_WORK, SILENT_DIVERGENCE", partial(crash_points.cases, 2)),
        FaultRow("R1-crash-1-rank", "no HARD_FAIL, LOST_WORK, SILENT_DIVERGENCE", partial(crash_points.cases, 1)),
        FaultRow(
            "R2-resumed-2-ranks", "every later checkpoint and the log are the same bits", partial(resumes.cases, 2)
        ),
        FaultRow(
            "R2-resumed-1-rank", "every later checkpoint and the log are the same bits", partial(resumes.cases, 1)
        ),
        FaultRow("R18-worker-killed", "goes on, same bits at the end as updated in steps", worker_kills.cases),
        FaultRow("R5-killed", "noticed in 8 s, restarted, same bits at the end", launches.killed, alone=True),
        FaultRow(
            "R6-stopped", "saved and ended in 12 s, nothing left, same bits at the end", launches.stopped, alone=True
        ),
        FaultRow("R4-disk-full", "goes on or one message; nothing lost, nothing left", partial(disk.cases, "ENOSPC")),
        FaultRow("R4-io-error", "goes on or one message; nothing lost, nothing left", partial(disk.cases, "EIO")),
        FaultRow("R17-server-stopped", "every request that was read finishes or is told", stops.cases, alone=True),
        FaultRow("R7-hung", "named with its stack, restarted, same bits", launches.hung, alone=True),
        FaultRow("R10-layouts", "same samples, every array whole, weights within rounding", layouts.cases),
        FaultRow("R8-not-finite", "exactly those steps skipped on all ranks, scale halved", not_finite.cases),
        FaultRow("R15-soak", "memory +2 % at most, files ±2, three checkpoints kept", soak.soak),
        FaultRow("R16-resting-experts", "every bit of experts without tokens unchanged", soak.resting),
        FaultRow("R9-ill", "stops by name, healthy checkpoint, same bits after it; spikes logged", ill.cases),
        FaultRow("R12-configurations", "one message with the key, status 2, in 5 s", inputs.configurations),
        FaultRow("R14-saves-behind", "equal to the synchronous ones", inputs.saves),
        FaultRow("fuzz", "no crash, no hang, nothing executed", inputs.fuzzed),
        FaultRow("R11-poisoned-text", "quarantined with its offset, or one error", inputs.poisoned),
        FaultRow("R13-drift", "refused by name", drift.cases),
        FaultRow("R3-damage", "found before use, and named", damage.cases),
    )
}
