"""Metrics log of a run: `metrics.jsonl`, TensorBoard files, and a progress line on stderr.

`metrics.jsonl` has one JSON object a line, of one of these kinds (`kind`):

* `run`: domains, steps_total, config, and data, the content hash of the prepared text if known. Once, as the first line.
* `config`: changes of config and data, [[key, old, new], …], with which the run goes on after `step`.
* `step`: means over the steps since the previous `step` line, every log_interval steps and before an evaluation or a checkpoint, so
  that the log has all steps of a checkpoint. `samples`: hash of the training samples, the same at any number of ranks. `dropped`:
  rows beyond the capacity of an expert's rank, over all layers. `skipped`: steps that updated nothing. `clipped`: steps whose
  gradients were scaled down to `train.optimizer.clip_norm`. `left_out`: steps whose loss is not finite, which the mean `loss`
  leaves out; `per_domain_left_out`: the same by domain, for domains that have any. `epochs`: how often the training text of each
  domain has been read since the run began. `load_max_over_mean`: tokens of the most loaded expert over the mean of all experts
  that the domains of the step can reach, idle ones too, averaged over segments; 0.1.0 left idle experts out.
  `gradient_norm_dense`, `gradient_norm_experts`: norms of these gradients, null if not measured. With ECSS on CPUs, of rank 0: MiB
  of active experts fetched, and of their gradients returned, a step. With `ecss.update=worker`, of rank 0:
  fractions of the time in which the worker updated experts (`update_busy`; in the rest it waits for the device) and in which a step
  waited for it (`update_stall`).
* `evaluation`: held-out loss of each domain, and by domain what `losses.FIGURES` lists, such as its standard error (`se`), the
  unigram loss of the same tokens (`unigram`), bits per byte, and the loss of every sample.
* `rows`: of a model with rows (`model.rows`), at each evaluation. `entries`: of each entry the rows that were met, all rows that
  exist, and about how many pairs of tokens found their row taken by another pair (`RowStore.figures`). `scales`: the scale of rows
  in front of each layer, with pipeline stages of the first one.
* `load`: tokens per expert [N][K] since the previous `load` line. Their sum is the load of the whole run.
* `spike`: a step whose loss of a domain is above its limit: the fields of `health.Spike`.
* `unhealthy`: result of a search for values that are not finite: a list with the fields of `health.UnhealthyTensor` of each such
  tensor of rank 0; empty if none was found.

The last key of each line, `xxh3`, is a hash of the line without this key (`sealed.py`), which `read_metrics` checks and removes.
Readers skip lines of unknown kinds. Losses are in nats per token. Shape suffixes: N segments, K experts stored in one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.changes import Change
from pangu_sigma.checkpoint.format import Identity
from pangu_sigma.config import ConfigError
from pangu_sigma.sealed import DamagedFile, sealed_line, unsealed_line, write_atomically
from pangu_sigma.training.log.board import TensorBoardWriter
from pangu_sigma.training.log.losses import HeldOutLoss, evaluation_line

if TYPE_CHECKING:
    from ascend_ops.adam_worker import WorkerTimes
    from pangu_sigma.ecss.store import Traffic

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
"""File of the metrics log, and folder of its TensorBoard files, in a run folder."""

TRAFFIC = ("fetched_mib", "returned_mib")
"""Keys of a `step` line that only runs with ECSS on CPUs have."""

UPDATE = ("update_busy", "update_stall")
"""Keys of a `step` line that only runs with a worker have, which updates experts behind the step."""

_SMOOTHING = 0.95
"""Weight of the past in the moving averages of the progress line."""
_DOMAINS_SHOWN = 6
"""Maximum number of domains that the progress line shows together; of more it shows those of the step."""


class EmptyLogError(ConfigError):
    """Raised if a run has no logged steps or losses: it has just begun, or a crash lost the lines."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step.

    step: counted from 1. per_domain_loss: only the domains in this batch. gradient_norm: before clipping; not finite if
    gradients overflowed. skipped: True if the step updated nothing. clipped: True if gradients were scaled down. load_NK: number of
    tokens of each expert. reachable_N: numbers of the experts that the domains of the batch can reach, in each segment.
    samples: hash of the batch (`Batch.digest`). dropped: token rows beyond an expert's capacity. norm_dense, norm_experts: norms
    of the dense and of the expert gradients; None if not measured. worker: seconds of the worker of `ecss.update` during the step.
    epochs: as in a `step` line.
    """

    step: int
    loss: float
    per_domain_loss: dict[str, float]
    learning_rate: float
    gradient_norm: float
    loss_scale: float
    skipped: bool
    tokens: int
    load_NK: np.ndarray
    reachable_N: list[list[int]]
    samples: str = ""
    dropped: int = 0
    clipped: bool = False
    traffic: Traffic | None = None
    norm_dense: float | None = None
    norm_experts: float | None = None
    worker: WorkerTimes | None = None
    epochs: dict[str, float] = field(default_factory=dict)


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
        self._log_interval = log_interval
        self._pending: list[StepMetrics] = []
        self._last_step = resumed_step
        self._load_NK: np.ndarray | None = None
        self._seconds, self._timed_tokens, self._busy, self._waited = 0.0, 0, 0.0, 0.0
        self._clock: float | None = None
        self._smoothed, self._ill = dict[str, float](), set[str]()
        self._dropped = self._skipped = 0
        self._steps_total = steps_total
        self._pace = _Pace()
        self._progress = Bar(
            total=steps_total,
            initial=resumed_step,
            unit="step",
            desc="train",
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0,
            bar_format="{desc} {n_fmt}/{total_fmt} {postfix}",
        )
        if self._fresh:
            begins = {} if identity is None else {"config": identity.config, "data": identity.data_hash}
            self._write({"kind": "run", "step": 0, "domains": domains, "steps_total": steps_total, **begins})

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

    def record(self, metrics: StepMetrics) -> None:
        """Record the metrics of a step; call it once after each."""
        now = time.perf_counter()
        if self._clock is not None:  # the first step compiles the graph and says nothing about speed
            self._seconds += now - self._clock
            self._pace.step(now - self._clock)
            self._timed_tokens += metrics.tokens
            self._busy += metrics.worker.busy if metrics.worker else 0.0
            self._waited += metrics.worker.waited if metrics.worker else 0.0
        self._clock = now
        self._last_step = metrics.step
        self._pending.append(metrics)
        self._load_NK = metrics.load_NK + (0 if self._load_NK is None else self._load_NK)
        self._show(metrics)
        if metrics.step % self._log_interval == 0:
            self._log()

    def evaluation(self, step: int, losses: dict[str, HeldOutLoss]) -> None:
        """Log the held-out loss of each domain after `step`."""
        self._write(evaluation_line(step, losses))
        for name, loss in losses.items():
            self._board.add_scalar(f"loss_held_out/{name}", loss.nats_per_token.mean, step)
            self._board.add_scalar(f"bits_per_byte_held_out/{name}", loss.bits_per_byte.mean, step)
        self.flush()

    def rows(self, step: int, entries: list[dict[str, Any]], scales: list[float]) -> None:
        """Log the rows of a model after `step`: of each entry `RowStore.figures`, and the scale of each layer."""
        self._write({"kind": "rows", "step": step, "entries": entries, "scales": scales})
        for e, entry in enumerate(entries):
            self._board.add_scalar(f"rows_met/{e}", entry["met"] / entry["stored"], step)
        for layer, scale in enumerate(scales):
            self._board.add_scalar(f"row_scale/{layer}", scale, step)

    def changed(self, step: int, changes: Sequence[Change]) -> None:
        """Log configuration changes with which a run resumes after `step`. A new log has the configuration in its first line."""
        if changes and not self._fresh:
            self._write({"kind": "config", "step": step, "changes": list(changes)})
            self._lines.flush()

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
                self._pace.pause(pause)

    def spike(self, spike: dict[str, Any]) -> None:
        """Log a loss spike: the fields of a `health.Spike`."""
        self._write({"kind": "spike", **spike})
        self._board.add_scalar(f"spikes/{spike['domain']}", spike["loss"], spike["step"])

    def unhealthy(self, step: int, tensors: list[dict[str, Any]]) -> None:
        """Log the tensors that are not finite: the fields of each `health.UnhealthyTensor`."""
        self._write({"kind": "unhealthy", "step": step, "tensors": tensors})
        self._board.add_scalar("train/unhealthy_tensors", len(tensors), step)

    def flush(self) -> None:
        """Write pending metrics to the disk. Call this method before each checkpoint, so that the log has all steps up to it."""
        if self._pending:
            self._log()
        if self._load_NK is not None:
            self._write({"kind": "load", "step": self._last_step, "tokens_NK": self._load_NK.tolist()})
            self._load_NK = None
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._board.flush()

    def _show(self, metrics: StepMetrics) -> None:
        """Advance the progress line."""
        for name, loss in metrics.per_domain_loss.items():
            if math.isfinite(loss):
                past = self._smoothed.get(name, loss)
                self._smoothed[name] = _SMOOTHING * past + (1 - _SMOOTHING) * loss
                self._ill.discard(name)
            else:
                self._ill.add(name)
        # With many domains the line has room only for those of this step.
        shown = self._smoothed if len(self._smoothed) <= _DOMAINS_SHOWN else metrics.per_domain_loss
        known = {name: f"{self._smoothed[name]:.3f}" for name in shown if name in self._smoothed}
        losses = " ".join(f"{name} {text}" for name, text in (known | dict.fromkeys(sorted(self._ill), "nan")).items())
        speed = f", {self._timed_tokens / self._seconds:,.0f} tokens/s" if self._seconds else ""
        balance = load_max_over_mean(metrics.load_NK, metrics.reachable_N)
        load = "" if balance is None else f", load max/mean {balance:.2f}"
        stall = f", waits for updates {self._waited / self._seconds:.1%}" if metrics.worker and self._seconds else ""
        self._dropped += metrics.dropped
        dropped = f", {self._dropped:,} rows dropped" if self._dropped else ""
        self._skipped += metrics.skipped
        skipped = f", {self._skipped:,} steps skipped" if self._skipped else ""
        left = f", {self._pace.left(self._steps_total - metrics.step)} left"
        self._progress.set_postfix_str(f"loss {losses}{speed}{load}{stall}{dropped}{skipped}{left}", refresh=False)
        self._progress.update()

    def _log(self) -> None:
        """Write the means of the pending steps."""
        steps, self._pending = self._pending, []
        last = steps[-1]
        names = dict.fromkeys(name for s in steps for name in s.per_domain_loss)
        per_domain_loss = {n: _mean([s.per_domain_loss[n] for s in steps if n in s.per_domain_loss]) for n in names}
        line = {
            "kind": "step",
            "step": last.step,
            "loss": _mean([s.loss for s in steps]),
            "per_domain_loss": per_domain_loss,
            "learning_rate": last.learning_rate,
            "gradient_norm": _mean([s.gradient_norm for s in steps]),
            "gradient_norm_dense": _mean([s.norm_dense for s in steps]),
            "gradient_norm_experts": _mean([s.norm_experts for s in steps]),
            "loss_scale": last.loss_scale,
            "skipped": sum(s.skipped for s in steps),
            "clipped": sum(s.clipped for s in steps),
            "left_out": sum(not math.isfinite(s.loss) for s in steps),
            "per_domain_left_out": dict(
                Counter(name for s in steps for name, loss in s.per_domain_loss.items() if not math.isfinite(loss))
            ),
            "epochs": last.epochs,
            "tokens": sum(s.tokens for s in steps),
            "samples": xxhash.xxh3_64_hexdigest("".join(s.samples for s in steps).encode()),
            "dropped": sum(s.dropped for s in steps),
            "tokens_per_second": self._timed_tokens / self._seconds if self._seconds else None,
            "load_max_over_mean": _mean([load_max_over_mean(s.load_NK, s.reachable_N) for s in steps]),
            **_traffic([s.traffic for s in steps if s.traffic]),
            **(self._updates() if last.worker else {}),
        }
        self._seconds, self._timed_tokens, self._busy, self._waited = 0.0, 0, 0.0, 0.0
        self._write(line)
        self._lines.flush()
        for key, value in line.items():
            if isinstance(value, int | float) and key != "step":
                self._board.add_scalar(f"train/{key}", value, last.step)
        for name, loss in per_domain_loss.items():
            if loss is not None:
                self._board.add_scalar(f"loss_train/{name}", loss, last.step)
        for name, epochs in last.epochs.items():
            self._board.add_scalar(f"epochs/{name}", epochs, last.step)

    def _updates(self) -> dict[str, float | None]:
        """Return the values of the keys UPDATE over the pending steps."""
        shares = [seconds / self._seconds if self._seconds else None for seconds in (self._busy, self._waited)]
        return dict(zip(UPDATE, shares, strict=True))

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(sealed_line(line))


class _Pace:
    """Estimator of the remaining time, from the times of steps (without the first, which compiles), evaluations and checkpoints."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._steps = 1
        self._paused = 0.0

    def step(self, seconds: float) -> None:
        """Record the time of a step after the first."""
        past = seconds if self._seconds is None else self._seconds
        self._seconds = _SMOOTHING * past + (1 - _SMOOTHING) * seconds
        self._steps += 1

    def pause(self, seconds: float) -> None:
        """Record the time of an evaluation or checkpoint."""
        self._paused += seconds

    def left(self, steps: int) -> str:
        """Return the time that `steps` more steps need, with their share of pauses, as text."""
        if self._seconds is None:
            return "?"
        return Bar.format_interval(steps * (self._seconds + self._paused / self._steps))


class NoLog:
    """Metrics log that writes nothing, for the ranks other than 0: rank 0 has the same numbers."""

    def __enter__(self) -> NoLog:
        return self

    def _ignore(self, *_: object) -> None:
        """Write nothing."""

    __exit__ = record = evaluation = rows = changed = spike = unhealthy = flush = _ignore

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: this log measures no speed."""
        return nullcontext()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl: objects with a kind and a step, in order. Truncated or damaged lines are left out with a warning.

    Raises FileNotFoundError if the run has no metrics.jsonl.
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
    lines = read_metrics(file.parent) if step else []
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


def _traffic(moved: list[Traffic]) -> dict[str, float]:
    """Return the values of the keys TRAFFIC: means over steps."""
    means = (sum(counts) / len(moved) / (1 << 20) for counts in zip(*moved, strict=True))
    return dict(zip(TRAFFIC, means, strict=True)) if moved else {}


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the finite values; None without any (every step overflowed)."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
