"""A pass of a preparation, done by processes of this machine or by tasks of a Ray cluster.

Results are files of the stage, so an executor only calls a task for every unit that is left.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from pangu_sigma import errors
from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import UserError, argument
from pangu_sigma.process import child_environment

logger = logging.getLogger(__name__)

UnitTask = Callable[[int, Any], object]
"""Task of an executor: takes the number of a unit and the unit."""

WORKER_BYTES = 768 << 20
"""Memory of a worker process: programs, tables and frames of text as objects 200 MiB, and 500 MiB for the windows of a domain's
candidates (6 million tokens; measured)."""

_LITTLE_TEXT = 4 << 20
"""Bytes of input below which starting processes would take longer than they save."""

_IN_FLIGHT = 4
"""Number of units that are submitted at a time, times the workers."""

_RETRIES = 20
"""Number of times that Ray does a unit again whose process or node was lost: machines may come and go, but a unit that ends every
process it is in must not go on for ever."""

_CANCEL_SECONDS = 30
"""Seconds to wait for the end of units that Ray shall cancel."""


class StageError(UserError, RuntimeError):
    """Error of the stage of a preparation or of its workers; the text is not to blame."""


class LocalProcesses:
    """Executor in `workers` processes of this machine, which are started when needed; one worker is the calling process."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: connection.Connection | None = None  # the workers end when it is closed

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """Call a task for each of `units`, pairs of number and unit, in this process if workers would not help. name: name of the
        pass. total: number of its units, with those that have results. Raises what the task raises, and StageError if a worker
        process ends."""
        is_local = self.workers == 1 or len(units) < 2
        submit, limit = (_run_here, 1) if is_local else (self._submit, _IN_FLIGHT * self.workers)
        try:
            _run(partial(submit, task), units, limit, name, total)
        except BrokenProcessPool as error:
            raise StageError(
                f"{name}: a worker process was ended, perhaps for want of memory; the same command goes on where it was, "
                f"with fewer {argument('--workers')} if memory is short"
            ) from error

    def _submit(self, task: UnitTask, number: int, unit: Any) -> Future[object]:
        """Give a unit to the worker processes, which are started now if there are none."""
        with _detached_processes():  # also when the pool exists, because it starts workers when it gets units
            if self._pool is None:
                # not by fork: the threads of MindSpore, which the caller may have loaded, would not be there in the copy
                context = get_context("spawn")
                reader, self._lifeline = context.Pipe(duplex=False)
                self._pool = ProcessPoolExecutor(self.workers, context, _begin_worker, (reader, errors.on_command_line))
            return self._pool.submit(task, number, unit)

    def close(self) -> None:
        """End the processes at once: a unit may be a file that takes an hour."""
        if self._pool is not None and self._lifeline is not None:
            self._lifeline.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class Ray:
    """Executor whose units are Ray tasks on the cluster at `address`: where they run, and lost nodes, are Ray's matter.
    All nodes need this package, and the inputs and the stage on storage that they share. Raises ConfigError if Ray is not installed
    or there is no cluster."""

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"{argument('--ray')}: Ray is not installed; run: pip install ray==2.60.0") from error
        self._ray = ray
        self.workers = len(os.sched_getaffinity(0))  # of this machine, for what the caller's process does
        self._has_connected = not ray.is_initialized()  # else the caller had, and stays connected
        if self._has_connected:
            try:
                ray.init(address, log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"{argument('--ray')}={address}: there is no cluster ({error}); start one with `ray start --head`"
                ) from error

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """Call a task for each of `units`, pairs of number and unit, by Ray. name, total: as in `LocalProcesses.run`. Raises what
        the task raises, and StageError if the process or the node of a unit ends again and again."""
        ray, references = self._ray, dict[Future[object], Any]()  # Ray's reference of each unit that is not finished
        # Ray may repeat a unit at any time: what a lost node had not finished has left no result
        remote = ray.remote(_call).options(max_retries=_RETRIES, memory=WORKER_BYTES)
        shared = ray.put((task, Path.cwd(), errors.on_command_line))

        def submit(number: int, unit: Any) -> Future[object]:
            for finished in [future for future in references if future.done()]:
                del references[finished]
            reference = remote.remote(shared, number, unit)
            future: Future[object] = reference.future()
            references[future] = reference  # to cancel the unit by, as long as it runs
            return future

        try:
            _run(submit, units, _IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1))), name, total)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise StageError(f"{name}: Ray gave a unit up: {error}; the same command goes on where it was") from error
        finally:  # no unit writes into the stage any more
            running = [reference for future, reference in references.items() if not future.done()]
            for reference in running:
                ray.cancel(reference)  # not by force: Ray 2.60 may crash if the unit ends at that moment
            if running:
                ray.wait(running, num_returns=len(running), timeout=_CANCEL_SECONDS)

    def close(self) -> None:
        """Leave the cluster, unless the caller had connected before."""
        if self._has_connected:
            self._ray.shutdown()


