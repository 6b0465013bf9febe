"""The weights inside of an exported graph are those of its run, and are read without MindSpore."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.generate.exported import ExportedWeights, open_export
from pangu_sigma.generate.weights import SavedWeights
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.sealed import DamagedFile

DENSE = [
    "embedding",
    "positions",
    "query_positions",
    "norm.gain",
    "layers.0.ffn.w1",
    "layers.2.attention.output.weight",
]


def test_every_value_is_that_of_the_checkpoint(tiny_run, tiny_export):
    run = RunFolder.open(tiny_run)
    saved, found = SavedWeights(load_checkpoint(run.checkpoints, run.identity)), ExportedWeights(tiny_export)
    for name in DENSE:
        np.testing.assert_array_equal(found.tensor(name), saved.tensor(name))
        assert found.scales(name) is None
    for name in FFN_TENSORS:
        for layer, number in ((0, 5), (1, 2)):
            np.testing.assert_array_equal(found.expert(layer, number, name), saved.expert(layer, number, name))
        assert len(found.kept(f"experts.0.{name}")) == 6
    assert not found.kept("embedding").flags.writeable, "it is the file"


def test_nothing_of_it_needs_mindspore(tiny_export):
    code = (
        "import sys; from pathlib import Path; from pangu_sigma.generate.exported import ExportedWeights, open_export;"
        f"folder = Path({str(tiny_export)!r}); open_export(folder); ExportedWeights(folder).tensor('embedding');"
        "print('mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("content", [b"", b"\x3a\x7f", b"\x00" * 64, b"no protobuf at all", b"\x3a\x02\x1a\x00"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    (tmp_path / "model.mindir").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"is no MindIR with weights .*run `pangu-sigma export` again"):
        ExportedWeights(tmp_path)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not an exported model: it has no model\.mindir"):
        open_export(tmp_path)
