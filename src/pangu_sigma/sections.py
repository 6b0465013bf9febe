"""Sections of the configuration tree (config.py): meaning, type and range of every YAML key below the root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pangu_sigma.chips import Chip


class Section(BaseModel):
    """Base class of what people write: refuses unknown keys, silent type conversions, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def matching(pattern: str, meaning: str, max_length: int = 4_000) -> AfterValidator:
    """Return the constraint that a text matches `pattern` and has at most max_length characters. meaning: the pattern in words."""

    def check(text: str) -> str:
        if len(text) > max_length or not re.fullmatch(pattern, text, re.DOTALL):
            limit: Any = meaning if len(text) <= max_length else f"must have at most {max_length} characters"
            raise PydanticCustomError("text", f"it {limit}")
        return text

    return AfterValidator(check)


# Upper limits are far above any real model: a slip of the pen is an error here and not a loop or an allocation without end.
MOST = 10**12
"""Upper limit of all counts, such as steps."""
MOST_RANKS = 1 << 20
"""Upper limit of the number of ranks; the paper's run had 512."""
MOST_ROWS = 1 << 26
"""Upper limit of the rows of all embedding slots: a table in memory holds the token of each. The paper's run has 138,000."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
NonNegative = Annotated[int, Field(ge=0, le=MOST)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
"""Size of the network, of a batch or of the cluster."""
Layers = Annotated[int, Field(ge=0, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""Random seed of 32 bits, the most that NumPy accepts from MindSpore."""
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, le=1e30)]
"""Positive number far enough within float32's range to be multiplied."""
HeldOutFraction = Annotated[float, Field(gt=0.0, lt=0.5)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Glob = Annotated[str, matching(r".*[^./].*", "must have a character besides dots and slashes")]
"""Glob of paths, with at least one character besides dots and slashes: others match no file."""
FilePath = Annotated[str, Field(min_length=1), matching(r"[^\x00]*", "must have no null character")]
Name = Annotated[str, matching(r"[a-z0-9_]+", "must have a to z, 0 to 9 and _ only", 100)]
Activation = Literal["fast_gelu", "tanh", "erf"]
"""fast_gelu: x · sigmoid(1.702 x). tanh: x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))). erf: x/2 · (1 + erf(x/√2))."""
Segment = Literal["own", "common"]
"""Kind of a segment of experts: `own`, of a domain's group; `common`, shared by all domains."""


class RowsConfig(Section):
    """Section `model.rows`, one entry: rows that tokens address by their own id, or by it and the id before (our choice)."""

    order: Literal[1, 2]
    """1: a token's row is that of its id. 2: that of its id and of the id before it in the document."""
    rows: Annotated[int, Field(ge=1, lt=1 << 30)]
    """Number of rows that exist, of each domain if they are own. A row that no token met takes no room in memory or in files."""
    width: Width
    """Width of a row; the widths of all entries add up to `hidden`. Without it, `hidden` is shared evenly."""
    kind: Segment = "common"
    """`common`: all domains share the rows. `own`: each domain has rows of its own, which leave with it."""


class SegmentPlace(NamedTuple):
    """Place of a segment: its RRE layer, and its number among the segments of that layer."""

    layer: int
    number: int


class ModelConfig(Section):
    """Section `model`, the network: dense layers inherited from PanGu-α, then RRE layers, whose FFNs are Random Routed Experts."""

    hidden: Width
    """H, width of the residual stream."""
    ffn: Annotated[int, Field(ge=1, le=1 << 22)]
    """F, inner width of the FFN, of a dense layer and of one expert alike."""
    heads: Width
    """Number of attention heads; must divide `hidden`."""
    dense_layers: Layers
    """Number of dense layers at the bottom, which all domains share."""
    rre_layers: Layers
    """Number of layers with routed experts, on top of the dense ones. The last layer of the network is PanGu-α's query layer."""
    activation: Activation = "fast_gelu"
    """Activation of every FFN, also of experts; weights keep the activation that they were trained with. `fast_gelu`: PanGu-Σ (as
    others report), PanGu-α in MindSpore's model zoo. `tanh`: PanGu-α's release of April 2021. `erf`: its Hugging Face ports."""
    experts_per_domain: Annotated[int, Field(ge=1, le=32_767)] = 1
    """Number of experts of one domain in one RRE layer. At most 32,767: routing tables hold 16-bit numbers."""
    segments: Annotated[list[Segment], Field(min_length=1, max_length=16)] = ["own"]
    """Segments of an RRE layer's FFN: its F inner units are cut evenly into so many parts, and a token has an expert of each, as a
    table of the segment says; the FFN is their sum. `own`: experts of the domain, experts_per_domain for each. `common`:
    common_experts that all domains share. The first is `own` and adds the output bias b2, the only one. [own]: as in the paper."""
    common_experts: Annotated[int, Field(ge=0, le=32_767)] = 0
    """Number of experts of each common segment; 0 without one. Each group of ranks has a copy, divided among its expert ranks."""
    rows: Annotated[list[RowsConfig], Field(max_length=16)] = []
    """Entries of rows, stored on the host as experts are: a token's row of each entry, side by side, is added before every layer,
    times one learned number a layer. Rows begin at 0. []: none, as in the paper."""
    seq_length: Width = 1024
    """S, number of tokens of a sample, and of rows of both position tables."""
    slot_rows: Annotated[int, Field(ge=1, le=1 << 24)] = 40_000
    """R, number of word-embedding rows in each embedding slot, which is also the number of classes of a domain's output head."""
    dropout: Rate = 0.0
    """Dropout probability, at embeddings, attention probabilities, attention output and FFN output. PanGu-α used 0.1, the paper
    gives none. The masks follow from the seed, the sample's number in the run and the position in the sample, on any ranks."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights and tables (PanGu-α); for output projections it is divided by sqrt(2 · layers)."""
    expert_init: Literal["replicated", "independent"] = "replicated"
    """`replicated`: the experts of a layer start with equal weights, as after inheriting. `independent`: each draws its own."""

    @property
    def layers(self) -> int:
        """Number of all layers, dense and RRE."""
        return self.dense_layers + self.rre_layers

    @property
    def routed(self) -> list[Segment]:
        """Kind of each of the N segments of all RRE layers, which are numbered layer by layer."""
        return self.segments * self.rre_layers

    @property
    def kinds(self) -> list[Segment]:
        """Kinds of the segments of a layer, each once; the first is own."""
        return list(dict.fromkeys(self.segments))

    def segments_of(self, layer: int) -> range:
        """Return the numbers of an RRE layer's segments, counted over all RRE layers."""
        count = len(self.segments)
        return range(layer * count, (layer + 1) * count)

    def in_layer(self, segment: int) -> SegmentPlace:
        """Return the RRE layer of a segment, and the segment's number there. segment: number over all RRE layers."""
        return SegmentPlace(*divmod(segment, len(self.segments)))

    def segment_name(self, segment: int) -> str:
        """Return the name of a segment for messages. segment: number over all RRE layers."""
        layer, s = self.in_layer(segment)
        return f"RRE layer {layer}" + (f", segment {s} ({self.segments[s]})" if len(self.segments) > 1 else "")

    @property
    def segment_ffn(self) -> int:
        """Inner width of an expert of one segment."""
        return self.ffn // len(self.segments)

    def expert_params(self, s: int) -> int:
        """Return the number of parameters of one expert of segment s of an RRE layer: only in segment 0 it has b2."""
        return (2 * self.hidden + 1) * self.segment_ffn + self.hidden * (s == 0)

    @model_validator(mode="before")
    @classmethod
    def _widths_of_rows(cls, tree: Any) -> Any:
        """Give each entry of `rows` without a width an even share of `hidden`. Values of other types are refused afterwards."""
        if isinstance(tree, dict) and isinstance(tree.get("rows"), list) and isinstance(tree.get("hidden"), int):
            share = {"width": tree["hidden"] // max(len(tree["rows"]), 1)}
            tree = tree | {"rows": [share | row if isinstance(row, dict) else row for row in tree["rows"]]}
        return tree

    @model_validator(mode="after")
    def _combinations(self) -> ModelConfig:
        """Raise ValueError for the first combination of keys that is not allowed."""
        if self.layers < 1:
            raise ValueError("dense_layers + rre_layers is 0; at least 1 is needed, which is the query layer")
        if self.rows and sum(entry.width for entry in self.rows) != self.hidden:
            widths = " + ".join(str(entry.width) for entry in self.rows)
            raise ValueError(f"rows have the widths {widths}; set some that add up to hidden={self.hidden}, or none")
        if self.segments[0] != "own":
            raise ValueError("segments begins with common; the first one is own, because it has the output bias")
        if ("common" in self.segments) != bool(self.common_experts):
            count = f"common_experts={self.common_experts} with segments={self.segments}"
            raise ValueError(f"{count}; give a number above 0 if a segment is common, and else 0")
        return self


class DomainConfig(Section):
    """Section `domains`, one entry: a domain's name, sample format, language, embedding slot and sampling weight."""

    name: Name
    format: Literal["text", "bilingual", "code"] = "text"
    """Sample format. `text`: text, then <eot>. `bilingual`: language tag before each side. `code`: language tag, then the code."""
    language: Literal["zh", "en", "mixed", "python", "java"] = "en"
    """Language of the text, which selects its tokenizer model. `zh`: PanGu-α's. `en`, `python`, `java`: the English pieces.
    `mixed`: PanGu-α's for Chinese script, the English pieces for everything else."""
    slot: Annotated[str, Field(max_length=100)] = "shared"
    """Name of the embedding slot; domains with the same name share one."""
    weight: PositiveFloat = 1.0
    """Sampling weight of the domain in training, relative to the other domains' weights."""
    held_out: HeldOutFraction | None = None
    """data.held_out of this domain alone; null: as in `data`. Up to five times `data.held_out` it keeps the vocabulary."""
    max_overlap: Fraction | None = None
    """data.max_overlap of this domain alone; null: as in `data`."""
    min_held_out_tokens: Positive | None = None
    """data.min_held_out_tokens of this domain alone; null: as in `data`."""


class VocabularyConfig(Section):
    """Section `vocabulary`: PanGu-α's 40,000 pieces at ids 0 … 39,999, then language tags, bytes, English pieces. Bytes spell
    what has no piece or no row in the slot. All text is restored by decoding, Chinese text up to NFKC (our choice)."""

    english_pieces: Annotated[int, Field(ge=1, le=1_000_000)] = 8_000
    """Number of English pieces to learn from the English and code text; pieces that PanGu-α has are not added again."""
    english_model: FilePath | None = None
    """Path of a SentencePiece model with the English pieces; with null they are learned, or taken from `keep`."""
    keep: FilePath | None = None
    """Folder of a run whose English pieces and rows of slots are kept, to inherit from it or to extend it. A slot keeps the rows of
    the run's slot of that name, or of its only slot; rows that are left go to other tokens."""


class RoutingConfig(Section):
    """Section `routing`, the second level of RRE, below domains: token id → expert of the domain, by one table per segment."""

    table: Annotated[
        str, matching(r"random|balanced|[^\x00]+\.npz", "must be 'random' or 'balanced', or a file of tables, NAME.npz")
    ] = "random"
    """`random`: every expert gets the same number of ids (paper). `balanced`: every expert gets nearly the same number of tokens,
    and the most frequent ids are spread over several experts (our choice). FILE.npz: tables that `ps.write_routing` wrote, or of a
    run with this vocabulary."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed of the tables: layer l draws its table with seed + l. Not for a file."""

    @property
    def file(self) -> Path | None:
        """Path of the file with the tables; None if they are drawn."""
        return None if self.table in ("random", "balanced") else Path(self.table)


class EcssConfig(Section):
    """Section `ecss`, Expert Computation and Storage Separation: storage of the experts, and their copy to the device."""

    enabled: bool = True
    """true: the host stores experts and their Adam state, and the device has the active ones. false: the device has all of them."""
    store: Literal["host", "file"] = "host"
    """Storage of the experts. `host`: in memory. `file`: in a mapped file, for more experts than memory holds; same results."""
    path: FilePath | None = None
    """Folder of the files of `store: file`, which have no name and are gone when the process ends; null: the run folder."""
    cache_gib: Annotated[float, Field(gt=0.0, le=1e6)] = 4.0
    """GiB of the mapped files that may stay in memory; the experts used longest ago are released."""
    update: Literal["auto", "worker", "step"] = "auto"
    """Who updates the experts. worker: a thread of the host, while the device updates dense parameters and begins the next step.
    step: the step ends with the update. auto: worker for NPUs, step on the CPU, whose cores are the host's. No bit differs."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Precision of the Adam moments of experts. `float32`: an expert takes 12 bytes a parameter. `bfloat16`: 8 bytes."""

    @model_validator(mode="after")
    def _combinations(self) -> EcssConfig:
        """Raise ValueError for the first combination of keys that is not allowed."""
        if not self.enabled and self.store == "file":
            raise ValueError("store=file needs enabled=true: without ECSS every expert is in the device's memory")
        if not self.enabled and self.update == "worker":
            raise ValueError("update=worker needs enabled=true: without ECSS the device updates every expert")
        return self

    def by_worker(self, npu: bool) -> bool:
        """Return True if a worker updates the experts. npu: True if the device is one."""
        return self.update == "worker" or (npu and self.update == "auto")


class PhaseConfig(Section):
    """Section `data.phases`, one entry: the domains that are trained on from a step on, and their weights."""

    from_step: NonNegative
    """Number of steps before the phase, 0 for the first one, in samples of a step of the present size."""
    weights: Annotated[dict[str, PositiveFloat], Field(min_length=1)] | None = None
    """Sampling weights of the phase by domain; other domains are not trained on, and keep their bits. null: those in `domains`."""


class DataConfig(Section):
    """Section `data`: prepared text, held-out text, and the domains of a batch."""

    path: FilePath = "data/prepared"
    """Folder of prepared data: `prepare-data` writes it, `train` reads it."""
    text_key: Annotated[str, Field(min_length=1, max_length=1_000)] = "text"
    """Key of a record, or Parquet column, that holds its text; `a.b` is the key b in the object a. `domain` names its domain."""
    domain_of: Annotated[dict[Glob, str], Field(max_length=100_000)] = {}
    """Glob of a file or of a folder → name of the domain of all records there, whose key `domain` is not read. A glob is compared
    with the end of the path: `books.jsonl`, `law/*.parquet`, `news` for all below folders of this name, `*` for every file."""
    max_mib_per_domain: PositiveFloat | None = None
    """Maximum MiB of UTF-8 text of a domain that `prepare-data` keeps; null keeps all of your own text, 6 MiB of packaged text."""
    held_out: HeldOutFraction = 0.05
    """Fraction of each domain's documents that is held out: never trained on, and used to evaluate."""
    max_overlap: Fraction = 0.01
    """Maximum fraction of a held-out document's windows of 13 tokens that may occur in other documents of its domain, boilerplate
    not counted. Documents above the limit are trained on, and others are held out instead. 1: no limit."""
    boilerplate_documents: Positive = 10
    """Number of documents above which a window that they share is boilerplate: what touches it does not count as overlap."""
    max_boilerplate: Fraction = 0.5
    """Maximum fraction of a held-out document's windows of 13 tokens that may be boilerplate. Documents above the limit are trained
    on, and others are held out instead. 1: no limit, for text that is written so, such as tables."""
    min_held_out_tokens: Positive = 10_000
    """Smallest number of held-out tokens of a domain. For it up to five times as many documents as `held_out` says are held out,
    or half of all; if that is not enough, `prepare-data` refuses the text."""
    max_held_out_tokens: Positive = 1_000_000
    """Largest number of held-out tokens of a domain, whatever `held_out` says: it bounds what is kept in memory to find overlap."""
    near_duplicates: Annotated[float, Field(ge=0.3, le=1.0)] | None = None
    """Estimated Jaccard similarity of the 5-grams of words from which a document is a near-duplicate of an earlier one, of any
    domain, and is dropped; 0.8 is usual. null: only exact copies are dropped."""
    memory_gib: PositiveFloat = 2.0
    """Memory of all processes of `prepare-data` in GiB; a worker takes 768 MiB. The result does not depend on it."""
    domains_per_step: Width = 1
    """Number of blocks of a batch. Each block holds samples of one domain, so this is the maximum number of domains of a step."""
    domain_sets: Width = 1
    """Number of sets into which the domains are divided: equally many domains in each, of near-equal weight. Block m of a batch
    draws its domain from set m modulo this number. Groups of ranks store whole sets, so each group has samples in every step."""
    shuffle: Literal["keyed", "permutation"] = "keyed"
    """Shuffle of a domain's samples. keyed: by a function of seed, domain and pass. permutation: drawn, with 8 bytes a sample."""
    phases: Annotated[list[PhaseConfig], Field(max_length=1_000)] = []
    """Phases of training with different domains or weights, such as the paper's four major domains first. []: all at all times."""
    temperature: Annotated[float, Field(ge=1.0, le=1e6)] | None = None
    """Temperature T: multiplies each weight by (training text of the domain)^(1/T). 1: domains of equal weight are read equally
    often; large: they are read equally much; null: weights alone decide."""


class OptimizerConfig(Section):
    """Section `train.optimizer`: Adam with decoupled weight decay, and another ε for experts (as reported of the PanGu-Σ paper)."""

    peak_lr: PositiveFloat = 1e-4
    """Peak learning rate, at the end of the warm-up."""
    end_lr: Annotated[float, Field(ge=0.0, le=1e30)] = 2e-5
    """Final learning rate; at most `peak_lr`."""
    warmup_steps: NonNegative = 5_000
    """Number of warm-up updates, in which the rate rises linearly from 0 to `peak_lr`."""
    decay_steps: Positive = 180_000
    """Number of updates in which the rate falls from the peak to `end_lr` along a half cosine; afterwards it stays at `end_lr`."""
    beta1: Rate = 0.8
    """Decay of the first Adam moment (as reported of the PanGu-Σ paper)."""
    beta2: Rate = 0.95
    """Decay of the second Adam moment (as reported of the PanGu-Σ paper)."""
    eps_dense: PositiveFloat = 1e-8
    """ε of dense parameters (as reported of the PanGu-Σ paper)."""
    eps_experts: PositiveFloat = 1e-20
    """ε of experts (as reported of the PanGu-Σ paper), whose gradients are smaller. In float32 this ε only guards against 0/0."""
    eps_rows: PositiveFloat = 1e-12
    """ε of rows (`model.rows`), whose gradients come from single tokens."""
    rate_rows: PositiveFloat = 200.0
    """Learning rate of rows, in learning rates of all other parameters: most rows are met seldom. They have no weight decay. 5, as
    in Megatron's n-gram tables, gained less than half in our small model (docs/experiments/log.md)."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1e30)] = 0.01
    """Weight decay, multiplied by the learning rate at each step; not for biases and LayerNorm (PanGu-α)."""
    clip_norm: PositiveFloat = 1.0
    """Maximum global norm of the gradients of dense parameters and active experts; larger gradients are scaled down to it."""


class ParallelConfig(Section):
    """Section `parallel`, the layout of stages · groups · expert · data · tensor ranks; the last axis varies fastest."""

    chip: Chip = "910a"
    """Chip of the NPUs: `910a`, the paper's; `910b1` to `910b4`, or `910b` for the most common one; `910_93`. It decides memory and
    speed in plans, what `half` means, and the operators of the Ascend step."""
    stages: Width = 1
    """Number of pipeline stages, through which the `train.accumulation` micro-batches of an update go. Only on Ascend."""
    groups: Width = 1
    """Number of groups of ranks. Each group stores the experts of its sets of domains and computes the blocks of these domains."""
    expert: Width = 1
    """Number of expert-parallel ranks, which divide the experts of every domain. NPUs send a token to the rank of its expert."""
    data: Width = 1
    """Number of data-parallel replicas, experts included. Each replica computes other sequences of every block."""
    tensor: Width = 1
    """Number of tensor-parallel ranks, which divide every matrix: attention heads, FFN columns, rows (PanGu-α). Only on Ascend."""
    optimizer: bool = True
    """true: ranks with the same dense parameter divide it and its Adam state (ZeRO); on a CPU each rank keeps the whole."""
    recompute: bool = False
    """true: keep only the inputs of layers for the backward pass and recompute the rest, which takes time. Only on Ascend."""
    fusion_mib: NonNegative = 64
    """MiB of gradients that one all-reduce sums over ranks; 0: each gradient has its own. Only on Ascend: the CPU joins all."""
    capacity_factor: Annotated[float, Field(gt=0.0, le=1e6)] = 2.0
    """Maximum rows (tokens) that a rank sends to one expert, as a multiple of an even share. Only on Ascend."""
    arrival_factor: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Maximum number of rows that an expert multiplies in a pass, as a multiple of an even share; on a chip with grouped products,
    of all experts of a rank together. Only on Ascend. Loads even out over a group's ranks, so this factor can be much lower than
    `capacity_factor`, the value for null."""
    gather: Literal["ours", "cann"] | None = None
    """Operator that moves rows to experts and back on NPUs. `ours`: of `ascend_ops/`, which must be built there. `cann`: CANN's own
    Gather, with one more copy of the rows. null: `cann` on 910B and later without stages, else `ours`, the only possible one."""
    overflow: Literal["refuse", "drop"] = "refuse"
    """Treatment of rows beyond `capacity_factor` or `arrival_factor`. `refuse`: the run ends with an error that names the needed
    factor. `drop`: these rows skip the FFN, and are counted and reported. Only on Ascend."""

    @property
    def stage_ranks(self) -> int:
        """Number of ranks of one pipeline stage."""
        return self.groups * self.expert * self.data * self.tensor

    @property
    def ranks(self) -> int:
        """Number of all ranks of a run."""
        return self.stages * self.stage_ranks


class LossScaleConfig(Section):
    """Section `train.loss_scale`, dynamic loss scale of compute_dtype=float16. NaN or infinite gradients change the scale alone."""

    initial: PositiveFloat = 65_536.0
    """Loss scale of the first step in float16."""
    window: Positive = 1_000
    """Number of steps without overflow after which the scale doubles."""


class SpikesConfig(Section):
    """Section `train.spikes`: detection of steps in which a domain's loss is far above its running mean (our choice)."""

    factor: PositiveFloat | None = 6.0
    """Standard deviations, each at least 1 % of the mean, above the running mean that make a domain's loss a spike. null: none."""
    window: Positive = 50
    """Window of the running mean and deviation, in steps with the domain. The domain's first `window` steps are no spikes."""
    skip: bool = False
    """true: a batch with a spike changes neither weights nor moments nor the loss scale; not on Ascend. false: only log spikes."""

    @model_validator(mode="after")
    def _combinations(self) -> SpikesConfig:
        if self.skip and self.factor is None:
            raise ValueError("skip=true needs a factor: without one nothing is a spike; set factor, or skip=false")
        return self


class TrainConfig(Section):
    """Section `train`: the training loop."""

    steps: Positive = 1_000
    """Number of steps of the run."""
    batch_size: Width = 8
    """Number of sequences of a micro-batch over all ranks, which is one forward-backward pass."""
    accumulation: Width = 1
    """Number of micro-batches per update (gradient accumulation); each token has the same weight."""
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of matrix products; parameters are float32. `half` is float16 on 910A, which has no bfloat16, and bfloat16 on later
    chips. A CPU computes in float32, or slowly in float16."""
    eval_interval: Positive = 100
    """Number of steps between evaluations on held-out text."""
    eval_batches: Positive = 8
    """Maximum number of batches, of `batch_size` samples, that an evaluation reads of each domain."""
    checkpoint_interval: Positive = 500
    """Number of steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of latest checkpoints to keep."""
    async_save: bool = True
    """true: a checkpoint is copied in memory and written while training goes on. The copy takes the bytes of the files that a rank
    writes: 12 for each parameter of its experts, 8 with ecss.moments=bfloat16, and on rank 0 12 for each dense one. false: training
    waits until a checkpoint is written. It also waits, with a message, where memory has no room for the copy, with ecss.store=file,
    and on Ascend. The checkpoints are the same, bit for bit."""
    log_interval: Positive = 10
    """Number of steps between lines of the log. A line also precedes each evaluation and checkpoint."""
    max_skipped_steps: Positive = 50
    """Number of consecutive skipped steps with a domain that end the run with an error. A loss scale of 2³² falls to 1 in 32."""
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    spikes: SpikesConfig = SpikesConfig()

    @property
    def first_loss_scale(self) -> float:
        """Loss scale of the first step of a new run."""
        return self.loss_scale.initial if self.compute_dtype == "float16" else 1.0


MessageTemplate = Annotated[
    str, matching(r"[^{}]*\{content\}[^{}]*", "must have {content} once, and no other brace", 1_000)
]
"""Text with the placeholder `{content}` for the content of a message."""


class ChatConfig(Section):
    """Section `chat`, the chat template: makes a text of messages. null: as the domain's language (generate/chat_template.py)."""

    system: MessageTemplate | None = None
    """Template of a system message, such as "{content}\\n"."""
    user: MessageTemplate | None = None
    """Template of a user message, such as "User: {content}\\n"."""
    assistant: MessageTemplate | None = None
    """Template of an answer, such as "Assistant: {content}\\n". A new answer begins after the text before `{content}`."""
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=16)] | None = None
    """Stop strings, before which an answer ends, such as "\\nUser:"."""


