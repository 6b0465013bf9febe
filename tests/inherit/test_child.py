from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import whole_array
from pangu_sigma.checkpoint.parts import Part, SavedArray
from pangu_sigma.errors import UserError
from pangu_sigma.inherit.child import Child
from pangu_sigma.stored.open import open_model


def child_of(arrays, experts_K, own_K, config):
    def array(shard, name):
        return whole_array(arrays[name], name) if name in arrays else None

    parent = SimpleNamespace(array=array)
    return Child("extend", parent, config, None, None, [], np.array(experts_K), np.array(own_K))


def test_experts_that_ranks_have_divided_come_whole_in_any_order(tmp_path):
    """Experts 0 and 3 are in one file, 1 and 2 in another."""
    whole = np.arange(8, dtype=np.float32).reshape(4, 2)
    parts = [SavedArray(Part.of_rows((4, 2), np.array(rows)), whole[rows]) for rows in ([0, 3], [1, 2])]
    steps = [SavedArray(Part.of_rows((4,), np.array(rows)), np.array(rows, np.int32)) for rows in ([0, 3], [1, 2])]
    child = child_of(
        {"b2": parts, "b2.moment": parts, "step": steps}, [3, 1, 1], [True, True, False], tiny_config(tmp_path)
    )
    assert child.find("experts_layer_0", "b2", (3, 2)).read().tolist() == whole[[3, 1, 1]].tolist()
    assert child.find("experts_layer_0", "b2.moment", (3, 2)).read().tolist() == [[6, 7], [2, 3], [0, 0]]
    assert child.find("experts_layer_0", "step", (3,)).read().tolist() == [3, 1, 0], "a copy begins without state"
    assert child.find("experts_layer_0", "w1.variance", (3, 2)) is None


def test_bits_of_bfloat16_moments_stay_what_they_are(tmp_path):
    bits = np.array([[1, 65535], [2, 40000]], np.uint16)
    child = child_of({"b2.moment": [SavedArray.whole(bits)]}, [1, -1], [True, False], tiny_config(tmp_path))
    found = child.find("experts_layer_0", "b2.moment", (2, 2)).read()
    assert found.dtype == np.uint16
    assert found.tolist() == [[2, 40000], [0, 0]]


def test_a_run_is_known_by_the_manifest_of_its_checkpoint(tiny_run, tmp_path):
    assert open_model(tiny_run, "run").hash == open_model(tiny_run, "run").hash
    assert len(open_model(tiny_run, "run").hash) == 32
    assert open_model(tiny_run, "run").lineage is None
    with pytest.raises(UserError, match="is not a run folder"):
        open_model(tmp_path, "run")
