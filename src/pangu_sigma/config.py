"""Configuration tree: its root, allowed combinations of keys, and sizes that follow from keys. sections.py has the other keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from pangu_sigma import sections
from pangu_sigma.chips import CHIP_DATA, CHIP_NAMES
from pangu_sigma.errors import UserError, argument
from pangu_sigma.sections import MOST_RANKS, MOST_ROWS, DataConfig, ParallelConfig, RowsConfig, Section, Seed, Segment


class ConfigError(UserError, ValueError):
    """Error of a configuration that cannot be used; the message is complete and meant for the user."""


_FOLDER_NAME = "becomes the name of a folder: 1 to 100 letters, digits, blanks and _-.+=, a letter or digit first"


@dataclass(frozen=True)
class ParamCount:
    """Parameter counts. active_per_token: without embeddings, as in PanGu-α's model sizes. rows: `model.rows`, not in the total."""

    total: int
    dense: int
    experts: int
    embeddings: int
    active_per_token: int
    rows: int


class Config(Section):
    """Whole configuration of a run: the root of the configuration tree."""

    name: Annotated[str, sections.matching(r"\w[\w .+=-]*", _FOLDER_NAME, 100)]
    """Name of the run, and of its folder: `runs/<name>` unless --output names another."""
    seed: Seed = 0
    """Seed of initialisation, dropout and sample order."""
    model: sections.ModelConfig
    domains: Annotated[list[sections.DomainConfig], Field(min_length=1, max_length=1_024)]
    vocabulary: sections.VocabularyConfig = sections.VocabularyConfig()
    routing: sections.RoutingConfig = sections.RoutingConfig()
    ecss: sections.EcssConfig = sections.EcssConfig()
    data: DataConfig = DataConfig()
    train: sections.TrainConfig = sections.TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    chat: sections.ChatConfig = sections.ChatConfig()
    finetune: sections.FinetuneConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _half_of_the_chip(cls, tree: Any) -> Any:
        """Replace `half` with the 16-bit type of the chip."""
        match tree:
            case {"train": {"compute_dtype": "half", **others}}:
                chip: Any = tree["parallel"].get("chip") if isinstance(tree.get("parallel"), dict) else None
                chip = chip if chip in CHIP_NAMES else "910a"  # an unknown chip is refused where it stands
                return tree | {"train": others | {"compute_dtype": CHIP_DATA[chip].half}}
        return tree

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        """Raise ValueError for the first combination of keys that is not allowed."""
        chip, dtype = CHIP_DATA[self.parallel.chip], self.train.compute_dtype
        if dtype not in chip.flops:
            fix = f"set train.compute_dtype={chip.half}, or a later chip, such as parallel.chip=910b; on a CPU set float32"
            raise ValueError(f"train.compute_dtype={dtype}: {chip.title} has no {dtype}; {fix}")
        if repeated := [name for name, times in Counter(d.name for d in self.domains).items() if times > 1]:
            raise ValueError(f"domains: name {repeated[0]!r} is used more than once; names must be different")
        if self.ecss.moments == "bfloat16" and (beta2 := self.train.optimizer.beta2) > 0.99:
            why = "bfloat16 rounds a change of less than 1/256 a step away"
            raise ValueError(f"ecss.moments=bfloat16 needs train.optimizer.beta2 <= 0.99, not {beta2}: {why}")
        self._check_limits()
        passes, stages = self.train.accumulation, self.parallel.stages
        if stages > 1 and passes < stages:
            why = "every stage works on a micro-batch; raise it, and lower train.batch_size to keep the batch"
            raise ValueError(f"parallel.stages={stages} needs train.accumulation >= {stages}, not {passes}: {why}")
        self.check_divisible()
        self._check_phases()
        self._check_finetune()
        return self

    def _check_limits(self) -> None:
        """Raise ValueError for the first value above its limit, which is the value of another key, a count or a constant."""
        optimizer, data, layers = self.train.optimizer, self.data, self.model.layers
        limit = data.max_held_out_tokens
        minima = [(d.name, d.min_held_out_tokens or data.min_held_out_tokens) for d in self.domains]
        for key, value, maximum, reason in (
            ("data.domains_per_step", data.domains_per_step, len(self.domains), f"the {len(self.domains)} domains"),
            ("parallel.stages", self.parallel.stages, layers, f"the {layers} layers of the model"),
            ("parallel: the number of ranks", self.parallel.ranks, MOST_RANKS, f"the possible {MOST_RANKS}"),
            ("model.slot_rows · slots", self.model.slot_rows * self.slots, MOST_ROWS, f"the possible {MOST_ROWS} rows"),
            ("train.optimizer.end_lr", optimizer.end_lr, optimizer.peak_lr, f"peak_lr={optimizer.peak_lr}"),
            *((f"domain {name}: min_held_out_tokens", n, limit, f"max_held_out_tokens={limit}") for name, n in minima),
        ):
            if value > maximum:
                raise ValueError(f"{key}={value} is more than {reason}; change one of them")

    def data_of(self, domain: int) -> DataConfig:
        """Return section `data` as it holds for a domain, whose own values replace the section's. domain: index."""
        values = self.domains[domain].model_dump(include=set(DataConfig.model_fields), exclude_none=True)
        return self.data.model_copy(update=values)

    def _check_phases(self) -> None:
        """Raise ValueError if steps of `data.phases` do not ascend from 0, a phase names an unknown domain, or it leaves
        a set of `domain_sets`, of which every step takes a block, without a domain."""
        names, last_step = [domain.name for domain in self.domains], -1
        for number, phase in enumerate(self.data.phases):
            key, step = f"data.phases.{number}", phase.from_step
            if step <= last_step or (number == 0 and step > 0):
                limit = f"above {last_step}, where the phase before it begins" if number else "0, where training begins"
                raise ValueError(f"{key}.from_step={step} is not allowed: it must be {limit}")
            last_step = step
            active_names = names if phase.weights is None else phase.weights
            if unknown := [name for name in active_names if name not in names]:
                raise ValueError(f"{key}.weights: {unknown[0][:100]!r} is not a domain; there are {', '.join(names)}")
            for indices in self.domain_sets:
                members = [names[index] for index in indices]
                if not {*members} & {*active_names}:
                    problem = f"{key}.weights has no domain of the set {', '.join(members)}"
                    why = f"from which every step takes a block (data.domain_sets={self.data.domain_sets})"
                    raise ValueError(f"{problem}, {why}; name one, or lower the key")

    def _check_finetune(self) -> None:
        """Raise ValueError if the `finetune` section does not fit the rest of the tree."""
        if (options := self.finetune) is None:
            return
        names = [domain.name for domain in self.domains]
        for key, values in (("domain", [options.domain]), ("domains", options.domains)):
            if unknown := [name for name in values if name not in names]:
                fix = f"it has {', '.join(names)}: add {argument('--domain')} with one, for lines that name none"
                raise ValueError(f"finetune.{key}={unknown[0]} is not a domain of this run; {fix}")
        if options.learn != "all" and not (self.model.rre_layers and self.ecss.enabled):
            fault, fix = "model.rre_layers=0", "use finetune.learn=all"
            if self.model.rre_layers:
                fault, fix = "ecss.enabled=false", f"{fix}, or ecss.enabled=true"
            raise ValueError(f"finetune.learn={options.learn} needs experts that are updated alone, and {fault}; {fix}")

    def check_divisible(self) -> None:
        """Raise ValueError for the first size, such as heads or batch_size, that ranks or blocks do not divide evenly."""
        m, p, sets = self.model, self.parallel, self.data.domain_sets
        sequences, count = self.train.batch_size // self.data.domains_per_step, len(m.segments)
        save_interval = self.train.checkpoint_interval if self.finetune else 1  # tuning saves what it evaluates
        for key, value, by, number in (
            ("model.hidden", m.hidden, "model.heads", m.heads),
            ("model.ffn", m.ffn, "the number of model.segments", count),
            ("train.batch_size", self.train.batch_size, "data.domains_per_step", self.data.domains_per_step),
            ("train.eval_interval", self.train.eval_interval, "train.checkpoint_interval", save_interval),
            ("the number of domains", len(self.domains), "data.domain_sets", sets),
            ("data.domains_per_step", self.data.domains_per_step, "data.domain_sets", sets),
            ("data.domain_sets", sets, "parallel.groups", p.groups),
            ("model.experts_per_domain", m.experts_per_domain, "parallel.expert", p.expert),
            ("model.common_experts", m.common_experts, "parallel.expert", p.expert),
            ("sequences in a block", sequences, "parallel.expert · parallel.data", p.expert * p.data),
            ("model.heads", m.heads, "parallel.tensor", p.tensor),
            ("model.hidden", m.hidden, "parallel.tensor", p.tensor),
            ("model.ffn" + f" / {count} segments" * (count > 1), m.segment_ffn, "parallel.tensor", p.tensor),
        ):
            if value % number:
                raise ValueError(f"{key} ({value}) is not divisible by {by} ({number}); change one of them")

    @property
    def tuning(self) -> sections.FinetuneConfig:
        """Section `finetune` of a run that is tuned to a task."""
        assert self.finetune is not None
        return self.finetune

    @property
    def slots(self) -> int:
        """Number of embedding slots: distinct slot names of the domains."""
        return len({d.slot for d in self.domains})

    @property
    def domain_sets(self) -> list[list[int]]:
        """The `data.domain_sets` sets of domains, each as ascending indices of domains. Sets have equally many domains, and nearly
        equal total weights by greedy packing: our choice, because the paper says that domains share groups of ranks, not how."""
        sets: list[list[int]] = [[] for _ in range(self.data.domain_sets)]
        weights, size = [0.0] * len(sets), len(self.domains) // len(sets)
        for index in sorted(range(len(self.domains)), key=lambda i: -self.domains[i].weight):
            incomplete = [s for s, members in enumerate(sets) if len(members) < size]
            lightest = min(incomplete, key=lambda s: weights[s])
            sets[lightest].append(index)
            weights[lightest] += self.domains[index].weight
        return [sorted(members) for members in sets]

    @property
    def experts(self) -> int:
        """K, number of experts stored in one own segment of an RRE layer: of all domains together."""
        return len(self.domains) * self.model.experts_per_domain

    def stored_experts(self, kind: Segment) -> int:
        """Return K, the number of experts stored in one segment of this kind."""
        return self.experts if kind == "own" else self.model.common_experts

    def stored_rows(self, entry: RowsConfig) -> int:
        """Return the number of rows of an entry of `model.rows`, of all domains together if they are own."""
        return entry.rows * (len(self.domains) if entry.kind == "own" else 1)

    @property
    def step_tokens(self) -> int:
        """Number of tokens of a step, in all micro-batches of all ranks."""
        return self.train.batch_size * self.train.accumulation * self.model.seq_length

    def reachable_experts(self, domains: Iterable[int]) -> list[list[int]]:
        """Return the numbers of the experts that tokens of these domains (indices) can reach: a list for each of the N segments."""
        size, common_experts = self.model.experts_per_domain, list(range(self.model.common_experts))
        own_experts = [domain * size + number for domain in sorted(set(domains)) for number in range(size)]
        return [own_experts if kind == "own" else common_experts for kind in self.model.routed]

    def learns(self, kind: Segment) -> bool:
        """Return True if experts and rows of this kind learn. Common ones do not if fine-tuning trains experts of its domains."""
        return kind == "own" or self.finetune is None or self.finetune.learn == "all"

    def params_of_experts(self, own: int, common: int) -> int:
        """Return the number of parameters of `own` experts in each own segment, and `common` in each common one, of all layers."""
        model = self.model
        counts = (common if kind == "common" else own for kind in model.segments)
        return model.rre_layers * sum(count * model.expert_params(s) for s, count in enumerate(counts))

    @property
    def domain_experts(self) -> int:
        """Number of parameters of the experts of one domain, in all RRE layers."""
        return self.params_of_experts(self.model.experts_per_domain, 0)

    def active_of(self, kind: Segment) -> int:
        """Return A, the maximum number of experts of one segment of this kind that a step can activate; without ECSS, all."""
        if kind == "common":
            return self.model.common_experts
        return self.data.domains_per_step * self.model.experts_per_domain if self.ecss.enabled else self.experts

    @property
    def active_expert_params(self) -> int:
        """Maximum number of parameters of experts that a step can activate, in all RRE layers."""
        return self.params_of_experts(self.active_of("own"), self.active_of("common"))

    def on_one_rank(self) -> Config:
        """Return this configuration with one process in place of the parallel ranks."""
        return self.model_copy(update={"parallel": ParallelConfig()})

    def with_batches_of(self, other: Config) -> Config:
        """Return this configuration for one process, with the batch size and blocks of `other`, for a graph of the same shape."""
        train = self.train.model_copy(update={"batch_size": other.train.batch_size})
        shape = {key: getattr(other.data, key) for key in ("domains_per_step", "domain_sets")}
        return self.on_one_rank().model_copy(update={"train": train, "data": self.data.model_copy(update=shape)})

    def num_params(self) -> ParamCount:
        """Count the parameters of the model. Embeddings are a row for each word of each slot, and two for each position, of the
        first layer and of the query layer. `model.rows` adds a scale to each layer, and H active parameters to each token."""
        m = self.model
        attention, norms = 4 * (m.hidden * m.hidden + m.hidden), 2 * 2 * m.hidden  # of one layer
        ffn = 2 * m.hidden * m.ffn + m.ffn + m.hidden
        dense = m.layers * (attention + norms + bool(m.rows)) + m.dense_layers * ffn + 2 * m.hidden
        experts = self.params_of_experts(self.experts, m.common_experts)
        embeddings = (self.slots * m.slot_rows + 2 * m.seq_length) * m.hidden
        rows = sum(self.stored_rows(entry) * entry.width for entry in m.rows)
        active = dense + m.rre_layers * ffn + m.hidden * bool(m.rows)
        return ParamCount(dense + experts + embeddings, dense, experts, embeddings, active, rows)
