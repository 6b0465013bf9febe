"""Errors that a user can fix: errors that several folders raise, and the exit status of a command. The base class is in
`ascend_ops`, whose kernels may fail to build and which imports nothing of this package."""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
from collections.abc import Callable

from ascend_ops.errors import UserError as UserError

logger = logging.getLogger(__name__)

INTERRUPTED, NO_READER = 130, 141
"""Exit statuses after Ctrl-C (SIGINT) and after the output's pipe was closed (SIGPIPE), as shells use them."""

_OF_THE_MACHINE = {
    errno.ENOSPC: "free space on that disk",
    errno.EFBIG: "raise the limit of a file's size: ulimit -f",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EROFS: "use a folder on another file system",
    errno.EACCES: "change its permissions, or use another folder",
    errno.EPERM: "change its permissions, or use another folder",
    errno.EIO: "the disk fails; use another one",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENOTDIR: "a file is where a folder must be; use another folder",
    errno.EISDIR: "a folder is where a file must be; use another name",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENOMEM: "close other programs, or use a smaller configuration",
}
"""Errors that the operating system may raise at any time, with their fixes. Any other OSError is a bug and keeps its traceback."""


def in_words(error: OSError, path: object = "", otherwise: str = "") -> str:
    """Return the words of a message for an error of the disk: the file, the system's words for the error, and the fix. path: file,
    if the error names none. otherwise: fix of an error that _OF_THE_MACHINE lacks, such as a missing file."""
    file = error.filename2 or error.filename or path  # a copy has two names; the second is of the file that it wrote
    fix = _OF_THE_MACHINE.get(error.errno or 0, otherwise)
    return ": ".join(filter(None, [str(file), str(error.strerror or error)])) + (f"; {fix}" if fix else "")


_MEMORY = "memory is full; close other programs, use a smaller configuration, or raise `ulimit -v`"
_THREADS = "no more threads can be started, for lack of memory or by a limit of processes; close other programs, "
_THREADS += "or raise `ulimit -v`, `ulimit -u` or the container's pids limit"
_EXHAUSTED = dict.fromkeys(("Memory isn't enough", "std::bad_alloc", "failed to map segment from"), _MEMORY)
_EXHAUSTED |= dict.fromkeys(("Resource temporarily unavailable", "can't start new thread"), _THREADS)
"""Words in errors of Python and MindSpore on a machine that has no more of something → message with the fix."""


class DataError(UserError, ValueError):
    """Error of text, a token file or a tokenizer folder that cannot be used."""


class LayoutError(UserError, ValueError):
    """Error of a folder or file of weights that cannot be used; the message names the tensor or file, the problem and the fix."""


on_command_line = False
"""True while a command runs, whose options messages name; in its worker processes, too."""


def argument(option: str, python: str = "") -> str:
    """Return the name of an argument for a message: "--from-domain" while a command runs, else "from_domain", or `python`."""
    return option if on_command_line else python or option.removeprefix("--").replace("-", "_")


def keyword(name: str) -> str:
    """Return the name of an argument for a message, as `argument` does, by its name in Python: "--top-p", or "top_p"."""
    return argument(f"--{name.replace('_', '-')}")


def warn_without_effect(option: str, why: str) -> None:
    """Warn of an option that was given and does nothing. why: a sentence without its full stop."""
    logger.warning("%s has no effect: %s", option, why)


def exit_status(command: Callable[[], int]) -> int:
    """Run a command and return its exit status, or 2, after a message on standard error, for an error that the user can fix."""
    global on_command_line
    on_command_line = True
    try:
        status = command()
        sys.stdout.flush()  # here, where a reader that is gone can still be noticed
        return status
    except UserError as error:
        return _say(f"error: {error}", 2)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return NO_READER
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        return _say(f"error: {in_words(error)}", 2)
    except (MemoryError, RuntimeError, ImportError) as error:
        lines = str(error).splitlines()
        reasons = [(line, message) for line in lines for words, message in _EXHAUSTED.items() if words in line]
        if not reasons and not isinstance(error, MemoryError):
            raise  # a bug, which keeps its traceback
        line, message = reasons[0] if reasons else (str(error), _MEMORY)
        return _say(f"error: {message}{f' ({line})' if line else ''}", 2)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    finally:
        on_command_line = False


def _reader_is_gone() -> bool:
    """Return True if standard output is a pipe that nobody reads; any other broken pipe is a bug."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # 0: no events but errors, which `poll` always reports
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
