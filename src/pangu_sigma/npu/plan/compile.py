"""Compile the training step of one rank for Ascend on a machine without an NPU, and read the graph that MindSpore saves.

A process of its own compiles (`python -m pangu_sigma.npu.plan.compile`); cann_stub.py says why. README.md: what it can show.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.chips import GIB
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.errors import UserError
from pangu_sigma.host_memory import available_memory
from pangu_sigma.npu.communicators import OF_COPIES
from pangu_sigma.npu.cuts import HOST, ITEM_SIZE, NPU
from pangu_sigma.npu.plan.cann_stub import ascend_environment, name_soc
from pangu_sigma.npu.plan.traffic import CollectiveCalls
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.ranks.layout import Layout, layers_of_stage, rre_layers_of_stage
from pangu_sigma.ranks.processes import end_with_parent

logger = logging.getLogger(__name__)

COLLECTIVES = ("AllReduce", "AllGather", "AlltoAll", "AlltoAllV", "ReduceScatter", "Send", "Receive")


class PlanRefused(UserError, RuntimeError):
    """Error of a plan that MindSpore does not compile; the message holds MindSpore's reason."""


@dataclass(frozen=True)
class CompiledCollective(CollectiveCalls):
    """Identical calls of a collective that MindSpore placed in a compiled step. Bytes of a call: the larger of input and output."""

    ranks: list[int] = field(compare=False)
    """First ranks of the group; for a Send or a Receive, the rank at the other end."""


@dataclass(frozen=True)
class PlacedParameter:
    """Slice of a parameter that one rank holds in a compiled step.

    device: the host if only operators on the host use the parameter, else the NPU.
    """

    name: str
    slice: list[int]
    dtype: str
    device: str


@dataclass(frozen=True)
class Compiled:
    """Training step of one rank that MindSpore compiled without a device."""

    rank: int
    seconds: float
    peak_gib: float
    """Peak memory of the compiling process in GiB."""
    collectives: list[CompiledCollective]
    parameters: list[PlacedParameter]
    """Those of the graph."""
    stored: list[PlacedParameter]
    """Arrays of the store of experts, which must not be in the graph: MindSpore would copy them to the NPU in each step."""
    host_operators: dict[str, int]
    """Number of operators that are pinned to the host, by name."""
    additions: dict[str, int]
    """Number of times that the step adds a gradient to the accumulator of a weight, by the weight's name."""
    operators: dict[str, int]
    """Number of operators of the whole step, by name."""
    handed: list[list[int]]
    """Shapes of the gradients of experts that the step hands to the host, sorted."""
    early_writes: list[str]
    """Parameters to which the step assigns values that do not follow from the network's results. MindSpore's later passes may take
    away the order that keeps such a write in front of what reads it."""


def compile_memory(config: Config, rank: int = 0) -> int:
    """Return the bytes of memory, about, that compiling the step of `rank` takes: those of MindSpore, of every layer, and of the
    graph, in which every layer is once for each micro-batch."""
    stage = Layout(config.parallel).coordinates(rank).stage
    routed = len(rre_layers_of_stage(config, stage))
    dense = len(layers_of_stage(config, stage)) - routed
    in_micro_batch = 0.043 * dense + (0.06 + 0.04 * (len(config.model.segments) - 1)) * routed  # recomputed or not
    return int((0.62 + 0.025 * dense + 0.05 * routed + config.train.accumulation * in_micro_batch) * GIB)


