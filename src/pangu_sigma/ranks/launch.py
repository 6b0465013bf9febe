"""Launcher of one node: starts its ranks of a run with `msrun`, and watches them until the last has ended.

    check → meet the other nodes → msrun → ranks         a rank fails: stop all on all nodes, say why, start again if asked
                                                         the launcher is asked to stop: ranks save, then end

`rendezvous` holds the messages between launchers, `processes` the processes of a node, `worker` the program that msrun starts.
Nothing here needs MindSpore, so that mistakes are reported at once.
"""

from __future__ import annotations

import codecs
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pangu_sigma.errors import argument
from pangu_sigma.process import child_environment, recorded_signals
from pangu_sigma.ranks.heartbeat import HEARTBEATS_VARIABLE
from pangu_sigma.ranks.processes import LaunchError, Processes
from pangu_sigma.ranks.rendezvous import Peers, Stop, listening_socket, rendezvous
from pangu_sigma.ranks.watchdog import Watchdog

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8118
"""Default port of MindSpore's scheduler."""

_POLL_SECONDS = 0.1
_FAILED_GRACE_SECONDS = 3.0
"""Seconds between SIGTERM and SIGKILL after a failure: ranks that wait for the lost one can only be killed."""


@dataclass(frozen=True)
class Devices:
    """Accelerators of the ranks, one for each, and what a launch does for them. `msrun` binds each rank to the cores near its
    device where it knows them.

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

    @property
    def gate(self) -> Path:
        """Lock file that ranks wait for before they start. It is on the node's own disk: not every shared file system has locks."""
        return Path(tempfile.gettempdir()) / f"pangu_sigma_{os.getuid()}" / f"port_{self.port}_node_{self.node}.gate"

    def msrun(self, folder: Path) -> list[str]:
        """Return the command that starts this node's ranks with `msrun`, MindSpore's launcher. folder: folder of their logs."""
        return [
            "msrun",
            f"--worker_num={self.ranks}",
            f"--local_worker_num={self.local}",
            f"--master_addr={self.address}",
            f"--master_port={self.port}",
            f"--node_rank={self.node}",
            f"--log_dir={folder}",
            "--join=False",  # it only starts the ranks: see `processes`
            *(["--bind_core=True"] if self.devices else []),
            *["python", "-m", "pangu_sigma.ranks.worker", str(self.gate), *self.command],
        ]


def launch(job: Job) -> int:
    """Run a job to its end and return the exit status. `check_job` and `check_ports` come before.

    0: all ranks ended well, also if they were asked to stop.
    1: a failure remained after all restarts, or ranks that were asked to stop did not end in time.
    2: a rank reported an error that only the user can fix.
    Raises LaunchError for errors that are found before ranks start.
    """
    launch_time = time.strftime("%Y%m%d-%H%M%S")
    for start in range(job.restarts + 1):
        if start > 0:
            logger.info("starting again: %d of %d times", start, job.restarts)
        try:
            status, may_restart = _run_ranks(job, f"{launch_time}.{start}")
        except KeyboardInterrupt:  # only while it waits for other nodes: later it is a signal like others
            raise LaunchError("interrupted") from None
        if not may_restart:
            break
    return status


def dry_run(job: Job) -> str:
    """Return a shell script of the commands that `launch` would start on each node, with the variables that it adds to this
    shell's. Raises LaunchError for wrong numbers."""
    check_numbers(job)
    device_names = job.devices.environment.keys() if job.devices else ()
    variables = {k: v for k, v in _environment(job).items() if k in device_names or os.environ.get(k) != v}
    if job.devices:
        variables.pop("OMP_NUM_THREADS", None)  # each node sets it by the number of its cores
    lines = ["# on every node", *(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))]
    if job.devices:
        lines[0] += f": {job.local} of the {job.devices.per_node} {job.devices.title} of a server"
    for node in range(job.nodes):
        node_job = replace(job, node=node)
        ranks = node_job.ranks_here
        lines += ["", f"# node {node} of {job.nodes}: ranks {ranks.start} … {ranks.stop - 1}"]
        lines.append(shlex.join(node_job.msrun(job.logs / "START")))
    return "\n".join(lines)


def check_job(job: Job) -> None:
    """Raise LaunchError if this node cannot launch the job."""
    check_numbers(job)
    if shutil.which("msrun", path=_environment(job)["PATH"]) is None:
        raise LaunchError("msrun is not on PATH; it comes with MindSpore: pip install pangu-sigma")
    if job.devices:
        job.devices.check(job.local)


def check_ports(job: Job) -> None:
    """Raise LaunchError if a port of the job, on node 0, is in use. Another program may hold it for a moment only."""
    if job.node == 0:
        # at the next port the launchers of several nodes meet
        for port in [job.port] if job.nodes == 1 else [job.port, job.port + 1]:
            listening_socket(job.address, port).close()


