from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.mindspore_files import open_ckpt


def read(file: Path, name: str) -> np.ndarray:
    return open_ckpt(file)[name].lazy_array(name).read()


@pytest.mark.parametrize("checksum", [False, True])
def test_what_mindspore_saves_is_read(tmp_path: Path, checksum: bool):
    import mindspore as ms

    values = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.arange(3, dtype=np.float16), "n": np.int32(4)}
    saved = [{"name": name, "data": ms.Tensor(value)} for name, value in values.items()]
    saved.append({"name": "h", "data": ms.Tensor(values["a"] / 8, ms.bfloat16)})  # exact
    ms.save_checkpoint(saved, str(tmp_path / "a.ckpt"), crc_check=checksum)
    assert set(open_ckpt(tmp_path / "a.ckpt")) == {*values, "h"}
    np.testing.assert_array_equal(read(tmp_path / "a.ckpt", "h"), values["a"] / 8)
    for name in ("a", "b"):
        np.testing.assert_array_equal(read(tmp_path / "a.ckpt", name), values[name])
    with pytest.raises(LayoutError, match=r"n \(n\) is Int32; convert it to one of float32"):
        open_ckpt(tmp_path / "a.ckpt")["n"].lazy_array("n")


@pytest.mark.parametrize("stretch", [1, 3, 4, 5, 9, 24])
def test_a_tensor_of_several_messages_is_one(tmp_path: Path, stretch: int):
    values = {"a": np.arange(24, dtype=np.float32).reshape(6, 4), "b": np.arange(7, dtype=np.float32)}
    (tmp_path / "a.ckpt").write_bytes(foreign.ckpt(values, stretch))
    for name, value in values.items():
        np.testing.assert_array_equal(read(tmp_path / "a.ckpt", name), value)


VALID = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: b"", "it is empty"),
        (lambda c: c[:-1], "no checkpoint of MindSpore at byte"),
        (lambda c: c[:10], "no checkpoint of MindSpore at byte 0"),
        (lambda c: b"\x8a" + c[1:], "no checkpoint of MindSpore at byte 0"),
        (lambda c: bytes(200), "no checkpoint of MindSpore at byte 0"),
        (lambda c: c.replace(b"\x0a\x01a", b"\x0a\x01\xff"), "no checkpoint of MindSpore"),
        (lambda c: c + c, "a of shape .* has 48 bytes; it is damaged, or is twice"),
        (lambda c: c.replace(b"Float32", b"Float64"), r"a \(a\) is Float64"),
        (lambda c: c.replace(b"\x08\x02\x08\x03", b"\x08\x02\x08\x7f"), "which its 24 bytes cannot have"),
        (lambda c: c + foreign.ckpt({"a": np.zeros(2, np.float32)}), "a is twice in the file"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, change, message: str):
    file = tmp_path / "a.ckpt"
    file.write_bytes(change(foreign.ckpt(VALID)))
    with pytest.raises(LayoutError, match=rf"a\.ckpt: .*{message}"):
        open_ckpt(file)["a"].lazy_array("a")
