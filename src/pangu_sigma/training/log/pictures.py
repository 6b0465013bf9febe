"""Figures of training runs from their logs: losses, optimizer, speed, ECSS traffic, and load of every expert.

Several runs share a figure: colours distinguish the domains, and line styles the runs.
Shape suffixes: N segments of the RRE layers, K experts stored in a segment (in a log: in the largest), D domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display
from matplotlib.lines import Line2D

from pangu_sigma.sections import Segment
from pangu_sigma.training.log.metrics import TRAFFIC, UPDATE

Line = dict[str, Any]
"""Line of metrics.jsonl, parsed."""
Look = dict[str, Any]
"""Arguments of matplotlib for a line or a mark."""

_FEW_DOMAINS = 8
"""Maximum number of domains whose names are written large and side by side."""
_ANNOTATE_MAX = 40
"""Maximum number of experts in a layer for which each cell of the heat map shows its value."""
_NORMS = {
    "gradient_norm": "all gradients",
    "gradient_norm_dense": "dense parameters",
    "gradient_norm_experts": "experts",
}
"""Norms that are drawn, by their keys in `step` lines, with their names in legends."""
_LABELS = {
    "loss_scale": "loss scale",
    **dict(zip(TRAFFIC, ("MiB fetched", "MiB returned"), strict=True)),
    **dict(zip(UPDATE, ("worker busy", "wait for updates"), strict=True)),
}
"""Names for people of keys of `step` lines that often do not change."""
_TRAINING: Look = {"linewidth": 1.0, "alpha": 0.55}
_EVALUATED: Look = {"marker": "o", "markersize": 4}
_COUNTING: Look = {"linestyle": (0, (1, 4)), "linewidth": 1.0}
_SPIKE: Look = {"marker": "^", "markersize": 6, "linestyle": ""}
_SKIPPED: Look = {"marker": "x", "color": "red", "linestyle": ""}
"""Lines and marks of the figure of losses."""
_STYLES = ("-", "--", ":", "-.")
"""Line styles of the runs of a figure, in turn."""


@dataclass(frozen=True)
class RunLog:
    """Metrics log of a run, for figures. steps, evaluations, loads, spikes, changes, unhealthy, rows: log lines of these
    kinds, in order.

    unigram: unigram loss of the held-out tokens by domain; None if unknown. evaluated: name of the text of the `evaluations`.
    segments: kind of each segment of an RRE layer. stored: experts in a segment of each kind; without, as many as the loads have.
    """

    name: str
    domains: list[str]
    steps_total: int
    steps: list[Line]
    evaluations: list[Line]
    loads: list[Line]
    spikes: list[Line]
    changes: list[Line]
    unhealthy: list[Line]
    unigram: dict[str, float | None]
    evaluated: str = "held-out text"
    segments: Sequence[Segment] = ("own",)
    stored: Mapping[Segment, int] = field(default_factory=dict)
    rows: Sequence[Line] = ()


def draw_losses(runs: Sequence[RunLog]) -> Figure:
    """Draw the training and held-out losses by domain, spikes, skipped steps, and the unigram loss of the first run."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    many = len(domains) > 10
    palette = colormaps["turbo"](np.linspace(0, 1, len(domains))) if many else colormaps["tab10"](range(len(domains)))
    colors = dict(zip(domains, palette, strict=True))
    marks: dict[str, Look] = {run.name: {"linestyle": style} for run, style in _styled(runs) if len(runs) > 1}
    for run, style in _styled(runs):
        for name in run.domains:
            color, label = colors[name], name
            for lines, kind, look in (
                (run.steps, "training", _TRAINING),
                (run.evaluations, run.evaluated, _EVALUATED),
            ):
                points = _points((line["step"], line["per_domain_loss"].get(name)) for line in lines)
                if points:
                    axes.plot(*points, color=color, linestyle=style, label=label if run is runs[0] else "_", **look)
                    label = "_"  # one legend entry a domain
                    marks[kind] = look
            counting = run.unigram.get(name)
            if counting is not None and run is runs[0] and len(domains) <= _FEW_DOMAINS:
                marks["unigram, by counting tokens"] = _COUNTING
                axes.axhline(counting, color=color, **_COUNTING)
        for spike in run.spikes:
            marks["spike"] = _SPIKE
            axes.plot(spike["step"], spike["loss"], color=colors.get(spike["domain"], "black"), **_SPIKE)
        if skipping := [line["step"] for line in run.steps if line["skipped"]]:
            marks["skipped steps"] = _SKIPPED
            axes.plot(skipping, [0.01] * len(skipping), transform=axes.get_xaxis_transform(), **_SKIPPED)
    _axes(axes, "step", "loss (nats per token)", "Loss")
    if not axes.get_legend_handles_labels()[0]:
        return figure  # no loss was finite
    columns, size = math.ceil(len(domains) / 24), 10 if len(domains) <= _FEW_DOMAINS else 8
    legend = figure.legend(title="domain", loc="outside right upper", ncols=columns, fontsize=size)
    for line in legend.get_lines():
        line.set(alpha=1.0, linewidth=2.0)
    handles = [Line2D([], [], label=name, **(Look(color="black") | look)) for name, look in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9)
    return figure


