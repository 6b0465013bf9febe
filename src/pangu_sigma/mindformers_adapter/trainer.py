"""`PanGuSigmaTrainer`: MindFormers' trainer of a language model, which passes run folder, batches and progress to its objects."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mindspore as ms
from mindformers.core import build_optim
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.tools.utils import get_real_group_size
from mindformers.trainer import CausalLanguageModelingTrainer
from mindformers.wrapper import build_wrapper
from mindspore import nn
from mindspore.dataset import GeneratorDataset

from pangu_sigma.checkpoint.run_folder import one_writer
from pangu_sigma.checkpoint.state import restore
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.mindformers_adapter.model import PanGuSigmaForCausalLM
from pangu_sigma.mindformers_adapter.train_one_step import PanGuSigmaAdam
from pangu_sigma.mindformers_adapter.yaml_keys import sigma_config
from pangu_sigma.training.start import resume, start_run

logger = logging.getLogger(__name__)


@MindFormerRegister.register(MindFormerModuleType.TRAINER)
class PanGuSigmaTrainer(CausalLanguageModelingTrainer):
    """MindFormers trainer, which passes run folder, batches and progress of the project to MindFormers' objects."""

    def train(self, config: Any, **kwargs: Any) -> None:
        """Train in the folder `output_dir`, resuming from its newest checkpoint if it has one.

        Raises ConfigError for a YAML that `sigma_config` refuses and for more than one process, DataError for unusable prepared
        data, and CheckpointError if no checkpoint of a run to resume can be used."""
        self.sigma = sigma_config(config)
        if (processes := get_real_group_size()) > 1:
            raise ConfigError(
                f"{processes} processes were started, and each would train the same in {config.output_dir}; start one, "
                "with msrun --worker_num=1"
            )
        with one_writer(Path(config.output_dir)):
            self.folder = start_run(Path(config.output_dir), self.sigma)
            self.progress, self.checkpoint = resume(self.folder)
            if self.progress.step >= self.sigma.train.steps:
                logger.info("%s has all of its %d steps", self.folder.path, self.sigma.train.steps)
                return
            super().train(config=config, **kwargs)

    def create_train_dataset(self, default_args: dict[str, Any] | None = None) -> GeneratorDataset:
        return super().create_train_dataset({"steps": self.sigma.train.steps - self.progress.step})

    def create_network(self, default_args: dict[str, Any] | None = None) -> PanGuSigmaForCausalLM:
        ms.set_seed(self.sigma.seed)  # MindFormers takes 0 for no seed
        return super().create_network({**(default_args or {}), "tree": self.sigma.model_dump(mode="json")})

    def create_optimizer_scheduler(self, network: PanGuSigmaForCausalLM, model_params: set[Any]) -> PanGuSigmaAdam:
        self.lr_scheduler = self.create_lr_scheduler(self.config.lr_schedule)
        arguments = {"params": network.trainable_params(), "learning_rate": self.lr_scheduler}
        return build_optim(self.config.optimizer, default_args=arguments)

    def create_model_wrapper(self, network: PanGuSigmaForCausalLM, optimizer: PanGuSigmaAdam) -> nn.Cell:
        """Return the one-step cell, with the state of the run's newest checkpoint, if the run has one."""
        samples = open_samples(self.sigma, Path(self.sigma.data.path), "train", self.folder.tokenizer.size)
        batches = BatchLoader(self.folder.config, samples, self.folder.tokenizer, self.folder.table)
        parts = {"network": network, "optimizer": optimizer, "config": self.sigma, "batches": batches}
        parts |= {"folder": self.folder, "progress": self.progress}
        cell = build_wrapper({"type": self.config.runner_wrapper.type}, default_args=parts)
        if self.checkpoint is not None:
            restore(cell.shards, self.checkpoint)
        return cell
