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

import numpy as np
import xxhash
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from pangu_sigma.checkpoint.changes import leaves
from pangu_sigma.checkpoint.run_folder import CONFIG_FILE
from pangu_sigma.data.manifest import DomainRecord, load_manifest
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import write_atomically
from pangu_sigma.sections import Segment
from pangu_sigma.stored.model import read_lineage, read_tuning_result
from pangu_sigma.training.log.differences import format_missing
from pangu_sigma.training.log.metrics import FILE, EmptyLogError, read_metrics
from pangu_sigma.training.log.pictures import (
    Line,
    RunLog,
    constants,
    draw_load,
    draw_losses,
    draw_optimizer,
    draw_speed,
    draw_traffic,
    segment_loads,
)
from pangu_sigma.writable import refuse_link

PAGE = Path("report/report.html")
"""Path of the HTML report in a run folder."""
BENCHMARKS = "benchmarks.json"
"""File of benchmark results in a run folder: metrics, counts, answering domain and checkpoint step of each task."""

_UNBALANCED = 1.5
"""Load of an expert, over its fair share, from which the report names a way to balance it."""
_ALT = {
    "loss": "training and held-out loss of each domain over the steps",
    "optimizer": "learning rate and gradient norms over the steps, and the loss scale if it changes",
    "tokens_per_second": "training speed in tokens per second over the steps",
    "ecss": "MiB of experts moved in a step, and the prefetcher's hit rate and stall, over the steps",
    "expert_load": "tokens of each expert over its fair share, by RRE layer and domain",
}
"""Descriptions of the figures for those who do not see them."""