def draw_optimizer(runs: Sequence[RunLog]) -> Figure:
    """Draw learning rate and gradient norms over the steps of the runs, and the loss scale if it changes."""
    scaled = any("loss scale" not in constants(run) for run in runs)
    figure = Figure(figsize=(10, 7.5 if scaled else 5), layout="constrained")
    rates, norms, *scales = figure.subplots(3 if scaled else 2, sharex=True)
    _draw_keys(rates, runs, {"learning_rate": ""})
    _draw_keys(norms, runs, _NORMS)
    titles = ["Learning rate", "gradient norm before clipping", *(["loss scale"] if scaled else [])]
    _axes(rates, "", "learning rate", ", ".join(titles))
    rates.set_ylim(bottom=0)
    _axes(norms, "" if scaled else "step", "gradient norm", "")
    norms.set_yscale("log")
    for axes in scales:
        _draw_keys(axes, runs, {"loss_scale": ""})
        _axes(axes, "step", "loss scale", "")
        axes.set_yscale("log", base=2)
    return figure


def draw_speed(runs: Sequence[RunLog]) -> Figure | None:
    """Draw the training speed in tokens per second, and its median, for each run; None if no log has a speed."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes, drawn = figure.subplots(), False
    for number, (run, style) in enumerate(_styled(runs)):
        if points := _of_steps(run, "tokens_per_second"):
            axes.plot(*points, linewidth=1.0, color=f"C{number}", linestyle=style)
            median = float(np.median(points[1]))
            label = f"{f'{run.name}: ' if len(runs) > 1 else ''}median {median:,.0f} tokens/s"
            axes.axhline(median, color="gray", linestyle=style, linewidth=1.0, label=label)
            drawn = True
    if not drawn:
        return None
    _axes(axes, "step", "speed (tokens/s)", "Training speed, without evaluation and checkpoints")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    return figure


def draw_traffic(runs: Sequence[RunLog]) -> Figure | None:
    """Draw the experts' traffic per step, and the worker's time and the waits for it; None if no value changes in any run."""
    changing = [
        key
        for key in (*TRAFFIC, *UPDATE)
        if any(_of_steps(run, key) and _LABELS[key] not in constants(run) for run in runs)
    ]
    if not changing:
        return None
    panels = [[key for key in changing if key.endswith("_mib") == mib] for mib in (True, False)]
    panels = [keys for keys in panels if keys]
    figure = Figure(figsize=(10, 2.5 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, keys in zip(rows, panels, strict=True):
        _draw_keys(axes, runs, {key: _LABELS[key] for key in keys})
        first, last = axes is rows[0], axes is rows[-1]
        title = "ECSS: experts moved between the store and the device" if first else ""
        _axes(axes, "step" if last else "", "MiB" if keys[0].endswith("_mib") else "share", title)
        axes.set_ylim(bottom=0)
    return figure


def _draw_keys(axes: Axes, runs: Sequence[RunLog], names: Mapping[str, str]) -> None:
    """Draw keys of `step` lines of several runs, with a legend at the right. names: key → name, "" without one."""
    for number, (run, style) in enumerate(_styled(runs)):
        for shade, (key, name) in enumerate(names.items()):
            if points := _of_steps(run, key):
                label = ": ".join(filter(None, (run.name if len(runs) > 1 else "", name)))
                axes.plot(*points, linestyle=style, color=f"C{3 * number + shade}", linewidth=1.0, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def constants(run: RunLog) -> dict[str, float]:
    """Return the loss scale and the figures of ECSS that no step of a run changes by a thousandth, by their names for people."""
    found = {}
    for key, label in _LABELS.items():
        _, values = _of_steps(run, key) or ((), ())
        if values and max(values) - min(values) <= 1e-3 * max(1.0, *map(abs, values)):
            found[label] = values[-1]
    return found


def draw_load(run: RunLog) -> Figure | None:
    """Draw heat maps, layers × experts, of the tokens per expert over its fair share: the mean of its domain, or in common segments
    of all experts. One of own segments, and one of common ones if there are any; None if `expert_load` is."""
    loads = segment_loads(run)
    if not loads:
        return None
    rows = [len(load.labels) for load in loads]
    widest = max(load.total_NK.shape[1] for load in loads)
    figure = Figure(figsize=(min(16, max(8, 0.5 * widest)), 2.2 * len(loads) + 0.5 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(loads), squeeze=False, height_ratios=rows)[:, 0]
    for axes, load in zip(panels, loads, strict=True):
        _draw_segments(figure, axes, load, run.domains if load.kind == "own" else [])
    panels[0].set_title(f"Load of each expert over the run ({loads[0].total_NK[0].sum():,.0f} tokens)")
    return figure


def _draw_segments(figure: Figure, axes: Axes, load: SegmentLoad, domains: list[str]) -> None:
    """Draw a heat map of segments of one kind, divided by domains if there are any."""
    relative_NK, experts = load.relative_NK, load.total_NK.shape[1]
    image = axes.imshow(relative_NK, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="tokens / fair share\n(1 = balanced)")
    if experts <= _ANNOTATE_MAX:
        _write_numbers(axes, relative_NK)
    axes.set_yticks(range(len(load.labels)), load.labels)
    several = any("." in label for label in load.labels)
    expert = f"{'common ' * (load.kind == 'common')}expert (number in its {'segment' if several else 'layer'})"
    axes.set(xlabel=expert, ylabel=f"RRE layer{'.segment' * several} (0 = lowest)")
    if not domains:
        return
    per_domain, few = experts // len(domains), len(domains) <= _FEW_DOMAINS
    for border in range(per_domain, experts, per_domain):
        axes.axvline(border - 0.5, color="white", linewidth=2.0 if few else 0.8)
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.arange(len(domains)) * per_domain + (per_domain - 1) / 2, domains, rotation=0 if few else 90)
    top.tick_params(length=0, labelsize=10 if few else 7)


@dataclass(frozen=True)
class SegmentLoad:
    """Load of the segments of one kind over a run. labels: of each, the number of its RRE layer, or layer.segment if a layer has
    several. total_NK, relative_NK: tokens of each expert, and these over the expert's fair share, NaN without tokens."""

    kind: Segment
    labels: list[str]
    total_NK: np.ndarray
    relative_NK: np.ndarray


