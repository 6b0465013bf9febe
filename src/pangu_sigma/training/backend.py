"""Backends of the training loop, one for CPUs and one for Ascend.

Both use the same loop (loop.py). A backend connects the ranks, builds network, experts and step, takes a step, and knows which
parts of a checkpoint a rank writes and reads. It has no state; what it builds is a `TrainingSetup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.parts import EXPERTS, Files
from pangu_sigma.checkpoint.state import Shards, files_of, parts_of, restore, restore_rows, row_files, shards_of
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.ecss.store import ExpertStore, array_specs, build
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.held_out.evaluator import EvaluationStep, Evaluator
from pangu_sigma.host_memory import check_rows_fit
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.process import use_cpu
from pangu_sigma.ranks.connect import connect
from pangu_sigma.ranks.layout import writes_experts
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.rre.plan import Planner
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.feed import StepInput
from pangu_sigma.training.start import check_cpu
from pangu_sigma.training.step import SpikeLimits, StepResult, TrainStep


@dataclass(frozen=True)
class TrainingSetup:
    """Network, expert store and training step that a backend has built for one rank of a run.

    step: cell of a training step. It has `dense`, the optimizer of the dense parameters, and `scale`, the loss scale.
    """

    config: Config
    ranks: Ranks
    network: PanGuSigma
    store: ExpertStore
    step: nn.Cell

    @cached_property
    def shards(self) -> Shards:
        """Parameters that a checkpoint holds, by shard."""
        return shards_of(self.network, self.store, self.step.dense, self.step.scale)


class Backend:
    """Interface between the training loop and its devices. This base class is for processes on CPUs: the step of step.py."""

    def planner(self, config: Config, rank: int) -> Planner | None:
        """Return the maker of the routing plans of a rank; None: `BatchLoader` makes the planner of a process on CPUs."""
        return None

    def connect(self, config: Config) -> Ranks:
        """Set MindSpore up for the device, and connect this process with the other ranks of the run.

        Raises ConfigError for settings that the device does not support.
        """
        check_cpu(config)
        use_cpu(config.seed)
        return connect(config.parallel)

    def build(self, config: Config, ranks: Ranks, run: StoredRun) -> TrainingSetup:
        """Build network, experts and step of this rank, with initial values."""
        network, store = build(config, ranks, tier_of(config, ranks, run))
        return TrainingSetup(config, ranks, network, store, TrainStep(config, network, store, ranks))

    def take_step(
        self, setup: TrainingSetup, rate: float, step_input: StepInput, limit_D: np.ndarray | None = None
    ) -> StepResult:
        """Take one training step. rate: learning rate. step_input: its batch.

        limit_D: limits from `Health.limits`; a batch with a loss above its limit is a loss spike and is skipped. None: no limits.
        """
        limits = None
        if limit_D is not None:
            # one-hot: the domain of each block that this rank trains on
            blocks_MD = np.eye(len(limit_D), dtype=np.float32)[step_input.batch.domains_M[step_input.batch.blocks]]
            limits = SpikeLimits(Tensor(limit_D), Tensor(blocks_MD))
        result = setup.step.take(rate, step_input.arrays, limits)
        if result.rows_hyper is not None:
            update_rows(setup.store, setup.ranks, step_input.batch, result)
        return result

    def traffic(self, setup: TrainingSetup, batch: Batch) -> dict[str, float]:
        """Return the MiB of experts fetched and returned in a step (`ExpertStore.traffic`), by name; {} if they are not known."""
        return setup.store.traffic(batch.active_A)

    def adds_losses(self, config: Config, ranks: Ranks) -> bool:
        """Return True if this rank adds its losses to the total: exactly one of the ranks that read the same tokens does."""
        return True  # no two ranks see the same tokens

    def evaluator(self, setup: TrainingSetup, held_out: BatchLoader, sample_limit: int) -> Evaluator:
        """Make the evaluator of the network's losses on held-out batches. sample_limit: maximum number of samples of a domain."""
        step = EvaluationStep(setup.network, setup.store)
        return Evaluator(held_out, sample_limit, step, setup.network, setup.ranks)

    def checkpoint_files(self, setup: TrainingSetup) -> Files:
        """Return the files of a checkpoint that this rank writes, with their arrays."""
        setup.store.settle()
        config, rank, segments = setup.config, setup.ranks.rank, [experts.segment for experts in setup.store.segments]
        # another rank that stores the same experts writes them
        other_shards = {f"{EXPERTS}{s.number}" for s in segments if not writes_experts(config, rank, s.kind)}
        shards = {shard: parameters for shard, parameters in setup.shards.items() if shard not in other_shards}
        return files_of(shards, parts_of(setup.store), setup.ranks) | row_files(setup.store.rows, setup.ranks)

    def cannot_copy(self, config: Config) -> str | None:
        """Return why the arrays of `checkpoint_files` cannot be copied to be saved in the background; None if they can."""
        return "ecss.store=file keeps more experts than memory holds" if config.ecss.store == "file" else None

    def restore(self, setup: TrainingSetup, checkpoint: Checkpoint) -> None:
        """Load the parameters of this rank from a checkpoint. Raises CheckpointError if it is of another configuration."""
        setup.store.settle()
        restore(setup.shards, checkpoint, setup.store.tier.release, parts_of(setup.store))
        restore_rows(setup.store.rows, checkpoint)


def update_rows(store: ExpertStore, ranks: Ranks, batch: Batch, result: StepResult) -> None:
    """Let the store update the rows of a batch (`model.rows`), while the training goes on. result: of the step, with the gradients
    of this rank's tokens. Every rank stores all rows, so the ranks bring the gradients of the whole batch together."""
    rows, grads_GTH = store.rows, np.stack([rows_TH.asnumpy() for rows_TH in result.rows_GTH])
    assert rows is not None and result.rows_hyper is not None
    if ranks.world > 1:
        micro_batches, batch_size, seq_length = batch.row_keys_EGBS.shape[1:]
        # zeros but for this rank's sequences; the sum over ranks fills in the others
        grads_GBSH = np.zeros((micro_batches, batch_size, seq_length, rows.hidden), np.float32)
        grads_GBSH[:, batch.own_B] = grads_GTH.reshape(micro_batches, -1, seq_length, rows.hidden)
        for b in range(batch_size):  # one by one: a device may have no room for the gradients of the whole batch
            grads_GBSH[:, b] = ranks.sum(grads_GBSH[:, b])
        grads_GTH = grads_GBSH
    rows.update(batch.row_keys_EGBS, grads_GTH.reshape(-1, rows.hidden), result.rows_hyper.asnumpy())


def tier_of(config: Config, ranks: Ranks, run: StoredRun) -> HostTier:
    """Make the host storage for the experts of a rank, by `ecss.store`: memory, or a file in `ecss.path` or in the run folder."""
    options = config.ecss
    if options.store == "host":
        return HostTier()
    folder, processes = Path(options.path or run.path), ranks.sum_here(1)
    with ranks.fail_together("making the file store"):
        tier = FileTier(folder, array_specs(config, ranks.rank), options.cache_gib)
        check_rows_fit(config, folder, processes)  # beside the experts, whose room is reserved
    return tier
