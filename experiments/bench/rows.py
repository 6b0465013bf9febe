"""Bench of rows (`model.rows`): the step as rows that exist grow, and the update of rows against torch's.

Ids are as frequent as in text. The steps are those of `sigma_tiny` without rows and with an entry of more and more rows of width 64
beside two small ones, each in a process of its own, so that its memory is its own. The optimizer's part is what a step does to
rows, once the gradient of each token is there: gradients of equal rows are added, and the rows are updated.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ascend_ops.adam import HYPER
from ascend_ops.rows import record_size, update_rows
from experiments.bench.adam import FUSED, installed
from experiments.bench.harness import Row, absent, compare, figure, limit, take_turns
from experiments.bench.stored_experts import answer_steps
from experiments.bench.synthetic import FIRST, SyntheticRun, zipf
from experiments.peers import Worker
from experiments.small import tiny
from pangu_sigma.ecss.store import array_specs, make_store
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.process import use_cpu

WIDTH, SMALL = 64, 131_071
GROWING = {"131 k": SMALL, "10 M": 10_000_000, "1 B": 1_000_000_000}
AS_SHIPPED = "as shipped"
STEPS = 300
MOST_GIB = 6.0

TOKENS, IDS, BATCHES = 4_096, 40_000, 32
UPDATED = {"131 k": SMALL, "2 M": 2_000_000}
"""Rows of the optimizer's part: a table of torch is as long as its rows, and 1 B of them have 768 GB with their moments."""
LR, BETAS, EPS = 1e-3, (0.8, 0.95), 1e-12
SPARSE = "torch SparseAdam"

logger = logging.getLogger(__name__)


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare the update with torch's optimizers, if torch is installed."""
    use_cpu()
    return optimizers(peers) + steps()


def start(rows: int | None, folder: str | None) -> SyntheticRun:
    """A run of `sigma_tiny` with rows. rows: number of the growing entry; 0: no entry; None: the entries that ship. folder: of the
    file store, or None."""
    use_cpu()
    entries = [{"order": order, "rows": most, "width": WIDTH} for order, most in ((1, SMALL), (2, SMALL), (2, rows))]
    config = tiny({} if rows is None else {"model.rows": entries if rows else []}, base="sigma_tiny")
    tier = HostTier() if folder is None else FileTier(Path(folder), array_specs(config), config.ecss.cache_gib)
    frequencies_V = zipf(config.model.slot_rows - FIRST)
    return SyntheticRun(config, make_store(config, tier), frequencies_V=frequencies_V)


def steps() -> list[Row]:
    """Rows of the step: seconds of each size against those without rows and with the fewest; memory and disk."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd()))
        settings: dict[str, tuple[int | None, str | None]] = {"none": (0, None), AS_SHIPPED: (None, None)}
        settings |= {name: (rows, None) for name, rows in GROWING.items()}
        settings["1 B in files"] = (GROWING["1 B"], folder)
        command = [sys.executable, "-m", "experiments.bench.rows"]
        workers = {
            name: stack.enter_context(Worker(command, json.dumps({"rows": rows, "folder": where})))
            for name, (rows, where) in settings.items()
        }
        last: dict[str, dict[str, Any]] = {}

        def stepper(name: str) -> Callable[[], None]:
            return lambda: last.__setitem__(name, workers[name].step())

        seconds = take_turns({name: stepper(name) for name in workers}, STEPS)
    rows = []
    for name in list(settings)[1:]:
        what = "rows as shipped" if name == AS_SHIPPED else f"{name} rows of width {WIDTH}"
        case = f"step of sigma_tiny, {what}, {STEPS} steps"
        against = {"none": "without rows"} | ({} if name == AS_SHIPPED else {"131 k": "131 k rows"})
        pairs = {"ours": seconds[name], **{title: seconds[key] for key, title in against.items() if key != name}}
        rows += compare("rows", case, pairs)
        rows += [
            figure("rows", case, "resident without rows", last[name]["gib"], last["none"]["gib"], "GiB", lower=True)
        ]
        rows += [
            limit("rows", case, "resident, no file pages", last[name]["gib"] - last[name]["file_gib"], MOST_GIB, "GiB")
        ]
    return [*rows, limit("rows", case, "disk", last[name]["disk_gib"], 64.0, "GiB")]


def batches_of(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys of pairs of tokens and gradients, without end."""
    rng = np.random.default_rng(0)
    a_V, b_V = rng.integers(rows, size=(2, IDS))
    ids = rng.choice(IDS, (BATCHES, TOKENS + 1), p=zipf(IDS))
    grads_TW = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    return cycle([((a_V[text[1:]] + b_V[text[:-1]]) % rows, grads_TW) for text in ids])


def optimizers(peers: bool) -> list[Row]:
    """Rows of the update of rows alone."""
    rows = []
    for name, number in UPDATED.items():
        contenders: dict[str, Callable[[], object]] = {"ours": _ours(number)}
        missing = [] if peers and installed(FUSED) else [SPARSE, FUSED] if peers else []
        if peers and not missing:
            contenders |= {SPARSE: _sparse_adam(number), f"{FUSED} of the rows": _fused_adam(number)}
        for work in contenders.values():
            for _ in range(BATCHES):  # every row once: its memory is there then
                work()
        case = f"update of {TOKENS} tokens, {name} rows of width {WIDTH}"
        seconds = take_turns(contenders, 30)
        rows += compare("rows", case, seconds)
        mine = 1e3 * statistics.median(seconds["ours"])
        rows += [absent("rows", case, mine, peer, "ms", 30) for peer in missing]
    return rows


def _ours(rows: int) -> Callable[[], object]:
    records, batches = HostTier().records(0, rows, record_size(WIDTH)), batches_of(rows)
    values = {"lr": LR, "grad_scale": 1.0, "apply": 1.0, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    hyper = np.array([values[name] for name in HYPER], np.float32)
    return lambda: update_rows(records, *next(batches), hyper)


def _sparse_adam(rows: int) -> Callable[[], object]:
    """The gradient of an embedding whose gradient is sparse, and SparseAdam, which adds equal rows first."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(rows, WIDTH))
    optimizer, batches = torch.optim.SparseAdam([weight], lr=LR, betas=BETAS, eps=EPS), batches_of(rows)

    def work() -> None:
        keys_T, grads_TW = map(torch.from_numpy, next(batches))
        weight.grad = torch.sparse_coo_tensor(keys_T[None], grads_TW, weight.shape, check_invariants=False)
        optimizer.step()

    return work


def _fused_adam(rows: int) -> Callable[[], object]:
    """The fused Adam of torch over a copy of the different rows and of their state, which is written back. All rows share a count,
    so this is not the same function: what it costs is."""
    import torch

    table = torch.zeros(3, rows, WIDTH)
    batches, step = batches_of(rows), torch.zeros(())

    def work() -> None:
        keys_T, grads_TW = map(torch.from_numpy, next(batches))
        keys_U, inverse_T = torch.unique(keys_T, return_inverse=True)
        grads_UW = torch.zeros(len(keys_U), WIDTH).index_add_(0, inverse_T, grads_TW)
        w, m, v = (of[keys_U] for of in table)
        torch._fused_adam_(
            [w], [grads_UW], [m], [v], [], [step.add_(1)],
            lr=LR, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
        )  # fmt: skip
        for of, values in zip(table, (w, m, v), strict=True):
            of[keys_U] = values

    return work


if __name__ == "__main__":
    answer_steps(start)