@dataclass(frozen=True)
class _Run:
    """Run in a report: log, configuration by key path, domains of the data manifest, benchmarks by task; empty if missing.

    tuning: `read_tuning` of the run; a tuned run has no `data`, which are those of its parent.
    """

    log: RunLog
    config: dict[str, Any]
    data: dict[str, DomainRecord]
    benchmarks: dict[str, dict[str, Any]]
    tuning: dict[str, Any] | None

    @property
    def constants(self) -> str:
        """Values of `pictures.constants`, in words."""
        values = {name: f"{value:,.3f}".rstrip("0").rstrip(".") for name, value in constants(self.log).items()}
        return ", ".join(f"{name} {value}" for name, value in values.items())

    @property
    def unbalanced(self) -> str:
        """Load of the most loaded expert, if it is high and `routing.table` can lower it; else ""."""
        loads = segment_loads(self.log)
        if not loads or self.config.get("routing.table") != "random":
            return ""
        load = max(loads, key=lambda load: np.nan_to_num(load.relative_NK).max())
        relative_NK = np.nan_to_num(load.relative_NK)
        n, expert = np.unravel_index(relative_NK.argmax(), relative_NK.shape)
        if relative_NK[n, expert] < _UNBALANCED:
            return ""
        domains, where = self.log.domains, load.labels[n].replace(".", ", segment ")
        whose = (
            "an expert common to all domains"
            if load.kind == "common"
            else domains[expert * len(domains) // relative_NK.shape[1]]
        )
        return f"{relative_NK[n, expert]:.2f} times its fair share, in {whose}, RRE layer {where}"

    @property
    def samples(self) -> str:
        """Hash over the training samples of all steps."""
        return xxhash.xxh3_64_hexdigest("".join(line.get("samples", "") for line in self.log.steps).encode())


def write_report(
    run_folder: Path, others: Sequence[Path] = (), differences: Sequence[dict[str, dict[str, Any]]] = ()
) -> Path:
    """Write `report/` in `run_folder`: the page report.html and its figures loss, optimizer, tokens_per_second, ecss, expert_load.

    others: folders of further runs, shown in the same figures and in further tables; nothing is written to these folders.
    differences: `loss_differences` of the run and each of the others.
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
    refuse_link(page.parent)
    page.parent.mkdir(exist_ok=True)
    pictures = {name: _save(figure, page.with_name(f"{name}.png")) for name, figure in figures.items() if figure}
    for name in figures.keys() - pictures.keys():
        page.with_name(f"{name}.png").unlink(missing_ok=True)  # of an earlier report
    values = {
        key: [_text(run.config.get(key)) for run in runs] for key in sorted({k for run in runs for k in run.config})
    }
    html = _template().render(
        names=", ".join(log.name for log in logs),
        runs=runs,
        compared=[(run.log, differences_of) for run, differences_of in zip(runs[1:], differences, strict=True)],
        reasons=list(dict.fromkeys(reason for each in differences for reason in format_missing(each))),
        pictures=[
            (_ALT[name.rstrip("_0123456789")], base64.b64encode(content).decode()) for name, content in pictures.items()
        ],
        differing=[[key, *texts] for key, texts in values.items() if len(set(texts)) > 1],
    )
    write_atomically(page, html.encode())
    return page


def _read(folder: Path) -> _Run:
    by_kind: dict[str, list[Line]] = {}
    for line in read_metrics(folder):
        by_kind.setdefault(line["kind"], []).append(line)
    if "step" not in by_kind:
        raise EmptyLogError(f"{folder} has no logged step; train it for at least train.log_interval steps")
    if "run" not in by_kind:
        raise EmptyLogError(f"{folder / FILE}: its first line, with the domains, is missing; take the file from a copy")
    config, tuning = _config(folder), read_tuning(folder)
    data = {} if tuning else _data(folder, config.get("data.path"))
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
        rows=by_kind.get("rows", []),
        unigram={name: counted.get(name) for name in domains},
        evaluated="dev set" if tuning else "held-out text",
        segments=[kind for key, kind in config.items() if key.startswith("model.segments.")] or ["own"],
        stored=_stored(config, len(domains)),
    )
    tasks = _read_json(folder / BENCHMARKS)
    return _Run(log, config, data, tasks if all(isinstance(task, dict) for task in tasks.values()) else {}, tuning)


def read_tuning(folder: Path) -> dict[str, Any] | None:
    """Return parent, parent_step and options of a tuned run, and its result once it is finished; None for other runs.

    Raises DamagedFile if one of the two files was changed.
    """
    lineage = read_lineage(folder) or {}
    if lineage.get("kind") != "finetune":
        return None
    return {key: lineage.get(key) for key in ("parent", "parent_step", "options")} | (read_tuning_result(folder) or {})


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if missing or invalid."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    """Read the run's configuration by key path; empty if it cannot be read."""
    try:
        return leaves(json.loads((folder / CONFIG_FILE).read_bytes())["config"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _data(folder: Path, path: Any) -> dict[str, DomainRecord]:
    """Read the domains of the manifest of a run's data; empty if the data are missing."""
    try:
        return load_manifest(folder / path).domains if isinstance(path, str) else {}
    except DataError:
        return {}


def _stored(config: dict[str, Any], domains: int) -> dict[Segment, int]:
    """Return the number of experts in a segment of each kind, as far as the configuration tells."""
    of_domain, common = config.get("model.experts_per_domain"), config.get("model.common_experts")
    return {"own": domains * of_domain, "common": common} if of_domain and common else {}


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
    environment.globals |= {"epochs": last_epochs, "last_loss": last_loss, "perplexity": _perplexity}
    return environment.get_template("report.html")


def last_loss(lines: list[Line], domain: str) -> float | None:
    """Return the last finite loss of a domain in the `step` lines, each of which has only the domains of its batches."""
    losses = (line["per_domain_loss"].get(domain) for line in reversed(lines))
    return next((loss for loss in losses if loss is not None), None)


def last_epochs(lines: list[Line], domain: str) -> float | None:
    """Return how often the training text of a domain has been read after the last `step` line; None in a log without this."""
    found: float | None = lines[-1].get("epochs", {}).get(domain) if lines else None
    return found


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
