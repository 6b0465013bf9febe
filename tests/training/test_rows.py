"""Training with rows: stopped and resumed it ends with the bits of one that went through, wherever rows are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import newest_checkpoint
from pangu_sigma.stored.network import build_network
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

ROWS = [
    {"order": 1, "rows": 2_000, "width": 8},
    {"order": 2, "rows": 5_000, "width": 8},
    {"order": 2, "rows": 1_000_000_000, "width": 8, "kind": "own"},
]


def trained(
    tiny_data: Path, run: Path, steps: int, train_keys: dict[str, Any] | None = None, **sections: Any
) -> Trainer:
    """Train to a step with a checkpoint after step 6 and the last one, as the loop saves them, without its evaluations."""
    keys = {"steps": steps} | (train_keys or {})
    model = {"rows": ROWS, "rre_layers": 1}
    trainer = Trainer(start_run(run, tiny_config(tiny_data, model=model, train=keys, **sections)))
    while not trainer.finished:
        trainer.advance()
        if trainer.finished or trainer.progress.step == 6:
            trainer.save_in_turn(trainer.finished)
    return trainer


def saved(run: Path) -> dict[str, bytes]:
    files = newest_checkpoint(run / "checkpoints").files
    return {f"{file}/{name}": each.values.tobytes() for file, arrays in files.items() for name, each in arrays.items()}


def test_a_stopped_training_ends_with_the_same_bits_from_memory_and_from_files(tiny_data: Path, tmp_path: Path):
    whole = trained(tiny_data, tmp_path / "whole", 10, {"async_save": True})
    trained(tiny_data, tmp_path / "cut", 6, ecss={"store": "file"})
    trained(tiny_data, tmp_path / "cut", 10, {"async_save": False}, ecss={"store": "file", "update": "worker"})
    expected, found = saved(tmp_path / "whole"), saved(tmp_path / "cut")
    assert expected.keys() == found.keys() and {"rows_2/keys", "rows_2/step"} <= found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    keys = np.frombuffer(expected["rows_2/keys"], np.int64)
    assert (np.diff(keys) > 0).all() and np.frombuffer(expected["rows_2/step"], np.int32).min() > 0
    scales = [p.asnumpy()[0] for name, p in whole.network.parameters_and_names() if name.endswith("row_scale")]
    assert len(scales) == 2 and all(scale != np.float32(0.1) for scale in scales)
    whole.evaluator().losses()
    assert whole.store.rows.met(2).tolist() == keys.tolist(), "evaluation reads rows and makes none"
    _, opened = build_network(open_model(tmp_path / "cut"))
    assert np.array_equal(opened.rows.read(2, "weight", keys), whole.store.rows.read(2, "weight", keys))
