"""Runs alpha_peer.py, the program of the peers' environment, from a test."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pangu_sigma.bench.peer import peers_python


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


def run_peers(what: str, folder: Path, numbers: list[int], sizes: str) -> None:
    """Run a verb of the program, with `pcl-pangu` of ours, for each number at once. Skips where the environment is not there."""
    python, spec = peers_or_skip(), find_spec("pcl_pangu")
    assert spec is not None and spec.submodule_search_locations
    script, package = Path(__file__).with_name("alpha_peer.py"), spec.submodule_search_locations[0]
    commands = [[str(python), "-I", str(script), package, what, str(folder), str(number), sizes] for number in numbers]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    said = [process.communicate()[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text[-3000:]
