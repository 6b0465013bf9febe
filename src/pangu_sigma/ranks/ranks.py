"""Ranks of a run as one process sees them: its rank number, and a few collectives of host values.

Every rank must call these collectives, in the same order, so whatever may fail on one rank alone (a disk, a missing file) runs
inside `fail_together`. On the CPU MindSpore waits half a minute for a late rank, whatever its settings; on Ascend, HCCL waits.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import numpy as np
import xxhash

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import UserError
from pangu_sigma.ranks.layout import axes_text
from pangu_sigma.sections import ParallelConfig


class RankError(UserError, RuntimeError):
    """Error if ranks disagree or another rank failed. The message says which rank, and where to look."""


class Ranks:
    """Rank number, number of ranks and host collectives of a run. This base class is a run of a single process."""

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """True on rank 0, which writes the files that are written once per run."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over all ranks, on each of them (all-reduce); several ranks compute it in float32."""
        return values

    def any(self, flag: bool) -> bool:
        """Return True if the flag is set on at least one rank. It is also a barrier."""
        return bool(self.sum(np.array([flag], np.float32))[0])

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks, in rank order, on each of them. values: uint8 or uint16, which float32 holds exactly, of
        the same shape on every rank."""
        rows = np.zeros((self.world, *values.shape), np.float32)
        rows[self.rank] = values
        return self.sum(rows).astype(values.dtype)

    def max(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return int(self.gather(np.array([number], np.int64).view(np.uint16)).view(np.int64).max())

    def texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order, on each of them. text: this rank's."""
        content = np.frombuffer(text.encode(), np.uint8)
        # every rank gathers as many chunks as the longest text needs; zeros pad the others
        chunks = np.zeros((1 + self.max(content.size) // _CHUNK, _CHUNK), np.uint8)
        chunks.flat[: content.size] = content
        rows = np.concatenate([self.gather(chunk) for chunk in chunks], axis=1)
        return [bytes(row).rstrip(b"\0").decode() for row in rows]

    def sum_here(self, number: int) -> int:
        """Return the sum of the numbers of all ranks on this host. number: this rank's."""
        own_host = socket.gethostname()
        pairs = [text.split(" ", 1) for text in self.texts(f"{number} {own_host}")]
        return sum(int(rank_number) for rank_number, host in pairs if host == own_host)

    @contextmanager
    def fail_together(self, activity: str) -> Iterator[None]:
        """Run the body of a `with` statement. If it fails on one rank, the others raise RankError. activity: for the message,
        such as "saving the checkpoint"."""
        try:
            yield
        except Exception:
            self.any(True)  # the other ranks wait for this flag at the end of their body
            raise
        if self.any(False):
            raise RankError(f"{activity} failed on another rank; its log says why")

    def agree(self, values: dict[str, str]) -> None:
        """Check that the texts `values` are equal on all ranks. Raises RankError on every rank if one differs from rank 0's."""
        own_digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in values.values())
        digests = self.gather(np.frombuffer(own_digests, np.uint16).reshape(len(values), -1))  # [ranks, values, 8]
        differs = (digests != digests[0]).any(axis=-1)
        if differs.any():
            rank, key = np.argwhere(differs)[0]
            raise RankError(
                f"rank {rank} was started with another {list(values)[key]} than rank 0; "
                "start all ranks with the same configuration file, --set options and prepared data"
            )

    def leave(self) -> None:
        """Wait at the end of a run until no rank needs another. Call this method last."""


def check_started_ranks(parallel: ParallelConfig) -> None:
    """Raise ConfigError if msrun's variables say that another number of ranks was started than `parallel` lays out."""
    count = int(os.environ.get("MS_WORKER_NUM") or 1)
    if count != parallel.ranks:
        raise ConfigError(
            f"the parallel section lays out {parallel.ranks} ranks ({axes_text(parallel)}), but {count} were started; start "
            f"{parallel.ranks} with `pangu-sigma launch`, or change the section"
        )


def is_rank() -> bool:
    """Return True if msrun's variables make this process one of several ranks; False in msrun's scheduler."""
    return os.environ.get("MS_WORKER_NUM", "1") not in ("", "1") and os.environ.get("MS_ROLE") != "MS_SCHED"


def end_as_rank(command: Callable[[], int]) -> NoReturn:
    """Run a command in a rank's process, and end the process with the status that the command returns, or 1 after an exception,
    whose traceback is printed."""
    try:
        status = command()
    except SystemExit as error:  # the command line has printed the reason
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if status != 0:
        # messages to other ranks may be on their way: only `leave`, which was not called, waits for them
        time.sleep(PAUSE)
    end_process(status)


def end_process(status: int) -> NoReturn:
    """End the process without its exit handlers. All files must be written before; the log and the streams are flushed here.

    The exit handlers take down MindSpore's threads and sockets. Now and then that ends in SIGSEGV, and the launcher would report
    the whole run as failed. Without free memory it aborts.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


PAUSE = 1.0
"""Seconds that a process waits between the last collective and its end. A process that ends drops what its sockets have not
delivered; the rank that waits for it then waits half a minute and fails (seen with four ranks on two cores)."""
_CHUNK = 2_000
"""Number of bytes that `Ranks.texts` gathers at once: MindSpore compiles a graph for each length, and memory may be scarce."""

SINGLE_PROCESS = Ranks()
"""The ranks of a run of one process."""
