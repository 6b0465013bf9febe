from __future__ import annotations

import os
import pickle
import re
import struct
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.foreign_files import FakeTensor, torch_zip
from helpers.fuzzing import watched
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign import torch_files
from pangu_sigma.foreign.pickles import OpaqueObject, _tensor, load_pickle
from pangu_sigma.foreign.torch_files import open_torch_file

FILE = Path("a.pt")


def loaded(content: bytes) -> Any:
    with watched():
        return load_pickle(content, FILE, {})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(TREES, st.integers(0, 5))
def test_plain_values_of_every_protocol_are_what_was_pickled(value: Any, protocol: int):
    content = pickle.dumps(value, protocol)
    if protocol < 3 and (b"_codecs" in content or b"bytes" in content):
        return  # bytes are a call there, which is not built
    assert loaded(content) == value


@pytest.mark.parametrize("protocol", range(6))
def test_namespaces_and_ordered_dictionaries_are_built(protocol: int):
    value = OrderedDict(args=Namespace(layers=3, lr=0.1, inner=Namespace(a=[1])), shared=OrderedDict())
    found = loaded(pickle.dumps(value, protocol))
    assert found == dict(value)
    assert found["args"].inner.a == [1]


def _global(name: str, rest: bytes = b")R.") -> bytes:
    return b"\x80\x02c" + name.replace(".", "\n", 1).encode() + b"\n" + rest


def _stacked(module: str, name: str) -> bytes:
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93)R."


class _Call:
    """Something whose pickle calls a function."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


CODE: dict[str, tuple[bytes, str]] = {
    "in the state of an optimizer": (pickle.dumps({"optimizer": [_Call()]}, 2), r"posix\.system"),
    "os.system": (b"\x80\x02cos\nsystem\nU\x04true\x85R.", r"os\.system"),
    "__builtin__.getattr": (_global("__builtin__.getattr"), r"__builtin__\.getattr"),
    "a dotted attribute": (_stacked("argparse", "Namespace.__init__.__globals__"), r"argparse\.Namespace\.__init__"),
    "another function of torch": (_global("torch.load"), r"torch\.load"),
    "in a Namespace": (b"\x80\x02cargparse\nNamespace\n)\x81}U\x01acos\nsystem\nU\x04true\x85Rsb.", r"os\.system"),
    "as a class of NEWOBJ": (b"\x80\x02csubprocess\nPopen\nU\x04true\x85\x81.", r"subprocess\.Popen"),
    "by the instruction OBJ": (b"\x80\x02(cos\nsystem\nU\x04trueo.", r"os\.system"),
    "an extension code of one byte": (b"\x80\x02\x82\x01)R.", "extension code"),
    "a text as persistent id": (b"Pos.system\n.", "persistent id"),
    "a persistent id that is no storage": (b"\x80\x02K\x01Q.", "persistent id"),
    "a call of a number": (b"\x80\x02K\x01)R.", "'int' object is not callable"),
    "a call of a Namespace with arguments": (
        b"\x80\x02cargparse\nNamespace\nK\x01\x85R.",
        "takes 1 positional argument",
    ),
    "the reconstructor of another class": (
        b"\x80\x02ccopyreg\n_reconstructor\nctorch\nSize\ncbuiltins\nobject\nN\x87R.",
        "missing 1 required positional argument",
    ),
    "a state of a number": (b"\x80\x02K\x01}b.", "'int' object has no attribute"),
    "a buffer outside of the pickle": (b"\x80\x05\x97.", "out-of-band"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_refused_by_the_name_of_file_and_function_and_never_executed(name: str):
    content, message = CODE[name]
    with pytest.raises(LayoutError, match=r"a\.pt: .*" + message):
        loaded(content)


DAMAGED = {
    "nothing": b"",
    "an empty stack": b"\x80\x020.",
    "a mark that is not there": b"\x80\x02t.",
    "a text that is longer than the file": b"\x80\x02X\xff\xff\xff\x7fab.",
    "bytes of 2**60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "keys that are deep tuples": b"\x80\x02}" + b")" + b"\x85" * 500_000 + b"K\x01s.",
    "a long decimal": b"L" + b"9" * 100_000 + b"L\n.",
    "an unknown instruction": b"\x80\x02\xf0.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_one_error_that_names_the_file(name: str):
    with pytest.raises(LayoutError, match=r"^a\.pt: "):
        loaded(DAMAGED[name])


def test_what_is_shared_or_deep_takes_no_more_than_its_instructions():
    """A list of two of a list of two …: 2**50 values to one who would count them."""
    content = b"\x80\x02K\x01q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(50))
    assert len(loaded(content[:2] + b"(" + content[2:] + b"1h\x32.")) == 2  # the stack is dropped but for the last
    assert len(loaded(b"\x80\x02" + b"]" * 3_000 + b"a" * 2_999 + b".")) == 1


def test_what_a_file_sets_of_a_class_that_it_names_is_its_own():
    """The state of BUILD may be attributes, of a class or function too."""
    attributes = b"}U\x01aK\x01s"
    for name in (b"argparse\nNamespace\n", b"collections\nOrderedDict\n", b"numpy\nndarray\n"):
        loaded(b"\x80\x02c" + name + b"N" + attributes + b"\x86b.")
    with pytest.raises(LayoutError):
        loaded(b"\x80\x02ctorch._utils\n_rebuild_tensor\n" + attributes + b"b.")
    assert not any(hasattr(kind, "a") for kind in (Namespace, OrderedDict, dict, OpaqueObject, _tensor))


def test_a_pickle_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_files, "MOST_PICKLED", 1_000)
    (tmp_path / "a.pt").write_bytes(torch_zip(["x" * 2_000]))
    with pytest.raises(LayoutError, match=r"its pickle has 2,\d+ bytes, more than the 1,000"):
        open_torch_file(tmp_path / "a.pt")


def test_storages_of_other_types_are_refused_by_name(tmp_path: Path):
    file = tmp_path / "a.pt"
    file.write_bytes(torch_zip({"w": FakeTensor(np.ones(2, np.float32), "ComplexFloat")}))
    with pytest.raises(LayoutError, match=re.escape("torch.ComplexFloatStorage")):
        open_torch_file(file)
