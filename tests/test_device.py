"""What ranks sum on the host is another graph than the step, under the same auto-parallel context; and whose graphs are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.device import use_cpu
from pangu_sigma.errors import UserError
from pangu_sigma.npu.context import target_ascend
from pangu_sigma.npu.plan.cann_stub import ascend_environment

SCRIPT = Path(__file__).parent / "helpers" / "sum_beside_the_step.py"


def test_a_sum_compiles_beside_a_step_of_stages(tmp_path: Path):
    small = ["model.dense_layers=1", "model.rre_layers=1", "model.seq_length=32", "model.slot_rows=256"]
    axes = ["parallel={stages: 2, data: 2, tensor: 2}", "train.accumulation=2", "train.compute_dtype=float16"]
    config = load_config(MODEL_CONFIGS / "sigma_tiny.yaml", [*small, *axes])
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "config.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=ascend_environment(8, 4), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "compiled", done.stderr[-2000:]


@pytest.mark.parametrize("by", ["variable", "context"])
def test_graphs_are_not_taken_from_the_cache_of_mindspore(by: str, monkeypatch: pytest.MonkeyPatch):
    """It once gave a resumed run the graph of the evaluation, and a run with another limit of the norm the old limit."""
    if by == "variable":
        monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    else:
        monkeypatch.setattr(ms, "get_context", {"enable_compile_cache": True}.get)
    for use in (use_cpu, target_ascend):
        with pytest.raises(UserError, match=r"MS_COMPILER_CACHE_ENABLE=1 .*; switch it off"):
            use()
