"""Bench of the stall of a training that saves: behind it, against the same bytes written at once on the same disk.

The stall is the time that the training cannot go on: the copy at the step's boundary and, at a later one, the exchange of hashes.
What is written is the same, hashes and look for values that are not finite included. The peer is
torch.distributed.checkpoint with the same arrays, in a process of its own, on the same disk: its stall is the time until
`async_save` returns. It renames, hashes and examines nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.bench.harness import RUNS, Row, absent, compare, limit
from experiments.peers import Worker, peers_python, script_of
from pangu_sigma.checkpoint.checkpoint import Identity
from pangu_sigma.checkpoint.parts import EXPERTS, Files, SavedArray
from pangu_sigma.checkpoint.saver import Saver, bytes_of

SAVED_LAYERS, SAVED_EXPERTS, SAVED_HIDDEN, SAVED_FFN = 4, 8, 512, 2048
MOST_SAVE_STALL = 10.0
"""Our limit for the stall of a save behind the training, in percent of a save at once."""
AT_ONCE, DCP_ASYNC, DCP = "ours, at once", "torch DCP async_save", "torch DCP save"

logger = logging.getLogger(__name__)


def run(peers: bool) -> list[Row]:
    """Rows of the bench; none, with a warning, if the disk of the working directory has no room.

    peers: True to compare with torch.distributed.checkpoint, if the peers are installed.
    """
    files = saved_state()
    python = peers_python() if peers else None
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        needed = 6 * bytes_of(files)
        if shutil.disk_usage(folder).free < needed:
            logger.warning("bench checkpoint: %s has less than %.0f GiB for its files", folder, needed / (1 << 30))
            return []
        worker = None if python is None else dcp(python, files, Path(folder) / "torch")
        try:
            seconds = rounds(files, Path(folder), worker)
        finally:
            if worker is not None:
                worker.close()
    case = f"stall of a save, {bytes_of(files) / 1e6:.0f} MB in {sum(map(len, files.values()))} arrays"
    share = statistics.median(a / b for a, b in zip(seconds["ours"], seconds[AT_ONCE], strict=True))
    rows = compare("ckpt", case, seconds)
    if peers and python is None:
        rows += [absent("ckpt", case, rows[0].ours, name, "ms", rows[0].runs) for name in (DCP_ASYNC, DCP)]
    return [*rows, limit("ckpt", case, "stall, of a save at once", 100 * share, MOST_SAVE_STALL, "%")]


def saved_state() -> Files:
    """Arrays as a run saves them: weights and Adam moments of the experts of some layers."""
    rng = np.random.default_rng(0)
    files: Files = {}
    for layer in range(SAVED_LAYERS):
        shape = (SAVED_EXPERTS, SAVED_FFN, SAVED_HIDDEN)
        files[f"{EXPERTS}{layer}"] = {
            f"{name}{kind}": SavedArray.whole(rng.standard_normal(shape, dtype=np.float32))
            for name in ("w1", "w2")
            for kind in ("", ".moment", ".variance")
        }
    return files


def rounds(files: Files, folder: Path, worker: Worker | None, runs: int = RUNS) -> dict[str, list[float]]:
    """Seconds of stall of each contender, in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", AT_ONCE)}
    identity = Identity("bench", "bench", {})
    with (
        Saver(folder / "behind", identity, 1, behind=True) as behind,
        Saver(folder / "at_once", identity, 1, behind=False) as at_once,
    ):
        for number in tqdm(range(runs + 1), desc="bench", unit="round", leave=False):
            stalls = {"ours": _stall(behind, number, files), AT_ONCE: _timed_save(at_once, number, files)}
            if worker is not None:
                answer = worker.step()
                if not answer["intact"]:
                    logger.warning("bench checkpoint: %s saved a state that changed after its call", DCP_ASYNC)
                stalls |= {DCP_ASYNC: answer["stall"], DCP: answer["save"]}
            for name, stall in stalls.items() if number else ():
                seconds.setdefault(name, []).append(stall)
    return seconds


def _stall(saver: Saver, step: int, files: Files) -> float:
    """Time that a training loses, which goes on while the checkpoint is written and then takes note of it."""
    started = time.perf_counter()
    saver.begin(step, files, {"step": step})
    stall = time.perf_counter() - started
    while not saver.is_ready:
        time.sleep(0.01)  # a step
    started = time.perf_counter()
    saver.proceed()
    stall += time.perf_counter() - started
    saver.wait()  # a training waits when it saves again, and the thread has long ended by then
    return stall


def _timed_save(saver: Saver, step: int, files: Files) -> float:
    started = time.perf_counter()
    saver.save(step, files, {"step": step})
    return time.perf_counter() - started


def dcp(python: Path, files: Files, folder: Path) -> Worker:
    """A worker that saves arrays of the same shapes with torch.distributed.checkpoint, one process over gloo."""
    shapes = {f"{file}.{name}": array.values.shape for file, arrays in files.items() for name, array in arrays.items()}
    settings = {"shapes": shapes, "folder": str(folder)}
    return Worker(script_of(python, Path(__file__).with_name("dcp.py")), json.dumps(settings))
