"""The training loop: batch → step → metrics, with evaluation and checkpoints at their intervals."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.device import use_cpu
from pangu_sigma.ecss.prefetch import Traffic
from pangu_sigma.ecss.store import array_specs, make_store
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.train.checkpoint import load_checkpoint, save_checkpoint
from pangu_sigma.train.evaluation import Evaluator
from pangu_sigma.train.feed import Feed
from pangu_sigma.train.metrics import MetricsLog, StepMetrics
from pangu_sigma.train.report import write_report
from pangu_sigma.train.run_folder import RunFolder
from pangu_sigma.train.schedule import Schedule
from pangu_sigma.train.state import Progress, arrays_of, restore, shards_of
from pangu_sigma.train.step import StepResult, TrainStep

logger = logging.getLogger(__name__)


class Trainer:
    """A run that can be advanced, saved and resumed."""

    def __init__(self, config: Config, folder: Path):
        self.config = config
        self.run = RunFolder.create(folder, config)
        use_cpu(config.seed)
        self.network = PanGuSigma(config.model, config.slots, getattr(ms, config.train.compute_dtype))
        self.store = make_store(config, self._tier())
        self.step = TrainStep(config, self.network, self.store)
        self.step.set_train()
        self.shards = shards_of(self.network, self.store, self.step)
        self.batches = Batches(config, Path(config.data.path), self.run.tokenizer, self.run.table)
        self.schedule = Schedule(config.train.optimizer)
        self.progress = Progress(0, 0, self.batches.start())
        if (self.run.checkpoints / "LATEST").exists():
            self._resume()
        self.feed = Feed(config, self.batches, self.progress.cursor, self.store)

    def advance(self) -> tuple[Batch, float, StepResult, Traffic | None]:
        """One step. Returns its batch, learning rate, result, and what the prefetcher moved for it."""
        fed = self.feed.take()
        rate = self.schedule(self.progress.updates + 1)
        result = StepResult(*self.step(Tensor(rate, ms.float32), *fed.arrays, *fed.transfer))
        self.progress.step += 1
        self.progress.updates += int(result.applied.asnumpy())
        self.progress.cursor = fed.cursor
        return fed.batch, rate, result, fed.traffic

    def metrics(self, batch: Batch, rate: float, result: StepResult, traffic: Traffic | None) -> StepMetrics:
        """The step's figures; losses are means over the tokens of each domain."""
        loss_GM = np.stack([loss_M.asnumpy() for loss_M in result.block_loss_GM])
        weight_GM = batch.block_weights()
        per_domain = {}
        for index in dict.fromkeys(batch.domains_M.tolist()):
            blocks = batch.domains_M == index
            name = self.batches.domains[index].name
            per_domain[name] = float(loss_GM[:, blocks].sum() / weight_GM[:, blocks].sum())
        return StepMetrics(
            step=self.progress.step,
            loss=float(loss_GM.sum()),
            per_domain_loss=per_domain,
            learning_rate=rate,
            gradient_norm=float(result.norm.asnumpy()),
            loss_scale=float(result.scale.asnumpy()),
            skipped=not result.applied.asnumpy(),
            tokens=batch.tokens,
            load_NK=batch.load(self.config.experts),
            traffic=traffic,
        )

    def save(self) -> Path:
        """Write a checkpoint of the state after the last step."""
        return save_checkpoint(
            self.run.checkpoints,
            self.progress.step,
            arrays_of(self.shards),
            self.progress.state(),
            self.run.identity,
            self.config.train.keep_checkpoints,
            self.store.tier.release,
        )

    def _tier(self) -> HostTier:
        options = self.config.ecss
        if options.store == "host":
            return HostTier()
        folder = Path(options.path) if options.path else self.run.path / "experts"
        return FileTier(folder, array_specs(self.config), self.run.table.hash, options.cache_gib)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.run.checkpoints, self.run.identity)
        restore(self.shards, checkpoint, self.store.tier.release)
        self.progress = Progress.from_state(checkpoint.state)
        logger.info("resuming %s after step %d", self.run.path, checkpoint.step)


def train(config: Config, folder: Path) -> None:
    """Train `config` in `folder`, from its newest checkpoint if it has one, and write metrics, checkpoints and a report."""
    trainer = Trainer(config, folder)
    options, names = config.train, [d.name for d in config.domains]
    evaluator = Evaluator(config, trainer.run.tokenizer, trainer.run.table, trainer.network, trainer.store)
    start = trainer.progress.step
    with MetricsLog(folder, names, options.steps, options.log_interval, start) as log:
        if start == 0:
            log.evaluation(start, evaluator.losses())
        while trainer.progress.step < options.steps:
            log.record(trainer.metrics(*trainer.advance()))
            step, last = trainer.progress.step, trainer.progress.step == options.steps
            with log.paused():
                if step % options.eval_interval == 0 or last:
                    log.evaluation(step, evaluator.losses())
                    trainer.store.tier.release()
                if step % options.checkpoint_interval == 0 or last:
                    log.flush()
                    trainer.save()
    write_report(folder)
