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
  checkpoint, so that the log has all steps of a checkpoint. Counts are sums (SUMMED), states are those of the last step (LAST), and
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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.changes import Change
from pangu_sigma.checkpoint.format import Identity
from pangu_sigma.config import ConfigError
from pangu_sigma.sealed import DamagedFile, sealed_line, unsealed_line, write_atomically
from pangu_sigma.training.log.board import TensorBoardWriter
from pangu_sigma.training.log.losses import HeldOutLoss, evaluation_line

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
"""Record of a step, by the names above."""

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
"""File of the metrics log, and folder of its TensorBoard files, in a run folder."""

SUMMED = {"tokens", "skipped", "clipped", "dropped", "left_out"}
LAST = {"step", "learning_rate", "loss_scale", "epochs"}
"""Metrics of which several steps have a sum, and of which they have the last value; others have an average."""

_SMOOTHING = 0.95
"""Weight of the past in the moving averages of the progress line."""
_DOMAINS_SHOWN = 6
"""Maximum number of domains that the progress line shows together; of more it shows those of the step."""


class EmptyLogError(ConfigError):
    """Raised if a run has no logged steps or losses that can be read: it has just begun, or a crash lost the lines."""


class MetricsLog:
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
        _drop_lines_beyond(folder / FILE, resumed_step)
        self._fresh = not (folder / FILE).exists()
        self._lines = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._board = TensorBoardWriter(folder / TENSORBOARD, resumed_step + 1)
        self._log_interval, self._steps_total = log_interval, steps_total
        self._pending: list[Metrics] = []
        """Steps since the last `step` line, each with its `seconds` unless it is the first, which compiles."""
        self._samples = ""
        self._last_step = resumed_step
        self._load_NK: np.ndarray | None = None
        self._clock: float | None = None
        self._pace: float | None = None  # seconds of a step, smoothed
        self._timed, self._paused = 1, 0.0
        self._smoothed, self._ill = dict[str, float](), set[str]()
        self._counts: Counter[str] = Counter()
        self._progress = Bar(
            total=steps_total,
            initial=resumed_step,
            desc="train",
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0,
            bar_format="{desc} {n_fmt}/{total_fmt} {postfix}",
        )
        if self._fresh:
            begins = {} if identity is None else {"config": identity.config, "data": identity.data_hash}
            line = {"kind": "run", "step": 0, "domains": domains, "steps_total": steps_total, **begins}
            self._lines.write(sealed_line(line))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.flush()
            self._progress.close()
            self._board.close()
            self._lines.close()
        except OSError as refused:
            if error is None:
                raise
            # `error` is the one to raise
            logger.error("%s: %s; its last lines are missing", self._lines.name, refused.strerror)

    def record(self, metrics: Metrics, load_NK: np.ndarray, samples: str) -> None:
        """Record a step; call it once after each. load_NK: tokens of each expert. samples: hash of the batch (`Batch.digest`)."""
        now = time.perf_counter()
        timed = {}
        if self._clock is not None:  # the first step compiles the graph and says nothing about speed
            timed = {"seconds": now - self._clock}
            self._pace = _smooth(self._pace, now - self._clock)
            self._timed += 1
        self._clock = now
        self._last_step = int(metrics["step"])
        self._pending.append(metrics | timed)
        self._samples += samples
        self._load_NK = load_NK + (0 if self._load_NK is None else self._load_NK)
        self._show(metrics)
        if self._last_step % self._log_interval == 0:
            self._log()

    def evaluation(self, step: int, losses: dict[str, HeldOutLoss]) -> None:
        """Log the held-out loss of each domain after `step`."""
        self.write(**evaluation_line(step, losses))
        self.flush()

    def changed(self, step: int, changes: Sequence[Change]) -> None:
        """Log configuration changes with which a run resumes after `step`. A new log has the configuration in its first line."""
        if changes and not self._fresh:
            self.write("config", step=step, changes=list(changes))
            self._lines.flush()

    def write(self, kind: str, *, step: int, **values: Any) -> None:
        """Write a line of any kind, and its numbers for TensorBoard."""
        self._lines.write(sealed_line({"kind": kind, "step": step, **values}))
        path = "" if kind == "step" else f"{kind}/"
        self._board.add(step, {n: value for n, value in flat(values, path).items() if isinstance(value, int | float)})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block (evaluation, checkpoint) from the training speed."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._clock is not None:
                pause = time.perf_counter() - started
                self._clock += pause
                self._paused += pause

    def flush(self) -> None:
        """Write pending metrics to the disk. Call this method before each checkpoint, so that the log has all steps up to it."""
        if self._pending:
            self._log()
        if self._load_NK is not None:
            self.write("load", step=self._last_step, tokens_NK=self._load_NK.tolist())
            self._load_NK = None
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._board.flush()

    def _log(self) -> None:
        """Write the pending steps as a line."""
        samples = xxhash.xxh3_64_hexdigest(self._samples.encode())
        self.write("step", **over_steps(self._pending), samples=samples)
        self._pending, self._samples = [], ""
        self._lines.flush()

    def _show(self, metrics: Metrics) -> None:
        """Advance the progress line."""
        losses = {name.removeprefix("loss/"): loss for name, loss in metrics.items() if name.startswith("loss/")}
        for name, loss in losses.items():
            if math.isfinite(loss):
                self._smoothed[name] = _smooth(self._smoothed.get(name), loss)
                self._ill.discard(name)
            else:
                self._ill.add(name)
        # With many domains the line has room only for those of this step.
        shown = self._smoothed if len(self._smoothed) <= _DOMAINS_SHOWN else losses
        texts = {name: f"{self._smoothed[name]:.3f}" for name in shown if name in self._smoothed}
        texts |= dict.fromkeys(sorted(self._ill), "nan")
        parts = ["loss " + " ".join(f"{name} {text}" for name, text in texts.items())]
        if speed := _per_second(self._pending, "tokens"):
            parts.append(f"{speed:,.0f} tokens/s")
        if "load_max_over_mean" in metrics:
            parts.append(f"load max/mean {metrics['load_max_over_mean']:.2f}")
        if "update_stall_seconds" in metrics and speed:
            parts.append(f"waits for updates {_per_second(self._pending, 'update_stall_seconds'):.1%}")
        for name, counted in (("dropped", "rows dropped"), ("skipped", "steps skipped")):
            self._counts[name] += int(metrics[name])
            parts += [f"{self._counts[name]:,} {counted}"] if self._counts[name] else []
        left = "?"
        if self._pace is not None:
            seconds = self._pace + self._paused / self._timed
            left = Bar.format_interval((self._steps_total - metrics["step"]) * seconds)
        self._progress.set_postfix_str(", ".join([*parts, f"{left} left"]), refresh=False)
        self._progress.update()


