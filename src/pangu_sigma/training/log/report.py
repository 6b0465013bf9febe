"""HTML report of one run or several: figures and tables of the numbers by the names that the log has.

Several runs share a figure: colours distinguish the domains or other parts of a number, and line styles the runs.
Shape suffixes: N segments of the RRE layers, K experts stored in the largest one, G groups of experts, E experts of a group.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.checkpoint.changes import leaves
from pangu_sigma.checkpoint.run_folder import CONFIG_FILE
from pangu_sigma.sealed import write_atomically
from pangu_sigma.training.log.metrics import FILE, EmptyLogError, columns, expert_load, flat, lines_by_kind, points
from pangu_sigma.training.log.summary import PAGE, format_rows, read_tuning
from pangu_sigma.writable import refuse_link

logger = logging.getLogger(__name__)

Table = list[dict[str, Any]]
"""Lines of a table of the page, each with its cells by their heads; a line may lack some."""

BENCHMARKS = "benchmarks.json"
"""File of benchmark results in a run folder: metrics, counts, answering domain and checkpoint step of each task."""
_UNBALANCED = 1.5
"""Load of an expert, over its fair share, from which the report names a way to balance it."""
_NO_NUMBER = {"tokens", "left_out"}
"""Metrics that no panel shows."""
_LOGARITHMIC = {"gradient_norm", "loss_scale"}
_LEGEND = 20
"""Maximum number of lines in a panel that has a legend."""
_STYLES = ("-", "--", ":", "-.")
"""Line styles of the runs of a figure, in turn."""


@dataclass(frozen=True)
class RunLog:
    """Metrics log of a run, for figures and tables. lines: by kind. config: configuration by key path. tuning: `read_tuning`.

    benchmarks: by task. Any of them may be unknown.
    """

    name: str
    lines: Mapping[str, list[dict[str, Any]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None
    benchmarks: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def evaluation_set(self) -> str:
        """What evaluations read."""
        return "dev" if self.tuning else "held_out"

    @property
    def domains(self) -> list[str]:
        """Names of the domains of the run."""
        return [*self.lines["run"][0]["domains"]]

    @cached_property
    def numbers(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and finite values of each number by its name. Names of `evaluation` lines begin with `held_out_` or `dev_`."""
        steps, evaluations = (columns(self.lines.get(kind, [])) for kind in ("step", "evaluation"))
        numbers = {name: points(steps, name) for name in steps if name != "step"}
        for name in [name for name in evaluations if name != "step"]:
            numbers[f"{self.evaluation_set}_{name.removeprefix('per_domain_')}"] = points(evaluations, name)
        return {name: (step, values) for name, (step, values) in numbers.items() if values.size}

    @cached_property
    def load(self) -> tuple[list[str], np.ndarray] | None:
        """Labels of the segments, own ones first, such as "0.1 common" (layer, segment and kind), and the load of each expert over
        its fair share [N, K]: the mean over the experts of its domain, or over all experts of a common segment. NaN for a domain
        without tokens, and where there is no expert. None for a run without load."""
        total_NK = expert_load(self.lines.get("load", []))
        if total_NK is None:
            return None
        kinds = [kind for key, kind in self.config.items() if key.startswith("model.segments.")] or ["own"]
        own_experts = (self.config.get("model.experts_per_domain") or 0) * len(self.domains)
        stored = {"own": own_experts or None, "common": self.config.get("model.common_experts")}  # None: all columns
        labels, relative_NK = list[str](), np.full(total_NK.shape, np.nan)
        own_first = sorted(range(len(total_NK)), key=lambda n: kinds[n % len(kinds)] != "own")
        for row, n in enumerate(own_first):
            kind = kinds[n % len(kinds)]
            # groups of experts that share tokens, [G, E]: the domains, or all experts of a common segment
            total_GE = total_NK[n, : stored[kind]].reshape(len(self.domains) if kind == "own" else 1, -1)
            with np.errstate(invalid="ignore"):  # 0 / 0
                relative_NK[row, : total_GE.size] = (total_GE / total_GE.mean(axis=1, keepdims=True)).ravel()
            labels.append(f"{n // len(kinds)}.{n % len(kinds)} {kind}")
        return labels, relative_NK


