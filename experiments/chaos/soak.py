"""A long run: memory and open files stay, the right checkpoints are kept, and experts that no token reached keep every bit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.chaos.cases import TRAIN, Case, configuration, data
from pangu_sigma.config_file import load_config
from pangu_sigma.training.log.metrics import read_metrics

_WARM = 0.25
"""Share of the steps after which memory counts: before that, allocators and caches fill."""


def soak(work: Path, full: bool) -> Sequence[Case]:
    """2,000 steps, saved after every fiftieth."""
    return [Case(f"steps_{steps}", partial(_soak, work, steps)) for steps in ([2000] if full else [500])]


def resting(work: Path, full: bool) -> Sequence[Case]:
    """Every step of a run, with the experts in memory and in files, updated in the step and behind it."""
    stores: dict[str, dict] = {
        "host": {},
        "worker": {"update": "worker"},
        "file": {"store": "file"},
        "bfloat16": {"moments": "bfloat16"},
    }
    chosen = stores if full else {name: stores[name] for name in ("host", "file")}
    return [Case(name, partial(_resting, work, ecss)) for name, ecss in chosen.items()]


def _soak(work: Path, steps: int, folder: Path) -> str:
    train = {"steps": steps, "checkpoint_interval": 50, "keep_checkpoints": 3, "log_interval": 50, "eval_interval": 100}
    config = configuration(folder, data(work), train=train)
    run = folder / "run"
    process = subprocess.Popen(
        [*TRAIN, str(config), "--output", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seen: dict[int, tuple[int, int]] = {}
    while process.poll() is None:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            step = _step(run)
            if step:
                seen[step] = _memory_and_files(process.pid)
    assert process.returncode == 0, process.communicate()[1][-600:]
    warm = [value for step, value in sorted(seen.items()) if _WARM * steps <= step < steps]
    assert len(warm) >= 4, f"only {len(warm)} looks at the process"
    quarter = max(1, len(warm) // 4)
    before, after = (float(np.median([mib for mib, _ in part])) for part in (warm[:quarter], warm[-quarter:]))
    files = [count for _, count in warm]
    kept = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    assert kept == [steps - 100, steps - 50, steps], f"kept {kept}"
    assert after <= before * 1.02, f"memory grew from {before:.0f} to {after:.0f} MiB"
    assert max(files) - min(files) <= 4, f"open files {min(files)} … {max(files)}"
    return f"{before:.0f} → {after:.0f} MiB, {min(files)} … {max(files)} files"


def _step(run: Path) -> int:
    """The last step that the log has."""
    try:
        return max((line["step"] for line in read_metrics(run) if line["kind"] == "step"), default=0)
    except OSError:
        return 0


def _memory_and_files(pid: int) -> tuple[int, int]:
    """Memory of a process in MiB, and the number of its open files; zeros once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) // 1024 if found else 0, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0, 0


def _resting(work: Path, ecss: dict, folder: Path) -> str:
    """In a process of its own: MindSpore's files of experts belong to one."""
    config = configuration(folder, data(work), ecss=ecss, train={"steps": 20})
    done = subprocess.run(
        [sys.executable, "-m", "experiments.chaos.soak", str(config), str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-600:]
    return done.stdout.strip().splitlines()[-1]


def _watch_experts(config: Path, run: Path) -> str:
    """Take the steps of a run, and compare the store before and after each."""
    from pangu_sigma.training.loop import Trainer
    from pangu_sigma.training.start import start_run

    trainer = Trainer(start_run(run, load_config(config)))
    rested = 0
    arrays = [p for experts in trainer.store.segments for p in experts.named.values()]
    layer_of = {id(p): n for n, experts in enumerate(trainer.store.segments) for p in experts.named.values()}
    before = [p.asnumpy().copy() for p in arrays]
    for _ in range(20):
        batch = trainer.advance()[0]
        after = [p.asnumpy().copy() for p in arrays]
        for parameter, old, new in zip(arrays, before, after, strict=True):
            load_K = batch.load_NK[layer_of[id(parameter)]]
            changed_K = (old.view(np.uint8) != new.view(np.uint8)).reshape(len(load_K), -1).any(axis=1)
            assert not changed_K[load_K == 0].any(), f"step {trainer.progress.step}: an expert without tokens changed"
            rested += int((load_K == 0).sum())
        before = after
    assert rested, "every expert had tokens in every step; nothing was shown"
    return f"{rested} arrays of resting experts unchanged"


if __name__ == "__main__":
    print(_watch_experts(Path(sys.argv[1]), Path(sys.argv[2])))
