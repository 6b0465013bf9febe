"""Launcher of one node: starts its ranks of a run, and watches them until the last has ended.

    check → meet the other nodes → start the ranks       a rank fails: stop all on all nodes, say why, start again if asked
                                                         the launcher is asked to stop: ranks save, then end

`rendezvous` holds the messages between launchers, `processes` the processes of a node, `heartbeat` how a hang is noticed.
Nothing here needs MindSpore, so that mistakes are reported at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pangu_sigma.children import child_environment
from pangu_sigma.errors import argument
from pangu_sigma.ranks.heartbeat import HEARTBEATS_VARIABLE, Watchdog, write_stacks
from pangu_sigma.ranks.processes import SCHEDULER_COMMAND, LaunchError, Processes, rank_variables
from pangu_sigma.ranks.rendezvous import Peers, Stop, listen, rendezvous

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8118
"""Default port of MindSpore's scheduler."""

_CONNECT_SECONDS = 600
"""Seconds that a rank waits until all ranks have started and connected."""
_POLL_SECONDS = 0.1
_FAILED_GRACE_SECONDS = 3.0
"""Seconds between SIGTERM and SIGKILL after a failure: ranks that wait for the lost one can only be killed."""
_MOST_RESTARTS, _MOST_SECONDS = 1_000_000, 86_400.0 * 365
_SHOWN = ("ASCEND_", "GLOG_", "HCCL_", "LD_LIBRARY_PATH", "MS_", "OMP_", "PYTHONPATH")
"""Prefixes of environment variables that MindSpore, CANN and HCCL read; `dry_run` prints them and those set here."""


@dataclass(frozen=True)
class Devices:
    """Accelerators of the ranks, one for each, and what a launch does for them. Cores are bound to ranks.

    title: name for messages, such as `Ascend 910A`. key: the configuration's key and value that choose them.
    per_node: number of devices of one node. environment: variables of the ranks, unless they are set already.
    check: function from the number of a node's ranks; it raises LaunchError if this node cannot run so many.
    """

    title: str
    key: str
    per_node: int
    environment: Mapping[str, str]
    check: Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """Launch of a run's ranks on one or several nodes.

    command: the command that every rank runs.
    logs: folder of the logs; every start makes a folder in it.
    ranks: number of ranks of the whole run.
    node, nodes: number of this node, and number of nodes.
    address, port: address of the scheduler, on node 0; with several nodes the launchers use the next port.
    facts: values that must be equal on all nodes, by name; they are compared if there are several nodes.
    devices: accelerators of the ranks; None: ranks compute on CPUs, and share the cores of their node.
    restarts: number of times to start again after a failure.
    grace: seconds that ranks get to save when the launch is asked to stop.
    wait: seconds to wait for the other nodes.
    hang_timeout: limit in seconds of one activity of a rank: a step, a save, the compilation of the first step; 0: no limit.
    """

    command: list[str]
    logs: Path
    ranks: int
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    devices: Devices | None = None
    restarts: int = 0
    grace: float = 10.0
    wait: float = 300.0
    hang_timeout: float = 1800.0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def local(self) -> int:
        """Number of ranks on each node."""
        return self.ranks // self.nodes

    @property
    def ranks_here(self) -> range:
        """Numbers of the ranks on this node."""
        return range(self.node * self.local, (self.node + 1) * self.local)


def launch(job: Job) -> int:
    """Run a job to its end and return the exit status.

    0: all ranks ended well, also if they were asked to stop.
    1: a failure remained after all restarts, or ranks that were asked to stop did not end in time.
    2: a rank reported an error that only the user can fix.
    Raises LaunchError for errors that are found before ranks start.
    """
    check_job(job)
    check_ports(job)
    launched = time.strftime("%Y%m%d-%H%M%S")
    with socket.socket(socket.AF_UNIX) as lock:  # the scheduler takes the port only when it has loaded MindSpore
        try:
            lock.bind(f"\0pangu_sigma_port_{job.port}_node_{job.node}")
        except OSError:
            raise LaunchError(
                f"another launch uses port {job.port} here; choose another {argument('--master-port')}"
            ) from None
        for start in range(job.restarts + 1):
            if start > 0:
                logger.info("starting again: %d of %d times", start, job.restarts)
            try:
                status, again = _run_once(job, f"{launched}.{start}")
            except KeyboardInterrupt:  # only while it waits for other nodes: later it is a signal like others
                raise LaunchError("interrupted") from None
            if not again:
                break
    return status


