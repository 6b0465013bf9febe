"""Errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """The base of every error that a user can mend; its message is complete.

    The command line and the Python face show it as one message. Whatever does not derive from it is a bug and keeps its traceback.
    """


class BuildError(UserError, RuntimeError):
    """Kernels could not be compiled; the message holds what the compiler said, or that there is none."""
