"""Backends of the training loop: what differs between training on the CPU and on Ascend.

The loop itself (loop.py) is one. A backend connects the ranks, makes network, experts and step, takes a step, and knows which
numbers of a checkpoint a rank writes and reads. It keeps nothing itself; what it has made is a `Built`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import Shards, files_of, parts_of, restore, shards_of
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import Batches
from pangu_sigma.data.held_out import samples_of_evaluation
from pangu_sigma.device import use_cpu
from pangu_sigma.ecss.build import build
from pangu_sigma.ecss.prefetch import Prefetcher, make_prefetcher
from pangu_sigma.ecss.store import ExpertStore, array_specs
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.connect import join
from pangu_sigma.parallel.layout import Layout, dispatch_layout
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.rre.capacity import DispatchLayout
from pangu_sigma.train.feed import Fed
from pangu_sigma.train.held_out import EvaluationStep, Evaluator
from pangu_sigma.train.step import SpikeLimits, StepResult, TrainStep


@dataclass(frozen=True)
class Built:
    """The network, experts and step that a backend has made for one rank of a run.

    step: the cell that takes a training step. It has `dense`, the optimizer of the dense parameters, and `scale`, the loss scale.
    """

    config: Config
    ranks: Ranks
    network: PanGuSigma
    store: ExpertStore
    step: nn.Cell

    @cached_property
    def shards(self) -> Shards:
        """The parameters that a checkpoint holds."""
        return shards_of(self.network, self.store, self.step.dense, self.step.scale)


class Backend(ABC):
    """The devices that the training loop runs on, as far as the loop has to do with them."""

    @abstractmethod
    def layout(self, config: Config) -> DispatchLayout:
        """The layout of the routing plans."""

    @abstractmethod
    def join(self, config: Config) -> Ranks:
        """Set MindSpore up for the device and connect this process with the other ranks of the run.

        Raises ConfigError for what the device cannot do.
        """

    @abstractmethod
    def build(self, config: Config, ranks: Ranks, run: RunFolder) -> Built:
        """Make network, experts and step of this rank, at their initial values."""

    @abstractmethod
    def prefetcher(self, built: Built) -> Prefetcher | None:
        """The prefetcher that brings the experts of the next step; None if the step looks them up itself."""

    @abstractmethod
    def take_step(self, built: Built, rate: float, fed: Fed, limit_D: np.ndarray | None = None) -> StepResult:
        """Take one training step with this learning rate.

        limit_D: with train.spikes.skip, the largest weighted loss of each domain that is no spike, float32.
        """

    @abstractmethod
    def counts_losses(self, config: Config, ranks: Ranks) -> bool:
        """True if the losses of this rank count. Of ranks that see the same tokens, those of one do."""

    @abstractmethod
    def evaluator(self, built: Built, held_out: Batches) -> Evaluator:
        """The evaluator that measures the losses of the network, as it is, on held-out batches."""

    @abstractmethod
    def files(self, built: Built) -> Files:
        """The files that this rank writes of a checkpoint."""

    @abstractmethod
    def cannot_copy(self, config: Config) -> str | None:
        """The reason why the arrays of `files` cannot be copied while `train.async_save` writes them; None if they can."""

    @abstractmethod
    def restore(self, built: Built, checkpoint: Checkpoint) -> None:
        """Fill the parameters of this rank from a checkpoint. Raises CheckpointError if it is of another configuration."""


class CpuBackend(Backend):
    """Ranks that are processes on CPUs: the step of step.py, experts brought by a prefetcher."""

    def layout(self, config: Config) -> DispatchLayout:
        return dispatch_layout(config)

    def join(self, config: Config) -> Ranks:
        if config.train.compute_dtype == "bfloat16":
            raise ConfigError(
                "train.compute_dtype=bfloat16 needs Ascend: MindSpore multiplies no bfloat16 on the CPU; set it to float32"
            )
        use_cpu(config.seed)
        return join(config.parallel)

    def build(self, config: Config, ranks: Ranks, run: RunFolder) -> Built:
        network, store = build(config, ranks, tier_of(config, ranks, run))
        return Built(config, ranks, network, store, TrainStep(config, network, store, ranks))

    def prefetcher(self, built: Built) -> Prefetcher | None:
        return make_prefetcher(built.config, built.store)

    def take_step(self, built: Built, rate: float, fed: Fed, limit_D: np.ndarray | None = None) -> StepResult:
        limits = None
        if limit_D is not None:
            blocks_MD = np.eye(len(limit_D), dtype=np.float32)[fed.batch.domains_M[fed.batch.blocks]]
            limits = SpikeLimits(Tensor(limit_D), Tensor(blocks_MD))
        return built.step.take(rate, fed.arrays, fed.brought, limits)

    def counts_losses(self, config: Config, ranks: Ranks) -> bool:
        return True  # no two see the same tokens

    def evaluator(self, built: Built, held_out: Batches) -> Evaluator:
        step, most = EvaluationStep(built.network, built.store), samples_of_evaluation(built.config)
        return Evaluator(held_out, most, step, built.network, built.ranks)

    def files(self, built: Built) -> Files:
        first_replica = Layout(built.config.parallel).coordinates(built.ranks.rank).data == 0
        return files_of(built.shards, parts_of(built.shards, built.store), built.ranks, first_replica)

    def cannot_copy(self, config: Config) -> str | None:
        return "ecss.store=file keeps more experts than memory holds" if config.ecss.store == "file" else None

    def restore(self, built: Built, checkpoint: Checkpoint) -> None:
        restore(built.shards, checkpoint, built.store.tier.release, parts_of(built.shards, built.store))


def tier_of(config: Config, ranks: Ranks, run: RunFolder) -> HostTier:
    """The tier in which `ecss.store` keeps the experts of a rank: memory, or files in `ecss.path` or in the run folder."""
    options, parallel = config.ecss, config.parallel
    if options.store == "host":
        return HostTier()
    folder = Path(options.path or run.path / "experts")
    if ranks.world > 1:  # in another layout the same rank stores other experts
        folder = folder / f"groups{parallel.groups}_expert{parallel.expert}_data{parallel.data}" / f"rank{ranks.rank}"
    return FileTier(folder, array_specs(config, ranks.rank), run.table.hash, options.cache_gib)
