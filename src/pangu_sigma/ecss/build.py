"""Build the network and the expert store of a rank."""

from __future__ import annotations

import mindspore as ms

from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.ranks.experts import make_experts_for
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks


def build(
    config: Config, ranks: Ranks = SINGLE_PROCESS, tier: HostTier | None = None, dtype: ms.Type | None = None
) -> tuple[PanGuSigma, ExpertStore]:
    """Build the network and the expert store of one rank. The initial values of the network are drawn first, then the experts'.

    tier: storage of the experts' arrays; None for host memory.
    dtype: type that the network computes in; None for `train.compute_dtype`.
    """
    return make_network(config, ranks, dtype), make_store(config, tier, ranks.rank)


def make_network(config: Config, ranks: Ranks = SINGLE_PROCESS, dtype: ms.Type | None = None) -> PanGuSigma:
    """Build the network alone, without an expert store."""
    dtype = dtype or getattr(ms, config.train.compute_dtype)
    return PanGuSigma(config.model, config.slots, dtype, routed=make_experts_for(config, ranks))
