"""Arguments of another kind than their annotation are one message that names them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from pangu_sigma.errors import UserError
from pangu_sigma.kinds import check_kinds


@check_kinds
def called(
    path: Any = "",
    *,
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
        ({"check": "no"}, "check='no' is not allowed: True or False"),
        ({"check": None}, "check=None is not allowed: True or False"),
        ({"check": 1}, "check=1 is not allowed: True or False"),
        ({"top_p": "0.1"}, "top_p='0.1' is not allowed: a number"),
        ({"top_p": True}, "top_p=True is not allowed: a number"),
        ({"seed": "8"}, "seed='8' is not allowed: a whole number or None"),
        ({"seed": 1.5}, "seed=1.5 is not allowed: a whole number or None"),
        ({"of": "c"}, "of='c' is not allowed: 'a', 'b' or None"),
        ({"of": ["a"]}, r"of=\['a'\] is not allowed: 'a', 'b' or None"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(given, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        called(**given)


def test_an_unknown_or_missing_argument_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match=r"^called: got an unexpected keyword argument 'other'; allowed here: path, check"
    ):
        called(other=1)
    with pytest.raises(UserError, match=r"^called: too many positional arguments; allowed here: path, check"):
        called(1, 2)
