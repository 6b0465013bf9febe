"""A toy world for tests of the network and the step: sixty token ids, random text, every parameter far from its start.

Nothing here tokenises: ids are drawn, and slots hold them in an order of their own, so that an id is never its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from helpers.prepared import seal
from mindspore import Parameter, Tensor, nn

from pangu_sigma.checkpoint.state import shards_of
from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.batches import Batch, BatchLoader, StepArrays, open_samples
from pangu_sigma.data.token_files import write_tokens
from pangu_sigma.domains import domains_of
from pangu_sigma.ecss.store import ExpertStore, build
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.training.step import StepResult, TrainStep

VOCABULARY, PAD, EOT = 60, 6, 9
SLOT_ROWS = 64


def toy_config(domains: int = 4, slots: int = 2, **sections: dict[str, Any]) -> Config:
    """Domains d0, d1, …; domain i is in slot i modulo `slots`. `sections` override keys of the sections they name."""
    tree: dict[str, Any] = {
        "name": "toy",
        "model": {
            "hidden": 16,
            "ffn": 24,
            "heads": 2,
            "dense_layers": 1,
            "rre_layers": 2,
            "experts_per_domain": 2,
            "seq_length": 16,
            "slot_rows": SLOT_ROWS,
            "expert_init": "independent",
        },
        "domains": [{"name": f"d{i}", "slot": f"s{i % slots}"} for i in range(domains)],
        "data": {"domains_per_step": 2},
        "train": {"batch_size": 8, "optimizer": {}, "loss_scale": {"initial": 1024.0, "window": 3}},
    }
    for name, keys in sections.items():
        tree.setdefault(name, {}).update(keys)
    return parse_config(tree)


def toy_table(config: Config) -> RoutingTable:
    domains, experts = len(config.domains), config.model.experts_per_domain
    segments, common = config.model.segments, config.model.common_experts
    rows = config.model.rows
    return draw_tables(
        config.routing, config.model.rre_layers, domains, VOCABULARY, experts, None, segments, common, rows
    )


def toy_tokenizer(slots: int) -> SimpleNamespace:
    """What `BatchLoader` needs of a tokenizer; each slot holds the ids in its own order."""
    rng = np.random.default_rng(7)
    row_of = np.stack([rng.permutation(SLOT_ROWS)[:VOCABULARY] for _ in range(slots)]).astype(np.int32)
    return SimpleNamespace(size=VOCABULARY, eot=EOT, pad=PAD, row_of=row_of)


def random_documents(rng: np.random.Generator, documents: int) -> list[list[int]]:
    """Documents of 1 … 12 ids and <eot>."""
    return [[*rng.integers(10, VOCABULARY, rng.integers(1, 13)).tolist(), EOT] for _ in range(documents)]


def toy_batches(config: Config, folder: Path, documents: int = 60) -> BatchLoader:
    """Batches over text that is written to `folder`."""
    rng = np.random.default_rng(0)
    for domain in domains_of(config):
        (folder / domain.name).mkdir(exist_ok=True)
        write_tokens(folder / domain.name / "train", random_documents(rng, documents))
    samples = open_samples(config, seal(folder), "train", VOCABULARY)
    return BatchLoader(config, samples, toy_tokenizer(config.slots), toy_table(config))  # type: ignore[arg-type]


def toy_network(config: Config, seed: int = 0) -> tuple[PanGuSigma, ExpertStore]:
    """Network and experts, no parameter at the value it is initialised to (zero biases would hide mistakes)."""
    ms.set_seed(seed)
    network, store = build(config)
    randomise([*network.trainable_params(), *weights_of(store)], seed)
    return network, store


def weights_of(store: ExpertStore) -> list[Parameter]:
    """Weights of all experts, segment by segment."""
    return [weight for experts in store.segments for weight in experts.weights]


def active_weights(store: ExpertStore, active_A: Sequence[np.ndarray]) -> tuple[tuple[np.ndarray, ...], ...]:
    """Weights of the active experts, as `fetch` gives them to the network; at unused entries those of some expert."""
    lists = [a % experts.segment.stored for experts, a in zip(store.segments, active_A, strict=True)]
    return tuple(tuple(w.asnumpy()[a] for w in of.weights) for of, a in zip(store.segments, lists, strict=True))


def adam_of(store: ExpertStore) -> list[Parameter]:
    """Moments and step counts of all experts."""
    return [p for experts in store.segments for p in (*experts.moments, *experts.variances, experts.steps)]


def randomise(parameters: list[Parameter], seed: int) -> None:
    """Matrices of moderate size, biases and gains that are neither 0 nor 1."""
    rng = np.random.default_rng(seed)
    for parameter in parameters:
        around = 1.0 if parameter.name.endswith("gain") else 0.0
        parameter.set_data(Tensor((around + 0.2 * rng.standard_normal(parameter.shape)).astype(np.float32)))


class Logits(nn.Cell):
    """Hidden states and logits of a network that drops nothing, in one graph."""

    def __init__(self, network: PanGuSigma):
        super().__init__()
        self.network = network

    def construct(self, rows, positions, documents, slots, order, inverse, offsets, e, experts):
        hidden = self.network(rows, positions, documents, None, order, inverse, offsets, e, experts)
        return hidden, self.network.logits(hidden, slots)


def logits_arguments(arrays: StepArrays) -> list[Any]:
    """Arguments of `Logits` before the experts, of the first micro-batch."""
    rows, positions, documents, slots, _, _, _, *plan = arrays.of_micro_batch(0)
    return [rows, positions, documents, slots, *plan]


def scaled_weights(arrays: StepArrays, factor: float | np.ndarray) -> StepArrays:
    """The same with all loss weights, and so all gradients, times `factor`."""
    return arrays._replace(weights_GBS=(arrays.weights_GBS * factor).astype(np.float32))


@dataclass
class Toy:
    """A compiled step that tests share; each begins with `reset`."""

    config: Config
    batches: BatchLoader
    network: PanGuSigma
    store: ExpertStore
    step: TrainStep

    @classmethod
    def build(cls, config: Config, folder: Path) -> Toy:
        network, store = toy_network(config)
        step = TrainStep(config, network, store)
        step.set_train()
        return cls(config, toy_batches(config, folder), network, store, step)

    def reset(self, seed: int = 0, weights_from: Toy | None = None) -> None:
        """Random weights, no optimizer state, the loss scale of the configuration, which float32 would not need."""
        if weights_from is None:
            randomise([*self.network.trainable_params(), *weights_of(self.store)], seed)
        else:
            self.load(weights_from.snapshot())
        dense = self.step.dense
        for parameter in adam_of(self.store):
            zero(parameter)
        for parameter in [*dense.moments, *dense.variances, dense.step, self.step.scale.good_steps]:
            zero(parameter)
        self.step.scale.value.set_data(Tensor(self.config.train.loss_scale.initial, ms.float32))

    def shards(self) -> dict[str, dict[str, Parameter]]:
        return shards_of(self.network, self.store, self.step.dense, self.step.scale)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of everything a step may change, as `shard/name`."""
        return {f"{s}/{n}": p.asnumpy().copy() for s, held in self.shards().items() for n, p in held.items()}

    def load(self, values: dict[str, np.ndarray]) -> None:
        for shard, parameters in self.shards().items():
            for name, parameter in parameters.items():
                parameter.set_data(Tensor(values[f"{shard}/{name}"]))

    def run(self, batch: Batch, rate: float = 1e-3) -> StepResult:
        return self.run_arrays(batch.arrays(), rate)

    def run_arrays(self, arrays: StepArrays, rate: float = 1e-3) -> StepResult:
        return self.step.take(rate, StepArrays(*map(as_input, arrays)))


def zero(parameter: Parameter) -> None:
    parameter.set_data(Tensor(np.zeros(parameter.shape, parameter.asnumpy().dtype)))


def bits(values: dict[str, np.ndarray]) -> dict[str, bytes]:
    """For comparisons in which -0.0 is not 0.0 and NaN is itself."""
    return {name: array.tobytes() for name, array in values.items()}
