"""Ways to give a token its FFN, all of the same active size: one FFN of F inner units a token, in each of the upper layers.

An arm is the keys that it changes in the comparison's configuration and, where the product cannot be asked for it, a peer. Stored
size is not equal: it is counted here, in FFNs of F inner units a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.compare.peer_runs import Peer
from experiments.small import SMALL_DENSE
from pangu_sigma.config import Config

_FLOAT32 = 4


@dataclass(frozen=True)
class Arm:
    """A way to give a token its FFN. title: its name in tables. keys: those that it changes. peer: how it is trained."""

    title: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    peer: Peer = "ours"


def _segments(*kinds: str, common: int = 0) -> dict[str, Any]:
    return {"model.segments": list(kinds), "model.common_experts": common}


_16 = {"model.experts_per_domain": 16}

ARMS = {
    "rre": Arm("RRE, 4 a domain"),
    "dense": Arm("dense", SMALL_DENSE),
    "rre16": Arm("RRE, 16 a domain", _16),
    "balanced": Arm("RRE, 4, balanced", {"routing.table": "balanced"}),
    "own_own": Arm("2 own segments", _segments("own", "own")),
    "mixed": Arm("2 own + 2 common", _segments("own", "own", "common", "common", common=16)),
    "own_dense": Arm("half own + dense", _segments("own", "common", common=1)),
    "own_common": Arm("half own + common", _segments("own", "common", common=16)),
    "hash": Arm("hashing over 16", peer="hash"),
    "hash64": Arm("hashing over 64", _16, "hash"),
    "gate": Arm("Switch's gate", peer="gate"),
    "moge": Arm("MoGE's gate, 4x16", _segments(*["own"] * 4), "gate"),
    "leak": Arm("key: next token", peer="leak"),
}
"""By name on the command line. All but `leak` run unless others are asked for."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experts of one layer. stored, extracted: in FFNs of F inner units; extracted: what one domain needs for itself.

    bytes, moved_bytes: of the weights in float32, and those that ECSS brings to the device and takes back as gradients in a step,
    both together, at most. experts_N: number of experts of each segment of all RRE layers.
    """

    stored: float
    bytes: int
    extracted: float
    moved_bytes: int
    experts_N: list[int]


def sizes_of(arm: Arm, config: Config) -> Sizes:
    """Count. An expert of a peer may get tokens of any domain, so one domain needs all of them."""
    m = config.model
    whole = _FLOAT32 * ((2 * m.hidden + 1) * m.ffn + m.hidden)
    if not m.rre_layers:
        return Sizes(1, whole, 1, 0, [])
    stored = config.num_params().experts * _FLOAT32 // m.rre_layers
    alone = config.model_copy(update={"domains": config.domains[:1]}).num_params().experts * _FLOAT32 // m.rre_layers
    separated = config.model_copy(update={"ecss": config.ecss.model_copy(update={"enabled": True})})
    moved = 2 * separated.active_expert_params * _FLOAT32 // m.rre_layers
    extracted = (alone if arm.peer == "ours" else stored) / whole
    return Sizes(stored / whole, stored, extracted, moved, [config.stored_experts(kind) for kind in m.routed])
