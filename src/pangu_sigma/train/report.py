"""Pictures and a page from a run's metrics: loss per domain, load of every expert, speed.

Shape suffixes: N RRE layers, K experts stored in a layer, D domains.
"""

from __future__ import annotations

import base64
import html
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.config import ConfigError
from pangu_sigma.train.metrics import read_metrics

Line = dict[str, Any]

_FEW_DOMAINS = 8
"""Largest number of domains whose names are written large and side by side."""
_ANNOTATE_MAX = 40
"""Largest number of experts in a layer for which each cell of the heat map shows its number."""


def write_report(run_folder: Path) -> Path:
    """Write `report/` in `run_folder`: loss.png, expert_load.png, tokens_per_second.png and a page with all three.

    Returns the path of the page, report.html, which needs no other file. A picture without data (a model without RRE
    layers has no expert load) is left out. Raises FileNotFoundError when the run has no metrics.jsonl, ConfigError when
    that holds no step.
    """
    lines = read_metrics(run_folder)
    by_kind: dict[str, list[Line]] = {"run": [], "step": [], "evaluation": [], "load": []}
    for line in lines:
        by_kind.setdefault(line["kind"], []).append(line)
    if not by_kind["run"] or not by_kind["step"]:
        raise ConfigError(f"{run_folder} has no logged step yet; train for at least train.log_interval steps first")
    domains = by_kind["run"][0]["domains"]
    figures = {
        "loss": _draw_loss(domains, by_kind["step"], by_kind["evaluation"]),
        "expert_load": _draw_load(domains, by_kind["load"]),
        "tokens_per_second": _draw_speed(by_kind["step"]),
    }
    folder = run_folder / "report"
    folder.mkdir(exist_ok=True)
    pictures = {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure}
    page = folder / "report.html"
    page.write_text(_page(run_folder.resolve().name, domains, by_kind, pictures), encoding="utf-8")
    return page


def _draw_loss(domains: list[str], steps: list[Line], evaluations: list[Line]) -> Figure:
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    colors = _colors(len(domains))
    for name, color in zip(domains, colors, strict=True):
        label = name
        for lines, style in (
            (steps, {"linewidth": 1.0, "alpha": 0.55}),
            (evaluations, {"marker": "o", "markersize": 4}),
        ):
            points = [(e["step"], e["per_domain_loss"].get(name)) for e in lines]
            points = [point for point in points if point[1] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=label, **style)
                label = "_"  # one legend entry a domain
    _axes(axes, "step", "loss (nats per token)", "Loss: thin line training, dots held-out text")
    columns, size = math.ceil(len(domains) / 24), 10 if len(domains) <= _FEW_DOMAINS else 8
    legend = figure.legend(title="domain", loc="outside right upper", ncols=columns, fontsize=size)
    for line in legend.get_lines():
        line.set(alpha=1.0, linewidth=2.0)
    return figure


def _draw_load(domains: list[str], loads: list[Line]) -> Figure | None:
    """A heat map, layers × experts, of the load relative to the fair share of the expert's domain."""
    total_NK = expert_load(loads)
    if total_NK is None or not total_NK.any():
        return None
    layers, experts = total_NK.shape
    relative_NK = _relative(total_NK, len(domains))
    figure = Figure(figsize=(min(16, max(8, 0.5 * experts)), 2.2 + 0.5 * layers), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(relative_NK, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, label="tokens / fair share\n(1 = balanced)")
    per_domain, few = experts // len(domains), len(domains) <= _FEW_DOMAINS
    for border in range(per_domain, experts, per_domain):
        axes.axvline(border - 0.5, color="white", linewidth=2.0 if few else 0.8)
    if experts <= _ANNOTATE_MAX:
        _write_numbers(axes, relative_NK)
    axes.set_yticks(range(layers))
    axes.set(xlabel="expert (number in its layer)", ylabel="RRE layer (0 = lowest)")
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.arange(len(domains)) * per_domain + (per_domain - 1) / 2, domains, rotation=0 if few else 90)
    top.tick_params(length=0, labelsize=10 if few else 7)
    axes.set_title(f"Load of each expert over the run ({total_NK.sum() / layers:,.0f} tokens)")
    return figure


