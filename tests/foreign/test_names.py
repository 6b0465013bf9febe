from __future__ import annotations

from pathlib import Path

import pytest

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.names import counterparts

A = Path("a")


def test_layers_are_counted_and_one_that_is_left_out_is_named():
    rules = counterparts("huggingface", A, ["h.0.x", "h.1.x", "h.1.y", "other"])
    assert {rule.ours.split(".")[1] for rule in rules.values() if rule.ours.startswith("layers.")} == {"0", "1"}
    with pytest.raises(LayoutError, match="2 layers and none of index 1"):
        counterparts("huggingface", A, ["h.0.x", "h.999999999999.x"])
