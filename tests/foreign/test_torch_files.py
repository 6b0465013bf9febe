from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.foreign_files import FakeTensor, torch_zip

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import WholeTensor, map_tensor
from pangu_sigma.foreign.torch_files import named_tensors, open_torch_file

VALUES = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.arange(5, dtype=np.float16)}


def value() -> dict[str, Any]:
    return {name: FakeTensor(array) for name, array in VALUES.items()}


def read(file: Path, name: str) -> np.ndarray:
    return WholeTensor.from_part(open_torch_file(file)[name]).lazy_array(name).read()


def test_bfloat16_becomes_float32(tmp_path: Path):
    values = np.array([1.5, -2.0, 3e38, 0.0], np.float32)  # exact in bfloat16 but for the third
    short = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensor = FakeTensor(short.view(np.float16), "BFloat16")
    (tmp_path / "a.pt").write_bytes(torch_zip({"a": tensor}))
    found = read(tmp_path / "a.pt", "a")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (short.astype(np.uint32) << 16).view(np.float32))


def changed(old: bytes, new: bytes) -> bytes:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new)

    return torch_zip(value(), change)


def compressed() -> bytes:
    output = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_zip(value()))) as source,
        zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name) + bytes(1 << 20))
    return output.getvalue()


def twice() -> bytes:
    content = torch_zip(value())
    return content.replace(b"archive/data/1", b"archive/data/0")


def moved() -> bytes:
    """The directory says that a member begins 2**30 bytes later."""
    content = bytearray(torch_zip(value()))
    at = content.rindex(b"PK\1\2")
    content[at + 42 : at + 46] = (1 << 30).to_bytes(4, "little")
    return bytes(content)


SHAPE = b"K\x03K\x04\x86"
REFUSED = {
    "cut short": (lambda: torch_zip(value())[:-30], "no file of torch"),
    "empty": (lambda: b"", "neither a zip file nor a pickle"),
    "no data.pkl": (lambda: torch_zip(value()).replace(b"data.pkl", b"date.pkl"), "0 members data.pkl"),
    "the format before zip": (
        lambda: b"\x80\x02K\x01.",
        "a pickle, as torch before 1.6 wrote, .*ab9cf900.* save it again",
    ),
    "big-endian": (lambda: torch_zip(value(), byteorder=b"big"), "big-endian"),
    "compressed, a bomb": (compressed, "compressed or encrypted"),
    "two members of one name": (twice, "two of its members have one name"),
    "a member outside of the file": (moved, "damaged or cut short"),
    "a shape that is larger": (
        lambda: changed(SHAPE, b"K\x09K\x04\x86"),
        r"\(9, 4\), which its 48 bytes cannot have",
    ),
    "a huge shape": (lambda: changed(SHAPE, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "has the shape .* cannot have"),
    "a shape that is NaN": (lambda: changed(SHAPE, b"G\x7f\xf8\0\0\0\0\0\0K\x04\x86"), "has the shape .* cannot have"),
    "a shape of three axes": (lambda: changed(SHAPE, b"K\x03K\x02K\x02\x87"), "without storage, shape and strides"),
    "a storage that is missing": (lambda: changed(b"X\x01\0\0\x000", b"X\x01\0\0\x007"), "the storage 7 is missing"),
    "a storage that is larger": (lambda: changed(b"K\x0ct", b"K\x4dt"), "the storage 0 has 48 bytes, not 77 values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_is_refused_by_the_name_of_the_file(tmp_path: Path, name: str):
    made, message = REFUSED[name]
    file = tmp_path / "a.pt"
    file.write_bytes(made())
    with pytest.raises(LayoutError, match=rf"a\.pt: .*{message}"):
        read(file, "a")
    assert [one.name for one in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("entry", ["data/0", "data/1", "data.pkl"])
def test_a_flipped_bit_of_a_torch_zip_is_refused_by_the_name_of_its_entry(tmp_path: Path, entry: str):
    file, content = tmp_path / "a.pt", bytearray(torch_zip(value()))
    name = f"archive/{entry}".encode()
    content[content.index(name) + len(name) + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(LayoutError, match=rf"a\.pt: its member archive/{entry} has the CRC32 \w+, \w+ was written"):
        for name in VALUES:
            read(file, name)


def test_a_view_of_a_storage_is_read_as_its_strides_say(tmp_path: Path):
    content, file = VALUES["a"].reshape(-1).view(np.uint8), tmp_path / "a.pt"
    found = WholeTensor.from_part(map_tensor(file, "a", "float32", (4, 2), content, 1, (1, 4))).lazy_array("a").read()
    np.testing.assert_array_equal(found, np.lib.stride_tricks.as_strided(VALUES["a"].reshape(-1)[1:], (4, 2), (4, 16)))


def test_dictionaries_that_only_a_hostile_file_has_are_refused(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(torch_zip(value()))
    tensor = open_torch_file(tmp_path / "a.pt")["a"]
    itself: dict[str, Any] = {}
    itself["a"] = itself
    doubled: dict[str, Any] = {}
    for _ in range(30):
        doubled = {"a": doubled, "b": doubled}
    for tree, message in (
        (itself, "is a dict, and no tensor"),
        (doubled, "is a dict, and no tensor"),
        ({"a.b": tensor, "a": {"b": tensor}}, r"a\.b is twice in it"),
    ):
        with pytest.raises(LayoutError, match=message):
            named_tensors(Path("a.pt"), tree)
