"""Batches of chosen domains, and a toy that trains on a sequence of them with every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from helpers.toy import Toy, adam_of, random_documents, randomise, toy_batches, weights_of
from mindspore import Tensor

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, StepArrays
from pangu_sigma.ecss.store import array_specs, build
from pangu_sigma.ecss.tiers import FileTier
from pangu_sigma.model.declare import as_input
from pangu_sigma.training.step import StepResult, TrainStep

SEQUENCE = [(0, 1), (1, 2), (1, 2), (1, 3), (1, 3), (0, 3), (2, 2), (0, 3), (0, 1)]
"""Domains of each step's blocks. Experts that lie next to each other, and that do not, follow both kinds; neighbours share some of
their experts, all and none."""
Watch = Callable[[int, Batch, dict[str, np.ndarray], dict[str, np.ndarray]], None]
"""Called after a step with its number, its batch, and everything before and after it."""


def batch_of(toy: Toy, domains: tuple[int, ...], seed: int = 0) -> Batch:
    """A batch of those domains, one a block."""
    train = toy.config.train
    shape = (train.accumulation, train.batch_size, toy.config.model.seq_length + 1)
    documents = random_documents(np.random.default_rng(seed), 400)
    text = np.array([token for document in documents for token in document])
    return toy.batches.assemble(text[: np.prod(shape)].reshape(shape), np.array(domains))


class Sequence(Toy):
    """A toy whose arrays are changed where they are, so that those of files stay in their files."""

    @classmethod
    def make(cls, config: Config, folder: Path) -> Sequence:
        """`ecss.store` is looked at as `train` does; the file store may keep a tenth of its arrays in memory."""
        specs, tier = array_specs(config), None
        if config.ecss.store == "file":
            tier = FileTier(folder, specs, sum(s.nbytes for s in specs) / 10 / (1 << 30))
        network, store = build(config, tier=tier)
        step = TrainStep(config, network, store)
        step.set_train()
        return cls(config, toy_batches(config, folder), network, store, step)

    def start(self) -> None:
        """Weights that depend on nothing but their number, no optimizer state, the loss scale of the configuration."""
        self.store.settle()
        randomise(self.network.trainable_params(), 0)
        for i, weight in enumerate(weights_of(self.store)):
            weight.asnumpy()[...] = 0.2 * np.random.default_rng(i).standard_normal(weight.shape)
        store, dense = self.store, self.step.dense
        for parameter in [*adam_of(store), *dense.moments, *dense.variances, dense.step]:
            parameter.asnumpy()[...] = 0
        self.step.scale.good_steps.set_data(Tensor(0, ms.int32))
        self.step.scale.value.set_data(Tensor(self.config.train.loss_scale.initial, ms.float32))

    def train(
        self,
        sequence: list[tuple[int, ...]] = SEQUENCE,
        bad_step: int | None = None,
        watch: Watch | None = None,
    ) -> list[StepResult]:
        """Train on the sequence from the start. bad_step: one token of this step weighs NaN."""
        self.start()
        batches = [batch_of(self, domains, seed) for seed, domains in enumerate(sequence)]
        results: list[StepResult] = []
        for number, batch in enumerate(batches):
            arrays = batch.arrays()
            if number == bad_step:
                arrays.weights_GBS[0, 0, 0] = np.nan
            self.store.tier.read_ahead(batch.active_A, batches[(number + 1) % len(batches)].active_A)
            before = self.snapshot() if watch else {}
            results.append(self.step.take(1e-3, StepArrays(*map(as_input, arrays))))
            assert float(results[-1].applied.asnumpy()) == (number != bad_step)
            if watch:
                self.store.settle()
                watch(number, batch, before, self.snapshot())
        return results

    def evidence(self, results: list[StepResult]) -> dict[str, bytes]:
        """Bits of everything that training changed, and of what every step reported."""
        self.store.settle()
        actual = {name: array.tobytes() for name, array in self.snapshot().items()}
        for number, result in enumerate(results):
            actual[f"loss of step {number}"] = b"".join(loss.asnumpy().tobytes() for loss in result.block_loss_GM)
            actual[f"norm of step {number}"] = result.norm.asnumpy().tobytes()
        return actual


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> set[str]:
    """Names of what is not the same bits in both."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
