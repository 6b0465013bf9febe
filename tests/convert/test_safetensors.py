"""One file holds the weights of a run; what several ranks wrote is put together in tests/ranks/test_ranks_train.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from experiments.tiny import STEPS
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert import safetensors as module
from pangu_sigma.convert.safetensors import export_safetensors, verify_weights
from pangu_sigma.sealed import DamagedFile
from pangu_sigma.stored.open import open_model
from pangu_sigma.writable import NotWritable

EXPERT_ARRAYS = ("w1", "b1", "w2", "b2")


def saved_weights(run: Path) -> dict[str, np.ndarray]:
    """The weights of the last checkpoint, read from its files."""
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    found = load_file(folder / "dense.safetensors")
    for layer in range(2):
        experts = load_file(folder / f"experts_layer_{layer}.safetensors")
        found |= {f"experts.{layer}.{name}": experts[name] for name in EXPERT_ARRAYS}
    return found


def test_it_holds_every_weight_and_the_configuration_and_nothing_else(tiny_run, tmp_path):
    file = tmp_path / "new" / "weights.safetensors"
    assert export_safetensors(tiny_run, file) == file
    found, expected = load_file(file), saved_weights(tiny_run)
    assert found.keys() == expected.keys()
    assert not any("moment" in name or "variance" in name for name in found)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
    assert found["experts.1.w1"].shape == (6, 32, 24), "every expert of the layer"
    with safe_open(file, "numpy") as opened:
        config = parse_config(yaml.safe_load(opened.metadata()["config"]))
    assert config == open_model(tiny_run, "run").config
    assert list(file.parent.iterdir()) == [file]


def test_segments_are_numbered_over_all_layers(drawn_segmented_run, tmp_path):
    file, run = (
        export_safetensors(drawn_segmented_run, tmp_path / "weights.safetensors"),
        open_model(drawn_segmented_run, "run"),
    )
    found = load_file(file)
    assert [name for name in found if name.startswith("experts.7.")] == [
        f"experts.7.{name}" for name in ("b1", "w1", "w2")
    ]
    for segment, stored in ((4, 6), (5, 6), (7, 3)):
        assert found[f"experts.{segment}.w2"].shape == (stored, 8, 24)
        for number in range(stored):
            for model in (run, open_model(file, "weights")):
                mine = found[f"experts.{segment}.w2"][number]
                assert mine.tobytes() == model.expert(segment, number, "w2").tobytes()


def test_a_failure_leaves_no_file_and_the_next_attempt_is_whole(tiny_run, tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"

    def fail(*_: object) -> int:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_arrays", fail)
        with pytest.raises(OSError, match="No space left"):
            export_safetensors(tiny_run, file)
    assert not file.exists()
    export_safetensors(tiny_run, file)
    assert load_file(file).keys() == saved_weights(tiny_run).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_file_carries_its_own_hash_and_every_flipped_bit_shows(tiny_run, tmp_path):
    file = export_safetensors(tiny_run, tmp_path / "weights.safetensors")
    verify_weights(file)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    digits = content.index(b'"xxh3_128": "') + 14
    for at in (0, 9, digits, digits + 20, header - 1, header, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DamagedFile, match=r"weights\.safetensors: "):
            verify_weights(file)


@pytest.mark.parametrize("output", ["/proc/weights.safetensors", "{}/file/weights.safetensors"])
def test_an_output_that_cannot_be_is_refused_before_any_work(tiny_run, tmp_path, monkeypatch, output):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(module, "write_arrays", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(NotWritable, match=r"name another path with output"):
        export_safetensors(tiny_run, Path(output.format(tmp_path)))


def test_a_file_without_the_suffix_is_refused(tiny_run, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^output .*w: by its name nothing would open it .*; name it w\.safetensors$"
    ):
        export_safetensors(tiny_run, tmp_path / "w")
    assert list(tmp_path.iterdir()) == []
