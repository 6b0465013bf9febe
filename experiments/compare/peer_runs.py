"""Trains the arms of arms.py: the product's own as it is, and its peers with another network or other tables.

When a run has ended, its checkpoints are removed: the product would read a peer's as its own network, with its own tables, and give
wrong numbers without a word, and those of many runs fill a disk. What the run learned is in metrics.jsonl. A run that was stopped
keeps them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from experiments.compare.gates import GateBackend, GateTrainer
from experiments.compare.hashing import HashTrainer, LeakTrainer, RowLeakTrainer
from pangu_sigma.checkpoint.run_folder import CHECKPOINTS
from pangu_sigma.config import Config
from pangu_sigma.training.backend import Backend
from pangu_sigma.training.loop import Trainer, train

Peer = Literal["ours", "gate", "hash", "leak", "row_leak"]

PEERS: dict[Peer, tuple[Backend, type[Trainer]]] = {
    "ours": (Backend(), Trainer),
    "gate": (GateBackend(), GateTrainer),
    "hash": (Backend(), HashTrainer),
    "leak": (Backend(), LeakTrainer),
    "row_leak": (Backend(), RowLeakTrainer),
}
"""How the product and each peer are trained."""


def train_peer(peer: Peer, config: Config, run: Path) -> bool:
    """Train an arm to the end. Returns False if it was asked to stop before. Raises as `train`."""
    backend, kind = PEERS[peer]
    trainer = train(config, run, backend, kind=kind)
    finished = trainer is None or trainer.finished
    if finished:
        shutil.rmtree(run / CHECKPOINTS)
    return finished
