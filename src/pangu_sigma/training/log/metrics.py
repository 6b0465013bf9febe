"""Metrics log of a run: `metrics.jsonl`, TensorBoard files, and a progress line on stderr.

A step is a flat record, name → number, which `Trainer.metrics` makes. The part of a name before "/" is the metric, the rest says
what it is of. A name without a value is absent. The names:

* `loss`, `loss/DOMAIN` (domains of the batch only): nats per token.
* `learning_rate`. `loss_scale`. `gradient_norm`: before clipping; not finite if gradients overflowed. `gradient_norm/dense`,
  `gradient_norm/experts`: of these gradients alone, if measured.
* `tokens`. `epochs/DOMAIN`: how often the training text of the domain has been read since the run began.
* `skipped`: 1 if the step updated nothing. `clipped`: 1 if gradients were scaled down to `train.optimizer.clip_norm`. `dropped`:
  rows beyond the capacity of an expert's rank, over all layers.
* `load_max_over_mean`: tokens of the most loaded expert over the mean of all experts that the domains of the step can reach, idle
  ones too, averaged over segments; 0.1.0 left idle experts out.
* `fetched_mib`, `returned_mib`: with ECSS on CPUs, of rank 0: MiB of active experts fetched, and of their gradients returned.
* `update_busy_seconds`, `update_stall_seconds`: with `ecss.update=worker`, of rank 0: how long the worker updated experts (in the
  rest of the time it waits for the device), and how long the step waited for it.

`metrics.jsonl` has one JSON object a line, of one of these kinds (`kind`), each with a `step`:

* `run`: domains, steps_total, config, and data, the content hash of the prepared text if known. Once, as the first line.
* `config`: changes of config and data, [[key, old, new], …], with which the run goes on after `step`.
* `step`: the names above over the steps since the previous `step` line, every log_interval steps and before an evaluation or a
  checkpoint, so that the log has all steps of a checkpoint. Counts are sums (SUMMED), states of the last step (LAST), and
  all else is the mean of the finite values; `left_out/NAME`: steps that the mean of a name leaves out, if any. `NAME_seconds`
  becomes `NAME`, a share of the time. Besides, `tokens_per_second`, and `samples`: hash of the training samples, the same at any
  number of ranks.
* `evaluation`: held-out loss of each domain, and by domain what `losses.FIGURES` lists, such as its standard error (`se`), the
  unigram loss of the same tokens (`unigram`), bits per byte, and the loss of every sample.
* `rows`: of a model with rows (`model.rows`), at each evaluation. `entries`: by number, the rows that were met, all rows that
  exist, and about how many pairs of tokens found their row taken by another pair (`RowStore.figures`). `scales`: by layer, the
  scale of rows in front of it, with pipeline stages of the first one.
* `load`: tokens per expert [N][K] since the previous `load` line. Their sum is the load of the whole run.
* `spike`: a step whose loss of a domain is above its limit: the fields of `health.Spike`.
* `unhealthy`: result of a search for values that are not finite: a list with the fields of `not_finite.NotFinite` of each such
  tensor of rank 0; empty if none was found.

The last key of each line, `xxh3`, is a hash of the line without this key (`sealed.py`), which `read_metrics` checks and removes.
Readers skip lines of unknown kinds. TensorBoard has the numbers of each line under the same names, after the kind if it is not
`step`. Shape suffixes: N segments, K experts stored in one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.changes import Change
from pangu_sigma.checkpoint.checkpoint import Identity
from pangu_sigma.config import ConfigError
from pangu_sigma.held_out.losses import HeldOutLoss, evaluation_line
from pangu_sigma.sealed import DamagedFile, sealed_line, unsealed_line, write_atomically

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
"""Record of a step, by the names above."""

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
"""File of the metrics log, and folder of its TensorBoard files, in a run folder."""

SUMMED = {"tokens", "skipped", "clipped", "dropped", "left_out"}
LAST = {"step", "learning_rate", "loss_scale", "epochs"}
"""Metrics of which several steps have a sum, and of which they have the last value; others have an average."""

_DOMAINS_SHOWN = 6
"""Maximum number of domains that the progress line shows together; of more it shows the domains of the step."""
_SHOWN = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "load_max_over_mean": "load max/mean {:.2f}",
    "update_stall": "waits for updates {:.1%}",
    "dropped": "{:,} rows dropped",
    "skipped": "{:,} steps skipped",
}
"""Numbers of the progress line besides the losses; one is left out if it is zero or unknown."""


class EmptyLogError(ConfigError):
    """Raised if a run has no logged steps or losses that can be read: it has just begun, or a crash lost the lines."""


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Writer of a run's metrics log, as a context manager, so that the files are complete however the run ends."""

    def __init__(
        self,
        folder: Path,
        domains: list[str],
        steps_total: int,
        log_interval: int,
        resumed_step: int = 0,
        identity: Identity | None = None,
    ) -> None:
        """resumed_step: step of the checkpoint to resume from; lines of later steps, and changes at this step, are dropped.
        identity: configuration and data hash of the run, for the first line of a new log."""
        folder.mkdir(parents=True, exist_ok=True)
        retained_lines = _drop_lines_beyond(folder / FILE, resumed_step)
        self._fresh = not retained_lines
        self._lines = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._log_interval, self._steps_total = log_interval, steps_total
        self._pending: list[Metrics] = []
        """Steps since the last `step` line, each with its `seconds` unless it is the first, which compiles."""
        self._samples, self._load_NK, self._last_step = "", np.array(0), resumed_step
        self._measured_since, self._first_step = 0.0, 0
        """Time when the first step ended, and its number; since then the speed is measured."""
        self._losses, self._counts = dict[str, float](), Counter[str]()
        evaluations = [line["unigram"] for line in retained_lines if "unigram" in line]
        self._unigram: dict[str, float | None] = evaluations[-1] if evaluations else {}
        """Unigram loss of each domain in the last evaluation; None if it is not finite."""
        self._progress = Bar(
            total=steps_total,
            initial=resumed_step,
            desc="train",
            bar_format="{desc} {n_fmt}/{total_fmt} {postfix}",
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0,
        )
        self._folder, self._has_failed = folder / TENSORBOARD, False
        self._board: EventsWriter | None = None
        # the event of a start hides the points of later steps that an earlier process wrote
        self._write_events(Event(step=resumed_step + 1, session_log=SessionLog(status=SessionLog.START)))
        if self._fresh:
            content = {} if identity is None else {"config": identity.config, "data": identity.data_hash}
            line = {"kind": "run", "step": 0, "domains": domains, "steps_total": steps_total, **content}
            self._lines.write(sealed_line(line))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write the pending lines, and close the files."""
        try:
            self.flush()
            self._progress.close()
            self._write_events(end=EventsWriter.close)
            self._lines.close()
        except OSError as disk_error:
            if error is None:
                raise
            # the error of the `with` block is the one to raise
            logger.error("%s: %s; its last lines are missing", self._lines.name, disk_error.strerror)

    def record(self, metrics: Metrics, load_NK: np.ndarray, samples: str, seconds: float) -> None:
        """Record a step; call it once after each. load_NK: tokens of each expert. samples: hash of the batch (`Batch.digest`).
        seconds: how long the step took, without evaluation and checkpoint."""
        self._last_step = int(metrics["step"])
        if self._measured_since:
            metrics = metrics | {"seconds": seconds}
        else:  # the first step compiles the graph and says nothing about speed
            self._measured_since, self._first_step = time.perf_counter(), self._last_step
        self._pending.append(metrics)
        self._samples += samples
        self._load_NK = self._load_NK + load_NK
        self._show_progress(metrics)
        if self._last_step % self._log_interval == 0:
            self._write_pending()

    def evaluation(self, step: int, losses: dict[str, HeldOutLoss]) -> None:
        """Log the held-out loss of each domain after `step`."""
        line = evaluation_line(step, losses)
        self._unigram = line["unigram"]
        self.write(**line)
        self.flush()

    def changes(self, step: int, changes: Sequence[Change]) -> None:
        """Log configuration changes with which a run resumes after `step`; a new log has the configuration in its first line."""
        if changes and not self._fresh:
            self.write("config", step=step, changes=list(changes))
            self._lines.flush()

    def write(self, kind: str, *, step: int, **values: Any) -> None:
        """Write a line of any kind, and its numbers for TensorBoard."""
        self._lines.write(sealed_line({"kind": kind, "step": step, **values}))
        items = flat(values, "" if kind == "step" else f"{kind}/").items()
        numbers = {name: value for name, value in items if isinstance(value, int | float)}
        self._write_events(*(Event(step=step, summary=scalar(name, number)) for name, number in numbers.items()))

    def flush(self) -> None:
        """Write pending metrics to the disk. Call this method before each checkpoint, so that the log has all steps up to it."""
        if self._pending:
            self._write_pending()
        if self._load_NK.ndim:  # else no step since the last `load` line
            self.write("load", step=self._last_step, tokens_NK=self._load_NK.tolist())
            self._load_NK = np.array(0)
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def _write_pending(self) -> None:
        """Write the pending steps as one `step` line."""
        samples = xxhash.xxh3_64_hexdigest(self._samples.encode())
        self.write("step", **over_steps(self._pending), samples=samples)
        self._pending, self._samples = [], ""
        self._lines.flush()

    def _show_progress(self, metrics: Metrics) -> None:
        """Show a step in the progress line: the losses, with the unigram losses behind them, other numbers, and the time left."""
        losses = {name.removeprefix("loss/"): loss for name, loss in metrics.items() if name.startswith("loss/")}
        self._losses |= losses
        if len(self._losses) <= _DOMAINS_SHOWN:  # else the line has room only for the domains of this step
            losses = self._losses
        notes = {name: f" ({nats:.2f})" for name, nats in self._unigram.items() if nats is not None and name in losses}
        title = "loss (of counting words)" if notes else "loss"
        texts = [" ".join([title, *(f"{name} {loss:.3f}{notes.get(name, '')}" for name, loss in losses.items())])]
        self._counts.update({name: int(metrics[name]) for name in ("dropped", "skipped")})
        numbers = metrics | over_steps(self._pending) | self._counts
        texts += [text.format(numbers[name]) for name, text in _SHOWN.items() if numbers.get(name)]
        time_left, measured_steps = "?", self._last_step - self._first_step
        if measured_steps:
            pace = (time.perf_counter() - self._measured_since) / measured_steps
            time_left = Bar.format_interval((self._steps_total - self._last_step) * pace)
        self._progress.set_postfix_str(", ".join([*texts, f"{time_left} left"]), refresh=False)
        self._progress.update()

    def _write_events(self, *events: Event, end: Callable[[EventsWriter], object] = EventsWriter.flush) -> None:
        """Write events for TensorBoard, and then flush or, with EventsWriter.close as `end`, close its file. After an error of the
        disk, which is logged, nothing more is written: the curves end, and the training goes on."""
        # the thread of `SummaryWriter` would end at such an error, and a later point would wait for room in its queue
        if self._has_failed:
            return
        try:
            if self._board is None:
                self._folder.mkdir(exist_ok=True)
                self._board = EventsWriter(str(self._folder / "events"))
            for event in events:
                event.wall_time = time.time()
                self._board.write_event(event)
            end(self._board)
        except OSError as error:
            self._has_failed, reason = True, error.strerror or error
            remark = "nothing more is written for TensorBoard, until training is started again; metrics.jsonl has the same numbers"
            logger.warning("%s: %s; %s", self._folder, reason, remark)


class NoLog(AbstractContextManager["NoLog"]):
    """Metrics log that writes nothing, for the ranks other than 0: rank 0 has the same numbers."""

    def __exit__(self, *_: object, **__: object) -> None:
        """Write nothing."""

    record = evaluation = changes = write = flush = __exit__


def over_steps(steps: Sequence[Metrics]) -> dict[str, Any]:
    """Return the numbers of a `step` line: a sum, last value or mean of each metric, and rates. steps: records of the steps; the
    records of measured steps have `seconds`, the duration of the step."""
    numbers = dict[str, Any]()
    for name in dict.fromkeys(name for step in steps for name in step if not name.endswith("seconds")):
        values = [step[name] for step in steps if name in step]
        metric = name.partition("/")[0]
        if metric in LAST:
            numbers[name] = values[-1]
        elif metric in SUMMED:
            numbers[name] = sum(values)
        else:
            finite_values = [value for value in values if math.isfinite(value)]
            if finite_values:
                numbers[name] = math.fsum(finite_values) / len(finite_values)
            if len(finite_values) < len(values):
                numbers[f"left_out/{name}"] = len(values) - len(finite_values)
    timed_steps = [step for step in steps if "seconds" in step]
    if seconds := sum(step["seconds"] for step in timed_steps):
        # `tokens` become tokens per second, and names that end with _seconds shares of the time
        rates = {name: name.removesuffix("_seconds") for name in steps[-1] if name.endswith("_seconds")}
        rates["tokens"] = "tokens_per_second"
        numbers |= {rate: sum(step[name] for step in timed_steps) / seconds for name, rate in rates.items()}
    return numbers


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping, by names such as unigram/en. path: beginning of all names."""
    mapping = dict[str, Any]()
    for name, value in values.items():
        mapping |= flat(value, f"{path}{name}/") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return mapping


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl: objects with a kind and a step, in order. Truncated or damaged lines are left out with a warning.
    Raises FileNotFoundError without a metrics.jsonl."""
    lines, texts = [], (folder / FILE).read_bytes().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = unsealed_line(text)
            if not isinstance(line["kind"], str) or type(line["step"]) is not int:
                raise ValueError("no kind or step")  # caught below, as a damaged line
            lines.append(line)
        except (DamagedFile, ValueError, TypeError, KeyError, RecursionError):
            logger.warning("%s: line %d was changed, or cut off by a crash; it is left out", folder / FILE, number)
    return lines


def metrics_columns(run: Path, kind: str) -> dict[str, Any]:
    """Return the lines of a kind as `columns`. The top of metrics.py lists the kinds and the names of their columns. Raises
    ConfigError for a folder without a log, and for a kind that it does not have."""
    try:
        lines = lines_by_kind(run)
    except OSError as error:
        raise ConfigError(f"{run / FILE}: {error.strerror}; name a run folder, in which training writes it") from None
    if kind not in lines:
        raise ConfigError(f"kind={kind!r}: {run / FILE} has no such lines; it has {', '.join(lines) or 'none'}")
    return columns(lines[kind])


def lines_by_kind(run: Path) -> defaultdict[str, list[dict[str, Any]]]:
    """Return the lines of a run's log by their kind, in order. Raises FileNotFoundError without a log."""
    lines = defaultdict(list)
    for line in read_metrics(run):
        lines[line["kind"]].append(line)
    return lines