def dry_run(job: Job) -> str:
    """Return a shell script of the commands that `launch` would start on each node. Raises LaunchError for wrong numbers."""
    check_numbers(job)
    all_of_it = sorted(_environment(job).items())
    environment = {k: v for k, v in all_of_it if k.startswith(_SHOWN) or os.environ.get(k) != v}
    lines = ["# on every node", *(f"export {name}={shlex.quote(value)}" for name, value in environment.items())]
    if job.devices:
        lines[0] += (
            f": {job.local} of the {job.devices.per_node} {job.devices.title} of a server, each with its share of the cores"
        )
    for node in range(job.nodes):
        ranks = replace(job, node=node).ranks_here
        lines += ["", f"# node {node} of {job.nodes}: ranks {ranks.start} … {ranks.stop - 1}"]
        if node == 0:
            lines.append(f"MS_ROLE=MS_SCHED {shlex.join(SCHEDULER_COMMAND)} &")
        variables = " ".join(f"{k}={v}" for k, v in rank_variables("$rank", f"$((rank-{ranks.start}))").items())
        log = f"{shlex.quote(str(job.logs))}/START/worker_$rank.log"
        start = f"{variables} {shlex.join(job.command)} >{log} 2>&1 &"
        lines.append(f"for rank in $(seq {ranks.start} {ranks.stop - 1}); do {start} done")
    return "\n".join(lines)


def check_job(job: Job) -> None:
    """Raise LaunchError if this node cannot launch the job."""
    check_numbers(job)
    if job.devices:
        job.devices.check(job.local)


def check_ports(job: Job) -> None:
    """Raise LaunchError if a port of the job, on node 0, is in use. Another program may hold it for a moment only."""
    if job.node == 0:
        for port in (job.port, job.port + 1)[: job.nodes]:
            listen(job.address, port).close()


def check_numbers(job: Job) -> None:
    """Raise LaunchError if the numbers of ranks, nodes, ports or seconds of a job are wrong on any node."""
    if job.nodes < 1 or job.ranks % job.nodes:
        raise LaunchError(
            f"{job.ranks} processes cannot be divided among {job.nodes} nodes: every node runs the same number; use a divisor"
        )
    if job.devices:
        _check_room(job, job.devices)
    for name, value, least, most in (
        ("--node-rank", job.node, 0, job.nodes - 1),
        ("--master-port", job.port, 1024, 65_534),  # the next one is used too
        ("--max-restarts", job.restarts, 0, _MOST_RESTARTS),
        ("--grace", job.grace, 0, _MOST_SECONDS),
        ("--wait", job.wait, 0, _MOST_SECONDS),
        ("--hang-timeout", job.hang_timeout, 0, _MOST_SECONDS),
    ):
        if not least <= value <= most:  # nor is NaN
            raise LaunchError(f"{argument(name)} {value:.9g} is not allowed: {least} to {most:.0f}")