def segment_loads(run: RunLog) -> list[SegmentLoad]:
    """Return the load of the own segments of a run, then that of the common ones; none that it does not have."""
    total_NK = expert_load(run.loads)
    if total_NK is None:
        return []
    parts, found = len(run.segments), []
    for kind in dict.fromkeys(run.segments):
        numbers = [n for n in range(len(total_NK)) if run.segments[n % parts] == kind]
        labels = [f"{n // parts}.{n % parts}" if parts > 1 else str(n) for n in numbers]
        stored = run.stored.get(kind, total_NK.shape[1])
        of_kind_NK = total_NK[numbers, :stored]
        relative_NK = relative_load(of_kind_NK, len(run.domains) if kind == "own" else 1)
        found.append(SegmentLoad(kind, labels, of_kind_NK, relative_NK))
    return found


def expert_load(loads: list[Line]) -> np.ndarray | None:
    """Sum the `load` lines of a log to the tokens of each expert over the run, int64 [N, K]; None if no token met an expert.

    The lines of a model without RRE layers have one row of zeros.
    """
    total_NK = np.sum([line["tokens_NK"] for line in loads], axis=0, dtype=np.int64)
    return total_NK if total_NK.any() else None


def relative_load(total_NK: np.ndarray, domains: int) -> np.ndarray:
    """Divide the load of each expert [N, K] by the mean load of its domain's experts; NaN for a domain without tokens."""
    total_NDE = total_NK.reshape(len(total_NK), domains, -1).astype(float)
    mean_ND1 = total_NDE.mean(axis=2, keepdims=True)
    relative_NDE = np.divide(total_NDE, mean_ND1, out=np.full_like(total_NDE, np.nan), where=mean_ND1 > 0)
    return relative_NDE.reshape(total_NK.shape)


def _write_numbers(axes: Axes, relative_NK: np.ndarray) -> None:
    """Write the value of each cell of the heat map in a colour that contrasts with its background."""
    bright = np.nanmax(relative_NK) / 2
    for n, k in np.argwhere(np.isfinite(relative_NK)):
        value = relative_NK[n, k]
        color = "black" if value > bright else "white"
        axes.text(k, n, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(relative_NK.shape[1]))


def _styled(runs: Sequence[RunLog]) -> list[tuple[RunLog, str]]:
    return [(run, _STYLES[number % len(_STYLES)]) for number, run in enumerate(runs)]


def _of_steps(run: RunLog, key: str) -> tuple[list[float], list[float]] | tuple[()]:
    """Return steps and values of a key in the `step` lines that have it; empty without any."""
    return _points((line["step"], line.get(key)) for line in run.steps)


def _points(pairs: Iterable[tuple[float, float | None]]) -> tuple[list[float], list[float]] | tuple[()]:
    known = [(step, value) for step, value in pairs if value is not None]
    return ([step for step, _ in known], [value for _, value in known]) if known else ()


def _axes(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.ticklabel_format(useOffset=False)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
