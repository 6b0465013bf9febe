"""`doctor`: is this machine able to run the project? A failed check names the fix."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from pangu_sigma.arguments import AnyPath, checked
from pangu_sigma.chips import Chip
from pangu_sigma.errors import argument, warn_without_effect
from pangu_sigma.results import Check, Results, aligned

_TOLERANCE = 1e-4
_FRESH_KERNELS = "remove the folder PANGU_SIGMA_CACHE (default ~/.cache/pangu_sigma) to compile again"
CheckMaker = Callable[[], Check | Iterable[Check]]


@checked
def doctor(
    model: AnyPath | None = None, *, device: Literal["cpu", "ascend"] = "cpu", chip: Chip | None = None
) -> Results:
    """Check that this machine is ready; a failed check names the fix.

    Args:
        model: run folder that must be on storage that all nodes share; with device "ascend".
        device: "ascend" to require NPUs, and everything that a host of a cluster needs.
        chip: required type of the NPUs; with device "ascend".

    Examples:
        pangu-sigma doctor
        pangu-sigma doctor --device ascend --chip 910b
        pangu-sigma doctor /shared/runs/sigma_1t --device ascend
    """
    from pangu_sigma.npu.host.access import Host
    from pangu_sigma.npu.host.checks import node_checks, npus_if_any

    if device != "ascend" and (model is not None or chip is not None):
        options = argument("MODEL or --chip", "model or chip")
        warn_without_effect(options, f"it is about NPUs: add {argument('--device')} ascend")
    run = None if model is None else Path(model)
    checks = run_checks(partial(node_checks, Host(), chip, run) if device == "ascend" else npus_if_any)
    return Results(checks, format_checks(checks), ok=all(check.ok for check in checks))


def run_checks(devices: CheckMaker) -> list[Check]:
    """Run all checks of a machine, and return their results in the order to read them. devices: checks of its NPUs."""
    return [result for check in (_requirements, _compiler, _kernels, devices) for result in _results(check)]


def _results(check: CheckMaker) -> list[Check]:
    """Return the results of a check. If it raises, that is a failed check: anything may be broken on a machine."""
    try:
        result = check()
        return [result] if isinstance(result, Check) else list(result)
    except Exception as problem:
        name = getattr(check, "__name__", "host").strip("_")
        fix = _FRESH_KERNELS if check is _kernels else "mend what the message names"
        return [Check(name, False, f"{type(problem).__name__}: {problem}", fix)]


def format_checks(checks: list[Check]) -> str:
    """Format the results of the checks, one line each, with the fix below each failed one."""
    rows = []
    for check in checks:
        rows.append(("ok" if check.ok else "FAIL", check.name, check.state))
        rows += [] if check.ok else [("", "", f"fix: {check.fix}")]
    failed = sum(not check.ok for check in checks)
    end = f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    return "\n".join([*aligned(rows, "<"), end])


def _requirements() -> Iterator[Check]:
    """Check the installed version of every package that the metadata of this one requires; not of its extras."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, importlib.metadata.requires("pangu-sigma") or []):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        fits = bool(version) and requirement.specifier.contains(version, prereleases=True)
        wants = f" (wants {requirement.specifier})" if requirement.specifier else ""
        yield Check(requirement.name, fits, f"{version or 'not installed'}{wants}", f"pip install '{requirement}'")


def _compiler() -> Check:
    """Check that the compiler of the CPU kernels is installed."""
    path = shutil.which("g++")
    fix = "install g++ (Debian, Ubuntu: apt install g++; others: the gcc-c++ package); it compiles the CPU kernels"
    return Check("g++", path is not None, path or "not on PATH", fix)


def _kernels() -> Check:
    """Compile the CPU kernels, and compare a grouped FFN on a small case with NumPy in float64. Imports MindSpore."""
    from mindspore import Tensor

    from ascend_ops.grouped_ffn import GroupedFFN, grouped_ffn_oracle
    from pangu_sigma.process import use_cpu

    use_cpu()
    rng = np.random.default_rng(0)
    x, w1, b1, w2, b2 = (rng.normal(size=shape) for shape in [(7, 8), (3, 16, 8), (3, 16), (3, 16, 8), (3, 8)])
    offsets = np.array([0, 4, 4, 7], np.int32)  # of 7 rows, 4 are for expert 0, none for expert 1, 3 for expert 2
    tensors = (Tensor(values.astype(np.float32)) for values in (x, w1, b1, w2, b2))
    result = GroupedFFN()(*tensors, Tensor(offsets)).asnumpy()
    error = np.abs(result - grouped_ffn_oracle(x, w1, b1, w2, b2, offsets)).max()
    finding = f"grouped FFN is within {error:.0e} of its oracle (limit {_TOLERANCE:.0e})"
    return Check("CPU kernels", bool(error < _TOLERANCE), finding, _FRESH_KERNELS)
