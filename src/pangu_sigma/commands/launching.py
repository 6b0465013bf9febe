"""Training on many processes, NPUs or nodes: launch."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.commands.options import add_command, with_chip
from pangu_sigma.commands.training import config_and_run, with_run
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import override, read_tree
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.shipped import config_path
from pangu_sigma.writable import check_folder_writable

if TYPE_CHECKING:
    from pangu_sigma.launching.launch import Job

logger = logging.getLogger(__name__)


def add_commands(commands: Any) -> None:
    """Declare this command."""
    command = with_run(
        add_command(
            commands,
            "launch",
            _launch,
            "train on many processes, NPUs or nodes, and watch over them",
            "sigma_tiny --processes 2 --set parallel.data=2",
            "sigma_1t --ascend --nodes 64 --node-rank 0 --master-address 10.0.0.1 --restarts 3",
            "sigma_1t --ascend --chip 910b --nodes 64 --dry-run",
        )
    )
    with_chip(command)
    command.add_argument(
        "--processes", type=int, metavar="N", help="how many you count on: refused if not the configuration's"
    )
    command.add_argument("--nodes", type=int, default=1, metavar="N")
    command.add_argument("--node-rank", type=int, metavar="R", help="0 … N - 1; node 0 has the master's address")
    command.add_argument("--master-address", metavar="HOST", help="an address of node 0 that all nodes reach")
    command.add_argument(
        "--master-port", type=int, default=8118, metavar="PORT", help="with several nodes, the next one too"
    )
    command.add_argument("--ascend", action="store_true", help="one NPU for each process; bind cores to processes")
    command.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="after a failure, go on from the last checkpoint"
    )
    command.add_argument("--grace", type=float, default=10.0, metavar="S", help="seconds to save in when asked to stop")
    command.add_argument("--wait", type=float, default=300.0, metavar="S", help="seconds to wait for the other nodes")
    command.add_argument(
        "--hang-timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="seconds without progress after which ranks count as hung; 0: never",
    )
    command.add_argument("--dry-run", action="store_true", help="print what each node would start, and start nothing")


def _launch(options: argparse.Namespace) -> int:
    if options.ascend and options.chip is None:
        _choose_chip(options)
    config, run = config_and_run(options)
    if config is None:
        return 0
    from pangu_sigma.checkpoint.run_folder import Asked, check_start
    from pangu_sigma.launching.launch import check_job, dry_run, launch
    from pangu_sigma.launching.training import check_ranks, start_over_once, training_facts

    check_ranks(config, options.processes)
    job = _job(config, run, options)
    if options.dry_run:
        print(dry_run(job))
        return 0
    check_job(job)
    check_folder_writable(job.logs.parent, "--run")
    if not options.ascend:
        check_training_fits(config, job.local)
    check_start(run, config, Asked(options.start_over, options.other_data))
    if options.start_over and job.node == 0:
        start_over_once(run, not options.no_lock)
    return launch(replace(job, facts=training_facts(config)) if job.nodes > 1 else job)


def _choose_chip(options: argparse.Namespace) -> None:
    """Let PANGU_SIGMA_CHIP name the chip where no --set does; else the configuration; else npu-smi. What is chosen is a --set."""
    from pangu_sigma.launching.environment import chip_in_environment, chip_of_host
    from pangu_sigma.launching.host.access import Host

    if _names_a_chip(override({}, options.set)):
        return
    host = Host()
    chosen = chip_in_environment(host.environment)
    if chosen is None and options.config is not None and not _names_a_chip(read_tree(config_path(options.config))):
        chosen = chip_of_host(host)
    if chosen is not None:
        logger.info("chip %s, said by %s", chosen.name, chosen.by)
        options.set = [*options.set, f"parallel.chip={chosen.name}"]


def _names_a_chip(tree: dict[str, Any]) -> bool:
    parallel = tree.get("parallel")
    return isinstance(parallel, dict) and "chip" in parallel


def _job(config: Config, run: Path, options: argparse.Namespace) -> Job:
    from pangu_sigma.launching.launch import Job
    from pangu_sigma.launching.training import training_command

    node, address = options.node_rank, options.master_address
    if options.nodes > 1 and not options.dry_run:
        for name, value in (("--node-rank", node), ("--master-address", address)):
            if value is None:
                raise ConfigError(
                    f"{name} is missing: with --nodes {options.nodes} each is told its rank and where node 0 is"
                )
    return Job(
        command=training_command(options.config, run, options.set, options.ascend, options.other_data, options.no_lock),
        logs=run / "logs",
        ranks=config.parallel.ranks,
        nodes=options.nodes,
        node=node or 0,
        address=address or ("MASTER" if options.nodes > 1 else "127.0.0.1"),
        port=options.master_port,
        ascend=options.ascend,
        chip=config.parallel.chip,
        restarts=options.restarts,
        grace=options.grace,
        wait=options.wait,
        hang_timeout=options.hang_timeout,
    )
