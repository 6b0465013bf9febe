"""The weights inside of an exported graph are those of its run, and are read without MindSpore."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

import pangu_sigma as ps
from pangu_sigma.errors import UserError
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.sealed import DamagedFile, seal_folder
from pangu_sigma.stored.open import open_model

DENSE = ["embedding", "positions", "query_positions", "norm.gain"]
DENSE += ["layers.0.ffn.w1", "layers.2.attention.output.weight"]


def test_every_value_is_that_of_the_checkpoint(tiny_run, tiny_export):
    saved, found = open_model(tiny_run, "run"), open_model(tiny_export, "export")
    for name in DENSE:
        np.testing.assert_array_equal(found.tensor(name), saved.tensor(name))
        assert f"{name}.scale" not in found.arrays
    for name in FFN_TENSORS:
        for layer, number in ((0, 5), (1, 2)):
            np.testing.assert_array_equal(found.expert(layer, number, name), saved.expert(layer, number, name))
        assert len(found.arrays[f"experts.0.{name}"]) == 6
    assert not found.arrays["embedding"].flags.writeable, "it is the file"


def test_nothing_of_it_needs_mindspore(tiny_export):
    code = (
        "import sys; from pathlib import Path; from pangu_sigma.stored.open import open_model;"
        f"model = open_model(Path({str(tiny_export)!r}), 'export'); model.tokenizer, model.table, model.tensor('embedding');"
        "print('mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("content", [b"", b"\x3a\x7f", b"\x00" * 64, b"no protobuf at all", b"\x3a\x02\x1a\x00"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    (tmp_path / "model.mindir").write_bytes(content)
    seal_folder(tmp_path, ["model.mindir"], {})
    with pytest.raises(DamagedFile, match=r"no MindIR with weights .*run `pangu-sigma export` again"):
        _ = open_model(tmp_path, "export").arrays


def test_an_export_that_lost_its_graph_is_no_run(tiny_export, tmp_path):
    folder = shutil.copytree(tiny_export, tmp_path / "export", ignore=shutil.ignore_patterns("model.mindir"))
    with pytest.raises(UserError, match="is an export without its graph; copy it again, or name"):
        ps.load(folder)