def check_numbers(job: Job) -> None:
    """Raise LaunchError if the numbers of ranks, nodes or ports of a job are wrong on any node."""
    if job.nodes < 1 or job.ranks % job.nodes:
        raise LaunchError(
            f"{job.ranks} processes cannot be divided among {job.nodes} nodes: every node runs the same number; use a divisor"
        )
    devices = job.devices
    if devices is not None and job.local > devices.per_node:
        limit = devices.per_node
        nodes = next(n for n in range(job.nodes, job.ranks + 1) if job.ranks % n == 0 and job.ranks // n <= limit)
        raise LaunchError(
            f"{argument('--nodes')} {job.nodes}: the parallel section lays out {job.ranks} ranks, {job.local} on each node, and "
            f"a server of {devices.title} ({devices.key}) has {limit} NPUs; use {argument('--nodes')} {nodes}, or fewer ranks"
        )
    for option, value, minimum, maximum in (
        ("--node-rank", job.node, 0, job.nodes - 1),
        ("--master-port", job.port, 1024, 65_534),  # the next one is used too
    ):
        if not minimum <= value <= maximum:
            raise LaunchError(f"{argument(option)} {value} is not allowed: {minimum} to {maximum}")


def _environment(job: Job) -> dict[str, str]:
    """Return the environment of msrun and the ranks. In it the program `python` is this process's Python, and Python does not
    buffer output, so that a rank's log has it at once. Ranks share the cores of their node."""
    return {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // job.local)),
        **(job.devices.environment if job.devices else {}),
        **child_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def _run_ranks(job: Job, name: str) -> tuple[int, bool]:
    """Start the ranks once, and wait until they end. Returns the exit status, and True if a restart may mend a failure. name: name
    of the log folder; other nodes use the name of node 0."""
    facts = {**job.facts, "--nodes": str(job.nodes), "ranks": str(job.ranks), "--max-restarts": str(job.restarts)}
    with rendezvous(job.node, job.nodes, job.address, job.port + 1, facts, name, job.wait) as peers:
        folder = job.logs / peers.folder
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("node %d: %d ranks, logs in %s", job.node, job.local, folder)
        environment = _environment(job) | {HEARTBEATS_VARIABLE: str(folder)}
        with (
            recorded_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
            Processes(job.msrun(folder), environment, job.gate, folder, job.ranks_here) as processes,
        ):
            watchdog = Watchdog(folder, job.hang_timeout)
            follower = _Follower(processes.log_path("rank 0") if job.node == 0 else Path(os.devnull))
            stop = _watch(job.node, processes, peers, signals, watchdog, follower)
            if stop is None:
                return 0, False
            logger.error("%s; stopping all ranks", stop.reason)
            peers.send_stop(stop)
            ended_well = _end_ranks(processes, signals, _FAILED_GRACE_SECONDS if stop.status else job.grace)
            follower.copy()
    # if the user asked for the stop (status 0), ranks that did not end well make a failure, after which nothing is started again
    return stop.status or int(not ended_well), stop.status == 1


def _watch(
    node: int,
    processes: Processes,
    peers: Peers,
    signals: list[signal.Signals],
    watchdog: Watchdog,
    follower: _Follower,
) -> Stop | None:
    """Wait until the ranks of all nodes have ended well, or until there is a reason to stop them. Return the reason, else None.
    node: number of this node. signals: signals to stop that this launcher has got so far; a handler appends them."""
    is_reported = False
    while not peers.all_done:
        request = Stop(f"node {node} ({socket.gethostname()}) got {signals[-1].name}", 0) if signals else None
        stop = _failure(processes) or request or _hang(processes, watchdog) or peers.wait(_POLL_SECONDS)
        follower.copy()
        if stop:
            return stop
        if not is_reported and not processes.running_names:
            peers.report_done()
            is_reported = True
    return None


def _failure(processes: Processes) -> Stop | None:
    """Return the reason to stop if a process has failed, else None; log the last lines of the first that failed."""
    failures = processes.failures()
    if not failures:
        return None
    failure = failures[0]
    logger.error("%s (%s); %s", failure, socket.gethostname(), processes.log_end(failure.name))
    return Stop(f"{failure} ({socket.gethostname()})", 2 if failure.status == 2 else 1)


def _hang(processes: Processes, watchdog: Watchdog) -> Stop | None:
    """Return the reason to stop if ranks hang, else None; log the last lines of all ranks, where their stacks are."""
    message = watchdog.hang_message(processes.ranks)
    if message is None:
        return None
    for rank in processes.ranks:
        logger.error("%s", processes.log_end(f"rank {rank}"))
    return Stop(f"{message} ({socket.gethostname()})", 1)


def _end_ranks(processes: Processes, signals: list[signal.Signals], grace: float) -> bool:
    """Ask the ranks to end, and wait for them until `grace` seconds are over or `signals` has a second signal. Returns True if all
    ended well. Ranks that still run are killed later, at the end of the `with` block of `processes`."""
    processes.terminate()
    begin = time.monotonic()
    failures = []
    while processes.running_names and time.monotonic() < begin + grace and len(signals) < 2:
        time.sleep(_POLL_SECONDS)
        failures += processes.failures()
    for name in processes.running_names:
        logger.warning("%s had not ended %.0f s after SIGTERM: killed", name, time.monotonic() - begin)
    for failure in failures:
        logger.warning("%s when it was to end", failure)
    return not failures and not processes.running_names


class _Follower:
    """Follower of a rank's log, which copies the log to standard output. This may be a notebook's stream or a `StringIO`."""

    def __init__(self, log: Path):
        self._log, self._position = log, 0
        # ranks write in the encoding of this stream; bytes that are no text become ASCII, which every stream can write
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        self._decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")

    def copy(self) -> None:
        """Copy to standard output the text that was added to the log since the last call."""
        if self._log.exists():
            with open(self._log, "rb") as file:
                file.seek(self._position)
                sys.stdout.write(self._decoder.decode(file.read()))
                self._position = file.tell()
            sys.stdout.flush()
