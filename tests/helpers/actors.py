"""Actors that MindSpore's backend makes of a step for Ascend, without a device: their arrows alone order what runs on one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pangu_sigma.config import Config
from pangu_sigma.config_file import dump_config
from pangu_sigma.npu.plan.cann_stub import ascend_environment

SKIPPED = "_ZN9mindspore6kernel12AclKernelMod6ResizeERKSt6vectorIPNS0_12KernelTensorESaIS4_EES8_"
"""Function of MindSpore that asks CANN for the workspace of an operator; all else of the backend does without CANN."""


class Actor(NamedTuple):
    """Operator or copy of a compiled step. waits_for: numbers of the actors that send it data, or tell it to start."""

    what: str
    parameters: list[str]
    waits_for: list[int]


def backend_command(folder: Path, ranks: int, rank: int, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of `backend_step.py` for a rank, with which the backend builds the whole step."""
    source, library = folder / "skip.c", folder / "libskip.so"
    source.write_text(f"int {SKIPPED}(void *self, void *in, void *out) {{ return 0; }}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    one_graph = {"MS_DEV_DUMP_IR_PASSES": "validate"}
    environment = ascend_environment(ranks, rank) | one_graph
    environment |= {"MS_SIMULATION_LEVEL": "1", "LD_PRELOAD": str(library)}
    return [sys.executable, str(Path(__file__).parent / "backend_step.py"), *arguments], environment


def actors_of(config: Config, rank: int, folder: Path) -> dict[int, Actor]:
    """Build the step of a rank with MindSpore's backend, in `folder`, and return its actors by number."""
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    command, environment = backend_command(folder, config.parallel.ranks, rank, "config.yaml")
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (dump,) = folder.rglob("final_actor_set*.ir")
    return read_actors(dump.read_text(encoding="utf-8", errors="replace"))


def read_actors(text: str) -> dict[int, Actor]:
    """Parse MindSpore's list of actors."""
    made = re.findall(r"^%(\d+) = (\S+?)\((.*)$", text, re.MULTILINE)
    return {
        int(number): Actor(
            what, re.findall(r"%param_([^,)\s]+)", inputs), [int(other) for other in re.findall(r"%(\d+)", inputs)]
        )
        for number, what, inputs in made
    }


def before(actors: dict[int, Actor], number: int) -> set[int]:
    """Return the numbers of all actors that have run when this one starts."""
    found, todo = set[int](), [number]
    while todo:
        new = {n for n in actors[todo.pop()].waits_for if n in actors} - found
        found |= new
        todo += new
    return found


def kept_apart(actors: dict[int, Actor]) -> list[str]:
    """Return, a sentence each, what of the rules of the Ascend step the actors break: the store of experts stays on the host, the
    accumulators of gradients on the NPU, and what the network reads is written behind it."""
    taken = {name for a in actors.values() if ":Custom-" not in a.what for name in a.parameters}
    broken = [f"{name} is copied, all of it" for name in sorted(taken) if name.startswith("experts.")]
    broken += [
        f"{name} is copied"
        for name in sorted({p for a in actors.values() if a.what == "CopyActor" for p in a.parameters})
        if name.startswith("accu_grads.active.")
    ]
    uses = {n: a for n, a in actors.items() if a.what != "CopyActor"}
    for n, actor in uses.items():
        if ":Assign-" in actor.what:
            name = actor.parameters[0]
            if name.startswith("active."):
                broken.append(f"{name} is written in the step")
            readers = [other for other in uses if other != n and name in uses[other].parameters]
            if name == "pass_scale" and not {*readers} <= before(actors, n):
                broken.append(f"{name} is read behind its write")
    return broken
