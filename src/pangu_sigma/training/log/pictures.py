"""Figures of training runs from their logs: losses, every other number that changes, and the load of every expert.

Several runs share a figure: colours distinguish the domains, and line styles the runs.
Shape suffixes: N segments of the RRE layers, K experts stored in a segment (in a log: in the largest), D domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display
from matplotlib.lines import Line2D

from pangu_sigma.sections import Segment
from pangu_sigma.training.log.columns import columns, points

Look = dict[str, Any]
"""Arguments of matplotlib for a line or a mark."""

_FEW = 8
"""Maximum number of domains, or of lines in a panel, whose names are written in full."""
_ANNOTATE_MAX = 40
"""Maximum number of experts in a layer for which each cell of the heat map shows its value."""
_TOLD_ELSEWHERE = {"step", "tokens", "loss", "left_out"}
"""Metrics that `numbers` leaves out: the figure of losses and the table of domains have them."""
_LOGARITHMIC = {"gradient_norm", "loss_scale"}
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
    """Metrics log of a run, for figures and tables.

    lines: lines of the log by kind. config: configuration by key path; empty if it cannot be read. unigram: unigram loss of the
    held-out tokens by domain, where it is known. evaluated: name of the text of the evaluations.
    """

    name: str
    lines: Mapping[str, list[dict[str, Any]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    unigram: Mapping[str, float | None] = field(default_factory=dict)
    evaluated: str = "held-out text"

    @property
    def domains(self) -> list[str]:
        """Names of the domains of the run."""
        return [*self.lines["run"][0]["domains"]]

    @cached_property
    def steps(self) -> dict[str, Any]:
        """Columns of the `step` lines."""
        return columns(self.lines.get("step", []))

    @cached_property
    def evaluations(self) -> dict[str, Any]:
        """Columns of the `evaluation` lines."""
        return columns(self.lines.get("evaluation", []))


def draw_losses(runs: Sequence[RunLog]) -> Figure:
    """Draw the training and held-out losses by domain, spikes, skipped steps, and the unigram loss of the first run."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    many = len(domains) > 10
    palette = colormaps["turbo"](np.linspace(0, 1, len(domains))) if many else colormaps["tab10"](range(len(domains)))
    colors = dict(zip(domains, palette, strict=True))
    for run, style in _styled(runs):
        for name in run.domains:
            look = {"color": colors[name], "linestyle": style}
            axes.plot(*points(run.steps, f"loss/{name}"), **look, **_TRAINING)
            axes.plot(*points(run.evaluations, f"per_domain_loss/{name}"), **look, **_EVALUATED)
            level = run.unigram.get(name)
            if level is not None and run is runs[0] and len(domains) <= _FEW:
                axes.axhline(level, color=colors[name], **_COUNTING)
        for spike in run.lines.get("spike", []):
            axes.plot(spike["step"], spike["loss"], color=colors.get(spike["domain"], "black"), **_SPIKE)
        steps, skipped = points(run.steps, "skipped")
        steps = steps[skipped > 0]
        axes.plot(steps, np.full(len(steps), 0.01), transform=axes.get_xaxis_transform(), **_SKIPPED)
    _axes(axes, "loss (nats per token)")
    axes.set_xlabel("step")
    _legend(figure, {name: {"color": color, "linewidth": 2.0} for name, color in colors.items()}, "outside right upper")
    marks = {run.name: {"linestyle": style} for run, style in _styled(runs) if len(runs) > 1}
    marks |= {"training": _TRAINING, runs[0].evaluated: _EVALUATED, "unigram, by counting tokens": _COUNTING}
    _legend(figure, marks | {"spike": _SPIKE, "skipped steps": _SKIPPED}, "outside lower center")
    return figure


