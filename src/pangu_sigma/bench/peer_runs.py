"""The program that trains a peer of RRE in a run folder.

    python -m pangu_sigma.bench.peer_runs gate CONFIG --output RUN --set KEY=VALUE

It is the product's training with another network, or other tables, and prints the product's summary. When the run has ended, its
checkpoints are removed: the product would read them as its own network, with its own tables, and give wrong numbers without a word.
What the run learned is in metrics.jsonl. A run that was stopped keeps them, and the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pangu_sigma.bench.hashing import HashTrainer
from pangu_sigma.bench.switch import GateBackend, GateTrainer
from pangu_sigma.config_file import load_config
from pangu_sigma.errors import exit_status
from pangu_sigma.train.backend import Backend, CpuBackend
from pangu_sigma.train.loop import Trainer, train
from pangu_sigma.train.summary import format_summary, summarise

PEERS: dict[str, tuple[Backend, type[Trainer]]] = {
    "gate": (GateBackend(), GateTrainer),
    "hash": (CpuBackend(), HashTrainer),
}
"""How each peer is trained."""


def train_peer(name: str, config: Path, run: Path, overrides: Sequence[str] = ()) -> str:
    """Train to the end, and remove the checkpoints. Returns the summary, or "" if training was asked to stop before. Raises as
    `train`."""
    backend, kind = PEERS[name]
    trainer = train(load_config(config, overrides), run, backend, kind=kind)
    if not trainer.finished:
        return ""
    text = format_summary({**summarise(run), "checkpoint": "removed: it is no network of the product"})
    shutil.rmtree(trainer.run.checkpoints)
    return text


def main() -> int:
    """Train the peer that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m pangu_sigma.bench.peer_runs", description=__doc__)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, required=True, help="run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if text := train_peer(options.peer, options.config, options.output, options.set):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
