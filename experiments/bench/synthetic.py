"""Training runs on drawn token ids: the project's own batches, step and store, without prepared text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.batches import Batch, BatchLoader, Samples
from pangu_sigma.data.order import Cursor, SampleOrder
from pangu_sigma.ecss.store import ExpertStore, make_network, make_store
from pangu_sigma.ecss.tiers import ArraySpec, HostTier
from pangu_sigma.model.declare import wrap_array
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.training.backend import update_rows
from pangu_sigma.training.feed import InputPipeline
from pangu_sigma.training.step import TrainStep

PAD_ID, EOT_ID, FIRST = 6, 9, 10
"""Token ids. Those below FIRST are never drawn, so that every token counts in the loss and a sequence is one document."""
RATE = 1e-4


def config_of(domains: int, model: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """A configuration with that many domains in one embedding slot."""
    named = [{"name": f"d{i}"} for i in range(domains)]
    return parse_config({"name": "bench", "model": model, "domains": named, **sections})


class SyntheticRun:
    """A run that does all that `train` does for a step, on drawn ids. Ids, weights and tables depend on the seed only."""

    def __init__(
        self,
        config: Config,
        store: ExpertStore | None = None,
        frequencies_V: np.ndarray | None = None,
    ):
        """store: the store of experts; made for this configuration if None. frequencies_V: of ids above FIRST; None: all are
        equally frequent."""
        ms.set_seed(config.seed)
        self.config = config
        self.store = make_store(config) if store is None else store
        self.step = TrainStep(config, make_network(config), self.store)
        self.step.set_train()
        batches = _batches(config, frequencies_V)
        self._feed = InputPipeline(batches, Cursor([0] * len(batches.domains)), self.store)
        self.device_bytes = 0.0
        """Bytes of the expert weights that the network read in the last step."""

    def batch(self) -> Batch:
        """The next batch, taken away from the steps."""
        return self._feed.take().batch

    def advance(self) -> float:
        """Take one step and return its loss, after all updates that nobody hides."""
        fed = self._feed.take()
        self.device_bytes = self.store.traffic(fed.batch.active_A).get("fetched_mib", 0.0) * (1 << 20)
        result = self.step.take(RATE, fed.arrays)
        if self.store.rows:
            update_rows(self.store, SINGLE_PROCESS, fed.batch, result)
        return float(result.block_loss_GM[0].asnumpy().sum())


class SharedTier(HostTier):
    """A tier with the arrays of another store, so that two stores need the memory of one."""

    def __init__(self, store: ExpertStore):
        self._store = store

    def parameter(self, spec: ArraySpec) -> Parameter:
        return wrap_array(spec.key, self._store.segments[spec.segment].named[spec.name].asnumpy(), decay=spec.decay)


class _DrawnText:
    """A domain's text that is no file: ids drawn once, repeated without end."""

    tokens = 1 << 40

    def __init__(self, vocabulary: int, name: str, frequencies_V: np.ndarray | None):
        rng = np.random.default_rng(list(name.encode()))
        if frequencies_V is None:
            self._ids = rng.integers(FIRST, vocabulary, 1 << 16, np.int32)
        else:
            self._ids = (FIRST + rng.choice(vocabulary - FIRST, 1 << 20, p=frequencies_V)).astype(np.int32)

    def read(self, first: int, count: int) -> np.ndarray:
        return self._ids[(first + np.arange(count)) % len(self._ids)]


class _DrawnBatches(BatchLoader):
    """The project's batches of drawn text, with each domain's samples in order: a shuffle of so many would fill the memory."""

    def __init__(self, config: Config, tokenizer: Any, table: RoutingTable, frequencies_V: np.ndarray | None):
        drawn: Any = SimpleNamespace(
            tokens=lambda domain, split, vocabulary: _DrawnText(vocabulary, f"{domain}.{split}", frequencies_V)
        )
        super().__init__(config, Samples(config, drawn, "train", tokenizer.size), tokenizer, table)
        self.order = _InTurn(config, self.samples.counts)


class _InTurn(SampleOrder):
    """The order of training, except that the samples of a domain are not shuffled."""

    def sample(self, domain: int, number: int) -> int:
        return number


def zipf(ids: int) -> np.ndarray:
    """Return frequencies of ids as in text: the n-th most frequent one in proportion to 1/n."""
    shares_V = 1 / np.arange(1, ids + 1)
    return shares_V / shares_V.sum()


def _batches(config: Config, frequencies_V: np.ndarray | None) -> BatchLoader:
    rows, model = config.model.slot_rows, config.model
    row_of = np.tile(np.arange(rows, dtype=np.int32), (config.slots, 1))
    # everything that batches read of a tokenizer
    tokenizer: Any = SimpleNamespace(size=rows, eot=EOT_ID, pad=PAD_ID, row_of=row_of)
    own, common = model.experts_per_domain, model.common_experts
    sizes = model.rre_layers, len(config.domains), rows, own
    table = draw_tables(config.routing, *sizes, None, model.segments, common, model.rows)
    return _DrawnBatches(config, tokenizer, table, frequencies_V)