def draw_numbers(runs: Sequence[RunLog]) -> Figure:
    """Draw numbers over the steps, a panel for each metric: losses with the unigram loss, and all others that change in a run."""
    # metric → names of its numbers, as keys: a set would lose their order
    panels: dict[str, dict[str, None]] = {"loss": {}}
    for run in runs:
        for name, (_, values) in run.numbers.items():
            metric = name.partition("/")[0].removeprefix(f"{run.evaluation_set}_")
            if metric in ("loss", "unigram"):
                panels["loss"][name] = None
            elif metric not in _NO_NUMBER and changes(name, values):
                panels.setdefault(metric, {})[name] = None
    height = 1 + math.ceil((len(panels) - 1) / 2)  # in panels; the first is as wide as two
    figure = Figure(figsize=(12, 3 * height), layout="constrained")
    for place, (metric, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(height, 2, (1, 2) if place == 1 else place + 1)
        # a number's name is NUMBER or NUMBER/PART, with a domain as part: each part has a colour
        parts = list(dict.fromkeys(["", *(name.partition("/")[2] for name in names)]))
        for run, style in zip(runs, cycle(_STYLES), strict=False):
            for name in names:
                number, _, part = name.partition("/")
                # words that all lines of the panel share are left out
                label = " ".join([run.name] * (len(runs) > 1) + [number] * (number != metric) + [part or "all"])
                (line,) = axes.plot(*run.numbers.get(name, ((), ())), style, linewidth=1.0, label=label)
                line.set(color=f"C{parts.index(part)}", marker="" if number == metric else ".")
            for spike in run.lines.get("spike", []) if metric == "loss" else ():
                axes.plot(spike["step"], spike["loss"], "r^")
        axes.set_title(metric.replace("_", " ") + ", ▲: spike" * (metric == "loss"), fontsize=11)
        axes.set_yscale("log" if metric in _LOGARITHMIC else "linear")
        axes.grid(alpha=0.3)
        if 1 < len(axes.lines) <= _LEGEND:
            axes.legend(fontsize=7, ncols=1 + len(axes.lines) // 6)
    return figure


def changes(name: str, values: np.ndarray) -> bool:
    """Return True if a number changes by more than a thousandth of itself, and of 1.0 unless it is the (small) learning rate."""
    return bool(np.ptp(values) > 1e-3 * max(abs(values).max(), float(name != "learning_rate")))


def draw_load(run: RunLog) -> Figure | None:
    """Draw a heat map, segments × experts, of the load of each expert over its fair share; None if the run has no load."""
    if run.load is None:
        return None
    labels, relative_NK = run.load
    figure = Figure(figsize=(12, 2.5 + 0.4 * len(labels)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(relative_NK, aspect="auto", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="tokens / fair share\n(1 = balanced)")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="expert (number in its segment)", ylabel="RRE layer.segment (0 = lowest)")
    experts_per_domain = run.config.get("model.experts_per_domain") or relative_NK.shape[1] // len(run.domains)
    borders = np.arange(len(run.domains)) * experts_per_domain - 0.5
    own_segments = sum(label.endswith("own") for label in labels)
    axes.vlines(borders[1:], -0.5, own_segments - 0.5, "white")
    axes.secondary_xaxis("top").set_xticks(borders + experts_per_domain / 2, run.domains, rotation=30)
    axes.set_title("Load of each expert over the run")
    return figure


def _imbalance_text(run: RunLog) -> str:
    """Return a text on the most loaded expert, if its load is high and another `routing.table` can lower it; else ""."""
    if run.load is None or run.config.get("routing.table") != "random":
        return ""
    labels, relative_NK = run.load
    n, expert = np.unravel_index(np.nanargmax(relative_NK), relative_NK.shape)
    text = f"{relative_NK[n, expert]:.2f} times its fair share: expert {expert} of segment {labels[n]}"
    return text if relative_NK[n, expert] >= _UNBALANCED else ""


def _by_domain(run: RunLog) -> Table:
    """Return a table of domains with every number that is by domain: its last value in the log, or the sum of a count of steps."""
    rows: dict[str, dict[str, Any]] = {name: {"domain": name} for name in run.domains}
    for name, (_, values) in run.numbers.items():
        metric, _, domain = name.rpartition("/")
        if domain in rows:
            rows[domain][metric] = values.sum() if metric.startswith("left_out/") else values[-1]
    return [*rows.values()]


def _tables(run: RunLog) -> dict[str, Table]:
    """Return the tables of a run besides `_by_domain`, by title. The page leaves out an empty table."""
    tables: dict[str, Table] = {
        "Numbers": [],
        "Fine-tuning": [],
        "Benchmarks": [{"task": name} | task for name, task in run.benchmarks.items()],
        "Loss spikes, the latest 50": run.lines.get("spike", [])[-50:],
        "Changes of the configuration": [
            {"after step": line["step"], "key": key, "was": as_text(old), "became": as_text(new)}
            for line in run.lines.get("config", [])
            for key, old, new in line["changes"]
        ],
    }
    for name, (_, v) in run.numbers.items():
        if name.rpartition("/")[2] not in run.domains:
            row = {"number": name, "lowest": v.min(), "median": np.median(v), "highest": v.max(), "last": v[-1]}
            tables["Numbers"].append(row)
    tuning = {"forgetting": {"skipped": "the fine-tuning is not finished"}} | run.tuning if run.tuning else {}
    # forgetting/domains/en/loss is a cell of the table "Forgetting": title → domain → row
    by_domain: dict[str, dict[str, dict[str, Any]]] = {}
    for name, value in flat(tuning).items():
        title, is_by_domain, domain_and_head = name.partition("/domains/")
        domain, _, head = domain_and_head.partition("/")
        if is_by_domain:
            by_domain.setdefault(title.capitalize(), {}).setdefault(domain, {"domain": domain})[head] = value
        else:
            tables["Fine-tuning"].append({"key": name, "value": value})
    return tables | {title: [*rows.values()] for title, rows in by_domain.items()}


def draw_report(run: Path) -> None:
    """Write the report of a finished run. A log without lines to draw is logged as a warning, and no error."""
    try:
        write_report(run)
    except EmptyLogError as problem:
        logger.warning("no report is drawn: %s", problem)


def write_report(run_folder: Path, others: Sequence[Path] = (), compared: str = "") -> Path:
    """Write the page `report/report.html` in `run_folder`, with the figures of losses, numbers and expert load.

    others: folders of further runs, shown in the same figures and in further tables; nothing is written to these folders.
    compared: tables of the run's losses beside theirs, as `report` prints them.
    Returns the path of the page, which needs no other file. A figure without data is left out (a model without RRE layers has no
    expert load). The page is written atomically, and replaces an earlier one.
    Raises FileNotFoundError if a run has no metrics.jsonl, EmptyLogError if the log has no step, OSError for errors of the disk.
    """
    folders = [run_folder, *others]
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    runs = list(map(_read_run, folders, names))
    keys = sorted({key for run in runs for key in run.config})
    settings = [{"key": key} | {run.name: as_text(run.config.get(key)) for run in runs} for key in keys]
    load = "tokens of each expert over its fair share, by RRE layer and domain"
    figures = {"losses of each domain, and every other number that changes, over the steps": draw_numbers(runs)}
    figures |= {f"{load}, {run.name}": figure for run in runs if (figure := draw_load(run))}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["cell"] = _cell
    html = environment.get_template("report.html").render(
        runs=[(run, _by_domain(run), _imbalance_text(run), _tables(run)) for run in runs],
        compared=compared,
        settings=settings,
        differing=[row for row in settings if len({*row.values()} - {row["key"]}) > 1],
        pictures={description: _png(figure) for description, figure in figures.items()},
        format_rows=format_rows,
    )
    page = run_folder / PAGE
    refuse_link(page.parent)
    page.parent.mkdir(exist_ok=True)
    write_atomically(page, html.encode())
    return page


def _read_run(folder: Path, name: str) -> RunLog:
    """Read the log of a run folder. name: name of the run in the page. Raises FileNotFoundError without a log, EmptyLogError."""
    lines, tuning = lines_by_kind(folder), read_tuning(folder)
    if "step" not in lines:
        raise EmptyLogError(f"{folder} has no logged step; train it for at least train.log_interval steps")
    if "run" not in lines:
        raise EmptyLogError(f"{folder / FILE}: its first line, with the domains, is missing; take the file from a copy")
    config, benchmarks = dict[str, Any](), dict[str, Any]()
    # the figures are of the log: a file that cannot be read is left out of the page
    with suppress(OSError, ValueError, LookupError, TypeError):
        config = leaves(json.loads((folder / CONFIG_FILE).read_bytes())["config"])
    with suppress(OSError, ValueError):
        benchmarks = json.loads((folder / BENCHMARKS).read_text(encoding="utf-8"))
    return RunLog(name, lines, config, tuning, benchmarks)


def _png(figure: Figure) -> str:
    """Draw a figure; return the picture in base64."""
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    return base64.b64encode(png.getvalue()).decode()


def _cell(value: Any) -> str:
    """Format a table cell: a count, a number with five digits, yes or no, or a text; a dash for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.5g}"
    return "–" if value is None else value if isinstance(value, str) else as_text(value)


def as_text(value: Any) -> str:
    """Return a value of a configuration as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str)
