"""Base classes of errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Base class of all errors that a user can mend; the message is complete.

    The command line and the Python face show it as one message. Any other error is a bug and keeps its traceback.
    """


class BuildError(UserError, RuntimeError):
    """C++ kernels for the CPU that could not be compiled; the message has the compiler's output, or says that there is none."""
