"""One validated configuration tree: what every YAML key means, what it may be, and what the model it describes weighs.

Load with `load_config(path, overrides)`. Anything wrong (unknown key, wrong type, impossible combination) raises
`ConfigError`, which names the key path, the value, what is allowed and the nearest valid key, before MindSpore is
imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pangu_sigma.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is complete and meant for the user."""


class Section(BaseModel):
    """A part of the tree: unknown keys, silently converted types, infinity and NaN are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class ModelConfig(Section):
    """The network: M dense layers inherited from PanGu-α, then N layers whose FFN is Random Routed Experts."""

    hidden: Positive
    """H, width of the residual stream."""
    ffn: Positive
    """F, inner width of the FFN, of a dense layer and of one expert alike."""
    heads: Positive
    """Attention heads; hidden must be divisible by it."""
    dense_layers: NonNegative
    """M, the lower layers, shared by all domains."""
    rre_layers: NonNegative
    """N, the upper layers; the model's last layer is PanGu-α's query layer, and its FFN is routed too when N > 0."""
    experts_per_domain: Positive = 1
    """Experts of one domain in one RRE layer; a layer stores (number of domains) times this many."""
    seq_length: Positive = 1024
    """S, tokens in a sample, and rows of both position tables."""
    slot_rows: Positive = 40_000
    """R, word-embedding rows in each embedding slot, and so the classes that a domain's output head chooses from."""
    dropout: Rate = 0.0
    """On embeddings, attention probabilities, attention output and FFN output. PanGu-α used 0.1, the paper has none.
    Above 0 a resumed run goes on with other masks: MindSpore's CPU dropout keeps its random state to itself."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of weights and tables (PanGu-α); output projections are divided by sqrt(2 · layers)."""
    expert_init: Literal["replicated", "independent"] = "replicated"
    """`replicated`: the experts of a layer start equal, as after inheriting; `independent`: each draws its own."""

    @property
    def layers(self) -> int:
        return self.dense_layers + self.rre_layers

    @model_validator(mode="after")
    def _combinations(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not divisible by heads={self.heads}; choose a divisor of hidden")
        if self.layers < 1:
            raise ValueError(
                "dense_layers + rre_layers is 0; the last layer is the query layer, so at least 1 is needed"
            )
        return self


class DomainConfig(Section):
    """One domain: a group of experts, an embedding slot, a sample format."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    format: Literal["text", "bilingual", "code"] = "text"
    """`text`: the text, then <eot>. `bilingual`: language tag before each side. `code`: language tag, then the code."""
    language: Literal["zh", "en", "mixed", "python", "java"] = "en"
    """How text is segmented: zh by PanGu-α's model, en and code by the English pieces, mixed by script."""
    slot: str = "shared"
    """Name of the embedding slot; domains with the same name share one."""
    weight: PositiveFloat = 1.0
    """Share of the training samples, relative to the other domains."""


class VocabularyConfig(Section):
    """PanGu-α's 40,000 pieces at ids 0 … 39,999, then language tags and bytes, then English pieces."""

    english_pieces: Positive = 8_000
    """English pieces learned from the prepared English and code text; duplicates of PanGu-α's are not added again."""
    english_model: str | None = None
    """A SentencePiece model to take the English pieces from instead of learning them."""


class RoutingConfig(Section):
    """Level 2 of RRE: token id → expert of the domain's group, one fixed table per RRE layer."""

    table: Literal["random", "balanced"] = "random"
    """`random` is the paper's. `balanced` packs tokens by frequency and spreads the heaviest over several experts."""
    seed: NonNegative = 0
    """Layer l draws its table from seed + l."""


class EcssConfig(Section):
    """Expert Computation and Storage Separation."""

    enabled: bool = True
    """true: experts and their Adam state live on the host and only active experts reach the device.
    false: every expert is an ordinary device parameter with ordinary Adam, for comparison."""
    store: Literal["host", "file"] = "host"
    """`host`: in memory. `file`: in files mapped into memory, for more experts than memory holds; the same results."""
    path: str | None = None
    """Folder of the `file` store; null: `experts` in the run folder."""
    cache_gib: PositiveFloat = 4.0
    """How much of a `file` store stays mapped, in GiB."""
    prefetch: bool = True
    """Bring the next step's experts while this step computes, and those of both steps not at all. false: look all of them up
    at the start of each step, as the Ascend step always does."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Precision of the experts' Adam moments on the host: bfloat16 takes 8 bytes a parameter in all instead of 12."""

    @model_validator(mode="after")
    def _combinations(self) -> EcssConfig:
        if not self.enabled and self.store == "file":
            raise ValueError("store=file needs enabled=true: without ECSS every expert is in the device's memory")
        return self


class DataConfig(Section):
    """Text, and how samples of several domains make a batch."""

    path: str = "data/prepared"
    """Folder that `prepare-data` writes and `train` reads."""
    max_mib_per_domain: PositiveFloat = 6.0
    """Text kept per domain, in MiB of UTF-8."""
    held_out: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Share of each domain's documents that is never trained on."""
    domains_per_step: Positive = 1
    """Blocks of a batch; each block holds samples of one domain, so at most this many domains are active in a step."""
    domain_sets: Positive = 1
    """Sets of equally many domains and near-equal weight; block m of a batch draws from set m modulo this. Groups of ranks store
    whole sets, so each group has its domains in every step. It decides the order of samples and so belongs to the data: the order
    is the same on any number of ranks."""


class OptimizerConfig(Section):
    """Adam with decoupled weight decay and one ε per group (spec §5.4)."""

    peak_lr: PositiveFloat = 1e-4
    end_lr: Annotated[float, Field(ge=0.0)] = 2e-5
    warmup_steps: NonNegative = 5_000
    decay_steps: Positive = 180_000
    """Steps from the peak to `end_lr` on a half cosine; after them the rate stays at `end_lr`."""
    beta1: Rate = 0.8
    beta2: Rate = 0.95
    eps_dense: PositiveFloat = 1e-8
    eps_experts: PositiveFloat = 1e-20
    """Gradients of sparse layers are smaller; in fp32 this is no epsilon at all, only a guard against 0/0."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Not applied to biases and LayerNorm (PanGu-α)."""
    clip_norm: PositiveFloat = 1.0
    """Global norm over dense parameters and active experts."""


class ParallelConfig(Section):
    """How a run is spread over ranks, one process and one device each: stages · groups · expert · data · tensor of them. The last
    varies fastest, so that the ranks of a tensor group share a host."""

    stages: Positive = 1
    """Pipeline stages: parts of the network's layers, one behind the other, each on ranks of its own. A batch goes through them in
    its `train.accumulation` micro-batches. Only on Ascend."""
    groups: Positive = 1
    """Groups of ranks; each stores the experts of its own sets of domains and takes their blocks of a batch."""
    expert: Positive = 1
    """Ranks of a group among which the experts of every domain are divided; tokens travel among them by all-to-all."""
    data: Positive = 1
    """Replicas, experts included; each takes a part of the sequences of every block."""
    tensor: Positive = 1
    """Ranks that share every matrix: attention heads, FFN columns and rows (op-level parallelism of PanGu-α)."""
    optimizer: bool = True
    """Where a dense parameter is the same on several ranks, each keeps a part of it and of its Adam state (ZeRO)."""
    recompute: bool = False
    """Keep only the inputs of layers for the backward pass and compute the rest again."""
    fusion_mib: NonNegative = 64
    """Gradients are summed over ranks in pieces of this size, in MiB; 0: each by itself."""
    capacity_factor: PositiveFloat = 2.0
    """Rows that a rank can send to one expert, as a multiple of an even share. Only with expert > 1, or on Ascend."""
    overflow: Literal["refuse", "drop"] = "refuse"
    """What happens to rows beyond it, which are known before the step. `refuse`: an error that names the factor needed. `drop`:
    they skip that FFN, counted and reported."""

    @property
    def stage_ranks(self) -> int:
        """Ranks of one stage."""
        return self.groups * self.expert * self.data * self.tensor

    @property
    def ranks(self) -> int:
        return self.stages * self.stage_ranks


class LossScaleConfig(Section):
    """Dynamic loss scale; a step whose gradients are not finite changes nothing but the scale."""

    initial: PositiveFloat = 65_536.0
    window: Positive = 1_000
    """Steps without overflow after which the scale doubles."""


class TrainConfig(Section):
    """The loop around the step."""

    steps: Positive = 1_000
    batch_size: Positive = 8
    """Sequences in one forward-backward pass."""
    accumulation: Positive = 1
    """Passes whose gradients are averaged into one update."""
    compute_dtype: Literal["float32", "float16"] = "float32"
    """float32 on the CPU; float16 on Ascend 910, which has no bfloat16."""
    eval_interval: Positive = 100
    eval_batches: Positive = 8
    """Held-out batches per domain at each evaluation."""
    checkpoint_interval: Positive = 500
    keep_checkpoints: Positive = 2
    log_interval: Positive = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()

    @model_validator(mode="after")
    def _combinations(self) -> TrainConfig:
        if self.optimizer.end_lr > self.optimizer.peak_lr:
            raise ValueError(f"optimizer.end_lr={self.optimizer.end_lr} is above peak_lr={self.optimizer.peak_lr}")
        return self


@dataclass(frozen=True)
class ParamCount:
    """Number of parameters. active_per_token leaves out embedding tables (PanGu-α's way of quoting a model's size)."""

    total: int
    dense: int
    experts: int
    embeddings: int
    active_per_token: int


class Config(Section):
    """The whole tree."""

    name: str
    seed: NonNegative = 0
    """Seed of initialisation, dropout and sample order."""
    model: ModelConfig
    domains: Annotated[list[DomainConfig], Field(min_length=1)]
    vocabulary: VocabularyConfig = VocabularyConfig()
    routing: RoutingConfig = RoutingConfig()
    ecss: EcssConfig = EcssConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        names = [d.name for d in self.domains]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"domains: name {twice[0]!r} is used more than once; names must be different")
        if self.ecss.moments == "bfloat16" and self.train.optimizer.beta2 > 0.99:
            raise ValueError(
                f"ecss.moments=bfloat16 needs train.optimizer.beta2 <= 0.99, not {self.train.optimizer.beta2}: bfloat16 has "
                "8 bits, and a change of less than 1/256 a step would be rounded away"
            )
        blocks = self.data.domains_per_step
        if self.train.batch_size % blocks:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is not divisible by data.domains_per_step={blocks}; "
                "every block of a batch holds the same number of sequences"
            )
        if blocks > len(self.domains):
            raise ValueError(
                f"data.domains_per_step={blocks} is more than the {len(self.domains)} domains; lower it to at most that"
            )
        self._check_divisible()
        self._check_stages()
        return self

    def _check_stages(self) -> None:
        stages, layers, passes = self.parallel.stages, self.model.layers, self.train.accumulation
        if stages > layers:
            raise ValueError(f"parallel.stages={stages} is more than the {layers} layers of the model; lower it")
        if stages > 1 and passes < stages:
            raise ValueError(
                f"parallel.stages={stages} needs train.accumulation >= {stages}, not {passes}: a stage works on one micro-batch "
                "while the others work on other ones; raise it, and lower train.batch_size to keep the batch"
            )

    def _check_divisible(self) -> None:
        """Every part of a run that is divided among ranks must come out even; the first that does not is an error."""
        m, p, sets = self.model, self.parallel, self.data.domain_sets
        sequences = self.train.batch_size // self.data.domains_per_step
        for key, value, by, number in (
            ("the number of domains", len(self.domains), "data.domain_sets", sets),
            ("data.domains_per_step", self.data.domains_per_step, "data.domain_sets", sets),
            ("data.domain_sets", sets, "parallel.groups", p.groups),
            ("model.experts_per_domain", m.experts_per_domain, "parallel.expert", p.expert),
            ("sequences in a block", sequences, "parallel.expert · parallel.data", p.expert * p.data),
            ("model.heads", m.heads, "parallel.tensor", p.tensor),
            ("model.hidden", m.hidden, "parallel.tensor", p.tensor),
            ("model.ffn", m.ffn, "parallel.tensor", p.tensor),
        ):
            if value % number:
                raise ValueError(f"{key} ({value}) is not divisible by {by} ({number}); change one of them")

    @property
    def slots(self) -> int:
        """Embedding slots: the different slot names among the domains."""
        return len({d.slot for d in self.domains})

    @property
    def experts(self) -> int:
        """K, experts stored in one RRE layer."""
        return len(self.domains) * self.model.experts_per_domain

    @property
    def active_experts(self) -> int:
        """A, the most experts of one RRE layer that a step can activate."""
        return self.experts if not self.ecss.enabled else self.data.domains_per_step * self.model.experts_per_domain

    def on_one_rank(self) -> Config:
        """The same run, its data and its model, in one process."""
        return self.model_copy(update={"parallel": ParallelConfig()})

    def num_params(self) -> ParamCount:
        """Parameters of the model this tree describes (the arithmetic of spec §1.2)."""
        m = self.model
        attention = 4 * (m.hidden * m.hidden + m.hidden)
        ffn = 2 * m.hidden * m.ffn + m.ffn + m.hidden
        norms = 2 * 2 * m.hidden
        dense = m.layers * (attention + norms) + m.dense_layers * ffn + 2 * m.hidden
        experts = m.rre_layers * self.experts * ffn
        embeddings = (self.slots * m.slot_rows + 2 * m.seq_length) * m.hidden
        return ParamCount(dense + experts + embeddings, dense, experts, embeddings, dense + m.rre_layers * ffn)
