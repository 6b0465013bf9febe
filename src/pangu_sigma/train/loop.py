"""The training loop: batch → step → metrics, with evaluation and checkpoints at their intervals."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import Parts, files_of, parts_of, restore, shards_of
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.device import use_cpu
from pangu_sigma.ecss.prefetch import Traffic
from pangu_sigma.ecss.store import ExpertStore, array_specs, make_store
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.optimizer.schedule import Schedule
from pangu_sigma.parallel.all_to_all import experts_of
from pangu_sigma.parallel.connect import join
from pangu_sigma.parallel.layout import Layout
from pangu_sigma.parallel.plans import dispatch_layout
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.train.feed import Fed, Feed
from pangu_sigma.train.held_out import EvaluationStep, Evaluator
from pangu_sigma.train.metrics import MetricsLog, NoLog, StepMetrics
from pangu_sigma.train.progress import Progress
from pangu_sigma.train.report import write_report
from pangu_sigma.train.step import StepResult, TrainStep
from pangu_sigma.train.stop import StopRequest

logger = logging.getLogger(__name__)


class Trainer:
    """A run that can be advanced, saved and resumed; of a run of several ranks, one of them, and all do the same."""

    ascend = False
    """True if the ranks are NPUs."""
    prefetches = True
    """Whether the step takes experts that were brought before it."""
    counts = True
    """Whether the losses of this rank count: of ranks that see the same tokens, those of one do."""

    def __init__(self, config: Config, folder: Path):
        self.config = config
        self.ranks = self._join()
        self.run = RunFolder.create(folder, config, self.ranks)
        ms.set_seed(config.seed)  # again: what joins ranks may have drawn
        self.network, self.store, self.step = self._build()
        self.step.set_train()
        self.shards = shards_of(self.network, self.store, self.step.dense, self.step.scale)
        self.batches = self.open_batches("train")
        self.schedule = Schedule(config.train.optimizer)
        self.progress = Progress(0, 0, self.batches.start())
        if (self.run.checkpoints / "LATEST").exists():
            self._resume()
        self.feed = Feed(config, self.batches, self.progress.cursor, self.store, prefetch=self.prefetches)

    def open_batches(self, split: str) -> Batches:
        """This rank's share of a split of the prepared data."""
        data = Path(self.config.data.path)
        layout = dispatch_layout(self.config, self.ascend)
        return Batches(self.config, data, self.run.tokenizer, self.run.table, split, self.ranks.rank, layout)

    def evaluator(self) -> Evaluator:
        """Held-out losses of the network as it is."""
        forward = EvaluationStep(self.network, self.store)
        return Evaluator(self.config, self.open_batches("held_out"), forward, self.network, self.ranks)

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.config.train.steps

    def advance(self) -> tuple[Batch, float, StepResult, Traffic | None]:
        """One step. Returns its batch, learning rate, result, and what the prefetcher moved for it."""
        fed = self.feed.take()
        rate = self.schedule(self.progress.updates + 1)
        result = self._take_step(rate, fed)
        self.progress.step += 1
        self.progress.updates += int(result.applied.asnumpy())
        self.progress.cursor = fed.cursor
        return fed.batch, rate, result, fed.traffic

    def metrics(self, batch: Batch, rate: float, result: StepResult, traffic: Traffic | None) -> StepMetrics:
        """The step's figures, the same on every rank; losses are means over the tokens of each domain."""
        weight_M = batch.block_weights_GM.sum(axis=0)
        loss_M = np.zeros_like(weight_M)
        if self.counts:
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
        arrays, parts = self._files()
        return save_checkpoint(
            self.run.checkpoints,
            self.progress.step,
            arrays,
            self.progress.state(),
            self.run.identity,
            self.config.train.keep_checkpoints,
            self.store.tier.release,
            parts,
            self.ranks,
        )

    def _join(self) -> Ranks:
        use_cpu(self.config.seed)
        return join(self.config.parallel)

    def _build(self) -> tuple[PanGuSigma, ExpertStore, TrainStep]:
        dtype = getattr(ms, self.config.train.compute_dtype)
        network = PanGuSigma(self.config.model, self.config.slots, dtype, routed=experts_of(self.config, self.ranks))
        store = make_store(self.config, self._tier(), self.ranks.rank)
        return network, store, TrainStep(self.config, network, store, self.ranks)

    def _take_step(self, rate: float, fed: Fed) -> StepResult:
        return StepResult(*self.step(Tensor(rate, ms.float32), *fed.arrays, *fed.transfer))

    def _files(self) -> tuple[dict[str, dict[str, np.ndarray]], Parts]:
        """What this rank writes of a checkpoint."""
        first_replica = Layout(self.config.parallel).coordinates(self.ranks.rank).data == 0
        return files_of(self.shards, parts_of(self.shards, self.store), self.ranks, first_replica)

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore(self.shards, checkpoint, self.store.tier.release, parts_of(self.shards, self.store))

    def _tier(self) -> HostTier:
        options = self.config.ecss
        if options.store == "host":
            return HostTier()
        folder, parallel, rank = Path(options.path or self.run.path / "experts"), self.config.parallel, self.ranks.rank
        if self.ranks.world > 1:  # with another layout the same rank stores others
            folder = folder / f"groups{parallel.groups}_expert{parallel.expert}_data{parallel.data}" / f"rank{rank}"
        return FileTier(folder, array_specs(self.config, rank), self.run.table.hash, options.cache_gib)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.run.checkpoints, self.run.identity, self.ranks)
        self._restore(checkpoint)
        self.progress = Progress.from_state(checkpoint.state)
        logger.info("resuming %s after step %d", self.run.path, checkpoint.step)


def train(config: Config, folder: Path, kind: type[Trainer] = Trainer) -> Trainer:
    """Train `config` in `folder`, from its newest checkpoint if it has one, and write metrics, checkpoints and a report.

    At SIGTERM, to any rank, all ranks finish the same step, save it and return; the run is then not at its last step. A process of
    several ranks calls `ranks.leave` when it needs the trainer no longer.
    """
    trainer = kind(config, folder)
    ranks, options, names = trainer.ranks, config.train, [d.name for d in config.domains]
    with ranks.together("reading the held-out text"):
        evaluator = trainer.evaluator()
    start = trainer.progress.step
    log = MetricsLog(folder, names, options.steps, options.log_interval, start) if ranks.first else NoLog()
    with StopRequest() as stop, log:
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
