"""Errors that a user can mend: one base class, and those that several folders raise.

`UserError` stands in `ascend_ops`, whose kernels may fail to build and which imports nothing of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from ascend_ops.errors import UserError

__all__ = ["DataError", "UserError", "exit_status"]


class DataError(UserError, ValueError):
    """Text, a token file or a tokenizer folder cannot be used."""


def exit_status(command: Callable[[], int]) -> int:
    """The exit status of a command: its own, or 2 after one message on standard error for what the user can mend."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
