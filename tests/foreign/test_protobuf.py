from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.foreign.protobuf import message, numbers, read_field, read_varint


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.text(max_size=20))
def test_what_the_library_writes_is_read(dims: list[int], text: str):
    from mindspore.train.checkpoint_pb2 import Checkpoint

    written = Checkpoint()
    value = written.value.add()
    value.tag = text
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type, value.tensor.tensor_content = "Float32", b"abcd"
    content = written.SerializeToString()
    ((outer,),) = message(content, 0, len(content)).values()
    (tag,), (tensor,) = message(content, outer.begin, outer.end).values()
    assert content[tag.begin : tag.end].decode() == text
    inner = message(content, tensor.begin, tensor.end)
    assert [n for one in inner.get(1, []) for n in numbers(content, one)] == dims
    assert content[inner[3][-1].begin : inner[3][-1].end] == b"abcd"


@pytest.mark.parametrize("content", [b"\xff" * 11, b"\x80", b"\x0a\x05ab", b"\x03", b"\x02\x00", b"\x0d\x01"])
def test_what_is_cut_short_or_unknown_is_a_value_error(content: bytes):
    with pytest.raises(ValueError):
        message(content, 0, len(content))


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_a_value_error(content: bytes):
    try:
        for same in message(content, 0, len(content)).values():
            assert all(0 <= found.begin <= found.end <= len(content) for found in same)
    except ValueError:
        pass


def test_a_long_field_may_reach_beyond_what_is_there():
    assert read_field(b"\x0a\x80\x01abc", 0, 131).end == 131
    assert read_varint(b"\x80\x01", 0) == (128, 2)
