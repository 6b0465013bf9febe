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


_WIDE, _ROWS = 64, 131_071
"""Half of the hidden width, and rows of a table: with two of them as many stored values as all experts of `mixed64`."""


def _rows(*entries: tuple[int, int], kind: str = "common") -> dict[str, Any]:
    """Keys of rows, by order and width; own ones are divided among the four domains, so that as many are stored."""
    rows = _ROWS // (4 if kind == "own" else 1)
    return {"model.rows": [{"order": order, "rows": rows, "width": width, "kind": kind} for order, width in entries]}


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
"""By name on the command line. All but those of LEAKING run unless others are asked for."""

_ID, _PAIR = (1, _WIDE), (2, _WIDE)
_SHIPPED = ARMS["mixed64"].keys

ARMS |= {
    "mixed128": _arm("own 32, common 128", 32, *_FOUR, common=128),
    "rows": Arm("+ id and pair", _SHIPPED | _rows(_ID, _PAIR)),
    "rows_id": Arm("+ one id", _SHIPPED | _rows((1, 2 * _WIDE))),
    "rows_pairs": Arm("+ pairs, twice", _SHIPPED | _rows(_PAIR, _PAIR)),
    "rows_own": Arm("+ id and pair, own", _SHIPPED | _rows(_ID, _PAIR, kind="own")),
    "dense_rows": Arm("dense + id and pair", SMALL_DENSE | _rows(_ID, _PAIR)),
    "rows_leak": Arm("+ pair with the next", _SHIPPED | _rows(_ID, _PAIR), peer="row_leak"),
}
"""Arms with rows, on the form that ships and on the dense model; `mixed128` stores as many values in experts instead."""

LEAKING = ("leak", "rows_leak")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model. stored: values of all FFNs, experts and rows. extracted: those that one domain needs for itself.

    flops: floating-point operations of training on a token: six for each weight that it meets, the head's included, and for
    attention 12 · seq_length · hidden a layer. moved_bytes: of what ECSS would bring to the device and take back in a step, at
    most, in float32: active experts and their gradients, and the rows of each token and theirs. experts_N: number of experts of
    each segment of all RRE layers.
    """

    flops: float
    stored: int
    extracted: int
    moved_bytes: int
    experts_N: list[int]


def sizes_of(arm: Arm, config: Config) -> Sizes:
    """Count. An expert of a peer may get tokens of any domain, so one domain needs all of them."""
    m = config.model
    met = config.num_params().active_per_token + m.slot_rows * m.hidden
    separated = config.model_copy(update={"ecss": config.ecss.model_copy(update={"enabled": True})})
    moved = separated.active_expert_params if m.rre_layers else 0
    moved += config.train.batch_size * m.seq_length * m.hidden if m.rows else 0
    alone = config.model_copy(update={"domains": config.domains[:1]}) if arm.peer in ("ours", "row_leak") else config
    return Sizes(
        6.0 * met + 12.0 * m.seq_length * m.hidden * m.layers,
        _stored(config),
        _stored(alone),
        2 * _FLOAT32 * moved,
        [config.stored_experts(kind) for kind in m.routed],
    )


def _stored(config: Config) -> int:
    m, rows = config.model, sum(config.stored_rows(entry) * entry.width for entry in config.model.rows)
    return m.dense_layers * ((2 * m.hidden + 1) * m.ffn + m.hidden) + config.num_params().experts + rows
