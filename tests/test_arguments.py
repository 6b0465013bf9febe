"""Arguments of another kind than their annotation are one message that names them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from pangu_sigma.arguments import AnyPath, AtLeastOne, Paths, checked, texts
from pangu_sigma.errors import UserError


@checked
def called(
    path: Any = "",
    *,
    file: AnyPath = "x",
    files: Paths = (),
    workers: AtLeastOne = 1,
    check: bool = False,
    top_p: float = 0.0,
    seed: int | None = None,
    of: Literal["a", "b"] | None = None,
) -> tuple[Any, ...]:
    return path, check, top_p, seed, of


def test_what_is_annotated_is_taken():
    assert called(3, check=True, top_p=1, seed=np.int64(3), of="b") == (3, True, 1, 3, "b")
    assert called(top_p=np.float32(0.5), seed=None, of=None) == ("", False, 0.5, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"check": "no"}, "check='no' is not allowed: it must be true or false"),
        ({"top_p": "0.1"}, "top_p='0.1' is not allowed: it must be a number"),
        ({"top_p": True}, "top_p=True is not allowed: it must be a number"),
        ({"seed": "8"}, "seed='8' is not allowed: it must be a whole number"),
        ({"seed": 1.5}, "seed=1.5 is not allowed: it must be a whole number"),
        ({"of": "c"}, "of='c' is not allowed: it must be 'a' or 'b'"),
        ({"of": ["a"]}, r"of=\['a'\] is not allowed: it must be 'a' or 'b'"),
        ({"file": " "}, "file=' ' is not allowed: a path, .* not blank"),
        ({"files": ["x", 3]}, r"files=\['x', 3\] is not allowed: a path, .*"),
        ({"workers": 0}, "workers=0 is not allowed: it must be greater than or equal to 1"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(given, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        called(**given)


def test_an_unknown_or_missing_argument_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match=r"^called: got an unexpected keyword argument 'other'; allowed here: path, file"
    ):
        called(other=1)
    with pytest.raises(UserError, match=r"^called: too many positional arguments; allowed here: path, file"):
        called(1, 2)


def test_bytes_that_are_no_text_are_refused_with_their_position():
    assert texts("今天 🙂") == ["今天 🙂"]
    with pytest.raises(ValueError, match=r"^it is not Unicode text: character 2, '\\udcff'"):
        texts(b"ab\xff".decode(errors="surrogateescape"))
