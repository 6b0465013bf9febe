"""Check of the kinds of a caller's arguments, from the annotations of the function that is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pangu_sigma.errors import UserError, keyword

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    NoneType: (NoneType, "None"),
}
"""Annotation → class of the values that it takes, and words for them. A truth value is no number."""


def check_kinds(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that it raises UserError, which names the argument, for a value of a kind that its annotation has not.

    Truth values, numbers, texts, None and literals are checked. Any other annotation, such as that of a path, takes all values.
    Unknown and missing arguments are UserErrors too.
    """
    signature = inspect.signature(function)
    named = {name: each for name, each in function.__annotations__.items() if name != "return"}
    hints = get_type_hints(SimpleNamespace(__annotations__=named), function.__globals__)
    allowed = {name: kinds for name, hint in hints.items() if (kinds := _members(hint)) is not None}

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            known = ", ".join(signature.parameters).removeprefix("self, ")
            raise UserError(f"{function.__name__}: {error}; allowed here: {known}") from None
        for name, value in given.items():
            if name in allowed and not any(_takes(kind, value) for kind in allowed[name]):
                raise UserError(f"{keyword(name)}={value!r} is not allowed: {_words(allowed[name])}")
        return function(*args, **kwargs)

    return checked


def _members(hint: Any) -> list[Any] | None:
    """Return the literal values and the keys of _KINDS of which an annotation is made; None for any other annotation."""
    if get_origin(hint) is Literal:
        return [*get_args(hint)]
    if get_origin(hint) not in (Union, UnionType):
        return [hint] if hint in _KINDS else None
    members = [_members(each) for each in get_args(hint)]
    return None if None in members else [one for each in members if each is not None for one in each]


def _takes(kind: Any, value: object) -> bool:
    if kind not in _KINDS:
        return bool(type(value) is type(kind) and value == kind)
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def _words(kinds: list[Any]) -> str:
    *words, last = [_KINDS[kind][1] if kind in _KINDS else repr(kind) for kind in kinds]
    return f"{', '.join(words)} or {last}" if words else last
