"""The memory that a run needs on this machine and the memory that is there, compared before anything is allocated.

The need is a lower bound: parameters, optimizer state, and tensors that a training step keeps for certain. What it refuses would
have ended in the middle, killed by the system without a word. What it lets pass may still be too much. `planning/` counts NPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.config import Config, ConfigError

_GIB = 1 << 30
_FLOAT32 = 4
_INT16 = 2
_ALPHA_PIECES = 40_000
"""A vocabulary has at least PanGu-α's pieces, and a routing table a number for each."""


@dataclass(frozen=True)
class Need:
    """Bytes that one process needs of something. fix: the keys that make it smaller."""

    name: str
    nbytes: int
    fix: str


def check_training_fits(config: Config, processes: int = 1, root: Path = Path("/")) -> None:
    """Raise ConfigError if this machine has no room to train `config` on its CPU.

    processes: ranks that this machine runs, each with its share of the experts. root: where the system says what it has.
    """
    _check(f"training {config.name}", training_needs(config), processes, root)


def check_reading_fits(config: Config, root: Path = Path("/")) -> None:
    """Raise ConfigError if this machine has no room for the weights of `config`; experts stay in the files of their checkpoint."""
    dense = config.model_copy(update={"ecss": config.ecss.model_copy(update={"enabled": True})}).num_params()
    needs = [
        Need("dense weights", (dense.dense + dense.embeddings) * _FLOAT32, "read it on a larger machine"),
        Need("routing tables", _table_bytes(config), "read it on a larger machine"),
    ]
    _check(f"reading {config.name}", needs, 1, root)


def training_needs(config: Config) -> list[Need]:
    """The least that one rank of a training run on CPUs keeps in memory at once."""
    m, count, ecss, p = config.model, config.num_params(), config.ecss, config.parallel
    shares = p.groups * p.expert
    gradients = count.experts * config.active_experts // config.experts // shares * _FLOAT32
    moments = 2 * (2 if ecss.moments == "bfloat16" else _FLOAT32)
    stored = 0 if ecss.store == "file" else count.experts // shares * (_FLOAT32 + moments)
    sequences = config.train.batch_size // min(p.stage_ranks // p.tensor, config.train.batch_size)
    tokens = sequences * m.seq_length
    scores = sequences * m.heads * m.seq_length**2
    # the input of each layer, the scores of one of them, the logits: what is kept of the others is not counted
    kept = m.layers * tokens * m.hidden + scores + tokens * m.slot_rows
    smaller = "model.experts_per_domain, model.rre_layers, model.ffn or model.hidden"
    return [
        Need("experts and their Adam state", stored, f"lower {smaller}, or keep them in files: ecss.store=file"),
        Need("gradients of the active experts", gradients, f"lower {smaller}, or data.domains_per_step"),
        Need(
            "dense parameters, their gradients and Adam state",
            (count.dense + count.embeddings) * 4 * _FLOAT32,
            "lower model.hidden, model.ffn, model.dense_layers or model.slot_rows",
        ),
        Need(
            "activations",
            kept * _FLOAT32,
            "lower train.batch_size (and raise train.accumulation as much for the same update) or model.seq_length",
        ),
        Need("routing tables", _table_bytes(config), "lower model.rre_layers or the number of domains"),
    ]


def memory_there(root: Path = Path("/"), swap: bool = True) -> int | None:
    """Bytes that processes may still take here: free memory, caches that can be given back, and swap, at most what is left of the
    limit of our cgroup. None if the system does not say. swap: False for what swapping would make too slow."""
    try:
        kib = dict(re.findall(r"^(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE))
        free = 1024 * (int(kib["MemAvailable"]) + (int(kib.get("SwapFree", 0)) if swap else 0))
    except (OSError, KeyError):
        return None
    return min([free, *_left_in_groups(root)])


def _check(what: str, needs: list[Need], processes: int, root: Path) -> None:
    needed, there = sum(need.nbytes for need in needs) * processes, memory_there(root)
    if there is None or needed <= there:
        return
    largest = sorted((need for need in needs if need.nbytes), key=lambda need: -need.nbytes)
    items = ", ".join(f"{need.name} {need.nbytes / _GIB:,.1f}" for need in largest)
    of = f" in each of {processes} processes" if processes > 1 else ""
    raise ConfigError(
        f"{what} needs at least {needed / _GIB:,.1f} GiB of memory ({items}{of}), and {there / _GIB:,.1f} GiB are free here; "
        f"{largest[0].fix}"
    )


def _table_bytes(config: Config) -> int:
    return config.model.rre_layers * len(config.domains) * _ALPHA_PIECES * _INT16


def _left_in_groups(root: Path) -> list[int]:
    """What is left of the memory limits of our cgroup and of those that it lies in, of either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / "sys/fs/cgroup" / controllers
            own = base / path.strip("/")
            # in a container the path may be that of the host, and the group itself is at the base
            for folder in {base, own, *(parent for parent in own.parents if base in parent.parents)}:
                left += _left(folder, *_FILES[controllers])
    return left


_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Names of the limit, of the use and of the file cache in memory.stat, of cgroup 2 and 1."""


def _left(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))  # "max" is no number
        found = re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return []
    return [max(0, most - used + int(found[1] if found else 0))]
