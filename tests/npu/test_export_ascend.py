"""MindSpore's front end compiles the exported graph for Ascend, here without a device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from mindspore.train.mind_ir_pb2 import ModelProto

from pangu_sigma.generate.text import open_decoder
from pangu_sigma.stored.open import open_model


def test_the_graph_is_compiled_and_written_with_the_weights_of_the_run(tiny_run, tmp_path):
    command = [sys.executable, "-m", "pangu_sigma.npu.export_ascend", str(tiny_run), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compiled for Ascend" in done.stderr
    assert open_model(tmp_path / "out", "export").facts["weights"] == "float16"
    run, found = open_model(tiny_run, "run"), open_model(tmp_path / "out", "export")
    np.testing.assert_array_equal(found.arrays["embedding"], run.tensor("embedding").astype(np.float16))
    model = ModelProto.FromString((tmp_path / "out" / "model.mindir").read_bytes())
    operators = {primitive.op_type for primitive in model.primitives}
    assert "LayerNorm" in operators and "Rsqrt" not in operators, "fused, as on no CPU"
    assert open_decoder(tmp_path / "out").lanes == 4


def test_what_cannot_be_is_refused_with_one_message(tmp_path):
    command = [sys.executable, "-m", "pangu_sigma.npu.export_ascend", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not a run folder" in done.stderr and "Traceback" not in done.stderr
