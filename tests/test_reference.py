"""The code computes what earlier commits computed: losses, every array of a checkpoint, greedy answers."""

from __future__ import annotations

import copy
import json

import pytest
from reference import measure
from reference.measure import STORED, computed, differences


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_the_results_are_those_that_are_stored(tmp_path):
    assert differences(json.loads(STORED.read_text(encoding="utf-8")), computed(tmp_path)) == []


@pytest.mark.parametrize("what", ["answers", "losses", "losses of two ranks", "arrays"])
def test_a_difference_is_seen(what):
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    found = copy.deepcopy(stored)
    assert differences(stored, found) == []
    match what:
        case "answers":
            found["answers"]["en"][0] += "?"
        case "losses":
            found["losses"]["rre"]["zh"][-1] += 0.01
        case "losses of two ranks":
            found["losses"]["two_ranks"]["zh"][-1] += 0.5 * measure.OTHER_RANKS
            assert differences(stored, found) == [], "rounding"
            found["losses"]["two_ranks"]["zh"][-1] += measure.OTHER_RANKS
        case "arrays":
            found["arrays"]["float16"].popitem()
    assert len(differences(stored, found)) == 1


def test_an_array_whose_file_has_another_name_is_found_by_the_map(monkeypatch):
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    found = copy.deepcopy(stored)
    for arrays in found["arrays"].values():
        arrays["network.safetensors/embedding"] = arrays.pop("dense.safetensors/embedding")
    assert len(differences(stored, found)) == len(measure.VARIANTS)
    monkeypatch.setitem(measure.RENAMED, "dense.safetensors/", "network.safetensors/")
    for arrays in found["arrays"].values():
        for name in [name for name in arrays if name.startswith("dense.safetensors/")]:
            arrays[name.replace("dense", "network", 1)] = arrays.pop(name)
    assert differences(stored, found) == []
