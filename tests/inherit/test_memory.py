"""Inheriting a model of PanGu-α 2.6B's shape: minutes, and about 30 GB of disk. Prints what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.dense_runs import write_dense_run

from experiments.tiny import tiny_tree, write_text
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.prepare import prepare

ALPHA_2_6B = {"hidden": 2560, "ffn": 10_240, "heads": 32, "slot_rows": 40_000}
"""PanGu-α 2.6B, but for the sequence length, which only the small text of this test is too short for."""
GIB = 1 << 30


def tree_of(data: Path, model: dict) -> dict:
    """Four domains of four experts in two upper layers, in files."""
    tree = tiny_tree(data)
    tree["model"] |= {"experts_per_domain": 4, **model}
    tree["domains"].append({"name": "code2", "format": "code", "language": "python", "slot": "en"})
    tree["ecss"] = {"store": "file"}
    return tree


def peak_of_inheriting(data: Path, model: dict, layers: int, folder: Path) -> tuple[int, float]:
    """Peak resident bytes and seconds of the command."""
    folder.mkdir()
    dense = {**model, "dense_layers": layers, "rre_layers": 0}
    write_dense_run(parse_config(tree_of(data, dense)), folder / "parent", 0.02)
    config = folder / "child.yaml"
    config.write_text(yaml.safe_dump(tree_of(data, {**model, "dense_layers": layers - 2, "rre_layers": 2})))
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = ["-m", "pangu_sigma", "inherit", str(folder / "parent"), str(config), "--output", str(folder / "run")]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return int(done.stdout.split()[-1]) * 1024, time.monotonic() - begun


@pytest.mark.slow
def test_a_model_of_2_6_billion_parameters_is_inherited_in_8_gib_more_than_a_tiny_one(tmp_path):
    text = tmp_path / "text.jsonl"
    write_text(text)
    lines = text.read_text(encoding="utf-8")
    text.write_text(lines + lines.replace('"code"', '"code2"').replace(" return ", " yield "), encoding="utf-8")
    peaks = {}
    for name, model, layers in (("tiny", {}, 3), ("2.6B", ALPHA_2_6B, 32)):
        data = tmp_path / f"data_{name}"
        prepare(parse_config(tree_of(data, model)), [text], data)
        peaks[name], seconds = peak_of_inheriting(data, model, layers, tmp_path / name)
        print(f"{name}: peak {peaks[name] / GIB:.2f} GiB, {seconds:.0f} s")
    written = sum(file.stat().st_blocks * 512 for file in (tmp_path / "2.6B" / "run").rglob("*") if file.is_file())
    print(f"the child takes {written / GIB:.1f} GiB on the disk")
    assert peaks["2.6B"] - peaks["tiny"] <= 8 * GIB
