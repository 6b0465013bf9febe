"""The rows of the table, the longest first."""

from __future__ import annotations

from functools import partial

from chaos import crash_points, damage, disk, drift, ill, inputs, launches, layouts, not_finite, resumes, soak
from chaos.cases import Row

ROWS = {
    row.name: row
    for row in (
        Row("R1-crash-2-ranks", "no HARD_FAIL, LOST_WORK, SILENT_DIVERGENCE", partial(crash_points.cases, 2)),
        Row("R1-crash-1-rank", "no HARD_FAIL, LOST_WORK, SILENT_DIVERGENCE", partial(crash_points.cases, 1)),
        Row("R2-resumed-2-ranks", "every later checkpoint and the log are the same bits", partial(resumes.cases, 2)),
        Row("R2-resumed-1-rank", "every later checkpoint and the log are the same bits", partial(resumes.cases, 1)),
        Row("R5-killed", "noticed in 8 s, restarted, same bits at the end", launches.killed, alone=True),
        Row("R6-stopped", "saved and ended in 12 s, nothing left, same bits at the end", launches.stopped, alone=True),
        Row("R4-disk-full", "goes on or one message; nothing lost, nothing left", partial(disk.cases, "ENOSPC")),
        Row("R4-io-error", "goes on or one message; nothing lost, nothing left", partial(disk.cases, "EIO")),
        Row("R7-hung", "named with its stack, restarted, same bits", launches.hung, alone=True),
        Row("R10-layouts", "same samples, every array whole, weights within rounding", layouts.cases),
        Row("R8-not-finite", "exactly those steps skipped on all ranks, scale halved", not_finite.cases),
        Row("R15-soak", "memory +2 % at most, files ±2, three checkpoints kept", soak.soak),
        Row("R16-resting-experts", "every bit of experts without tokens unchanged", soak.resting),
        Row("R9-ill", "stops by name, healthy checkpoint, same bits after it; spikes logged", ill.cases),
        Row("R12-configurations", "one message with the key, status 2, in 5 s", inputs.configurations),
        Row("R14-saves-behind", "equal to the synchronous ones", inputs.saves),
        Row("fuzz", "no crash, no hang, nothing executed", inputs.fuzzed),
        Row("R11-poisoned-text", "quarantined with its offset, or one error", inputs.poisoned),
        Row("R13-drift", "refused by name", drift.cases),
        Row("R3-damage", "found before use, and named", damage.cases),
    )
}
