"""Bench of the step time as stored experts grow and active ones stay: ECSS promises that nothing else grows with them.

The last case stores more than four billion parameters in files, and holds that step against one with the same active experts whose
store is in memory, each in a process of its own. Every step is another domain's, so every step's experts come from the disk.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.bench import stored_experts
from experiments.bench.harness import Row, compare, limit, take_turns
from experiments.bench.synthetic import SyntheticRun, config_of
from experiments.peers import Worker
from pangu_sigma.host_memory import available_memory
from pangu_sigma.process import use_cpu

STORED = (16, 64, 256, 640)
"""Numbers of stored experts of a layer; one domain of four experts is active in a step."""
ACTIVE = 4
GROWING_MODEL = {
    "hidden": 192,
    "ffn": 768,
    "heads": 6,
    "dense_layers": 2,
    "rre_layers": 2,
    "seq_length": 256,
    "slot_rows": 1024,
}
GROWING_BATCH = 4

IN_FILES, IN_MEMORY = 60, 8
"""Number of domains stored in files, and in memory; each has an expert in each of eight layers."""
CACHE_GIB, MOST_GIB = 1.25, 6.0
PEER_GIB = 11.0
"""Resident memory of the peer whose store is in memory, as measured."""

logger = logging.getLogger(__name__)


def run(peers: bool) -> list[Row]:
    """Rows of the bench: the step at 16 stored experts as the peer of the others. peers: has no effect."""
    use_cpu()
    model = GROWING_MODEL | {"experts_per_domain": ACTIVE}
    runs = {k: SyntheticRun(config_of(k // ACTIVE, model, train={"batch_size": GROWING_BATCH})) for k in STORED}
    for stored, synthetic in runs.items():
        for _ in range(stored // ACTIVE):  # every expert once: its moments are in memory then
            synthetic.advance()
    seconds = take_turns({f"{stored} stored": synthetic.advance for stored, synthetic in runs.items()})
    first = f"{STORED[0]} stored"
    del runs
    rows = []
    for stored in STORED[1:]:
        case = f"step with {stored} stored experts a layer, {ACTIVE} active"
        pair = {"ours": seconds[f"{stored} stored"], f"{first}, {ACTIVE} active": seconds[first]}
        rows += compare("scale", case, pair)
    return rows + in_files("step") + in_files("worker")


def in_files(update: str) -> list[Row]:
    """Rows of the file store; none, with a warning, if the disk of the working directory or the memory has no room.

    update: the key `ecss.update`
    """
    free = available_memory()
    if free is not None and free < (MOST_GIB + PEER_GIB) * (1 << 30):
        logger.warning(
            "bench scale: the file store with ecss.update: %s and its peer need %.0f GiB of memory, and %.1f GiB are free; skipped",
            update,
            MOST_GIB + PEER_GIB,
            free / (1 << 30),
        )
        return []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        needed = 12 * stored_experts.parameters(IN_FILES)
        if shutil.disk_usage(folder).free < 1.1 * needed:
            logger.warning(
                "bench scale: %s has less than %.0f GiB for the file store; skipped", folder, 1.1 * needed / (1 << 30)
            )
            return []
        with _worker(IN_FILES, folder, update) as files, _worker(IN_MEMORY, None, update) as memory:
            answers: list[dict[str, Any]] = []
            seconds = take_turns({"ours": lambda: answers.append(files.step()), "in memory": memory.step})
            stored = files.started["parameters"] / 1e9
    case = f"{stored:.2f} B parameters in files, cache {CACHE_GIB} GiB, another domain each step, ecss.update: {update}"
    peak = max(a["peak_gib"] for a in answers)
    return [
        *compare("scale", case, seconds),
        limit("scale", case, "peak resident memory", peak, MOST_GIB, "GiB"),
    ]


def _worker(domains: int, folder: str | None, update: str) -> Worker:
    settings = {"domains": domains, "folder": folder, "cache_gib": CACHE_GIB, "update": update}
    return Worker([sys.executable, "-m", stored_experts.__name__], json.dumps(settings))
