"""Errors that a user can mend: one base class, and those that several folders raise.

`UserError` stands in `ascend_ops`, whose kernels may fail to build and which imports nothing of this package.
"""

from __future__ import annotations

from ascend_ops.errors import UserError

__all__ = ["DataError", "UserError"]


class DataError(UserError, ValueError):
    """Text, a token file or a tokenizer folder cannot be used."""
