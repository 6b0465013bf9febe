"""Training loop: batch → step → metrics, with evaluation and checkpoints at their intervals."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from ascend_ops.adam_worker import WorkerTimes
from pangu_sigma.checkpoint.checkpoint import Checkpoint, CheckpointError
from pangu_sigma.checkpoint.run_folder import one_writer, set_aside
from pangu_sigma.checkpoint.saver import Saver
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader, Samples, open_samples
from pangu_sigma.data.order import repetitions
from pangu_sigma.data.prepared import SPLITS, read_prepared_tokenizer
from pangu_sigma.held_out.batches import samples_of_evaluation
from pangu_sigma.held_out.evaluator import Evaluator
from pangu_sigma.optimizer.update import Schedule
from pangu_sigma.process import gc_frozen, recorded_signals
from pangu_sigma.ranks.heartbeat import Heartbeat
from pangu_sigma.ranks.layout import layers_of_stage
from pangu_sigma.ranks.ranks import RankError, Ranks
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.backend import Backend
from pangu_sigma.training.feed import InputPipeline
from pangu_sigma.training.health import Health, check_health
from pangu_sigma.training.log.metrics import Metrics, MetricsLog, NoLog, load_max_over_mean, read_metrics
from pangu_sigma.training.log.summary import format_divergence
from pangu_sigma.training.log.timeline import Timeline
from pangu_sigma.training.start import (
    DEFAULT_START,
    Progress,
    StartOptions,
    changes_since_checkpoint,
    refuse_tuned,
    resume,
    start_run,
)
from pangu_sigma.training.step import StepResult

if TYPE_CHECKING:
    from pangu_sigma.finetune.best import BestState

logger = logging.getLogger(__name__)

CPU = Backend()
"""Default backend of training."""

OnStep = Callable[[Metrics], object]
"""Callback with the metrics of each step; it stops the training if it returns True."""


class Trainer:
    """Trainer of one rank of a run: it advances, saves and resumes the run. All ranks make the same calls."""

    def __init__(
        self,
        run: StoredRun,
        backend: Backend = CPU,
        ranks: Ranks | None = None,
        resumed: tuple[Progress, Checkpoint | None] | None = None,
        samples: Mapping[str, Samples] | None = None,
        best: BestState | None = None,
        heart: Heartbeat | None = None,
    ):
        """run: open run folder; training resumes from its newest checkpoint if it has one. backend: the devices to train on.

        ranks: already connected ranks; None to connect them here. resumed: result of `resume`; None to call it here. samples: for a
        run that is tuned to a task, its samples as "train", and its dev set as "held_out" if it has one; None: the prepared text.
        best: for such a run, its best state, which evaluations update and pruning spares; None: the newest state is the best.
        heart: heartbeat of the rank; None to begin one. Raises DataError and CheckpointError.
        """
        config = run.config
        self.run, self.config, self.backend, self.best = run, config, backend, best
        self.ranks = ranks or backend.connect(config)
        self.heart = heart or Heartbeat(self.ranks.rank)
        self.heart.beat("building the network")
        ms.set_seed(config.seed)  # again: connecting the ranks may have drawn numbers
        self.setup = backend.build(config, self.ranks, self.run)
        self.network, self.store, self.step = self.setup.network, self.setup.store, self.setup.step
        self.step.set_train()
        with self.ranks.fail_together(f"reading {config.data.path}"):
            path, vocabulary = Path(config.data.path), run.tokenizer.size
            self.samples = samples or {split: open_samples(config, path, split, vocabulary) for split in SPLITS}
        self.batches = self.open_batches("train")
        self.schedule = Schedule(config.train.optimizer)
        self.progress, checkpoint = resumed or resume(run, self.ranks)
        state = {} if checkpoint is None else checkpoint.state
        self.health = Health(config.train, [d.name for d in config.domains], state.get("health"))
        if best is not None:
            best.restore(state.get("best", {}))
        if checkpoint is not None:
            backend.restore(self.setup, checkpoint)
        self.changes = changes_since_checkpoint(checkpoint, self.run)
        self.feed = InputPipeline(self.batches, self.progress.cursor, self.store)
        self._adds_losses = backend.adds_losses(config, self.ranks)
        self.saver = self._open_saver()
        self.loss, self.losses = 0.0, dict[str, float]()
        """Loss of the last step, and loss of each domain in its batch, in nats per token."""
        self.timeline = Timeline()
        self._worker_times: WorkerTimes | None = None  # of the worker of `ecss.update`, since the step before

    def open_batches(self, split: str) -> BatchLoader:
        """Open this rank's share of the batches of one split of the samples, "train" or "held_out"."""
        run, rank, planner = self.run, self.ranks.rank, self.backend.planner(self.config, self.ranks.rank)
        return BatchLoader(self.config, self.samples[split], run.tokenizer, run.table, rank, planner)

    def evaluator(self) -> Evaluator:
        """Make the evaluator of the held-out losses. A dev set is evaluated whole; without one, the training samples stand in."""
        split = "held_out" if "held_out" in self.samples else "train"
        is_dev_set = self.best is not None and split == "held_out"
        limit = samples_of_evaluation(self.config, all=is_dev_set)
        return self.backend.evaluator(self.setup, self.open_batches(split), limit)

    @property
    def finished(self) -> bool:
        """True if the run has taken all of its steps, or if its dev set's loss has not improved for too long."""
        is_stale = self.best is not None and self.best.stale >= self.config.tuning.patience
        return is_stale or self.progress.step >= self.config.train.steps

    def advance(self) -> tuple[Batch, float, StepResult]:
        """Take one step, and record it. Returns its batch, learning rate, and result.

        A step whose gradients are not finite, or whose loss is a spike to skip, is counted, but not applied: it is no update."""
        step = self.progress.step + 1
        self.heart.beat(f"the batch of step {step}")
        with self.timeline.span("feed"):
            step_input = self.feed.take()
        self.heart.beat(f"step {step}")
        rate = self.schedule(self.progress.updates + 1)
        weight_M = step_input.batch.block_weights_GM.sum(axis=0)  # M blocks of the batch; their weights add up to 1
        limit_D = self.health.limits(step_input.batch.domains_M, weight_M) if self.config.train.spikes.skip else None
        with self.timeline.span("step"):
            result = self.backend.take_step(self.setup, rate, step_input, limit_D)
            applied = bool(result.applied.asnumpy())
        if self.store.worker is not None:
            self._worker_times, spans = self.store.worker.read()
            self.timeline.add_worker_spans(spans)
        self.progress.advance(applied, step_input.cursor)
        self.loss, self.losses = self._losses(step_input.batch, weight_M, result)
        has_spike = not applied and bool(np.isfinite(result.norm.asnumpy()))
        self.health.observe(self.progress.step, self.losses, step_input.batch.digest, not applied, has_spike)
        return step_input.batch, rate, result

    def _losses(self, batch: Batch, weight_M: np.ndarray, result: StepResult) -> tuple[float, dict[str, float]]:
        """Return the mean loss per token of a step, in all and of each domain of its batch; the same on every rank. weight_M:
        weight of each block (sequences of one domain) in the loss. The losses in `result` are multiplied by it."""
        loss_M = np.zeros_like(weight_M)
        if self._adds_losses:  # one of the ranks that read the same tokens; the others add zeros
            loss_M[batch.blocks] = sum(loss.asnumpy() for loss in result.block_loss_GM)
        loss_M = self.ranks.sum(loss_M)
        per_domain = {}
        for index in dict.fromkeys(batch.domains_M.tolist()):
            of_domain_M = batch.domains_M == index
            name = self.batches.domains[index].name
            per_domain[name] = float(loss_M[of_domain_M].sum() / weight_M[of_domain_M].sum())
        return float(loss_M.sum()), per_domain

    def expert_load(self, batch: Batch) -> tuple[np.ndarray, list[list[int]]]:
        """Return the tokens of each expert in a batch, and for each segment the experts that its domains can reach. Subclasses with
        another routing override it."""
        return batch.load_NK, self.config.reachable_experts(batch.domains_M.tolist())

    def metrics(self, batch: Batch, rate: float, result: StepResult) -> Metrics:
        """Return the record of the last step, whose batch, learning rate and result `advance` returned: numbers by the names of
        log/metrics.py. All ranks have the same numbers, except the traffic of ECSS and the times of its worker."""
        applied, norm = bool(result.applied.asnumpy()), float(result.norm.asnumpy())
        norms = {"gradient_norm/dense": result.norm_dense, "gradient_norm/experts": result.norm_experts}
        epochs = zip(self.batches.domains, self.batches.order.epochs(self.progress.cursor), strict=True)
        balance, times = load_max_over_mean(*self.expert_load(batch)), self._worker_times
        return {
            "step": self.progress.step,
            "loss": self.loss,
            **{f"loss/{name}": loss for name, loss in self.losses.items()},
            "learning_rate": rate,
            "gradient_norm": norm,
            **{name: float(tensor.asnumpy()) for name, tensor in norms.items() if tensor is not None},
            "loss_scale": float(result.scale.asnumpy()),
            "skipped": int(not applied),
            "clipped": int(applied and norm > self.config.train.optimizer.clip_norm),
            "tokens": batch.tokens,
            **{f"epochs/{domain.name}": epoch for domain, epoch in epochs},
            "dropped": batch.dropped,
            **({} if balance is None else {"load_max_over_mean": balance}),
            **self.backend.traffic(self.setup, batch),
            **({} if times is None else {"update_busy_seconds": times.busy, "update_stall_seconds": times.waited}),
        }

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds besides arrays, as plain data: progress, health, and the best state."""
        best = {} if self.best is None else {"best": self.best.state()}
        return {**self.progress.state(), "health": self.health.state(), **best}

    def save(self) -> Path:
        """Write a checkpoint of the last step synchronously. Raises CheckpointError, or UnhealthyState for values not finite."""
        return self.saver.save(self.progress.step, self.backend.checkpoint_files(self.setup), self.state())

    def save_in_turn(self, last: bool) -> None:
        """Write a checkpoint after the last step, in the background if train.async_save is set and more steps follow.

        last: True if no step follows, so that an error ends the run. Otherwise an error of the disk is logged, and training goes on
        to the next checkpoint (our choice: nothing computed is lost if the disk recovers), unless it is the best state of a tuned
        run. Raises UnhealthyState in either case.
        """
        self.heart.beat(f"the save after step {self.progress.step}")
        self.complete_save()  # an error of the last checkpoint does not concern this one
        if self.best is not None:
            # only now: the previous save, when it pruned, had to spare the previous best state
            self.saver.spared = (self.best.step,)
        # an error of saving the best state ends the run too: its next save prunes the previous best state
        if last or (self.best is not None and self.best.step == self.progress.step):
            self.save()
            return
        with self.log_disk_errors(self.progress.step + 1):
            self.saver.begin(self.progress.step, self.backend.checkpoint_files(self.setup), self.state())

    def complete_save(self) -> None:
        """Wait for the checkpoint that is written in the background, if there is one. An error of the disk is logged. Raises
        UnhealthyState."""
        with self.log_disk_errors(self.progress.step):
            self.saver.wait()

    @contextmanager
    def log_disk_errors(self, step: int) -> Iterator[None]:
        """Log an error of the disk in a `with` block that saves, on rank 0 and on the rank where it happened. Training goes on to
        the next checkpoint. step: the first step after which the next checkpoint may be written."""
        try:
            yield
        except CheckpointError as error:
            if self.ranks.first or not isinstance(error.__cause__, RankError):  # not an error of another rank
                interval, last = self.config.train.checkpoint_interval, self.config.train.steps
                due = min(math.ceil(step / interval) * interval, last)
                logger.error("%s. Training goes on; the next checkpoint is due after step %d at the latest", error, due)

    def _open_saver(self) -> Saver:
        """Make the saver of the run. It saves in the background if train.async_save is set, unless the arrays cannot be copied."""
        run, options, reason = self.run, self.config.train, self.backend.cannot_copy(self.config)
        behind = options.async_save and reason is None
        if options.async_save and not behind and self.ranks.first:
            logger.info("checkpoints are written before training goes on, as with train.async_save=false: %s", reason)
        release = self.store.tier.release
        return Saver(run.checkpoints, run.identity, options.keep_checkpoints, release, behind, self.ranks)


def train(
    config: Config,
    folder: Path,
    backend: Backend = CPU,
    start_options: StartOptions = DEFAULT_START,
    profile: bool = False,
    kind: type[Trainer] = Trainer,
    on_step: OnStep | None = None,
    ranks: Ranks | None = None,
) -> Trainer | None:
    """Train a configuration in a run folder, resuming from its newest checkpoint, and write metrics and checkpoints. Returns None,
    before anything is compiled, if the run has taken all of its steps.

    backend: the devices to train on. start_options: further start options of the user. profile: True to write a timeline of a few
    steps (log/timeline.py). kind: class of the trainer, such as a subclass that reads other batches or measures something else.
    on_step: called after each step; True stops the training as SIGTERM does. ranks: already connected ranks; None to connect them.
    Raises UnhealthyRun if the run cannot recover, NotWritable while another process writes in the folder, ConfigError for a
    fine-tuning run, and the errors of `start_run`.
    After SIGTERM to any rank, all ranks finish the same step, save it and return; the run is then not at its last step. No rank may
    need another afterwards.
    """
    refuse_tuned(folder, config)
    ranks = ranks or backend.connect(config)
    with ranks.fail_together(f"reading {config.data.path}"):
        read_prepared_tokenizer(config)  # without prepared data no run folder is left behind
    with one_writer(folder, ranks):
        heart = Heartbeat(ranks.rank)
        heart.beat("the start")
        run = start_run(folder, config, ranks, start_options)
        progress, checkpoint = resume(run, ranks)
        trainer = None
        if progress.step < config.train.steps:
            trainer = kind(run, backend, ranks, (progress, checkpoint), heart=heart)
            del checkpoint  # its files are mapped, so that pruning would not free their space
            train_to_end(trainer, profile, on_step)
        else:
            if ranks.first:
                text = f"nothing to do: {folder} is at step {progress.step} of {config.train.steps}; raise train.steps to train on"
                logger.warning("%s", text + "; no timeline" * profile)
            with _open_log(run, progress.step, ranks) as log:
                log.changes(progress.step, changes_since_checkpoint(checkpoint, run))
        ranks.leave()  # before the work of rank 0 alone, for which no rank waits
        is_done = ranks.first and (trainer is None or trainer.finished)
        if is_done and (divergence := format_divergence(read_metrics(folder), config.train.optimizer.peak_lr)):
            logger.warning("%s", divergence)
        return trainer


def train_to_end(trainer: Trainer, profile: bool = False, on_step: OnStep | None = None) -> None:
    """Train until the run is finished, SIGTERM comes to any rank, or `on_step` returns True. The caller holds the lock of the run
    folder. profile: True to write a timeline of a few steps."""
    ranks, config, folder = trainer.ranks, trainer.config, trainer.run.path
    options, start = config.train, trainer.progress.step
    with ranks.fail_together("reading the held-out text"):
        evaluator = trainer.evaluator()
    log = _open_log(trainer.run, start, ranks)
    if profile and ranks.first:
        trainer.timeline = Timeline(folder, start)
    span = trainer.timeline.span
    for remark in _remarks(trainer) if ranks.first else ():
        logger.warning("%s", remark)
    with gc_frozen(), recorded_signals(signal.SIGTERM) as signals, log, trainer.saver, trainer.timeline:
        log.changes(start, trainer.changes)
        if start == 0:
            trainer.heart.beat("the evaluation before step 1")
            _evaluate(trainer, evaluator, log)
        stopped = False
        while not trainer.finished and not stopped:
            start_time = time.perf_counter()
            batch, rate, result = trainer.advance()
            step, is_last = trainer.progress.step, trainer.finished
            with span("metrics"):
                metrics = trainer.metrics(batch, rate, result)
                log.record(metrics, trainer.expert_load(batch)[0], batch.digest, time.perf_counter() - start_time)
                if trainer.health.needs_check:
                    trainer.complete_save()  # it may be the checkpoint to go back to
                check_health(trainer.health, trainer.setup, trainer.run, step, batch.active_A, log)
            must_stop = (on_step is not None and on_step(metrics) is True) or bool(signals)
            # the numbers of ranks that must stop, and whose saver is ready
            stop_count, ready_count = ranks.sum(np.array([must_stop, trainer.saver.is_ready], np.float32))
            stopped = bool(stop_count)
            if ready_count == ranks.world:
                with trainer.log_disk_errors(step):
                    trainer.saver.proceed()
            # a stopped run omits its evaluation, also when it is resumed; but a tuned run would miss a best state
            if is_last or (step % options.eval_interval == 0 and (not stopped or trainer.best is not None)):
                trainer.heart.beat(f"the evaluation after step {step}")
                with span("evaluation"):
                    _evaluate(trainer, evaluator, log)
                trainer.store.tier.release()
                is_last = trainer.finished
            if step % options.checkpoint_interval == 0 or is_last or stopped:
                with span("save"):
                    log.flush()
                    trainer.save_in_turn(is_last or stopped)
            trainer.timeline.step_done(step)
    if not trainer.finished:
        logger.info("stopped after step %d, which is saved; the same command goes on from there", trainer.progress.step)


def _open_log(run: StoredRun, step: int, ranks: Ranks) -> MetricsLog | NoLog:
    """Open the metrics log of a run that goes on after `step`; only rank 0 has one. All ranks have read the checkpoint before."""
    if not ranks.first:
        return NoLog()
    set_aside(run.path, step)  # damaged checkpoints of later steps, with a copy of the log
    options, names = run.config.train, [domain.name for domain in run.config.domains]
    return MetricsLog(run.path, names, options.steps, options.log_interval, step, run.identity)


def _remarks(trainer: Trainer) -> list[str]:
    """Return the warnings to log before a training of this length begins."""
    config, steps = trainer.config, trainer.config.train.steps
    names, warmup = [domain.name for domain in config.domains], config.train.optimizer.warmup_steps
    remarks = repetitions(trainer.batches.order, names, steps) if config.finetune is None else []
    if warmup > steps:
        remarks.append(
            f"train.optimizer.warmup_steps={warmup} is more than train.steps={steps}: the training ends before the learning rate "
            "has risen to train.optimizer.peak_lr; lower it, or raise train.steps"
        )
    return remarks


def _evaluate(trainer: Trainer, evaluator: Evaluator, log: MetricsLog | NoLog) -> None:
    """Evaluate the held-out samples, log their losses and the figures of rows, and update the best state. Without held-out samples
    evaluate the training samples, but only before the first step and after the last one."""
    step, best, has_held_out = trainer.progress.step, trainer.best, "held_out" in trainer.samples
    losses = evaluator.losses() if has_held_out or step == 0 or trainer.finished else {}
    if has_held_out:
        log.evaluation(step, losses)
    if trainer.ranks.first and (rows := trainer.store.rows):
        layers = layers_of_stage(trainer.config, 0)  # rank 0, which writes the log, has no others
        scales = {layer: trainer.network.layers[layer].row_scale.asnumpy().item() for layer in layers}
        log.write("rows", step=step, entries=dict(enumerate(rows.figures())), scales=scales)
    if best is not None:
        best.take(step, losses, has_held_out)
