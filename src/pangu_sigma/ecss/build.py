"""The network and the expert store of a rank, made for each other."""

from __future__ import annotations

import mindspore as ms

from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.all_to_all import experts_of
from pangu_sigma.parallel.ranks import ALONE, Ranks


def build(
    config: Config, ranks: Ranks = ALONE, tier: HostTier | None = None, dtype: ms.Type | None = None
) -> tuple[PanGuSigma, ExpertStore]:
    """The network and the experts of one rank, at their initial values, drawn in this order.

    tier: where the experts' arrays are kept; the host's memory if none is given.
    dtype: type that the network computes in; `train.compute_dtype` if none is given.
    """
    return make_network(config, ranks, dtype), make_store(config, tier, ranks.rank)


def make_network(config: Config, ranks: Ranks = ALONE, dtype: ms.Type | None = None) -> PanGuSigma:
    """The network alone, for a store that is there already."""
    dtype = dtype or getattr(ms, config.train.compute_dtype)
    return PanGuSigma(config.model, config.slots, dtype, routed=experts_of(config, ranks))
