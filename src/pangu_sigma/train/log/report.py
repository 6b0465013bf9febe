"""HTML report of one run or several: figures from pictures.py, and the tables of the template `report.html`."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from pangu_sigma.checkpoint.changes import leaves
from pangu_sigma.checkpoint.run_folder import CONFIG_FILE
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import read_tree
from pangu_sigma.data.manifest import DomainRecord, load_manifest
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import write_atomically
from pangu_sigma.train.log.metrics import EmptyLogError, read_metrics
from pangu_sigma.train.log.pictures import (
    Line,
    RunLog,
    draw_load,
    draw_losses,
    draw_optimizer,
    draw_speed,
    draw_traffic,
)

PAGE = Path("report/report.html")
"""Path of the HTML report in a run folder."""
BENCHMARKS = "benchmarks.json"
"""File of benchmark results in a run folder: metrics, counts, answering domain and checkpoint step of each task."""


@dataclass(frozen=True)
class _Run:
    """Run in a report: log, configuration by key path, domains of the data manifest, benchmarks by task; empty if missing."""

    log: RunLog
    config: dict[str, Any]
    data: dict[str, DomainRecord]
    benchmarks: dict[str, dict[str, Any]]

    @property
    def samples(self) -> str:
        """Hash over the training samples of all steps."""
        return xxhash.xxh3_64_hexdigest("".join(line.get("samples", "") for line in self.log.steps).encode())


def write_report(run_folder: Path, others: Sequence[Path] = ()) -> Path:
    """Write `report/` in `run_folder`: the page report.html and its figures loss, optimizer, tokens_per_second, ecss, expert_load.

    others: folders of further runs, shown in the same figures and in further tables; nothing is written to these folders.
    Returns the path of the page, which needs no other file. A figure without data is left out (a model without RRE layers has no
    expert load). Each file is written atomically, and replaces that of an earlier report.
    Raises FileNotFoundError if a run has no metrics.jsonl, EmptyLogError if the log has no step, OSError for errors of the disk.
    """
    runs = [_read(folder) for folder in (run_folder, *others)]
    logs = [run.log for run in runs]
    figures: dict[str, Figure | None] = {
        "loss": draw_losses(logs),
        "optimizer": draw_optimizer(logs),
        "tokens_per_second": draw_speed(logs),
        "ecss": draw_traffic(logs),
        **{f"expert_load{f'_{n}' if n > 1 else ''}": draw_load(log) for n, log in enumerate(logs, 1)},
    }
    page = run_folder / PAGE
    page.parent.mkdir(exist_ok=True)
    pictures = {name: _save(figure, page.with_name(f"{name}.png")) for name, figure in figures.items() if figure}
    values = {
        key: [_text(run.config.get(key)) for run in runs] for key in sorted({k for run in runs for k in run.config})
    }
    html = _template().render(
        names=", ".join(log.name for log in logs),
        runs=runs,
        pictures={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        differing=[[key, *texts] for key, texts in values.items() if len(set(texts)) > 1],
    )
    write_atomically(page, html.encode())
    return page


def _read(folder: Path) -> _Run:
    by_kind: dict[str, list[Line]] = {}
    for line in read_metrics(folder):
        by_kind.setdefault(line["kind"], []).append(line)
    if "run" not in by_kind or "step" not in by_kind:
        raise EmptyLogError(f"{folder} has no logged step; train it for at least train.log_interval steps")
    config = _config(folder)
    data = _data(folder, config.get("data.path"))
    evaluations = by_kind.get("evaluation", [])
    counted = {name: record.unigram_entropy for name, record in data.items()}
    counted |= evaluations[-1]["unigram"] if evaluations else {}
    domains = by_kind["run"][0]["domains"]
    log = RunLog(
        name=folder.resolve().name,
        domains=domains,
        steps_total=by_kind["run"][0]["steps_total"],
        steps=by_kind["step"],
        evaluations=evaluations,
        loads=by_kind.get("load", []),
        spikes=by_kind.get("spike", []),
        changes=by_kind.get("config", []),
        unhealthy=by_kind.get("unhealthy", []),
        unigram={name: counted.get(name) for name in domains},
    )
    return _Run(log, config, data, _benchmarks(folder))


def _benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the results that `benchmark` has written to a run folder; empty if missing or invalid."""
    try:
        tasks = json.loads((folder / BENCHMARKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tasks if isinstance(tasks, dict) and all(isinstance(task, dict) for task in tasks.values()) else {}


def _config(folder: Path) -> dict[str, Any]:
    """Read the run's configuration by key path; empty if it cannot be read."""
    try:
        return leaves(read_tree(folder / CONFIG_FILE))
    except ConfigError:
        return {}


def _data(folder: Path, path: Any) -> dict[str, DomainRecord]:
    """Read the domains of the manifest of a run's data; empty if the data are missing."""
    try:
        return load_manifest(folder / path).domains if isinstance(path, str) else {}
    except DataError:
        return {}


def _save(figure: Figure, file: Path) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    write_atomically(file, png.getvalue())
    return png.getvalue()


@functools.cache
def _template() -> Template:
    """Load the template `report.html` with its filters and functions."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"cell": _cell, "number": _number, "text": _text}
    environment.globals |= {"last_loss": last_loss, "perplexity": _perplexity}
    return environment.get_template("report.html")


def last_loss(lines: list[Line], domain: str) -> float | None:
    """Return the last finite loss of a domain in the `step` lines, each of which has only the domains of its batches."""
    losses = (line["per_domain_loss"].get(domain) for line in reversed(lines))
    return next((loss for loss in losses if loss is not None), None)


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))


def _cell(value: float | str | None) -> str:
    """Format a table cell: a count, a number with three decimals, or a text; a dash for None."""
    if isinstance(value, int):
        return format(value, ",")
    return value if isinstance(value, str) else _number(value)


def _number(value: float | None) -> str:
    return "–" if value is None else format(value, ".3f")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
