"""A value that is not finite is found wherever it is, and named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pangu_sigma.checkpoint import lazy
from pangu_sigma.checkpoint.not_finite import NotFinite, describe, find_not_finite
from pangu_sigma.checkpoint.parts import Part, SavedArray
from pangu_sigma.checkpoint.saver import RankReport

CONFIG = {"model": {"experts_per_domain": 2}, "domains": [{"name": "zh"}, {"name": "en"}]}


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
@given(data=st.data())
def test_each_value_that_is_not_finite_is_counted_and_the_first_is_named(kind: str, data: st.DataObject):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))
    values = np.random.default_rng(0).normal(size=shape).astype("float32" if kind == "bfloat16" else kind)
    at = data.draw(st.lists(st.integers(0, values.size - 1), unique=True))
    for position in at:
        values.reshape(-1)[position] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    array = SavedArray.whole(bfloat16(values) if kind == "bfloat16" else values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "_CHUNK", 16)  # so that arrays have several chunks
        found = find_not_finite({"dense": {"w": array}})
    first = tuple(int(i) for i in np.unravel_index(min(at), shape)) if at and shape else ()
    assert found == ([NotFinite("dense", "w", len(at), first)] if at else [])


def test_what_is_finite_is_never_called_otherwise():
    largest = np.full(64, np.finfo(np.float32).max)
    integers = np.array([2**31 - 1, -1], np.int32)
    arrays = {"largest": largest, "half": np.full(9, np.finfo(np.float16).max), "step": integers, "b": integers > 0}
    assert find_not_finite({"dense": {name: SavedArray.whole(a) for name, a in arrays.items()}}) == []
    assert find_not_finite({"dense": {"none": SavedArray.whole(np.empty((0, 3), np.float32))}}) == []
    opposite = np.array([np.inf, -np.inf, 1], np.float32)
    assert find_not_finite({"dense": {"w": SavedArray.whole(opposite)}})[0].count == 2


def test_an_expert_has_the_number_that_it_has_on_all_ranks():
    """A rank stores experts 1, 2 and 5 of 8, and columns 4 and 5 of each."""
    values = np.ones((3, 2), np.float32)
    values[1, 1] = values[2, 0] = np.nan
    part = Part((8, 6), ((1, 3), (5, 6)), (4,))
    (found,) = find_not_finite({"experts_layer_1.00003": {"w1.moment": SavedArray(part, values)}})
    assert found == NotFinite("experts_layer_1.00003", "w1.moment", 2, (2, 5), (2, 5))
    assert found.segment == 1
    written = TypeAdapter(RankReport)
    assert written.validate_json(written.dump_json(RankReport({}, [found]))) == RankReport({}, [found]), (
        "as ranks tell it to each other"
    )


def test_words_name_the_segment_and_a_common_expert_has_no_domain():
    config = CONFIG | {"model": {"experts_per_domain": 2, "segments": ["own", "common"]}}
    own, common = (NotFinite(f"experts_layer_{number}", "w1", 1, (2, 0), (2,)) for number in (2, 3))
    assert describe([own], config)[0].endswith("(layer 1, own segment 0, expert 2 of domain en)")
    assert describe([common], config)[0].endswith("(layer 1, common segment 1, expert 2)")


def test_words_name_file_tensor_layer_experts_and_their_domains():
    found = NotFinite("experts_layer_1", "w1", 3, (1, 0), (1, 2, 7))
    assert describe([found], CONFIG) == [
        "experts_layer_1: w1 has 3, first at [1, 0] (layer 1, experts 1 of domain zh, 2 of domain en, 7)"
    ]
    dense = NotFinite("loss_scale", "value", 1, ())
    assert describe([dense], {}) == ["loss_scale: value has 1"]
    assert describe([dense] * 20, {})[8:] == ["and 12 more"]
