"""The training loop: batch → step → metrics, with evaluation and checkpoints at their intervals."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import numpy as np

from pangu_sigma.checkpoint.checkpoint import save_checkpoint
from pangu_sigma.checkpoint.run_folder import NOTHING, Asked, RunFolder, one_writer, read_prepared_tokenizer
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.ecss.prefetch import Traffic
from pangu_sigma.optimizer.schedule import Schedule
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.train.backend import Backend, CpuBackend
from pangu_sigma.train.feed import Feed
from pangu_sigma.train.held_out import Evaluator
from pangu_sigma.train.metrics import MetricsLog, NoLog, StepMetrics
from pangu_sigma.train.progress import changes_since, resume
from pangu_sigma.train.report import write_report
from pangu_sigma.train.step import StepResult
from pangu_sigma.train.stop import StopRequest

logger = logging.getLogger(__name__)

CPU = CpuBackend()


class Trainer:
    """A run that can be advanced, saved and resumed. If it has several ranks, this is one of them, and all of them do the same."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        backend: Backend = CPU,
        asked: Asked = NOTHING,
        ranks: Ranks | None = None,
    ):
        """folder: the run's; training goes on from its newest checkpoint if it has one. backend: the devices to train on.

        asked: what the user wants besides. ranks: those that the caller has joined; None to join them here.
        """
        self.config, self.backend = config, backend
        self.ranks = ranks or backend.join(config)
        self.run = RunFolder.create(folder, config, self.ranks, asked)
        ms.set_seed(config.seed)  # again: what joins ranks may have drawn
        self.built = backend.build(config, self.ranks, self.run)
        self.network, self.store, self.step = self.built.network, self.built.store, self.built.step
        self.shards = self.built.shards
        self.step.set_train()
        self.batches = self.open_batches("train")
        self.schedule = Schedule(config.train.optimizer)
        self.progress, checkpoint = resume(self.run, self.batches.start(), self.ranks)
        if checkpoint is not None:
            backend.restore(self.built, checkpoint)
        self.changes = changes_since(checkpoint, self.run)
        self.feed = Feed(self.batches, self.progress.cursor, self.store, backend.prefetcher(self.built))
        self._counts = backend.counts_losses(config, self.ranks)

    def open_batches(self, split: str) -> Batches:
        """This rank's share of a split of the prepared data."""
        data = Path(self.config.data.path)
        layout = self.backend.layout(self.config)
        return Batches(self.config, data, self.run.tokenizer, self.run.table, split, self.ranks.rank, layout)

    def evaluator(self) -> Evaluator:
        """The evaluator that measures the held-out losses of the network as it is."""
        return self.backend.evaluator(self.built, self.open_batches("held_out"))

    @property
    def finished(self) -> bool:
        """True if the run has all of its steps."""
        return self.progress.step >= self.config.train.steps

    def advance(self) -> tuple[Batch, float, StepResult, Traffic | None]:
        """Take one step. Returns its batch, learning rate, result, and what the prefetcher moved for it."""
        fed = self.feed.take()
        rate = self.schedule(self.progress.updates + 1)
        result = self.backend.take_step(self.built, rate, fed)
        self.progress.advance(bool(result.applied.asnumpy()), fed.cursor)
        return fed.batch, rate, result, fed.traffic

    def metrics(self, batch: Batch, rate: float, result: StepResult, traffic: Traffic | None) -> StepMetrics:
        """The step's figures, the same on every rank; losses are means over the tokens of each domain."""
        weight_M = batch.block_weights_GM.sum(axis=0)
        loss_M = np.zeros_like(weight_M)
        if self._counts:
            loss_M[batch.blocks] = sum(loss.asnumpy() for loss in result.block_loss_GM)
        loss_M = self.ranks.sum(loss_M)
        per_domain = {}
        for index in dict.fromkeys(batch.domains_M.tolist()):
            blocks = batch.domains_M == index
            name = self.batches.domains[index].name
            per_domain[name] = float(loss_M[blocks].sum() / weight_M[blocks].sum())
        return StepMetrics(
            step=self.progress.step,
            loss=float(loss_M.sum()),
            per_domain_loss=per_domain,
            learning_rate=rate,
            gradient_norm=float(result.norm.asnumpy()),
            loss_scale=float(result.scale.asnumpy()),
            skipped=not result.applied.asnumpy(),
            tokens=batch.tokens,
            load_NK=batch.load_NK,
            samples=batch.digest,
            dropped=batch.plan.dropped,
            traffic=traffic,
        )

    def save(self) -> Path:
        """Write a checkpoint of the state after the last step."""
        return save_checkpoint(
            self.run.checkpoints,
            self.progress.step,
            self.backend.files(self.built),
            self.progress.state(),
            self.run.identity,
            self.config.train.keep_checkpoints,
            self.store.tier.release,
            self.ranks,
        )


def train(config: Config, folder: Path, backend: Backend = CPU, asked: Asked = NOTHING) -> Trainer:
    """Train `config` in `folder`, from its newest checkpoint if it has one, and write metrics, checkpoints and a report.

    backend: the devices to train on. asked: what the user wants besides. Raises LockError while somebody else writes in the folder,
    and as `RunFolder.create`.
    At SIGTERM, to any rank, all ranks finish the same step, save it and return; the run is then not at its last step. A process of
    several ranks calls `ranks.leave` when it needs the trainer no longer.
    """
    ranks = backend.join(config)
    with ranks.together(f"reading {config.data.path}"):
        read_prepared_tokenizer(config)  # who has no data leaves no folder behind
    with one_writer(folder, asked.lock, ranks):
        return _train(Trainer(config, folder, backend, asked, ranks))


def _train(trainer: Trainer) -> Trainer:
    ranks, config, folder = trainer.ranks, trainer.config, trainer.run.path
    options, names = config.train, [d.name for d in config.domains]
    with ranks.together("reading the held-out text"):
        evaluator = trainer.evaluator()
    start = trainer.progress.step
    log = (
        MetricsLog(folder, names, options.steps, options.log_interval, start, trainer.run.identity)
        if ranks.first
        else NoLog()
    )
    with StopRequest() as stop, log:
        log.changed(start, trainer.changes)
        if start == 0:
            log.evaluation(start, evaluator.losses())
        stopped = False
        while trainer.progress.step < options.steps and not stopped:
            log.record(trainer.metrics(*trainer.advance()))
            step, last = trainer.progress.step, trainer.progress.step == options.steps
            stopped = ranks.any(stop.requested)
            with log.paused():
                if last or (step % options.eval_interval == 0 and not stopped):
                    log.evaluation(step, evaluator.losses())
                    trainer.store.tier.release()
                if step % options.checkpoint_interval == 0 or last or stopped:
                    log.flush()
                    trainer.save()
    if ranks.first and trainer.finished:
        write_report(folder)
    elif not trainer.finished:
        logger.info("stopped after step %d, which is saved; the same command goes on from there", trainer.progress.step)
    return trainer
