"""A page from the logs of one run or several: pictures, which pictures.py draws, and tables of losses, spikes, data and keys."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from matplotlib.figure import Figure

from pangu_sigma.checkpoint.run_folder import CONFIG_FILE
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import read_tree
from pangu_sigma.sealed import write_atomically
from pangu_sigma.train.metrics import NothingLogged, read_metrics
from pangu_sigma.train.pictures import (
    Line,
    RunLog,
    draw_load,
    draw_losses,
    draw_optimizer,
    draw_speed,
    draw_traffic,
)

PAGE = Path("report/report.html")
"""The page in a run folder."""
BENCHMARKS = "benchmarks.json"
"""File of a run folder: by task, its metrics, counts, the domain that answered, and the step of the checkpoint."""
_SHOWN = 50
"""Largest number of spikes, the latest ones, that the page lists."""


@dataclass(frozen=True)
class _Run:
    """A run of the page: its log, its configuration by key path, the domains of its data's manifest, and benchmarks by task; empty
    if not there."""

    log: RunLog
    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    benchmarks: dict[str, dict[str, Any]]


def write_report(run_folder: Path, others: Sequence[Path] = ()) -> Path:
    """Write `report/` in `run_folder`: a page, and its pictures loss, optimizer, tokens_per_second, ecss and expert_load.

    others: folders of runs that are drawn into the same pictures and get their own tables; their files stay as they are.
    Returns the path of the page, report.html, which needs no other file. A picture without data (a model without RRE
    layers has no expert load) is left out. Each file is written whole or not at all, over that of an earlier report.
    Raises FileNotFoundError when a run has no metrics.jsonl, NothingLogged when that holds no step, OSError when the disk
    refuses.
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
    folder = page.parent
    folder.mkdir(exist_ok=True)
    pictures = {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure}
    write_atomically(page, _page(runs, pictures).encode())
    return page


def _read(folder: Path) -> _Run:
    by_kind: dict[str, list[Line]] = {}
    for line in read_metrics(folder):
        by_kind.setdefault(line["kind"], []).append(line)
    if "run" not in by_kind or "step" not in by_kind:
        raise NothingLogged(f"{folder} has no logged step; train it for at least train.log_interval steps")
    config = _config(folder)
    data = _data(folder, config.get("data.path"))
    evaluations = by_kind.get("evaluation", [])
    counted = (evaluations[-1] if evaluations else {}).get("unigram") or {}
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
        unigram={name: counted.get(name, data.get(name, {}).get("unigram_entropy")) for name in domains},
    )
    return _Run(log, config, data, _benchmarks(folder))


