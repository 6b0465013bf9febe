"""The processes of a run as one of them sees them: its number, and the few things that all do together on the host.

What all do together must be done by all, in the same order: a rank that stops on its own leaves the others waiting. So whatever may
fail on one rank alone (a disk, a missing file) runs inside `together`, which makes it fail on every rank. On the CPU MindSpore
waits half a minute for a late rank, and no setting of it was found to change that; on Ascend, HCCL waits.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import numpy as np
import xxhash

from pangu_sigma.errors import UserError


class RankError(UserError, RuntimeError):
    """Ranks that do not agree, or a rank that failed. The message names what it is and where to look."""


class Ranks:
    """The ranks of a run. This class itself is a run of a single process."""

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """True if this rank is the one that writes what is written once."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all ranks, on each of them; with several ranks it is computed in float32."""
        return values

    def any(self, flag: bool) -> bool:
        """True if the flag is set on at least one rank. No rank goes on before all have come here."""
        return bool(self.sum(np.array([flag], np.float32))[0])

    def most(self, number: int) -> int:
        """The largest of the numbers that the ranks have."""
        numbers = np.zeros(self.world, np.float32)
        numbers[self.rank] = number
        return int(self.sum(numbers).max())

    def texts(self, own: str) -> list[str]:
        """The texts of all ranks in the order of their numbers, on each of them; of each the first 2,000 bytes of its UTF-8."""
        content = own.encode()[:_TEXT]
        letters = np.zeros((self.world, _TEXT), np.float32)
        letters[self.rank, : len(content)] = np.frombuffer(content, np.uint8)
        rows = self.sum(letters).astype(np.uint8)
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Work that succeeds on all ranks or fails on all: RankError where it would have succeeded."""
        try:
            yield
        except Exception:
            self.any(True)
            raise
        if self.any(False):
            raise RankError(f"{what} failed on another rank; its log says why")

    def agree(self, values: dict[str, str]) -> None:
        """Raises RankError on every rank when one of `values` is not what it is on rank 0."""
        marks = np.zeros((self.world, len(values), _MARKS), np.float32)
        for key, text in enumerate(values.values()):
            digest = xxhash.xxh3_128_digest(text.encode())
            marks[self.rank, key] = np.frombuffer(digest, np.uint16)  # which float32 holds exactly
        differs = (self.sum(marks) != self.sum(marks)[0]).any(axis=-1)
        if differs.any():
            rank, key = np.argwhere(differs)[0]
            raise RankError(
                f"rank {rank} was started with another {list(values)[key]} than rank 0; "
                "start all ranks with the same configuration file, --set options and prepared data"
            )

    def leave(self) -> None:
        """Call last: no rank ends while another still needs it."""


def is_rank() -> bool:
    """True if msrun's variables make this process one of several ranks; its scheduler is none."""
    return os.environ.get("MS_WORKER_NUM", "1") not in ("", "1") and os.environ.get("MS_ROLE") != "MS_SCHED"


def end_as_rank(command: Callable[[], int]) -> NoReturn:
    """Run a command in the process of a rank, and end the process with its status, which is 1 after the traceback of a bug.

    What runs at exit is left out: taking down MindSpore's threads and sockets ends in SIGSEGV now and then, and the launcher would
    call a whole run a failed one. So whatever has to be written must be so when the command returns.
    """
    try:
        status = command()
    except SystemExit as asked:  # argparse, which has said why
        status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if status != 0:
        time.sleep(PAUSE)  # the others are to hear of it: `leave` was not called
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


PAUSE = 1.0
"""Seconds between the last word of all ranks and their end. A process that ends drops what its sockets have not delivered, and the
rank that waits for it then waits for half a minute and fails (seen with four ranks on two cores)."""
_TEXT = 2_000
"""Bytes of a text that ranks tell each other."""
_MARKS = 8
"""Numbers of 16 bits in a hash."""

ALONE = Ranks()
