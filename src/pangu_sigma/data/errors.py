"""The one error of this package that a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Text, a token file or a tokenizer folder that cannot be used; the message is complete and meant for the user."""