def _benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """What `benchmark` has noted in a run; empty if nothing, or not what it writes."""
    try:
        tasks = json.loads((folder / BENCHMARKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tasks if isinstance(tasks, dict) and all(isinstance(task, dict) for task in tasks.values()) else {}


def _config(folder: Path) -> dict[str, Any]:
    """The run's configuration by key path; empty if it cannot be read."""
    try:
        return dict(_leaves(read_tree(folder / CONFIG_FILE), ""))
    except ConfigError:
        return {}


def _leaves(tree: Any, path: str) -> Iterable[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield path, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _data(folder: Path, path: Any) -> dict[str, dict[str, Any]]:
    """The domains of the manifest of a run's data, as plain values; empty if the data are no longer there."""
    if not isinstance(path, str):
        return {}
    try:
        domains = json.loads((folder / path / "manifest.json").read_text(encoding="utf-8"))["domains"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return domains if isinstance(domains, dict) else {}


def _save(figure: Figure, file: Path) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    write_atomically(file, drawn.getvalue())
    return drawn.getvalue()


def _page(runs: list[_Run], pictures: dict[str, bytes]) -> str:
    images = "\n".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for name, content in pictures.items()
    )
    several = len(runs) > 1
    name = html.escape(", ".join(run.log.name for run in runs))
    compared = f"{_comparison(runs)}{_differences(runs)}" if several else ""
    heads = "".join(f"{_head(run, several)}{_losses(run.log)}" for run in runs)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100%; display: block; margin: 1em 0 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em 1em; text-align: right; border-bottom: 1px solid #ccc }}
td:first-child, th:first-child {{ text-align: left }} .ill {{ color: #b00; font-weight: bold }}
</style></head><body>
<h1>{"Runs" if several else "Run"} {name}</h1>
{compared}{heads}
{images}
{"".join(_details(run, several) for run in runs)}
</body></html>
"""


def _head(run: _Run, several: bool) -> str:
    """How far a run is, and what went wrong, in sentences."""
    steps = run.log.steps
    skipped, tokens = sum(line["skipped"] for line in steps), sum(line["tokens"] for line in steps)
    left_out = sum(line.get("left_out", 0) for line in steps)
    title = f"<h2>{html.escape(run.log.name)}</h2>" if several else ""
    ill = [line for line in run.log.unhealthy if line["tensors"]]
    return f"""{title}<p>Step {steps[-1]["step"]:,} of {run.log.steps_total:,}; {tokens:,} tokens;
{skipped:,} steps skipped, which changed nothing; {left_out:,} of them without a finite loss, which no mean here counts;
{len(run.log.spikes):,} loss spikes.</p>
{"".join(f'<p class="ill">After step {line["step"]:,}: {html.escape(_tensors(line))}</p>' for line in ill)}"""


def _tensors(line: Line) -> str:
    """What an `unhealthy` line found."""
    named = [
        f"{tensor['tensor']}"
        + (
            ""
            if tensor["expert"] is None
            else f" of expert {tensor['expert']} ({tensor['domain']}), RRE layer {tensor['layer']}"
        )
        for tensor in line["tensors"]
    ]
    return f"values that are not finite in {'; '.join(named)}"


def _losses(log: RunLog) -> str:
    """A table of the last known losses of each domain; perplexity is that of the held-out text."""
    rows = []
    for name in log.domains:
        train, held_out = last_loss(log.steps, name), last_loss(log.evaluations, name)
        perplexity = None if held_out is None else math.exp(min(held_out, 700.0))
        counts = [sum(line.get("per_domain_left_out", {}).get(name, 0) for line in log.steps)]
        counts.append(sum(spike["domain"] == name for spike in log.spikes))
        rows.append([name, *map(_number, (train, held_out, perplexity, log.unigram.get(name))), *map(str, counts)])
    heads = [
        "domain",
        "training loss",
        "held-out loss",
        "held-out perplexity",
        "unigram",
        "losses not finite",
        "spikes",
    ]
    return f"{_table(heads, rows)}<p>Losses in nats per token; unigram is what counting tokens achieves.</p>"


def last_loss(lines: list[Line], domain: str) -> float | None:
    """The newest finite loss of a domain; a step line holds only the domains of its batches."""
    losses = (line["per_domain_loss"].get(domain) for line in reversed(lines))
    return next((loss for loss in losses if loss is not None), None)


def _comparison(runs: list[_Run]) -> str:
    """A table of the held-out losses of all runs, and what each loses more than the first."""
    first, *others = (run.log for run in runs)
    rows = []
    for name in first.domains:
        mine, *theirs = (last_loss(run.log.evaluations, name) for run in runs)
        gaps = [None if mine is None or loss is None else loss - mine for loss in theirs]
        rows.append([name, *map(_number, (mine, *theirs, *gaps))])
    heads = ["domain", *(run.log.name for run in runs), *(f"{other.name} − {first.name}" for other in others)]
    return f"<h2>Held-out loss, nats per token</h2>{_table(heads, rows)}"


def _differences(runs: list[_Run]) -> str:
    """A table of the keys in which the configurations of the runs differ."""
    keys = sorted({key for run in runs for key in run.config})
    rows = [[key, *(_text(run.config.get(key)) for run in runs)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return f"<h2>Keys that differ</h2>{_table(['key', *(run.log.name for run in runs)], rows)}"


def _details(run: _Run, several: bool) -> str:
    """What a reader looks up: benchmarks, spikes, samples, data, configuration and its history."""
    of = f" of {html.escape(run.log.name)}" if several else ""
    tables = [
        (f"Benchmarks{of}", *_benchmark_table(run.benchmarks)),
        (f"Loss spikes{of}, the latest {_SHOWN}", *_spike_table(run.log.spikes[-_SHOWN:])),
        (f"Changes of the configuration{of}", *_change_table(run.log.changes)),
        (f"Data{of}", *_data_table(run.data)),
    ]
    shown = "".join(f"<h2>{title}</h2>{_table(heads, rows)}" for title, heads, rows in tables if rows)
    samples = xxhash.xxh3_64_hexdigest("".join(line.get("samples", "") for line in run.log.steps).encode())
    config = _table(["key", "value"], [[key, _text(value)] for key, value in run.config.items()])
    folded = f"<details><summary>Configuration{of}</summary>{config}</details>" if run.config else ""
    return f"""{shown}<p>Samples{of}: {samples}. Runs with the same train.log_interval have the same number here if they took the
same samples in the same order.</p>{folded}"""


def _benchmark_table(tasks: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    counts = ("n", "skipped", "truncated")
    rows = []
    for name, task in tasks.items():
        after = [*map(_count, map(task.get, counts)), str(task.get("domain", "–")), _count(task.get("step"))]
        metrics = {key: value for key, value in task.items() if key not in (*counts, "domain", "step")}
        rows += [[name, key, _number(value), *after] for key, value in metrics.items()]
    return ["task", "metric", "value", "items", *counts[1:], "domain", "after step"], rows


def _spike_table(spikes: list[Line]) -> tuple[list[str], list[list[str]]]:
    heads = ["step", "domain", "loss", "mean before", "limit", "samples", "skipped"]
    rows = []
    for spike in spikes:
        losses = map(_number, (spike["loss"], spike["mean"], spike["limit"]))
        rows.append(
            [_count(spike["step"]), spike["domain"], *losses, spike["samples"], "yes" if spike["skipped"] else "no"]
        )
    return heads, rows


def _change_table(lines: list[Line]) -> tuple[list[str], list[list[str]]]:
    changes = [(line["step"], change) for line in lines for change in line["changes"]]
    rows = [[_count(step), str(key), _text(old), _text(new)] for step, (key, old, new) in changes]
    return ["after step", "key", "was", "became"], rows


def _data_table(domains: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """What became of the text that was offered, by domain; a count that the manifest does not have is a dash."""
    counts = ("offered", "duplicates", "too_long", "over_limit")
    rows = []
    for name, record in domains.items():
        splits = [record.get(split) or {} for split in ("train", "held_out")]
        kept, tokens, unknown = (sum(s.get(k, 0) for s in splits) for k in ("documents", "tokens", "unknown"))
        held_out = splits[1].get("tokens")
        share = f"{unknown / tokens:.2%}" if tokens else "–"
        rows.append([name, *(_count(record.get(key)) for key in counts), *map(_count, (kept, tokens, held_out)), share])
    heads = ["domain", *(key.replace("_", " ") for key in counts), "kept", "tokens", "held-out tokens", "unknown"]
    return heads, rows


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else format(value, ".3f")


def _count(value: int | None) -> str:
    return "–" if value is None else format(value, ",")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