def columns(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return lines as columns by name, a row for each line. A value by domain becomes a column of each, such as unigram/en.

    Numbers are arrays, NaN where a line has none; a line of kind "load" holds an array, so tokens_NK is int [rows, N, K]. Anything
    else is a list, None where a line has none.
    """
    rows = [flat(line) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: _column([row.get(name) for row in rows]) for name in names}


def points(table: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of a column of `columns` where the values are finite; empty arrays if it has no numbers."""
    values = table.get(name)
    if not isinstance(values, np.ndarray) or values.ndim > 1:
        return np.array([]), np.array([])
    return table["step"][np.isfinite(values)], values[np.isfinite(values)]


def _column(values: list[Any]) -> Any:
    """Return values as an array, with NaN for None, if they are numbers, or arrays of one shape; else the list itself."""
    with suppress(ValueError):  # lists of several lengths
        array = np.array([math.nan if value is None else value for value in values])
        return array if array.dtype.kind in "if" else values
    return values


def load_max_over_mean(load_NK: np.ndarray, reachable_N: Sequence[Sequence[int]]) -> float | None:
    """Return the largest number of tokens of an expert over the mean of all, averaged over segments; None without load. load_NK:
    tokens of each expert. reachable_N: indices of the experts in each segment that could get a token; all count in the mean."""
    pairs = zip(load_NK, reachable_N, strict=False)  # a dense model has no segment, and one row of zeros as its load
    loads = [load_K[list(reachable)] for load_K, reachable in pairs if load_K.any()]
    ratios = [load.max() / load.mean() for load in loads]
    return float(np.mean(ratios)) if ratios else None


def expert_load(lines: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Sum `load` lines to the tokens of each expert over the run, int64 [N, K]; None if no token met an expert: the lines of a
    model without RRE layers have one row of zeros."""
    total_NK = np.sum([line["tokens_NK"] for line in lines], axis=0, dtype=np.int64)
    return total_NK if total_NK.any() else None


def _drop_lines_beyond(file: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of steps after `step`, and the changes made at `step`, from the log; the resumed run writes both again. Step 0
    drops the whole file. Returns the retained lines. Logs a warning if lines up to `step` are missing."""
    lines = read_metrics(file.parent) if step and file.exists() else []
    lines = [line for line in lines if line["step"] <= step and (line["kind"], line["step"]) != ("config", step)]
    last_step = max((line["step"] for line in lines if line["kind"] == "step"), default=0)
    if last_step < step:
        logger.warning(
            "%s: the lines of steps %d to %d are lost, and what they counted; the weights of step %d are whole",
            *(file, last_step + 1, step, step),
        )
    if lines:
        write_atomically(file, "".join(map(sealed_line, lines)).encode())
    else:
        file.unlink(missing_ok=True)
    return lines
