"""Executors of a pass of a preparation: processes of this machine, a share of the units for this machine, or Ray tasks.

Results are files of the stage, so an executor only calls the function of the pass for every unit that is left.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.children import child_environment
from pangu_sigma.config import ConfigError
from pangu_sigma.data.prepare.stages.stage import Executor, StageError, UnitTask
from pangu_sigma.errors import argument

logger = logging.getLogger(__name__)

WORKER_BYTES = 768 << 20
"""Memory of a worker process: programs, tables and frames of text as objects 200 MiB, and 500 MiB for the windows of a domain's
candidates (6 million tokens; measured)."""

_IN_FLIGHT = 4
"""Number of units that are submitted at a time, times the workers."""

_RETRIES = 20
"""Number of times that Ray does a unit again whose process or node was lost: machines may come and go, but a unit that ends every
process it is in must not go on for ever."""

_CANCEL_SECONDS = 30
"""Seconds to wait for the end of units that Ray shall cancel."""


class ShareDone(Exception):
    """The share of this machine of a pass is done, and others may not be: the message says what comes next."""


class LocalProcesses:
    """Executor in `workers` processes of this machine, which are started when needed; one worker is the calling process."""

    shared = False

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._life: connection.Connection | None = None  # the workers end when it is closed

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """See `Executor`. Raises StageError if a worker process ends."""
        with Bar(desc=name, unit="unit", total=total, initial=total - len(units)) as bar:
            if self.workers == 1 or len(units) < 2:
                for number, unit in units:
                    task(number, unit)
                    bar.update()
                return
            try:
                _in_flight(self._submit, task, units, _IN_FLIGHT * self.workers, bar)
            except BrokenProcessPool as error:
                raise StageError(
                    f"{name}: a worker process was ended, perhaps for want of memory; the same command goes on where it was, "
                    f"with fewer {argument('--workers')} if memory is short"
                ) from error

    def _submit(self, task: UnitTask, number: int, unit: Any) -> Future[None]:
        with _without_main(), _without_interrupts(), _safe_path():
            if self._pool is None:  # in here, because it starts a process that tracks resources
                # not by fork: the threads of MindSpore, which the caller may have loaded, would not be there in the copy
                context = get_context("spawn")
                ended, self._life = context.Pipe(duplex=False)
                self._pool = ProcessPoolExecutor(self.workers, context, _begin_worker, (ended,))
            return self._pool.submit(task, number, unit)

    def close(self) -> None:
        """End the processes at once: a unit may be a file that takes an hour."""
        if self._pool is not None and self._life is not None:
            self._life.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class MachineShare:
    """Executor of this machine's share, the units whose number modulo `of` is `number`; it ends the preparation with ShareDone."""

    shared = True

    def __init__(self, number: int, of: int, inside: Executor) -> None:
        self.number, self.of, self._inside = number, of, inside

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """See `Executor`. Raises ShareDone unless every unit has a result."""
        if not units:
            return
        own = [(number, unit) for number, unit in units if number % self.of == self.number]
        self._inside.run(task, own, name, len(own))
        raise ShareDone(
            f"pass {name}: share {self.number}/{self.of} is done, {len(own):,} of {total:,} units now; when all shares have ended, "
            f"call the same again for the next pass, or once with {argument('--merge')}, which does all that is left"
        )

    def close(self) -> None:
        """End what was started."""
        self._inside.close()


