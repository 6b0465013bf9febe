"""Training as a launcher job, and the facts that its nodes must agree on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pangu_sigma.arguments import AnyPath, AtLeastOne, Overrides, checked, overrides_of, resolve_run
from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.host_memory import check_training_fits
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.host.environment import devices_of
from pangu_sigma.ranks import launch as ranks_launch
from pangu_sigma.writable import check_folder_writable, refuse_link

logger = logging.getLogger(__name__)


@checked
def launch(
    config: AnyPath,
    output: AnyPath | None = None,
    *,
    device: Literal["cpu", "ascend"] = "cpu",
    start_over: bool = False,
    from_step: int | None = None,
    allow_data_change: bool = False,
    nodes: AtLeastOne = 1,
    node_rank: int | None = None,
    master_address: str | None = None,
    master_port: int = ranks_launch.DEFAULT_PORT,
    max_restarts: int = 0,
    grace: float = 10.0,
    wait: float = 300.0,
    hang_timeout: float = 1800.0,
    dry_run: bool = False,
    overrides: Overrides = (),
) -> int | str:
    """Train on the processes that section `parallel` lays out, on NPUs or nodes, watch them, and return the exit status.

    Raises LaunchError, ConfigError and DataError for errors that are found before processes start.

    Args:
        config: a shipped name or a YAML file, which each node loads; or a run folder to resume.
        output: run folder of a configuration, by default runs/NAME.
        device: "ascend" to train on NPUs, one a process.
        start_over: move the folder's contents aside, and begin at step 0.
        from_step: step of an older checkpoint to go on from; those of later steps are moved aside.
        allow_data_change: resume although the training text differs from the checkpoint's.
        nodes: number of nodes.
        node_rank: number of this node, 0 … nodes - 1; node 0 has the master address.
        master_address: address of node 0 that all nodes can reach.
        master_port: port of node 0; with several nodes also the next one.
        max_restarts: number of restarts from the last checkpoint after failures.
        grace: seconds for saving when asked to stop.
        wait: seconds to wait for the other nodes.
        hang_timeout: seconds without progress that count as a hang; 0: never.
        dry_run: print what each node would start, and start nothing.
        overrides: keys of the configuration to change, such as train.steps=10, as texts KEY=VALUE.

    Examples:
        pangu-sigma launch sigma_tiny --set parallel.data=2
        pangu-sigma launch sigma_1t --device ascend --nodes 64 --node-rank 0 --master-address 10.0.0.1 --max-restarts 3
        pangu-sigma launch sigma_1t --device ascend --chip 910b --nodes 64 --dry-run
    """
    from pangu_sigma.checkpoint.run_folder import go_back, one_writer
    from pangu_sigma.checkpoint.run_folder import start_over as move_aside
    from pangu_sigma.training.start import StartOptions, check_cpu, check_start

    changes = [
        each if isinstance(each, str) else f"{each[0]}={json.dumps(each[1], ensure_ascii=False)}"
        for each in overrides_of(overrides)
    ]
    made, folder = resolve_run(config, output, changes)
    (check_layout if device == "ascend" else check_cpu)(made)
    if nodes > 1 and not dry_run:
        for name, value in (("--node-rank", node_rank), ("--master-address", master_address)):
            if value in (None, ""):
                raise ConfigError(
                    f"{argument(name)} is missing: with {argument('--nodes')} {nodes} each is told its rank and where node 0 is"
                )
    job = ranks_launch.Job(
        command=training_command(Path(config), folder, changes, device, allow_data_change),
        logs=folder / "logs",
        ranks=made.parallel.ranks,
        nodes=nodes,
        node=node_rank or 0,
        address=master_address or ("MASTER" if nodes > 1 else "127.0.0.1"),
        port=master_port,
        devices=devices_of(made.parallel.chip) if device == "ascend" else None,
        restarts=max_restarts,
        grace=grace,
        wait=wait,
        hang_timeout=hang_timeout,
    )
    if dry_run:
        return ranks_launch.dry_run(job)
    ranks_launch.check_job(job)
    check_folder_writable(folder, "--output")
    refuse_link(job.logs)
    if not job.devices:
        check_training_fits(made, job.local)
    for change in check_start(folder, made, StartOptions(start_over, allow_data_change, from_step)):
        logger.info("%s", change)
    ranks_launch.check_ports(job)
    if (start_over or from_step is not None) and job.node == 0:
        with one_writer(folder):  # before ranks start, so that a restart after a failure resumes
            move_aside(folder) if from_step is None else go_back(folder, from_step)
    return ranks_launch.launch(replace(job, facts=training_facts(made)) if nodes > 1 else job)


def training_command(
    source: Path,
    output: Path,
    overrides: Sequence[str] = (),
    device: Literal["cpu", "ascend"] = "cpu",
    allow_data_change: bool = False,
) -> list[str]:
    """Return the command that every rank runs: `pangu-sigma train`, which resumes in a run folder that has a checkpoint.

    source: the configuration, as the user named it and each node loads it, or the run folder. overrides: texts KEY=VALUE.
    """
    return [
        *(sys.executable, "-m", "pangu_sigma", "train", str(source)),
        *([] if source == output else ["--output", str(output)]),
        *([] if device == "cpu" else ["--device", device]),
        *(text for change in overrides for text in ("--set", change)),
        *(["--allow-data-change"] if allow_data_change else []),
        *(["--quiet"] if Bar.quiet else []),
    ]


def training_facts(config: Config) -> dict[str, str]:
    """Return the facts, by name, that must be equal on all nodes of a run: keys of the configuration, hashes of prepared data,
    software versions. Raises ConfigError or DataError if the prepared data is missing or does not fit."""
    from pangu_sigma.checkpoint.changes import leaves
    from pangu_sigma.data.prepared import drawn_tables, read_prepared_tokenizer

    tokenizer = read_prepared_tokenizer(config)
    facts = {key: str(value) for key, value in leaves(config.model_dump(mode="json")).items()}
    facts |= {name: importlib.metadata.version(name) for name in ("pangu-sigma", "mindspore", "numpy")}
    return facts | {
        "vocabulary": tokenizer.hash[:16],
        "routing tables": drawn_tables(config, tokenizer).hash[:16],
        "prepared data": _data_hash(config)[:16],
    }


def _data_hash(config: Config) -> str:
    """Return a SHA-256 over the content hash of the data, the training text's token counts, and paths and sizes of the files, which
    differs for a truncated copy too."""
    from pangu_sigma.data.prepared import data_of

    data = data_of(config)
    digest = hashlib.sha256(data.frequencies().tobytes())
    digest.update(data.manifest.content_hash.encode())
    for name, record in data.manifest.domains.items():
        for file in record.files:
            digest.update(f"{name}/{file} {(data.folder / name / file).stat().st_size}\n".encode())
    return digest.hexdigest()