def draw_numbers(runs: Sequence[RunLog]) -> Figure | None:
    """Draw `numbers` that change in a run over the steps, a panel for each metric; None if none changes."""
    metrics: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in numbers(run)):
        if any(name in numbers(run) and not is_constant(run, name) for run in runs):
            metrics.setdefault(name.partition("/")[0], []).append(name)
    if not metrics:
        return None
    rows = math.ceil(len(metrics) / 2)
    figure = Figure(figsize=(10, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, (metric, names) in zip(panels, metrics.items(), strict=False):
        lines = [(run, style, name) for run, style in _styled(runs) for name in names]
        for number, (run, style, name) in enumerate(lines):
            label = " ".join([run.name] * (len(runs) > 1) + [name.partition("/")[2] or "all"])
            axes.plot(*points(run.steps, name), linestyle=style, color=f"C{number}", linewidth=1.0, label=label)
        _axes(axes, metric.replace("_", " "))
        axes.set_yscale("log" if metric in _LOGARITHMIC else "linear")
        if 1 < len(lines) <= _FEW:
            axes.legend(fontsize=8)
    for axes in panels[len(metrics) :]:
        axes.remove()
    return figure


def numbers(run: RunLog) -> list[str]:
    """Return the names of a run's numbers that have a value in a `step` line, besides the losses."""
    return [
        name for name in run.steps if name.partition("/")[0] not in _TOLD_ELSEWHERE and points(run.steps, name)[1].size
    ]


def is_constant(run: RunLog, name: str) -> bool:
    """Return True if no step changes a number by a thousandth, of itself or of one; a learning rate is far below one."""
    _, values = points(run.steps, name)
    return bool(np.ptp(values) <= 1e-3 * max(abs(values).max(), float(name != "learning_rate")))


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
        for n, k in np.argwhere(np.isfinite(relative_NK)):
            color = "black" if relative_NK[n, k] > np.nanmax(relative_NK) / 2 else "white"
            axes.text(k, n, f"{relative_NK[n, k]:.2f}", ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(experts))
    axes.set_yticks(range(len(load.labels)), load.labels)
    several = any("." in label for label in load.labels)
    expert = f"{'common ' * (load.kind == 'common')}expert (number in its {'segment' if several else 'layer'})"
    axes.set(xlabel=expert, ylabel=f"RRE layer{'.segment' * several} (0 = lowest)")
    if not domains:
        return
    per_domain, few = experts // len(domains), len(domains) <= _FEW
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
    total_NK = expert_load(run.lines.get("load", []))
    if total_NK is None:
        return []
    kinds = [kind for key, kind in run.config.items() if key.startswith("model.segments.")] or ["own"]
    each, common = run.config.get("model.experts_per_domain"), run.config.get("model.common_experts")
    stored = {"own": each and each * len(run.domains), "common": common}
    parts, found = len(kinds), []
    for kind in dict.fromkeys(kinds):
        numbers = [n for n in range(len(total_NK)) if kinds[n % parts] == kind]
        labels = [f"{n // parts}.{n % parts}" if parts > 1 else str(n) for n in numbers]
        of_kind_NK = total_NK[numbers, : stored[kind] or None]
        relative_NK = relative_load(of_kind_NK, len(run.domains) if kind == "own" else 1)
        found.append(SegmentLoad(kind, labels, of_kind_NK, relative_NK))
    return found


def expert_load(loads: list[dict[str, Any]]) -> np.ndarray | None:
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


def _styled(runs: Sequence[RunLog]) -> list[tuple[RunLog, str]]:
    return [(run, _STYLES[number % len(_STYLES)]) for number, run in enumerate(runs)]


def _axes(axes: Axes, title: str) -> None:
    axes.ticklabel_format(useOffset=False)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)


def _legend(figure: Figure, looks: Mapping[str, Look], place: str) -> None:
    handles = [Line2D([], [], label=name, **(Look(color="black") | look)) for name, look in looks.items()]
    columns = math.ceil(len(handles) / 24) if "right" in place else min(4, len(handles))
    figure.legend(handles=handles, loc=place, ncols=columns, fontsize=9 if len(handles) <= _FEW else 8)