class Ray:
    """Executor whose units are Ray tasks on the cluster at `address`: where they run, and lost nodes, are Ray's matter.

    All nodes need this package, and the inputs and the stage on storage that they share. Raises ConfigError if Ray is not installed
    or there is no cluster.
    """

    shared = False

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"{argument('--ray')}: Ray is not installed; run: pip install ray==2.60.0") from error
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address, log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"{argument('--ray')}={address}: there is no cluster ({error}); start one with `ray start --head`"
                ) from error

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """See `Executor`. Raises StageError if the process or the node of a unit ends again and again."""
        ray, running = self._ray, list[Any]()
        # a lost node loses only units without a result, so that doing them again is right at any time
        remote = ray.remote(_call).options(max_retries=_RETRIES, memory=WORKER_BYTES)
        shared = ray.put((task, Path.cwd()))
        most = _IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            with Bar(desc=name, unit="unit", total=total, initial=total - len(units)) as bar:
                for number, unit in units:
                    running.append(remote.remote(shared, number, unit))
                    if len(running) == most:
                        self._wait(running, bar)
                while running:
                    self._wait(running, bar)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise StageError(f"{name}: Ray gave a unit up: {error}; the same command goes on where it was") from error
        finally:
            self._cancel(running)

    def _wait(self, running: list[Any], bar: Bar) -> None:
        """Wait for one unit, and take it out of those that are running. Raises what Ray raises."""
        (done, *_), rest = self._ray.wait(running)
        running[:] = rest
        self._ray.get(done)
        bar.update()

    def _cancel(self, running: list[Any]) -> None:
        """End units, so that none writes into the stage any more."""
        for each in running:
            self._ray.cancel(each)  # not by force: Ray 2.60 itself may end then, of a unit that is done at that moment
        if running:
            self._ray.wait(running, num_returns=len(running), timeout=_CANCEL_SECONDS)

    def close(self) -> None:
        """Leave the cluster."""
        if self._own:
            self._ray.shutdown()


def _call(shared: tuple[UnitTask, Path], number: int, unit: Any) -> None:
    """Do a unit in the working folder of the command, for paths that are relative to it."""
    task, folder = shared
    os.chdir(folder)
    task(number, unit)


def executor_of(workers: int | None, shard: str | None, ray: str | None, memory_gib: float) -> Executor:
    """Return the executor that options ask for. memory_gib: that of all processes. Raises ConfigError for wrong options."""
    if workers is not None and workers < 1:
        raise ConfigError(f"{argument('--workers')}={workers}: is no number of processes; give 1 or more")
    if ray is not None and (shard is not None or workers is not None):
        raise ConfigError(
            f"{argument('--ray')}: Ray decides what runs where; leave {argument('--workers')} and {argument('--shard')} out"
        )
    cores = len(os.sched_getaffinity(0))
    fitting = max(1, int(memory_gib * (1 << 30)) // WORKER_BYTES)
    if ray is not None:
        return Ray(ray)
    count = workers or min(cores, fitting)
    if count > fitting or (workers is None and cores > fitting):
        logger.warning(
            "%d processes of %d MiB need more memory than data.memory_gib=%g; %d will work; raise the key if there is more",
            workers or cores, WORKER_BYTES >> 20, memory_gib, fitting,
        )  # fmt: skip
        count = fitting
    if shard is None:
        return LocalProcesses(count)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"{argument('--shard')}={shard}: is no share; give i/n, with i from 0 to n - 1, as 0/8")
    return MachineShare(int(match[1]), int(match[2]), LocalProcesses(count))


def _in_flight(
    submit: Callable[[UnitTask, int, Any], Future[None]],
    task: UnitTask,
    units: Sequence[tuple[int, Any]],
    most: int,
    bar: Bar,
) -> None:
    """Submit units, at most so many at a time, and wait for all. Raises what a unit raises; nothing more is submitted then."""
    running: set[Future[None]] = set()
    left = iter(units)
    while True:
        for number, unit in left:
            running.add(submit(task, number, unit))
            if len(running) == most:
                break
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            bar.update()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module: a worker would run a script without `if __name__ == "__main__"` a second time."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _safe_path() -> Iterator[None]:
    """Start processes in `child_environment`: a worker imports by itself before it gets the caller's `sys.path`."""
    before = os.environ.copy()
    changed = {name: value for name, value in child_environment().items() if before.get(name) != value}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            del os.environ[name]
            os.environ.update({name: before[name]} if name in before else {})


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Put off Ctrl-C, and leave it to the caller alone: a process that is started here never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(ended: connection.Connection) -> None:
    """Make a worker process end when the other side of a pipe is closed, and with its parent, even with a killed one."""
    parent = parent_process()
    assert parent is not None, "this is a worker"

    def end() -> None:
        connection.wait([ended, parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