def _call(shared: tuple[UnitTask, Path, bool], number: int, unit: Any) -> None:
    """Do a unit in a worker process of Ray. shared: task; working folder of the command, for relative paths; and whether the
    command line is used, so that messages name options as it does."""
    task, folder, errors.on_command_line = shared
    os.chdir(folder)
    task(number, unit)


Executor = LocalProcesses | Ray


def executor_of(workers: int | None, ray: str | None, memory_gib: float, size: int) -> Executor:
    """Return the executor that options ask for: Ray at the address `ray`, or `workers` processes of this machine; None: a number
    for the input. memory_gib: memory of all processes. size: bytes of the input. Raises ConfigError for wrong options."""
    if ray is not None and workers is not None:
        raise ConfigError(f"{argument('--ray')}: Ray decides what runs where; leave {argument('--workers')} out")
    if ray is not None:
        return Ray(ray)
    count = workers or (1 if size < _LITTLE_TEXT else len(os.sched_getaffinity(0)))
    max_workers = max(1, int(memory_gib * (1 << 30)) // WORKER_BYTES)
    if count > max_workers:
        logger.warning(
            "%d processes of %d MiB need more memory than data.memory_gib=%g; %d will work; raise the key if there is more",
            count, WORKER_BYTES >> 20, memory_gib, max_workers,
        )  # fmt: skip
    return LocalProcesses(min(count, max_workers))


def _run(
    submit: Callable[[int, Any], Future[object]], units: Sequence[tuple[int, Any]], limit: int, name: str, total: int
) -> None:
    """Submit units, pairs of number and unit, at most `limit` at a time, and wait for all. Raises what a unit raises. name, total:
    title of the progress bar, and the number of all units of the pass, of which others were done before."""
    running = set[Future[object]]()
    with Bar(desc=name, unit="unit", total=total, initial=total - len(units)) as bar:
        for index, (number, unit) in enumerate(units, 1):
            running.add(submit(number, unit))
            # wait until another unit may be submitted, and after the last one for all
            while running and (len(running) == limit or index == len(units)):
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    bar.update()


def _run_here(task: UnitTask, number: int, unit: Any) -> Future[object]:
    """Do a unit in this process, and return its result as a future."""
    future = Future[object]()
    future.set_result(task(number, unit))
    return future


@contextmanager
def _detached_processes() -> Iterator[None]:
    """Keep three things of this process from the processes that are started in the block.

    The main module: a worker would run a script without `if __name__ == "__main__"` a second time. The path of the working folder:
    a worker imports by itself before it gets the caller's `sys.path`. Ctrl-C, whose mask workers inherit: only the caller gets it.
    """
    main, environment = sys.modules["__main__"], os.environ.copy()
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        sys.modules["__main__"] = ModuleType("__main__")
        os.environ.update(child_environment())
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def _begin_worker(reader: connection.Connection, on_command_line: bool) -> None:
    """Make a worker process end when its parent closes the other end of a pipe, or ends in any way, even killed. reader: end of
    the pipe. on_command_line: value of the parent, so that messages name options as they do there."""
    errors.on_command_line = on_command_line
    parent = parent_process()
    assert parent is not None, "this is a worker"

    def end() -> None:
        connection.wait([reader, parent.sentinel])
        os._exit(1)  # also in the middle of a unit

    threading.Thread(target=end, daemon=True).start()
