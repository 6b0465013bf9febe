"""Ascend backend of the training loop: the Ascend step, and checkpoints of arrays that MindSpore has divided among ranks."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.parts import EXPERTS, Files, SavedArray
from pangu_sigma.checkpoint.state import Parts, file_of_rank, restore, restore_rows, row_files
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.held_out.evaluator import Evaluator
from pangu_sigma.npu.context import use_ascend
from pangu_sigma.npu.inputs import step_inputs
from pangu_sigma.npu.planner import ExchangePlanner
from pangu_sigma.npu.saved_parts import saved_parts
from pangu_sigma.npu.step import AscendStep
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.ranks.connect import connect
from pangu_sigma.ranks.layout import Layout
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.backend import Backend, TrainingSetup, update_rows
from pangu_sigma.training.feed import StepInput
from pangu_sigma.training.step import StepResult


class AscendBackend(Backend):
    """Training backend for ranks that are NPUs: `AscendStep` under MindSpore's auto-parallel."""

    def planner(self, config: Config, rank: int) -> ExchangePlanner:
        return ExchangePlanner(config, rank)

    def connect(self, config: Config) -> Ranks:
        check_ascend(config)
        use_ascend(config)
        return connect(config.parallel)

    def build(self, config: Config, ranks: Ranks, run: StoredRun) -> TrainingSetup:
        step = AscendStep(config, ranks.rank)
        step.fill(config.seed)
        return TrainingSetup(config, ranks, step.network.loss.network, step.store, step)

    def traffic(self, setup: TrainingSetup, batch: Batch) -> dict[str, float]:
        return {}  # `pangu-sigma plan` predicts the traffic of NPUs

    def take_step(
        self, setup: TrainingSetup, rate: float, step_input: StepInput, limit_D: np.ndarray | None = None
    ) -> StepResult:
        """Take one training step. rate: learning rate. step_input: the batch and the rows of its tokens. limit_D: unused, because
        `check_ascend` refuses to skip spikes."""
        loss_M, norm, applied, scale, *row_results = setup.step.take(rate, step_input.batch, step_input.e_GTH)
        if not row_results:  # a model without rows
            return StepResult((loss_M,), norm, applied, scale)
        row_grads_TH, hyper = row_results
        result = StepResult((loss_M,), norm, applied, scale, rows_GTH=(row_grads_TH,), rows_hyper=hyper)
        # a tensor rank has a part of the gradient, and a stage has the gradient of its layers: the sum goes over all ranks
        update_rows(setup.store, setup.ranks, step_input.batch, result)
        return result

    def adds_losses(self, config: Config, ranks: Ranks) -> bool:
        """Return True if this rank adds its losses to the total. The first rank of each tensor group of the last stage does: the
        ranks of a tensor group have the same losses, and other stages have none."""
        coordinates = Layout(config.parallel).coordinates(ranks.rank)
        return coordinates.tensor == 0 and coordinates.stage == config.parallel.stages - 1

    def evaluator(self, setup: TrainingSetup, held_out: BatchLoader, sample_limit: int) -> Evaluator:
        """Return the held-out evaluator. It runs the training graph, which saves compiling another one. So all ranks take part in
        each pass."""
        adds = self.adds_losses(setup.config, setup.ranks)
        step, network, ranks = setup.step, setup.network, setup.ranks
        return Evaluator(held_out, sample_limit, step, network, ranks, training_shaped=True, adds_losses=adds)

    def checkpoint_files(self, setup: TrainingSetup) -> Files:
        """Return the parts of arrays that this rank writes, by file and name."""
        rank = setup.ranks.rank
        setup.store.settle()  # the update of the last step may still be under way
        files: Files = {}
        for shard, name, parameter, part, writes_part in saved_parts(setup.shards, setup.store, setup.config, rank):
            if writes_part:
                files.setdefault(file_of_rank(shard, rank), {})[name] = SavedArray(part, parameter.asnumpy())
        return files | row_files(setup.store.rows, setup.ranks)

    def cannot_copy(self, config: Config) -> str | None:
        return "the experts fill the host's memory, and no save behind training was tried on a device"

    def restore(self, setup: TrainingSetup, checkpoint: Checkpoint) -> None:
        """Read this rank's parts of all arrays of a checkpoint."""
        setup.step.compile(*step_inputs(setup.config))  # MindSpore divides the parameters when it compiles
        setup.store.settle()
        parts: Parts = {}
        for shard, name, _, part, _ in saved_parts(setup.shards, setup.store, setup.config, setup.ranks.rank):
            parts.setdefault(shard, {})[name] = part

        def put(parameter: Parameter, values: np.ndarray) -> None:
            parameter.set_data(Tensor(values), slice_shape=True)  # the values are this rank's slice

        # experts are arrays in the host's memory, written in place; dense parameters are MindSpore's
        expert_shards = {shard: arrays for shard, arrays in setup.shards.items() if shard.startswith(EXPERTS)}
        restore(expert_shards, checkpoint, parts=parts)
        dense_shards = {shard: arrays for shard, arrays in setup.shards.items() if shard not in expert_shards}
        restore(dense_shards, checkpoint, parts=parts, put=put)
        restore_rows(setup.store.rows, checkpoint)
        setup.step.copy_scale()