def _write_numbers(axes: Axes, relative_NK: np.ndarray) -> None:
    """Write the number of each cell of the heat map in a colour that stands out from its background."""
    bright = np.nanmax(relative_NK) / 2
    for n, k in np.argwhere(np.isfinite(relative_NK)):
        value = relative_NK[n, k]
        color = "black" if value > bright else "white"
        axes.text(k, n, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(relative_NK.shape[1]))


def _draw_speed(steps: list[Line]) -> Figure | None:
    points = [(line["step"], line["tokens_per_second"]) for line in steps if line["tokens_per_second"] is not None]
    if not points:
        return None
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), linewidth=1.0)
    median = float(np.median([speed for _, speed in points]))
    axes.axhline(median, color="gray", linestyle="--", linewidth=1.0, label=f"median {median:,.0f} tokens/s")
    _axes(axes, "step", "speed (tokens/s)", "Training speed, without evaluation and checkpoints")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    return figure


def expert_load(loads: list[Line]) -> np.ndarray | None:
    """Tokens of each expert over the whole run, int64 [N, K], from the `load` lines; None without any."""
    if not loads or not loads[0]["tokens_NK"]:
        return None
    return np.sum([line["tokens_NK"] for line in loads], axis=0, dtype=np.int64)


def _relative(total_NK: np.ndarray, domains: int) -> np.ndarray:
    """Load over the mean load of the expert's domain; NaN for a domain that received no token."""
    total_NDE = total_NK.reshape(len(total_NK), domains, -1).astype(float)
    mean_ND1 = total_NDE.mean(axis=2, keepdims=True)
    return np.divide(total_NDE, mean_ND1, out=np.full_like(total_NDE, np.nan), where=mean_ND1 > 0).reshape(
        total_NK.shape
    )


def _colors(count: int) -> list[Any]:
    """`count` colours, which can be told apart as long as that is possible."""
    if count <= 10:
        return [colormaps["tab10"](i) for i in range(count)]
    return list(colormaps["turbo"](np.linspace(0, 1, count)))


def _axes(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)


def _save(figure: Figure, file: Path) -> bytes:
    figure.savefig(file, dpi=110)
    return file.read_bytes()


def _page(title: str, domains: list[str], by_kind: dict[str, list[Line]], pictures: dict[str, bytes]) -> str:
    steps = by_kind["step"]
    images = "\n".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for name, content in pictures.items()
    )
    skipped, tokens = sum(line["skipped"] for line in steps), sum(line["tokens"] for line in steps)
    name = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100%; display: block; margin: 1em 0 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em 1em; text-align: right; border-bottom: 1px solid #ccc }}
td:first-child, th:first-child {{ text-align: left }}
</style></head><body>
<h1>Run {name}</h1>
<p>Step {steps[-1]["step"]:,} of {by_kind["run"][0]["steps_total"]:,}; {tokens:,} tokens;
{skipped} steps skipped because gradients overflowed.</p>
{_table(domains, steps, by_kind["evaluation"])}
{images}
</body></html>
"""


def _table(domains: list[str], steps: list[Line], evaluations: list[Line]) -> str:
    """A table of the last known losses of each domain; perplexity is that of the held-out text."""
    rows = []
    for name in domains:
        train, held_out = _last(steps, name), _last(evaluations, name)
        perplexity = None if held_out is None else math.exp(min(held_out, 700.0))
        cells = "".join(f"<td>{'–' if v is None else format(v, '.3f')}</td>" for v in (train, held_out, perplexity))
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    head = "<tr><th>domain</th><th>training loss</th><th>held-out loss</th><th>held-out perplexity</th></tr>"
    return f"<table>{head}{''.join(rows)}</table><p>Losses in nats per token.</p>"


def _last(lines: list[Line], domain: str) -> float | None:
    """The newest loss of a domain; a step line holds only the domains of its batches."""
    losses = (line["per_domain_loss"].get(domain) for line in reversed(lines))
    return next((loss for loss in losses if loss is not None), None)
