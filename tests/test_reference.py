"""The code computes what commit 0265ac7 computed: losses, every array of a checkpoint, greedy answers."""

from __future__ import annotations

import copy
import json

import pytest
from reference.measure import STORED, computed, differences


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_the_results_are_those_that_are_stored(tmp_path):
    assert differences(json.loads(STORED.read_text(encoding="utf-8")), computed(tmp_path)) == []


@pytest.mark.parametrize("what", ["answers", "losses", "arrays"])
def test_a_difference_is_seen(what):
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    found = copy.deepcopy(stored)
    assert differences(stored, found) == []
    match what:
        case "answers":
            found["answers"]["en"][0] += "?"
        case "losses":
            found["losses"]["rre"]["zh"][-1] += 0.01
        case "arrays":
            found["arrays"]["float16"].popitem()
    assert len(differences(stored, found)) == 1
