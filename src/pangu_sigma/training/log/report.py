"""HTML report of one run or several: figures from pictures.py, and the tables of the template `report.html`."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from pangu_sigma.stored.model import read_lineage, read_tuning_result
from pangu_sigma.training.log.columns import last, lines_by_kind, points
from pangu_sigma.training.log.differences import format_missing
from pangu_sigma.training.log.metrics import FILE, EmptyLogError
from pangu_sigma.training.log.pictures import (
    RunLog,
    draw_load,
    draw_losses,
    draw_numbers,
    is_constant,
    numbers,
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
    "numbers": "every other number of the log that changes, over the steps",
    "expert_load": "tokens of each expert over its fair share, by RRE layer and domain",
}
"""Descriptions of the figures for those who do not see them."""


@dataclass(frozen=True)
class _Run(RunLog):
    """Run in a report. data: domains of the data manifest; benchmarks: by task; empty if missing.

    tuning: `read_tuning` of the run; a tuned run has no `data`, which are those of its parent.
    """

    data: dict[str, DomainRecord] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None

    @property
    def constants(self) -> str:
        """Numbers that are the same at every step, in words."""
        names = [name for name in numbers(self) if is_constant(self, name)]
        return ", ".join(f"{name.replace('_', ' ')} {last(self.steps, name):,.6g}" for name in names)

    @property
    def changing(self) -> dict[str, np.ndarray]:
        """Values of each number that changes; the table of domains has the epochs."""
        names = [name for name in numbers(self) if not is_constant(self, name) and not name.startswith("epochs/")]
        return {name: points(self.steps, name)[1] for name in names}

    @property
    def unbalanced(self) -> str:
        """Load of the most loaded expert, if it is high and `routing.table` can lower it; else ""."""
        loads = segment_loads(self)
        if not loads or self.config.get("routing.table") != "random":
            return ""
        load = max(loads, key=lambda load: np.nan_to_num(load.relative_NK).max())
        relative_NK = np.nan_to_num(load.relative_NK)
        n, expert = np.unravel_index(relative_NK.argmax(), relative_NK.shape)
        if relative_NK[n, expert] < _UNBALANCED:
            return ""
        domain = self.domains[expert * len(self.domains) // relative_NK.shape[1]]
        whose = domain if load.kind == "own" else "an expert common to all domains"
        where = load.labels[n].replace(".", ", segment ")
        return f"{relative_NK[n, expert]:.2f} times its fair share, in {whose}, RRE layer {where}"

    @property
    def samples(self) -> str:
        """Hash over the training samples of all steps."""
        return xxhash.xxh3_64_hexdigest("".join(filter(None, self.steps.get("samples", []))).encode())


def write_report(
    run_folder: Path, others: Sequence[Path] = (), differences: Sequence[dict[str, dict[str, Any]]] = ()
) -> Path:
    """Write `report/` in `run_folder`: the page report.html and its figures loss, numbers, expert_load.

    others: folders of further runs, shown in the same figures and in further tables; nothing is written to these folders.
    differences: `loss_differences` of the run and each of the others.
    Returns the path of the page, which needs no other file. A figure without data is left out (a model without RRE layers has no
    expert load). Each file is written atomically, and replaces that of an earlier report.
    Raises FileNotFoundError if a run has no metrics.jsonl, EmptyLogError if the log has no step, OSError for errors of the disk.
    """
    runs = [_read(folder) for folder in (run_folder, *others)]
    figures: dict[str, Figure | None] = {
        "loss": draw_losses(runs),
        "numbers": draw_numbers(runs),
        **{f"expert_load{f'_{n}' if n > 1 else ''}": draw_load(run) for n, run in enumerate(runs, 1)},
    }
    page = run_folder / PAGE
    refuse_link(page.parent)
    page.parent.mkdir(exist_ok=True)
    pictures = {name: _save(figure, page.with_name(f"{name}.png")) for name, figure in figures.items() if figure}
    for name in figures.keys() - pictures.keys():
        page.with_name(f"{name}.png").unlink(missing_ok=True)  # of an earlier report
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [_text(run.config.get(key)) for run in runs] for key in keys}
    html = _template().render(
        names=", ".join(run.name for run in runs),
        runs=runs,
        compared=list(zip(runs[1:], differences, strict=True)),
        reasons=list(dict.fromkeys(reason for each in differences for reason in format_missing(each))),
        pictures=[
            (_ALT[name.rstrip("_0123456789")], base64.b64encode(content).decode()) for name, content in pictures.items()
        ],
        differing=[[key, *texts] for key, texts in values.items() if len(set(texts)) > 1],
    )
    write_atomically(page, html.encode())
    return page


def _read(folder: Path) -> _Run:
    lines = lines_by_kind(folder)
    if "step" not in lines:
        raise EmptyLogError(f"{folder} has no logged step; train it for at least train.log_interval steps")
    if "run" not in lines:
        raise EmptyLogError(f"{folder / FILE}: its first line, with the domains, is missing; take the file from a copy")
    config, data, benchmarks = dict[str, Any](), dict[str, DomainRecord](), dict[str, Any]()
    tuning = read_tuning(folder)
    with suppress(
        OSError, ValueError, LookupError, TypeError
    ):  # what cannot be read is not shown; the figures are of the log
        config = leaves(json.loads((folder / CONFIG_FILE).read_bytes())["config"])
    with suppress(DataError):
        path = config.get("data.path")
        data = load_manifest(folder / path).domains if isinstance(path, str) and not tuning else {}
    with suppress(OSError, ValueError, AttributeError):
        tasks = json.loads((folder / BENCHMARKS).read_text(encoding="utf-8"))
        benchmarks = {name: dict(task.items()) for name, task in tasks.items()}
    unigram: dict[str, float | None] = {name: record.unigram_entropy for name, record in data.items()}
    unigram |= lines["evaluation"][-1]["unigram"] if "evaluation" in lines else {}
    name, evaluated = folder.resolve().name, "dev set" if tuning else "held-out text"
    return _Run(name, lines, config, unigram, evaluated, data, benchmarks, tuning)


def read_tuning(folder: Path) -> dict[str, Any] | None:
    """Return parent, parent_step and options of a tuned run, and its result once it is finished; None for other runs.

    Raises DamagedFile if one of the two files was changed.
    """
    lineage = read_lineage(folder) or {}
    if lineage.get("kind") != "finetune":
        return None
    return {key: lineage.get(key) for key in ("parent", "parent_step", "options")} | (read_tuning_result(folder) or {})


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
    environment.globals |= {"last": last, "total": _total, "perplexity": _perplexity, "median": np.median}
    return environment.get_template("report.html")


def _total(of: Mapping[str, Any], name: str) -> int:
    return int(points(of, name)[1].sum())


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