class FinetuneConfig(Section):
    """Section `finetune`: fine-tuning on a task's samples, whose answers alone count in the loss. null for training on text."""

    task: Name
    """Name of the task."""
    domain: str
    """Domain of samples that do not name a domain."""
    learn: Literal["all", "experts", "experts+slot"] = "all"
    """Parameters that learn. `all`: every parameter that samples reach. `experts`: the experts of the samples' domains; all other
    parameters and their Adam state keep their bits. `experts+slot`: these experts, and the rows of these domains' slots."""
    domains: list[str] = []
    """Domains of the samples; `finetune` writes this key."""
    epochs: Annotated[float, Field(gt=0.0, le=1e6)] = 3.0
    """Number of epochs over the samples; train.steps is computed from it unless set."""
    warmup: Rate = 0.1
    """Warm-up as a fraction of the steps, unless train.optimizer.warmup_steps is set."""
    packed: bool = True
    """true: several samples share a sequence, without attention between them (our choice: only time changes). false: one each."""
    cut: Literal["messages", "prompt", "none"] = "messages"
    """Truncation of a sample that is too long. `messages`: cut the oldest messages, as in serving. `prompt`: cut the beginning of
    the prompt. `none`: cut nothing. A sample that is still too long is left out; answers are never cut."""
    patience: Positive = 3
    """Number of consecutive evaluations without a better loss after which the run ends (early stopping)."""