def compile_step(config: Config, rank: int = 0) -> Compiled:
    """Compile the training step of `rank` under `config.parallel`. Before it starts, the log says how much memory it takes.

    Raises ConfigError if the Ascend step does not support the configuration, and PlanRefused with MindSpore's reason. The largest
    plans take minutes and gigabytes; a progress bar counts the seconds.
    """
    check_ascend(config)
    needed, free = compile_memory(config, rank), available_memory()
    room = "" if free is None else f"; {free / GIB:.1f} GiB are free here"
    short = free is not None and needed > free
    logger.log(
        logging.WARNING if short else logging.INFO,
        "compiling %s for %d ranks takes about %.1f GiB of memory%s%s",
        *(config.name, config.parallel.ranks, needed / GIB, room, ", and it may be killed" if short else ""),
    )
    with tempfile.TemporaryDirectory(prefix="pangu_sigma_plan_") as folder:
        work = Path(folder)
        (work / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        environment = ascend_environment(config.parallel.ranks, rank)
        environment["MS_DEV_DUMP_IR_PASSES"] = "validate"  # else MindSpore saves a hundred graphs
        command = [sys.executable, "-m", "pangu_sigma.npu.plan.compile", "config.yaml"]
        with open(work / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _wait(process, f"compile {config.name} for {config.parallel.ranks} ranks")
        if process.returncode or not (work / "result.json").exists():
            raise PlanRefused(_reason((work / "log").read_text(encoding="utf-8", errors="replace")))
        result = json.loads((work / "result.json").read_text())
        stored = [PlacedParameter(name, kept, dtype, HOST) for name, kept, dtype in result.pop("stored")]
        graph = max(work.rglob("*_validate_*.ir"), key=lambda path: path.name)
        with open(graph, encoding="utf-8") as lines:
            return Compiled(rank, stored=stored, **result, **read_graph(lines, config.parallel.ranks))


def read_graph(lines: Iterator[str], ranks: int) -> dict[str, Any]:
    """Read collectives, parameters and operators of a graph that MindSpore saved; the result holds most fields of `Compiled`."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    hosted, additions, operators = Counter[str](), Counter[str](), Counter[str]()
    shapes: dict[str, tuple[list[int], str]] = {}
    on_host: set[str] = set()
    on_device: set[str] = set()
    loaded: dict[str, str] = {}
    order, handed = _Order(), list[list[int]]()
    for line in lines:
        if line.startswith("%para"):
            if "has_default" in line:  # inputs of the step have no default
                name, dtype, shape = _parameter(line)
                shapes[name] = (shape, dtype)
            continue
        made = re.match(r"\s+(%\d+)\(.*?\) = (?:PrimFunc_)?(\S+?)\((.*?)\)(?: \{| \w+_attrs:|$)", line)
        if made is None:
            order.read_scope(line)
            continue
        result, operator, inputs = made[1], made[2], re.findall(r"%\w[^,\s)]*", made[3])
        order.read_operator(result, operator, inputs)
        given = [loaded.get(name, name) for name in inputs]
        used = {_plain_name(_bare(name)) for name in given if name.startswith("%para")}
        if operator in ("Load", "Depend") and given:
            loaded[result] = given[0]
        if 'primitive_target: "CPU"' in line:
            custom = re.search(r'func_name: "[^"]*:(\w+)"', line)
            hosted[custom[1] if custom else operator] += 1
            on_host |= used
            if custom and custom[1] == "StartUpdate":  # the other inputs are lists
                inputs_of = re.findall(r"Tensor\[\w+\]\]?, \(([^)]*)\)", next(lines).split("->")[0])
                handed += [shape for shape in map(_sizes, inputs_of) if len(shape) != 1]
        else:
            on_device |= used if operator not in _NOT_A_USE else set()
        if operator == "AssignAdd":
            additions.update(name.removesuffix(".accumulated") for name in used)
        operators[operator] += 1
        if operator in COLLECTIVES:
            key = _collective(operator, line, next(lines), ranks)
            groups.setdefault(key[:-1], []).append(key[-1])
    return {
        "collectives": [
            CompiledCollective(op, phase, size, len(sizes), sum(sizes), list(first))
            for (op, phase, size, first), sizes in sorted(groups.items())
        ],
        "parameters": [
            PlacedParameter(name, shape, dtype, HOST if name in on_host - on_device else NPU)
            for name, (shape, dtype) in shapes.items()
        ],
        "host_operators": dict(hosted),
        "additions": dict(additions),
        "operators": dict(operators),
        "handed": sorted(handed),
        "early_writes": order.early_writes(),
    }


class _Order:
    """Values that the step assigns to parameters, and whether they follow from results of the network."""

    def __init__(self) -> None:
        self.result, self.operator = "", ""
        self.inputs: dict[str, list[str]] = {}
        self.of_network: set[str] = set()
        self.assigned: list[tuple[str, str]] = []

    def read_operator(self, result: str, operator: str, given: list[str]) -> None:
        """Note an operator: its result, its name, and what it is given."""
        self.result, self.operator = result, operator
        # what is behind the first input of these is an order, and no data
        self.inputs[result] = (
            [] if operator == "UpdateState" else given[: 1 if operator in ("Load", "Depend") else None]
        )
        if operator == "Assign":
            self.assigned.append((given[0], given[1]))

    def read_scope(self, line: str) -> None:
        """Note if the last operator is one of the network. line: any line that is no operator."""
        if "# Fullname with scope: (Default/network-ActiveExperts/" in line and self.operator not in _NOT_A_USE:
            self.of_network.add(self.result)

    def early_writes(self) -> list[str]:
        """Return the names for `Compiled.early_writes`."""
        return sorted({_plain_name(_bare(name)) for name, value in self.assigned if not self._follows(value)})

    def _follows(self, value: str) -> bool:
        found, todo = set[str](), [value]
        while todo:
            behind = todo.pop()
            if behind in self.of_network:
                return True
            if behind not in found:
                found.add(behind)
                todo += self.inputs.get(behind, [])
        return False


def _bare(name: str) -> str:
    return re.sub(r"%para\d+_", "", name)


def _parameter(line: str) -> tuple[str, str, list[int]]:
    """Parse name, dtype and shape of a line such as `%para13_active.0.w1: <Ref[Tensor[Float16]], (1, 2560, 5120), ref_key=…>`."""
    match = re.match(r"%para\d+_(\S+): <(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([^)]*)\)", line)
    if match is None:
        raise PlanRefused(f"the saved graph has a parameter that cannot be read: {line.strip()[:200]}")
    return _plain_name(match[1]), match[2].lower(), _sizes(match[3])


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split(",") if size.strip()]


def _plain_name(name: str) -> str:
    """Return a parameter's name as in `npu/cuts.py`. MindSpore puts its cells before it, and the purpose of a clone."""
    kind = re.match(r"(moment|variance|accu_grads)\.", name)
    plain = re.sub(r"^(moment\.|variance\.|accu_grads\.)?(loss\.network\.)?", "", name)
    return f"{plain}.{kind[1].replace('accu_grads', 'accumulated')}" if kind else plain


_NOT_A_USE = ("Load", "UpdateState", "Depend", "MakeTuple", "Return")

_PHASE_OF_NAME = (
    ("grad_mirror", "gradient"),
    ("grad_parallel_optimizer", "gradient"),
    ("parallel_optimizer", "weight"),
    ("grad", "backward"),
    ("forward_op", "forward"),
    ("redistribution", "forward"),
)
"""Prefixes of the names that MindSpore gives its collectives, and the phase of the step for each."""


def _collective(op: str, line: str, types: str, ranks: int) -> tuple[Any, ...]:
    """Return operator, phase, size of the group, its first ranks, and bytes."""
    taken, given = map(_nbytes_of, types.split("->"))
    if op in ("Send", "Receive"):
        other = re.search(rf"{'dest' if op == 'Send' else 'src'}_rank: I64\((\d+)\)", line)
        phase = "backward" if "forward_node_name" in line else "forward"
        return op, phase, 2, (int(other[1]),) if other else (), given
    phase = _phase(op, line)
    members = re.search(r"group_rank_ids: \(([^)]*)\)", line) or re.search(r"rank_list: \(([^)]*)\)", line)
    group = re.search(r'group: "(\d*)-?[^"]*"', line)
    first = tuple(int(r) for r in members[1].split(",") if r.strip()) if members else ()
    # groups of ranks/connect.py have their ranks in their names; MindSpore notes all ranks of one that it does not use itself
    ours = re.search(r'group: "[a-z]+((?:_\d+)+)"', line)
    first = tuple(map(int, ours[1][1:].split("_"))) if ours else first
    size = len(first) or (int(group[1]) if group and group[1] else ranks)
    return op, phase, size, first[:4], max(taken, given)


def _phase(op: str, line: str) -> str:
    """Return the phase of the step that a collective belongs to; not for a Send or a Receive."""
    if "duplicated: Bool(1)" in line:
        return "recompute"
    if op == "AlltoAllV":  # written by hand, as is its gradient, which alone has no node of the forward pass
        return "forward" if "forward_comm_node_unique_id" in line else "backward"
    if f"{OF_COPIES}: Bool(1)" in line:
        return "gradient"
    match, differentiated = re.search(r"instance name: (\w+)", line), "forward_node_name" in line
    name = match[1] if match else ""
    phase = next((p for start, p in _PHASE_OF_NAME if name.startswith(start)), "norm")
    if op == "AllReduce" and phase != "gradient":
        # alike ones of npu/dropless.py, of the layouts and of the norm get each other's names
        if "forward_comm_node_unique_id" not in line:
            return "norm"  # it belongs to nothing that is differentiated
        return "backward" if differentiated else "forward"
    return "backward" if differentiated and phase == "norm" else phase


def _nbytes_of(types: str) -> int:
    tensors = re.findall(r"Tensor\[(\w+)\]\]?, \(([^)]*)\)", types)
    tensors = [(dtype.lower(), shape) for dtype, shape in tensors if dtype != "Int64"]  # the lengths of an AlltoAllV
    return sum(
        math.prod(int(n) for n in shape.split(",") if n.strip()) * (ITEM_SIZE.get(dtype) or np.dtype(dtype).itemsize)
        for dtype, shape in tensors
    )


def _wait(process: subprocess.Popen[bytes], what: str) -> None:
    """Wait for the process with a progress bar. An interrupt also ends the process."""
    try:
        with Bar(desc=what, unit="s", bar_format="{desc}: {elapsed}", leave=False) as bar:
            while process.poll() is None:
                time.sleep(0.5)
                bar.update()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _reason(log: str) -> str:
    """Return MindSpore's messages without call stacks: the first of its parallel passes, else the exception."""
    messages = re.findall(r"\[ERROR\] PARALLEL\(.*?\] (?:\w+\] )?(.*)", log)
    lines = [line.strip() for line in messages if line.strip()]
    failed = re.search(r"^failed: (.*)", log, re.MULTILINE)
    if failed:
        lines.append(failed[1])
    return "MindSpore refuses this plan: " + ("; ".join(dict.fromkeys(lines[:4])) or log.strip()[-2000:])


def main() -> None:
    """Be the process of `compile_step`: compile, write result.json, exit at once: unloading the stand-ins for CANN would crash."""
    end_with_parent()
    started = time.perf_counter()
    config = load_config(sys.argv[1])
    from mindspore.common.initializer import Zero

    from pangu_sigma.npu.context import use_ascend

    name_soc(config.parallel.chip)
    use_ascend(config, save_graphs="graphs")
    from pangu_sigma.npu.inputs import step_inputs
    from pangu_sigma.npu.step import AscendStep

    status = 0
    try:
        step = AscendStep(config, int(os.environ["RANK_ID"]))
        step.set_train()
        for parameter in step.get_parameters():
            if parameter.has_init:
                parameter.init_mode.init = Zero()  # nobody reads the values, and pages of zeros take no memory
        step.compile(*step_inputs(config))
        peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        seconds = round(time.perf_counter() - started, 1)
        arrays = ((e.segment.number, name, p) for e in step.store.segments for name, p in e.named.items())
        stored = [(f"experts.{n}.{name}", p.shape, p.asnumpy().dtype.name) for n, name, p in arrays]
        result = {"seconds": seconds, "peak_gib": round(int(peak[1]) / 2**20, 2) if peak else 0.0, "stored": stored}
        Path("result.json").write_text(json.dumps(result))
    except (ConfigError, RuntimeError, ValueError, TypeError) as error:
        print(f"failed: {str(error).strip().splitlines()[0]}", flush=True)
        status = 1
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
