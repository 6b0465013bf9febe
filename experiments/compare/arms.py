"""Ways to give a token its FFN, all of the same active size: one FFN of F inner units a token, in each of the upper layers.

An arm is the keys that it changes in the comparison's configuration and, where the product cannot be asked for it, a peer. Stored
size is not equal: it is counted here, in FFNs of F inner units a layer.
"""

from __future__ import annotations

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
    keys: dict[str, Any] = field(default_factory=dict)
    peer: Peer = "ours"


def _arm(title: str, own: int, *segments: str, common: int = 0, peer: Peer = "ours") -> Arm:
    keys = {
        "model.experts_per_domain": own,
        "model.segments": list(segments or ["own"]),
        "model.common_experts": common,
    }
    return Arm(title, keys, peer)


_FOUR = ("own", "own", "common", "common")

ARMS = {
    "rre": _arm("RRE, 4 a domain", 4),
    "rre16": _arm("RRE, 16 a domain", 16),
    "dense": Arm("dense", SMALL_DENSE),
    "balanced": Arm("RRE, 4, balanced", {"model.experts_per_domain": 4, "routing.table": "balanced"}),
    "own_own": _arm("2 own segments", 4, "own", "own"),
    "mixed": _arm("2 own + 2 common", 4, *_FOUR, common=16),
    "mixed4_64": _arm("own 4, common 64", 4, *_FOUR, common=64),
    "mixed16_16": _arm("own 16, common 16", 16, *_FOUR, common=16),
    "mixed64": _arm("own 16, common 64", 16, *_FOUR, common=64),
    "own_dense": _arm("half own + dense", 4, "own", "common", common=1),
    "own_common": _arm("half own + common", 4, "own", "common", common=16),
    "hash": _arm("hashing over 16", 4, peer="hash"),
    "hash64": _arm("hashing over 64", 16, peer="hash"),
    "gate": _arm("Switch's gate", 4, peer="gate"),
    "moge": _arm("MoGE's gate, 4x16", 4, *["own"] * 4, peer="gate"),
    "moge64": _arm("MoGE's gate, 4x64", 16, *["own"] * 4, peer="gate"),
    "leak": _arm("key: next token", 4, peer="leak"),
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
