"""The program of a training run with many stored experts. It is a process of its own, so that its resident memory is its own.

`scale` runs it with one argument, JSON: domains (one expert each in a layer), folder (of the file store; null for a store
in memory), cache_gib, update (the key `ecss.update`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench.synthetic import SyntheticRun, config_of
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import array_specs, make_store
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.process import use_cpu

STORED_MODEL = {"hidden": 1024, "ffn": 4096, "heads": 8, "dense_layers": 0, "rre_layers": 8, "experts_per_domain": 1}
STORED_LENGTH, STORED_BATCH = 128, 8


def parameters(domains: int) -> int:
    """Number of stored expert parameters."""
    return _stored_config(domains).num_params().experts


def start(domains: int, folder: str | None, cache_gib: float, update: str) -> SyntheticRun:
    """A run whose domains take turns, one in each step."""
    use_cpu()
    config = _stored_config(domains, update)
    tier = HostTier() if folder is None else FileTier(Path(folder), array_specs(config), cache_gib)
    return SyntheticRun(config, make_store(config, tier))


def _stored_config(domains: int, update: str = "step") -> Config:
    model = STORED_MODEL | {"seq_length": STORED_LENGTH, "slot_rows": 1024}
    return config_of(domains, model, train={"batch_size": STORED_BATCH}, ecss={"update": update})


def resident() -> dict[str, float]:
    """GiB that this process has in memory now, and has had at most, and of these now pages of files; GiB on the disk of its files
    without a name."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    keys = {"gib": "VmRSS", "peak_gib": "VmHWM", "file_gib": "RssFile"}
    files = {file.stat().st_ino: file.stat() for file in Path("/proc/self/fd").iterdir() if file.is_file()}
    disk = sum(file.st_blocks * 512 for file in files.values() if file.st_nlink == 0) / (1 << 30)
    return {name: int(lines[key].split()[0]) / (1 << 20) for name, key in keys.items()} | {"disk_gib": disk}


def answer_steps(start: Callable[..., SyntheticRun]) -> None:
    """Train as the JSON of the first argument says: a step, and a line of JSON, for each line of standard input."""
    # Libraries print to standard error, so that standard output has answers only.
    answers, sys.stdout = sys.stdout, sys.stderr
    settings: dict[str, Any] = json.loads(sys.argv[1])
    run = start(**settings)
    print(json.dumps({"parameters": run.config.num_params().experts}), file=answers, flush=True)
    for _ in sys.stdin:
        loss = run.advance()
        print(json.dumps({"loss": loss, **resident()}), file=answers, flush=True)


if __name__ == "__main__":
    answer_steps(start)
