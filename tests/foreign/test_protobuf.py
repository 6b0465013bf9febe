from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.foreign.protobuf import field_at, fields, numbers, varint


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.text(max_size=20))
def test_what_the_library_writes_is_read(dims: list[int], text: str):
    from mindspore.train.checkpoint_pb2 import Checkpoint

    message = Checkpoint()
    value = message.value.add()
    value.tag = text
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type, value.tensor.tensor_content = "Float32", b"abcd"
    content = message.SerializeToString()
    (outer,) = fields(content, 0, len(content))
    tag, tensor = fields(content, outer.begin, outer.end)
    assert content[tag.begin : tag.end].decode() == text
    inner = list(fields(content, tensor.begin, tensor.end))
    assert [n for one in inner if one.number == 1 for n in numbers(content, one)] == dims
    assert content[inner[-1].begin : inner[-1].end] == b"abcd"


@pytest.mark.parametrize("content", [b"\xff" * 11, b"\x80", b"\x0a\x05ab", b"\x03", b"\x02\x00", b"\x0d\x01"])
def test_what_is_cut_short_or_unknown_is_a_value_error(content: bytes):
    with pytest.raises(ValueError):
        list(fields(content, 0, len(content)))


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_a_value_error(content: bytes):
    try:
        for found in fields(content, 0, len(content)):
            assert 0 <= found.begin <= found.end <= len(content)
    except ValueError:
        pass


def test_a_long_field_may_reach_beyond_what_is_there():
    assert field_at(b"\x0a\x80\x01abc", 0, 6, 131).end == 131
    assert varint(b"\x80\x01", 0, 2) == (128, 2)
