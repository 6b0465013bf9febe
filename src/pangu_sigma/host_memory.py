"""Memory that a run needs on this machine, compared with the memory that is free before anything is allocated.

The need is a lower bound: parameters, optimizer state, and tensors that a training step keeps for certain; but rows (`model.rows`)
count as far as the run can meet them. The system would kill a refused run in the middle, without a message.
"""

from __future__ import annotations

import mmap
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from ascend_ops.rows import record_size
from pangu_sigma.config import Config, ConfigError

_GIB = 1 << 30
_FLOAT32 = 4
_ALPHA_PIECES = 40_000  # minimum size of a vocabulary; a routing table has one entry for each


class Need(NamedTuple):
    """Host memory that one process needs for one purpose. name: purpose. nbytes: bytes. fix: configuration keys that reduce it."""

    name: str
    nbytes: int
    fix: str


def check_training_fits(config: Config, processes: int = 1, root: Path = Path("/")) -> None:
    """Raise ConfigError if this machine has too little memory to train `config` on its CPU. processes: ranks that this machine
    runs, each with its share of the experts. root: folder of Linux's proc and sys."""
    _check(f"training {config.name}", training_needs(config), processes, root)


def check_reading_fits(config: Config, root: Path = Path("/")) -> None:
    """Raise ConfigError if dense weights and routing tables do not fit in this machine's memory; experts stay in the checkpoint's
    files. root: as in `check_training_fits`."""
    count, fix = config.num_params(), "read it on a larger machine"
    dense = Need("dense weights", (count.dense + count.embeddings) * _FLOAT32, fix)
    _check(f"reading {config.name}", [dense, Need("routing tables", _table_bytes(config), fix)], processes=1, root=root)


def check_cache_fits(config: Config, lanes: int, root: Path = Path("/")) -> None:
    """Raise ConfigError if the keys and values of `lanes` full texts do not fit in this machine's memory."""
    nbytes = 2 * config.model.layers * lanes * config.model.seq_length * config.model.hidden * _FLOAT32
    need = Need("keys and values", nbytes, "lower lanes, such as `serve --set lanes=8`")
    _check(f"answering {lanes} texts at a time", [need], 1, root)


def training_needs(config: Config) -> list[Need]:
    """Return the minimum host memory that one rank of a training run on CPUs needs at once, purpose by purpose."""
    m, count, ecss, p, batch = config.model, config.num_params(), config.ecss, config.parallel, config.train.batch_size
    shares = p.groups * p.expert
    has_worker = ecss.by_worker(npu=False)
    # the worker still has the gradients of the step before
    gradients = config.active_expert_params // shares * _FLOAT32 * (2 if has_worker else 1)
    step_fix = ", or set ecss.update=step" if has_worker else ""
    moments = 2 * (2 if ecss.moments == "bfloat16" else _FLOAT32)  # bytes of both moments of a parameter
    experts = 0 if ecss.store == "file" else count.experts // shares * (_FLOAT32 + moments)
    sequences = batch // min(p.stage_ranks // p.tensor, batch)  # of a micro-batch, on one rank
    # the input of each layer, the logits, and the scores of one layer: tensors kept of the others are not counted
    activations = sequences * m.seq_length * (m.layers * m.hidden + m.slot_rows + m.heads * m.seq_length) * _FLOAT32
    smaller = "model.experts_per_domain, model.rre_layers, model.ffn or model.hidden"
    dense = (count.dense + count.embeddings) * 4 * _FLOAT32  # parameters, gradients, two moments
    rows = row_bytes(config) if ecss.store == "host" else 0
    return [
        Need("experts and their Adam state", experts, f"lower {smaller}, or set ecss.store=file"),
        Need("rows that the run can meet, and their Adam state", rows, "lower model.rows, or set ecss.store=file"),
        Need("gradients of the active experts", gradients, f"lower {smaller}, or data.domains_per_step{step_fix}"),
        Need("dense parameters, gradients and Adam state", dense, "lower model.hidden, model.ffn or model.slot_rows"),
        Need("activations", activations, "lower train.batch_size, with more train.accumulation, or model.seq_length"),
        Need("routing tables", _table_bytes(config), "lower model.rre_layers or the number of domains"),
    ]


def row_bytes(config: Config) -> int:
    """Return the maximum bytes that the records of rows take on a rank, in memory or on a disk. Only pages with rows that tokens
    have met take room: all rows, or a row and a page for each token of the run, if that is less."""
    tokens = config.train.steps * config.step_tokens
    sizes = ((config.stored_rows(entry), record_size(entry.width) * _FLOAT32) for entry in config.model.rows)
    return sum(min(rows * record, tokens * (record + mmap.PAGESIZE)) for rows, record in sizes)


def check_rows_fit(config: Config, folder: Path, processes: int = 1) -> None:
    """Raise ConfigError if the disk of `folder` has no room for all rows that a run can meet. Their files grow during the run: no
    room is reserved at its start. processes: number of ranks with such files in the folder."""
    needed, free = row_bytes(config) * processes, shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"up to {needed / _GIB:,.1f} GiB, and {free / _GIB:,.1f} GiB are free"
        fix = "free space, set ecss.path to a larger disk, or lower model.rows or train.steps"
        raise ConfigError(f"ecss.path={folder}: the rows that {config.name} can meet take {sizes}; {fix}")


def available_memory(root: Path = Path("/"), swap: bool = True) -> int | None:
    """Return the bytes that processes may still allocate: free memory, reclaimable caches and swap, but no more than the limits of
    this process's cgroup (version 2) and its ancestors leave. None if the system does not say. swap: False to leave out swap."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in sizes:
        return None
    limits = [1024 * (int(sizes["MemAvailable"]) + int(sizes.get("SwapFree", 0)) * swap)]
    path = re.search(r"^0::/(.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE)
    group = root / "sys/fs/cgroup" / (path[1] if path else "")
    for folder in (group, *group.parents):  # a container may show the host's path, and have its group above
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():  # "max" is no limit
            cache = re.search(r"^inactive_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
            limits.append(max(0, int(limit) - int(used) + int(cache[1] if cache else 0)))  # caches can be freed
    return min(limits)


def _read(file: Path) -> str:
    """Return the contents of a file of the system, "" if there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _check(purpose: str, needs: list[Need], processes: int, root: Path) -> None:
    """Raise ConfigError if the needs of `processes` processes exceed the free memory. purpose: beginning of the message."""
    needed, free = sum(need.nbytes for need in needs) * processes, available_memory(root)
    if free is None or needed <= free:
        return
    largest = sorted((need for need in needs if need.nbytes), key=lambda need: -need.nbytes)
    items = ", ".join(f"{need.name} {need.nbytes / _GIB:,.1f}" for need in largest)
    items += f" in each of {processes} processes" * (processes > 1)
    sizes = f"{needed / _GIB:,.1f} GiB of memory ({items}), and {free / _GIB:,.1f} GiB are free here"
    raise ConfigError(f"{purpose} needs at least {sizes}; {largest[0].fix}")


def _table_bytes(config: Config) -> int:
    return len(config.model.routed) * len(config.domains) * _ALPHA_PIECES * 2
