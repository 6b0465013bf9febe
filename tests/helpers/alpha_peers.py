"""Runs alpha_peer.py and gptpangu_peer.py, programs of the peers' environment, and alpha_release.py, one of ours, from a test."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from experiments.peers import peers_python
from pangu_sigma.npu.plan.cann_stub import ascend_environment


def megatron_sizes(**more: Any) -> str:
    """Arguments of the Megatron of `pcl-pangu` that none of its defaults gives; `more` has those of the model."""
    given = {
        **{"tokenizer_type": "GPT2BPETokenizer", "model_parallel_size": 1, "rank": 0, "num_unique_layers": None},
        **{"param_sharing_style": "grouped", "use_cpu_initialization": True, "init_method_std": 0.02, "batch_size": 1},
        **{"layernorm_epsilon": 1e-5, "hidden_dropout": 0.1, "attention_dropout": 0.1, "fp16": False},
        **{"onnx_safe": None, "openai_gelu": False, "bias_gelu_fusion": False, "bias_dropout_fusion": False},
        **{"checkpoint_activations": False, "checkpoint_num_layers": 1, "fp16_lm_cross_entropy": False},
        **{"apply_query_key_layer_scaling": False, "apply_residual_connection_post_layernorm": False},
        **{"attention_softmax_in_fp32": False, "scaled_upper_triang_masked_softmax_fusion": False},
        "make_vocab_size_divisible_by": 128,
    }
    return json.dumps({**given, **more})


def peers_or_skip() -> Path:
    """The interpreter of the peers' environment. Skips where it is not there."""
    python = peers_python()
    if python is None:
        pytest.skip("the environment of the peers is not installed")
    return python


def run_peers(what: str, folder: Path, numbers: list[int], sizes: str, needed: str = "torch") -> None:
    """Run a verb of alpha_peer.py, with `pcl-pangu` of ours, for each number at once. Skips where the environment, or the package
    that is needed in it, is not there."""
    python = peers_or_skip()
    skip_without(python, needed)
    _run([[str(python), "-I", _beside("alpha_peer.py"), _package(), what, str(folder), str(n), sizes] for n in numbers])


def run_gptpangu(folder: Path, form: str, shard_bytes: int, config: dict[str, Any]) -> None:
    """Run gptpangu_peer.py. Skips where the environment is not there."""
    python = peers_or_skip()
    _run([[str(python), "-I", _beside("gptpangu_peer.py"), str(folder), form, str(shard_bytes), json.dumps(config)]])


def run_release(folder: Path, ranks: list[int], sizes: dict[str, int]) -> None:
    """Run alpha_release.py for some of the ranks that `sizes` has, at once."""
    every = sizes["data"] * sizes["tensor"]
    _run(
        [
            [sys.executable, _beside("alpha_release.py"), _package(), str(folder), str(n), json.dumps(sizes)]
            for n in ranks
        ],
        [{"cwd": folder, "env": ascend_environment(every, rank)} for rank in ranks],
    )


def _beside(name: str) -> str:
    return str(Path(__file__).with_name(name))


def _package() -> str:
    spec = find_spec("pcl_pangu")
    assert spec is not None and spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def skip_without(python: Path, package: str) -> None:
    code = f"import sys, importlib.util as u; sys.exit(u.find_spec({package!r}) is None)"
    if subprocess.run([str(python), "-I", "-c", code], check=False).returncode:
        pytest.skip(f"{package} is not in the environment of the peers")


def _run(commands: list[list[str]], options: list[dict[str, Any]] | None = None) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    each = options or [{}] * len(commands)
    started = [subprocess.Popen(command, **pipes, **more) for command, more in zip(commands, each, strict=True)]
    said = [process.communicate()[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text[-3000:]
