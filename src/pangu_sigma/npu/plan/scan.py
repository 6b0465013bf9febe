"""Scan a configuration over 8, 16, … 4,096 NPUs: its fastest layout on each, whether it fits, and its speed. Pure Python."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.chips import CHIP_DATA, GIB, Chip
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.npu.plan.cost import host_rate_note, step_time, tokens_per_second
from pangu_sigma.npu.plan.machine import TIGHT_FRACTION, chip_of
from pangu_sigma.npu.plan.memory import host_peak, npu_peak, total
from pangu_sigma.npu.plan.suggest import least_devices, suggest_layout, with_parallel
from pangu_sigma.npu.plan.tables import counted, layout_text
from pangu_sigma.sections import ParallelConfig
from pangu_sigma.writable import check_file_writable

SCANNED = tuple(8 << power for power in range(10))
"""Numbers of NPUs for which a scan finds layouts."""

_BAR = 20
"""Length of the longest bar, in characters."""


@dataclass(frozen=True)
class ScanRow:
    """Suggested layout on one number of NPUs. The time of a layout that does not fit is for comparison only."""

    devices: int
    parallel: ParallelConfig
    npu_gib: float
    host_gib: float
    left: float
    """Free fraction of the memory of NPU or host, whichever is smaller; negative if the layout does not fit."""
    step_seconds: float
    tokens_per_second: float

    @property
    def fits(self) -> bool:
        """True if every NPU and every host have enough memory."""
        return self.left >= 0

    @property
    def is_tight(self) -> bool:
        """True if the layout fits, but the free memory is smaller than the error of the estimate may be."""
        return 0 <= self.left < TIGHT_FRACTION

    @property
    def tokens_per_npu(self) -> float:
        """Training speed in tokens per second and NPU."""
        return self.tokens_per_second / self.devices


@dataclass(frozen=True)
class Scan:
    """Layouts of a configuration on increasing numbers of NPUs of a chip, without numbers on which it cannot be laid out."""

    name: str
    chip: Chip
    least_devices: int | None
    """Smallest number of NPUs on which a layout fits; None if 4,096 are not enough."""
    rows: list[ScanRow]

    def as_dict(self) -> dict[str, Any]:
        """Return the scan as plain values, for JSON."""
        rows = [
            dataclasses.asdict(row)
            | {"parallel": row.parallel.model_dump(), "fits": row.fits, "tokens_per_npu": row.tokens_per_npu}
            for row in self.rows
        ]
        return {"name": self.name, "chip": self.chip, "least_devices": self.least_devices, "scan": rows}


def scan(config: Config, picture: Path | None = None) -> Scan:
    """Find the fastest layout on each number of NPUs in SCANNED, whatever the axes of the parallel section.

    picture: file that `draw_scan` draws the result into. Raises ConfigError if the configuration cannot be laid out on any of them,
    and for a file name without a picture's ending.
    """
    if picture is not None:
        if picture.suffix not in (".svg", ".png", ".pdf"):
            raise ConfigError(f"{argument('--scan')} {picture}: a picture is a .svg, .png or .pdf file")
        check_file_writable(picture, "--scan")
    rows, chip = [], chip_of(config)
    for devices in SCANNED:
        try:
            planned = with_parallel(config, **suggest_layout(config, devices).model_dump())
        except ConfigError as error:
            refusal = error
            continue
        time = step_time(planned)
        npu, host = total(npu_peak(planned)), total(host_peak(planned))
        rows.append(
            ScanRow(
                devices=devices,
                parallel=planned.parallel,
                npu_gib=npu / GIB,
                host_gib=host / GIB,
                left=1 - max(npu / chip.memory, host / chip.host_memory),
                step_seconds=time.step,
                tokens_per_second=tokens_per_second(planned, time),
            )
        )
    if not rows:
        raise refusal
    found = Scan(config.name, config.parallel.chip, least_devices(config), rows)
    if picture is not None:
        draw_scan(found, picture)
    return found


def format_scan(result: Scan) -> str:
    """Format the scan as a table, with a bar for the speed of an NPU where the layout fits."""
    chip, most = CHIP_DATA[result.chip], max(row.tokens_per_npu for row in result.rows)
    least, needs = result.least_devices, f"up to {SCANNED[-1]:,} have no room"
    if least is not None:
        needs = f"it needs at least {counted(least, 'NPU')}"
    table = [("NPUs", "fits", "layout", "NPU GiB", "host GiB", "step s", "tokens/s", "of an NPU", "")]
    for row in result.rows:
        length = max(1, round(_BAR * row.tokens_per_npu / most)) if row.fits else 0
        memory = f"{row.npu_gib:.2f}", f"{row.host_gib:.2f}"
        speed = f"{row.step_seconds:.3g}", f"{row.tokens_per_second:,.0f}", f"{row.tokens_per_npu:,.1f}"
        verdict = "tight" if row.is_tight else "yes" if row.fits else "NO"
        table.append((f"{row.devices:,}", verdict, layout_text(row.parallel), *memory, *speed, "█" * length))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = ">", "<", "<", ">", ">", ">", ">", ">", "<"
    cells = ((f"{text:{side}{width}}" for text, side, width in zip(r, sides, widths, strict=True)) for r in table)
    note = host_rate_note(result.chip)
    room = f"an NPU has {chip.memory / GIB:.2f} GiB, a host {chip.host_memory / GIB:.2f}"
    return "\n".join(
        [
            f"{result.name} on NPUs of {chip.title}, the fastest layout that fits; {needs}",
            *(f"  {'  '.join(line)}".rstrip() for line in cells),
            f"  {room}; tight: less than {TIGHT_FRACTION:.0%} of one is left",
            "  times are estimates; what to trust: npu/plan/cost.py",
            *([f"  {note}"] if note else []),
        ]
    )


def draw_scan(result: Scan, path: Path) -> None:
    """Plot tokens per second over NPUs. Markers of layouts that fit are filled; the dotted line scales the first of them."""
    from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    counts = [row.devices for row in result.rows]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.plot(counts, [row.tokens_per_second for row in result.rows], color="tab:blue")
    for row in result.rows:
        face = "tab:blue" if row.fits else "white"
        axes.plot(row.devices, row.tokens_per_second, "o", color="tab:blue", markerfacecolor=face)
    first = next((row for row in result.rows if row.fits), result.rows[0])
    axes.plot(counts, [first.tokens_per_npu * n for n in counts], ":", color="gray")
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.set_xlabel("NPUs")
    axes.set_ylabel("tokens per second, estimated")
    axes.set_title(f"{result.name} on {CHIP_DATA[result.chip].title}; hollow: does not fit")
    figure.savefig(path)
