"""Trains the variants of methods.py: the product's own as it is, and its peers with another network or other tables.

When a peer's run has ended, its checkpoints are removed: the product would read them as its own network, with its own tables, and
give wrong numbers without a word. What the run learned is in metrics.jsonl. A run that was stopped keeps them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from experiments.cases import train_whole
from experiments.compare.hashing import HashTrainer
from experiments.compare.switch import GateBackend, GateTrainer
from pangu_sigma.config import Config
from pangu_sigma.train.backend import Backend, CpuBackend
from pangu_sigma.train.loop import Trainer, train

PEERS: dict[str, tuple[Backend, type[Trainer]]] = {
    "gate": (GateBackend(), GateTrainer),
    "hash": (CpuBackend(), HashTrainer),
}
"""How each peer is trained; every other variant is the product's."""


def train_peer(name: str, config: Config, run: Path) -> bool:
    """Train a variant to the end. Returns False if it was asked to stop before. Raises as `train`."""
    if name not in PEERS:
        return train_whole(config, run)
    backend, kind = PEERS[name]
    trainer = train(config, run, backend, kind=kind)
    if trainer.finished:
        shutil.rmtree(trainer.run.checkpoints)
    return trainer.finished
