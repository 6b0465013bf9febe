from __future__ import annotations

import pytest

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import load_checkpoint, whole_array
from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.mark.parametrize("ecss", [{}, {"moments": "bfloat16"}], ids=["float32", "bfloat16 moments"])
def test_what_is_composed_of_a_new_runs_weights_is_what_training_saves(tiny_data, tmp_path, ecss):
    """Names, shapes, dtypes and values of every file: what is not given begins as in a new run."""
    config = tiny_config(tiny_data, ecss=ecss)
    saved = load_checkpoint(Trainer(start_run(tmp_path / "run", config)).save())

    def find(shard, name, shape):
        given = shard == "dense" or (shard.startswith("experts") and "." not in name and name != "step")
        return whole_array(saved.parts[shard, name], name) if given else None

    composed = compose(config, find)
    assert composed.keys() == saved.files.keys()
    for file, arrays in saved.files.items():
        assert composed[file].keys() == arrays.keys(), file
        for name, array in arrays.items():
            mine: SavedArray = composed[file][name]
            assert (mine.values.shape, mine.values.dtype) == (array.values.shape, array.values.dtype), name
            values = mine.values.read()  # type: ignore[attr-defined]
            assert (values == array.values).all(), name
