"""Builder of network and expert store from a model on the disk, as in training."""

from __future__ import annotations

import mindspore as ms

from pangu_sigma.checkpoint.lazy import release_pages
from pangu_sigma.checkpoint.parts import WEIGHTS
from pangu_sigma.checkpoint.state import shards_of
from pangu_sigma.ecss.store import ExpertStore, build
from pangu_sigma.ecss.tiers import UninitializedTier
from pangu_sigma.host_memory import check_reading_fits
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.stored.model import StoredModel


def build_network(model: StoredModel) -> tuple[PanGuSigma, ExpertStore]:
    """Build the network and the expert store of a model in one process, whatever number of ranks wrote its checkpoint. An array of
    experts that is whole in one file stays there; its values are read when they are used."""
    check_reading_fits(model.config)
    network, store = build(model.config.on_one_rank(), tier=UninitializedTier(), dtype=ms.float32)  # values follow
    for shard, parameters in shards_of(network, store).items():
        for name, parameter in parameters.items():
            values = model.required(shard, name, tuple(parameter.shape)).read()
            if shard == WEIGHTS:
                parameter.asnumpy()[...] = values
                release_pages(values)
            else:
                # a tensor over the mapped file: nothing is read yet
                parameter.set_data(ms.Tensor.from_numpy(values), slice_shape=True)
    for entry in range(len(model.config.model.rows)):
        assert store.rows is not None
        store.rows.put(entry, *model.rows(entry))
    return network, store
