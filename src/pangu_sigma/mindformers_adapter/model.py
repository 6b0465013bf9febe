"""Configuration and network as MindFormers' `PretrainedConfig` and `PreTrainedModel`."""

from __future__ import annotations

from typing import Any

from mindformers.models import PretrainedConfig, PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.ecss.store import build
from pangu_sigma.mindformers_adapter.yaml_keys import SECTIONS
from pangu_sigma.sections import ModelConfig


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PanGuSigmaConfig(PretrainedConfig):
    """MindFormers configuration: the section `model.model_config` of a YAML."""

    model_type = "pangu_sigma"

    def __init__(self, tree: dict[str, Any] | None = None, compute_dtype: str = "float32", **keys: Any):
        """keys: of `ModelConfig`, of `SECTIONS`, and others, of MindFormers. tree: whole configuration, in place of the keys;
        `PanGuSigmaTrainer` sets it, because the expert store needs the weight decay."""
        model = {key: keys.pop(key) for key in ModelConfig.model_fields if key in keys}
        sections: dict[str, Any] = {key: keys.pop(key) for key in SECTIONS if key in keys}
        super().__init__(**keys)
        name_and_train = {"name": self.model_type, "train": {"compute_dtype": compute_dtype}}
        self.tree = tree or {**name_and_train, "model": model, **sections}

    @property
    def sigma(self) -> Config:
        """Configuration of the project, from these keys. Raises ConfigError for invalid values."""
        return parse_config(self.tree)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanGuSigmaForCausalLM(PreTrainedModel):
    """Model for MindFormers: holder of the network and the expert store, which `TrainStep` runs."""

    config_class = PanGuSigmaConfig
    base_model_prefix = "network"

    def __init__(self, config: PanGuSigmaConfig):
        super().__init__(config)
        self.network, self.store = build(config.sigma)

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: `pangu-sigma generate` generates text, from the run's checkpoint."""
        return False