class NoLog:
    """Metrics log that writes nothing, for the ranks other than 0: rank 0 has the same numbers."""

    def __enter__(self) -> NoLog:
        return self

    def _ignore(self, *_: object, **__: object) -> None:
        """Write nothing."""

    __exit__ = record = evaluation = changed = write = flush = _ignore

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: this log measures no speed."""
        return nullcontext()


def over_steps(steps: Sequence[Metrics]) -> dict[str, Any]:
    """Return the numbers of a `step` line. steps: records, those that have a time with their `seconds`."""
    numbers = dict[str, Any]()
    for name in dict.fromkeys(name for step in steps for name in step if not name.endswith("seconds")):
        values = [step[name] for step in steps if name in step]
        metric, finite = name.partition("/")[0], [value for value in values if math.isfinite(value)]
        if metric in LAST:
            numbers[name] = values[-1]
        elif metric in SUMMED:
            numbers[name] = sum(values)
        else:
            numbers |= {name: math.fsum(finite) / len(finite)} if finite else {}
            numbers |= {f"left_out/{name}": len(values) - len(finite)} if len(finite) < len(values) else {}
    shares = {name: name.removesuffix("_seconds") for name in steps[-1] if name.endswith("_seconds")}
    for name, rate in ({"tokens": "tokens_per_second"} | shares).items():
        found = _per_second(steps, name)
        numbers |= {} if found is None else {rate: found}
    return numbers


def _per_second(steps: Sequence[Metrics], name: str) -> float | None:
    """Return the sum of a number over the seconds of the steps, as far as they have a time; None if none has."""
    timed = [step for step in steps if "seconds" in step]
    seconds = sum(step["seconds"] for step in timed)
    return sum(step[name] for step in timed) / seconds if seconds else None


def _smooth(past: float | None, value: float) -> float:
    return value if past is None else _SMOOTHING * past + (1 - _SMOOTHING) * value


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values as one mapping, by names such as unigram/en."""
    found = dict[str, Any]()
    for name, value in values.items():
        found |= flat(value, f"{path}{name}/") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def read_metrics(folder: Path, steps: bool = False) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl: objects with a kind and a step, in order. Truncated or damaged lines are left out with a warning.

    steps: True to refuse `step` lines with the names of an earlier version. Raises FileNotFoundError without a metrics.jsonl.
    """
    lines, texts = [], (folder / FILE).read_bytes().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = unsealed_line(text)
            if not isinstance(line["kind"], str) or type(line["step"]) is not int:
                raise ValueError("no kind or step")
            lines.append(line)
        except (DamagedFile, ValueError, TypeError, KeyError, RecursionError):
            logger.warning("%s: line %d was changed, or cut off by a crash; it is left out", folder / FILE, number)
    if steps and any(line["kind"] == "step" and "per_domain_loss" in line for line in lines):
        raise EmptyLogError(
            f"{folder / FILE}: an earlier version logged steps there, under other names; commit e9a89c7e reports them. To train "
            "on, move the file away: the run then begins another log"
        )
    return lines


def load_max_over_mean(load_NK: np.ndarray, reachable_N: Sequence[Sequence[int]]) -> float | None:
    """Return max/mean of the tokens per expert, averaged over segments; None without load. reachable_N: numbers of the experts in
    each segment that could get a token. Those that got none count in the mean."""
    pairs = zip(load_NK, reachable_N, strict=False)  # the plan of a dense model has a row without load
    loads = [load_K[reachable] for load_K, reachable in pairs if load_K.any()]
    ratios = [load.max() / load.mean() for load in loads]
    return float(np.mean(ratios)) if ratios else None


def _drop_lines_beyond(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and the changes made at `step`; the resumed run writes both again.

    Step 0 drops the whole file. Logs a warning if lines up to `step` are missing.
    """
    if not file.exists():
        return
    lines = read_metrics(file.parent, steps=True) if step else []
    kept = [line for line in lines if line["step"] <= step and (line["kind"], line["step"]) != ("config", step)]
    logged = max((line["step"] for line in kept if line["kind"] == "step"), default=0)
    if logged < step:
        logger.warning(
            "%s: the lines of steps %d to %d are lost, and what they counted; the weights of step %d are whole",
            *(file, logged + 1, step, step),
        )
    if kept:
        write_atomically(file, "".join(map(sealed_line, kept)).encode())
    else:
        file.unlink()
