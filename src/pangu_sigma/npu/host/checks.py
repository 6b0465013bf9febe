"""All checks of a host with NPUs, in the order to read them: later ones need earlier ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.chips import Chip, family
from pangu_sigma.npu.host import npu_checks as npu
from pangu_sigma.npu.host import shared_checks as shared
from pangu_sigma.npu.host import software_checks as software
from pangu_sigma.npu.host.access import Host, ToolError
from pangu_sigma.npu.host.environment import ChosenChip, chip_in_environment
from pangu_sigma.npu.host.npu_smi import Npu, chip_called, list_npus
from pangu_sigma.npu.host.npus import DEV, cann, missing_for_ascend, npus
from pangu_sigma.results import Check, failed
from pangu_sigma.stored.open import kind_of


def npus_if_any(dev: Path = DEV, environment: Mapping[str, str] = os.environ) -> Check:
    """Check the NPUs and their software. A machine without NPUs passes, since everything runs on the CPU."""
    devices, toolkit = npus(dev), cann(environment)
    found = [f"{len(devices)} devices" if devices else "no device", f"CANN in {toolkit}" if toolkit else "no CANN"]
    if not devices:
        return Check("Ascend", True, ", ".join(found) + "; runs use the CPU")
    missing = missing_for_ascend(dev, environment)
    if missing is None:
        return Check("Ascend", True, ", ".join(found))
    return Check("Ascend", False, f"{', '.join(found)}: {missing.problem}", missing.fix)


def node_checks(host: Host, chip: Chip | None = None, run: Path | None = None) -> Iterator[Check]:
    """Check a host of NPUs for a run. chip: type of the NPUs; None: that of PANGU_SIGMA_CHIP, else the run's, else the detected
    one. run: run folder, whose storage is checked too."""
    requested = ChosenChip(chip, "--chip") if chip else chip_in_environment(host.environment)
    configured = None
    if run is not None and kind_of(run) == "run":
        configured = ChosenChip(run_config(run).parallel.chip, f"the configuration of {run}")
    if requested and configured and family(requested.name) != family(configured.name):
        found = f"{configured.by} says {configured.name}, and {requested.by} {requested.name}"
        yield Check(
            "configured chip", False, found, "say the same in both: parallel.chip in the configuration, or --chip"
        )
    expected = requested or configured
    yield from host_checks(host, expected.name if expected else None, expected.by if expected else "", run)


def host_checks(host: Host, wanted: Chip | None = None, by: str = "", run: Path | None = None) -> Iterator[Check]:
    """Run all checks of an Ascend host. A fault is reported once; checks that it makes impossible are skipped.

    wanted: the expected chip; None for any chip. by: origin of `wanted`, for messages. run: run folder whose storage is checked.
    """
    listed: list[Npu] = []
    checks: list[tuple[str, Callable[[], Check]]] = [("NPU devices", lambda: npu.devices(host, listed))]
    try:
        listed = list_npus(host)
    except ToolError as silent:
        checks += [("npu-smi", partial(failed, str(silent), silent.fix))]
    chip = wanted or (chip_called(listed[0].name) if listed else None)
    if listed:
        checks += [("chip", partial(npu.chip, listed, wanted, by)), ("NPU health", partial(npu.health, listed))]
    checks += [("CANN", partial(software.toolkit, host, chip)), ("MindSpore's plugin", partial(software.plugin, host))]
    if chip is not None:
        checks += [("ascend_ops", partial(software.operators, host, chip))]
    checks += [("HCCL interface", partial(shared.interface, host))]
    if run is not None:
        checks += [("run folder", partial(shared.run_folder, host, run))]
    for name, check in checks:
        yield replace(_look(check), name=name)


def _look(check: Callable[[], Check]) -> Check:
    """Run a check; a tool without an answer and a malformed file count as failed checks."""
    try:
        return check()
    except ToolError as silent:
        return failed(str(silent), silent.fix)
    except (OSError, ValueError) as problem:
        return failed(f"{type(problem).__name__}: {problem}", "mend what the message names")