def _check_room(job: Job, devices: Devices) -> None:
    """Raise LaunchError if the job has more ranks per node than a node has devices."""
    most = devices.per_node
    if job.local > most:
        nodes = next(n for n in range(job.nodes, job.ranks + 1) if job.ranks % n == 0 and job.ranks // n <= most)
        raise LaunchError(
            f"{argument('--nodes')} {job.nodes}: the parallel section lays out {job.ranks} ranks, {job.local} on each node, and "
            f"a server of {devices.title} ({devices.key}) has {most} NPUs; use {argument('--nodes')} {nodes}, or fewer ranks"
        )


def _environment(job: Job) -> dict[str, str]:
    """Return the environment of scheduler and ranks, but for what differs between them. A rank's output is in its log at once."""
    environment = {
        **child_environment(),
        "PYTHONUNBUFFERED": "1",
        "MS_WORKER_NUM": str(job.ranks),
        "RANK_SIZE": str(job.ranks),
        "MS_SCHED_HOST": job.address,
        "MS_SCHED_PORT": str(job.port),
        "MS_TOPO_TIMEOUT": str(_CONNECT_SECONDS),
    }
    if job.devices:
        return {**job.devices.environment, **environment}
    # ranks share the cores; on Ascend each is bound to its own
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // job.local)))
    return environment


def _run_once(job: Job, name: str) -> tuple[int, bool]:
    """Start the ranks once, and wait until they end. Returns the exit status, and True if a restart may mend a failure."""
    facts = {**job.facts, "--nodes": str(job.nodes), "ranks": str(job.ranks), "--max-restarts": str(job.restarts)}
    with rendezvous(job.node, job.nodes, job.address, job.port + 1, facts, name, job.wait) as peers:
        folder = job.logs / peers.folder
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("node %d: %d ranks, logs in %s", job.node, job.local, folder)
        environment = _environment(job) | {
            HEARTBEATS_VARIABLE: str(folder),
            "MS_SCHED_HOST": socket.gethostbyname(job.address),  # MindSpore takes no names
        }
        with (
            _stops_by_signal(job.node) as signals,
            Processes(job.command, environment, folder, job.ranks_here, bool(job.devices)) as processes,
            open(processes.log("rank 0") if job.node == 0 else os.devnull, "rb") as output,
        ):
            stop = _watch(processes, peers, signals, Watchdog(folder, job.hang_timeout), output)
            if stop is None:
                return 0, False
            logger.error("%s; stopping all ranks", stop.reason)
            peers.tell(stop)
            well = _end(processes, signals, _FAILED_GRACE_SECONDS if stop.status else job.grace)
            _show(output)
    return (stop.status, stop.status == 1) if stop.status else (int(not well), False)


def _watch(
    processes: Processes, peers: Peers, signals: list[Stop], watchdog: Watchdog, output: IO[bytes]
) -> Stop | None:
    """Wait until the ranks of all nodes have ended well (None), or until there is a reason to stop them. output: rank 0's log."""
    while not peers.ended:
        stop = _failure(processes, watchdog) or next(iter(signals), None) or peers.wait(_POLL_SECONDS)
        _show(output)
        if stop:
            return stop
        if not processes.ranks:
            peers.done()
    return None


def _show(output: IO[bytes]) -> None:
    """Copy what was added to a log to standard output."""
    shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.flush()


def _failure(processes: Processes, watchdog: Watchdog) -> Stop | None:
    """Return the first failure of a process as a reason to stop, or ranks that hang; log the ends of the logs that tell more."""
    failures, reason, status = processes.failures(), watchdog.hung(processes.ranks), 1
    stacks = bool(reason)
    if failures:
        first = failures[0]
        log_end = processes.last_lines(first.name)
        logger.error("%s (%s); the end of %s:\n%s", first, socket.gethostname(), processes.log(first.name), log_end)
        # MindSpore's scheduler gives a stopped rank up after 30 s and fails without naming the rank
        stopped = watchdog.stopped(processes.ranks)
        reason, status = f"{first}" + f" and {stopped}" * bool(stopped), 2 if first.status == 2 else 1
        stacks = bool(stopped)
    if stacks:
        write_stacks(processes.ranks)
        for name in (f"rank {rank}" for rank in processes.ranks):
            logger.error("the end of %s:\n%s", processes.log(name), processes.last_lines(name))
    return Stop(f"{reason} ({socket.gethostname()})", status) if reason else None


def _end(processes: Processes, signals: list[Stop], grace: float) -> bool:
    """Terminate the ranks; kill the rest after `grace` seconds or a second signal. Returns True if all ended well."""
    processes.terminate()
    deadline = time.monotonic() + grace
    failures = []
    while processes.ranks and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(_POLL_SECONDS)
        failures += processes.failures()
    for rank in processes.ranks:
        logger.warning("rank %d did not end within %g s of SIGTERM: killed", rank, grace)
    for failure in failures:
        logger.warning("%s when it was to end", failure)
    return not failures and not processes.ranks


@contextmanager
def _stops_by_signal(node: int) -> Iterator[list[Stop]]:
    """Yield a list that gets a reason to stop for every signal that asks the launcher to stop while ranks run. Before and after,
    such a signal simply ends the launcher."""
    stops: list[Stop] = []

    def note(number: int, _: object) -> None:
        stops.append(Stop(f"node {node} ({socket.gethostname()}) got {signal.Signals(number).name}", 0))

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # `nohup` means it
    for number in handled:
        signal.signal(number, note)
    try:
        yield stops
    finally:
        for number in handled:
            signal.signal(number, before[number])
