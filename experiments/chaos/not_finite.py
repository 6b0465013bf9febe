"""Gradients that are not finite: in all tokens, in one token, on one rank. Exactly those steps change nothing, on all ranks."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np

from experiments.chaos.cases import Case, configuration, data
from experiments.chaos.layouts import TWO_RANKS
from experiments.chaos.rank_processes import RankProcesses
from pangu_sigma.config_file import load_config
from pangu_sigma.process import use_cpu
from pangu_sigma.training.feed import StepInput
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

_BAD = {"nan": np.nan, "infinity": np.inf, "minus_infinity": -np.inf}
_SCALE = 1024.0


def cases(work: Path, full: bool) -> Sequence[Case]:
    """Fifty: half of them in the loss of all tokens of a block, half in one token that one expert of each layer sees."""
    count = 50 if full else 12
    one_process = [
        Case(f"{where}_{n}", partial(_one_process, work, where, n))
        for n in range(count // 2)
        for where in ("block", "token")
    ]
    return one_process + [Case(f"rank_{n}", partial(_one_rank, work, n)) for n in range(6 if full else 1)]


@functools.cache
def _trainer(work: Path) -> Trainer:
    """One compiled step for all cases, each of which goes on where the one before it ended."""
    use_cpu()
    folder = work / "not_finite"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Trainer(start_run(folder / "run", load_config(configuration(folder, data(work), train={"steps": 10_000}))))


def _snapshot(trainer: Trainer) -> dict[str, np.ndarray]:
    """Copies of everything that a step may change."""
    return {f"{s}/{n}": p.asnumpy().copy() for s, held in trainer.setup.shards.items() for n, p in held.items()}


def _one_process(work: Path, where: str, number: int, folder: Path) -> str:
    trainer, rng = _trainer(work), np.random.default_rng(number)
    trainer.step.scale.value.set_data(ms.Tensor(_SCALE, ms.float32))
    poisoned = set(rng.choice(6, size=int(rng.integers(1, 4)), replace=False).tolist())
    take = trainer.feed.take

    def taken() -> StepInput:
        fed = take()
        weights = fed.batch.weights_GBS.copy()
        sequence = int(rng.integers(weights.shape[1]))
        tokens = np.flatnonzero(weights[0, sequence])
        tokens = tokens if where == "block" else tokens[[int(rng.integers(len(tokens)))]]
        weights[0, sequence, tokens] = list(_BAD.values())[number % 3]
        return fed._replace(batch=replace(fed.batch, weights_GBS=weights))

    for step in range(6):
        before = _snapshot(trainer)
        trainer.feed.take = taken if step in poisoned else take  # type: ignore[method-assign]
        result, after = trainer.advance()[2], _snapshot(trainer)
        trainer.feed.take = take  # type: ignore[method-assign]
        assert bool(result.applied.asnumpy()) is (step not in poisoned), f"step {step}: applied is wrong"
        changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
        if step in poisoned:
            scale = "loss_scale/value"
            assert after[scale] == max(1.0, before[scale] / 2), "the scale was not halved"
            assert after["loss_scale/good_steps"] == 0, "the window did not begin again"
            assert changed <= {scale, "loss_scale/good_steps"}, f"step {step} changed something"
        else:
            assert changed, f"step {step} changed nothing"
            assert all(np.isfinite(a).all() for a in after.values()), f"step {step} left something that is not finite"
    return ""


_POISONED_RANK = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from pangu_sigma.config_file import load_config
from pangu_sigma.ranks.ranks import end_as_rank
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

trainer = Trainer(start_run(Path(sys.argv[2]), load_config(sys.argv[1])))
bad_rank, bad_step, value = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
take = trainer.feed.take

def taken():
    fed = take()
    if trainer.ranks.rank == bad_rank and trainer.progress.step + 1 == bad_step:
        weights = fed.batch.weights_GBS.copy()
        weights[0, 0, np.flatnonzero(weights[0, 0])[0]] = value
        fed = fed._replace(batch=replace(fed.batch, weights_GBS=weights))
    return fed

def digest():
    held = hashlib.sha256()
    for shard, parameters in trainer.setup.shards.items():
        if shard != "loss_scale":
            for name, parameter in parameters.items():
                held.update(parameter.asnumpy().tobytes())
    return held.hexdigest()

trainer.feed.take = taken
said = []
for step in range(1, 5):
    before = digest()
    result = trainer.advance()[2]
    said.append(f"{step}:{int(bool(result.applied.asnumpy()))}:{int(digest() != before)}:{float(result.scale.asnumpy()):g}")
print("STEPS", *said, flush=True)
end_as_rank(lambda: trainer.ranks.leave() or 0)
"""


def _one_rank(work: Path, number: int, folder: Path) -> str:
    """Two ranks; the gradients of one of them overflow in one step."""
    config = configuration(
        folder,
        data(work),
        parallel=TWO_RANKS["expert" if number % 2 else "data"],
        train={"compute_dtype": "float16", "loss_scale": {"initial": _SCALE}},
    )
    rank, step, value = number // 2 % 2, 2 + number % 2, list(_BAD.values())[number % 3]
    arguments = [str(config), str(folder / "run"), str(rank), str(step), str(value)]
    with RankProcesses(2, arguments, folder / "logs", program=_POISONED_RANK) as processes:
        statuses = processes.wait(240)
        assert statuses == [0, 0], processes.said()[-800:]
    expected = [f"{n}:{int(n != step)}:{int(n != step)}:{1024 if n <= step else 512}" for n in range(1, 5)]
    for log in processes.logs:
        found = next(line for line in log.read_text().splitlines() if line.startswith("STEPS")).split()[1:]
        assert found == expected, f"{log.name}: {found}, not {expected}"
    return ""
