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
from pangu_sigma.ranks.worker import end_with_parent

logger = logging.getLogger(__name__)

COLLECTIVES = ("AllReduce", "AllGather", "AlltoAll", "AlltoAllV", "ReduceScatter", "Send", "Receive")


class PlanRefused(UserError, RuntimeError):
    """Error of a plan that MindSpore does not compile; the message holds MindSpore's reason."""


@dataclass(frozen=True)
class CompiledCollective(CollectiveCalls):
    """Identical calls of a collective that MindSpore placed in a compiled step. ranks: the first ones of the group; for a Send or a
    Receive, the rank at the other end."""

    ranks: list[int] = field(compare=False)


@dataclass(frozen=True)
class PlacedParameter:
    """Slice of a parameter that one rank holds in a compiled step. device: the host if it alone uses it, else the NPU."""

    name: str
    slice: list[int]
    dtype: str
    device: str


@dataclass(frozen=True)
class Compiled:
    """Training step of one rank that MindSpore compiled without a device.

    peak_gib: peak memory of the compiling process in GiB. parameters: of the graph. stored: arrays of the store of experts,
        which must not be in the graph: MindSpore would copy them to the NPU in each step.
    host_operators: number of operators that are pinned to the host, by name. operators: of all operators of the step.
    additions: number of times that the step adds a gradient to the accumulator of a weight, by the weight's name.
    handed: shapes of the gradients of experts that the step hands to the host, sorted.
    early_writes: parameters to which the step assigns values that do not follow from the network's results. MindSpore's later
        passes may take away the order that keeps such a write in front of what reads it.
    """

    rank: int
    seconds: float
    peak_gib: float
    collectives: list[CompiledCollective]
    parameters: list[PlacedParameter]
    stored: list[PlacedParameter]
    host_operators: dict[str, int]
    additions: dict[str, int]
    operators: dict[str, int]
    handed: list[list[int]]
    early_writes: list[str]


def compile_memory(config: Config, rank: int = 0) -> int:
    """Estimate the bytes of memory that compiling the step of `rank` takes: for MindSpore, for every layer, and for the graph,
    which repeats every layer for each micro-batch. The factors, in GiB, are fitted to measured compilations."""
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
    free_text = "" if free is None else f"; {free / GIB:.1f} GiB are free here"
    is_short = free is not None and needed > free
    logger.log(
        logging.WARNING if is_short else logging.INFO,
        "compiling %s for %d ranks takes about %.1f GiB of memory%s%s",
        *(config.name, config.parallel.ranks, needed / GIB, free_text, ", and it may be killed" if is_short else ""),
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
        stored = [PlacedParameter(name, shape, dtype, HOST) for name, shape, dtype in result.pop("stored")]
        graph = max(work.rglob("*_validate_*.ir"), key=lambda path: path.name)
        with open(graph, encoding="utf-8") as lines:
            return Compiled(rank, stored=stored, **result, **read_graph(lines, config.parallel.ranks))


def read_graph(lines: Iterator[str], ranks: int) -> dict[str, Any]:
    """Read a graph that MindSpore saved. Return the fields of `Compiled` that describe the graph, by name.

    lines: lines of the `*.ir` file. ranks: number of all ranks, the size of a group whose size the graph does not say."""
    bytes_of_calls: dict[tuple[Any, ...], list[int]] = {}
    host_operators, additions, operators = Counter[str](), Counter[str](), Counter[str]()
    shapes: dict[str, tuple[list[int], str]] = {}
    on_host, on_device, loaded_from = set[str](), set[str](), dict[str, str]()
    order, handed = _Order(), list[list[int]]()
    for line in lines:
        if line.startswith("%para"):
            if "has_default" in line:  # inputs of the step have no default
                name, dtype, shape = _parameter(line)
                shapes[name] = (shape, dtype)
            continue
        match = re.match(r"\s+(%\d+)\(.*?\) = (?:PrimFunc_)?(\S+?)\((.*?)\)(?: \{| \w+_attrs:|$)", line)
        if match is None:
            order.read_scope(line)
            continue
        result, operator, inputs = match[1], match[2], re.findall(r"%\w[^,\s)]*", match[3])
        order.read_operator(result, operator, inputs)
        values = [loaded_from.get(name, name) for name in inputs]
        parameters = {_plain_name(name) for name in values if name.startswith("%para")}
        operators[operator] += 1
        if operator in ("Load", "Depend") and values:
            loaded_from[result] = values[0]
        if 'primitive_target: "CPU"' in line:
            custom_function = re.search(r'func_name: "[^"]*:(\w+)"', line)
            host_operators[custom_function[1] if custom_function else operator] += 1
            on_host |= parameters
            if custom_function and custom_function[1] == "StartUpdate":  # the other inputs are lists
                handed += [shape for _, shape in _tensors(next(lines).split("->")[0]) if len(shape) != 1]
        elif operator not in _NOT_A_USE:
            on_device |= parameters
        if operator == "AssignAdd":
            additions.update(name.removesuffix(".accumulated") for name in parameters)
        if operator in COLLECTIVES:
            *key, nbytes = _collective(operator, line, next(lines), ranks)
            bytes_of_calls.setdefault(tuple(key), []).append(nbytes)
    return {
        "collectives": [
            CompiledCollective(op, phase, size, len(sizes), sum(sizes), list(first))
            for (op, phase, size, first), sizes in sorted(bytes_of_calls.items())
        ],
        "parameters": [
            PlacedParameter(name, shape, dtype, HOST if name in on_host - on_device else NPU)
            for name, (shape, dtype) in shapes.items()
        ],
        "host_operators": dict(host_operators),
        "additions": dict(additions),
        "operators": dict(operators),
        "handed": sorted(handed),
        "early_writes": order.early_writes(),
    }


class _Order:
    """Data flow of a step's graph, read line by line, to find parameters that it writes before the network has run."""

    def __init__(self) -> None:
        self.result, self.operator = "", ""
        self.inputs: dict[str, list[str]] = {}
        self.network_results: set[str] = set()
        self.assignments: list[tuple[str, str]] = []  # parameter, value

    def read_operator(self, result: str, operator: str, inputs: list[str]) -> None:
        """Record an operator. result: name of its result. inputs: names of its inputs."""
        self.result, self.operator = result, operator
        # further inputs of these three say only what runs before, and are no data
        self.inputs[result] = inputs[: {"UpdateState": 0, "Load": 1, "Depend": 1}.get(operator)]
        if operator == "Assign":
            self.assignments.append((inputs[0], inputs[1]))

    def read_scope(self, line: str) -> None:
        """Record the last operator as one of the network, if the line says so. line: a line that is no operator."""
        if "# Fullname with scope: (Default/network-ActiveExperts/" in line and self.operator not in _NOT_A_USE:
            self.network_results.add(self.result)

    def early_writes(self) -> list[str]:
        """Return the sorted names of parameters that are assigned a value independent of the network's results."""
        return sorted({_plain_name(name) for name, value in self.assignments if not self._follows_network(value)})

    def _follows_network(self, value: str) -> bool:
        """Return True if the value is computed from a result of the network, over any number of operators."""
        visited, pending = set[str](), [value]
        while pending:
            name = pending.pop()
            if name in self.network_results:
                return True
            if name not in visited:
                visited.add(name)
                pending += self.inputs.get(name, [])
        return False


def _parameter(line: str) -> tuple[str, str, list[int]]:
    """Parse name, dtype and shape of a line such as `%para13_active.0.w1: <Ref[Tensor[Float16]], (1, 2560, 5120), ref_key=…>`."""
    name, tensors = re.match(r"%para\d+_\S+(?=: <)", line), _tensors(line)
    if name is None or not tensors:
        raise PlanRefused(f"the saved graph has a parameter that cannot be read: {line.strip()[:200]}")
    return _plain_name(name[0]), *tensors[0]


def _tensors(types: str) -> list[tuple[str, list[int]]]:
    """Parse dtype and shape of every tensor in a text of types."""
    tensors = re.findall(r"Tensor\[(\w+)\]\]?, \(([^)]*)\)", types)
    return [(dtype.lower(), [int(size) for size in shape.split(",") if size.strip()]) for dtype, shape in tensors]


def _plain_name(name: str) -> str:
    """Return a parameter's name as in `npu/cuts.py`. MindSpore puts a number, its cells, and the purpose of a clone before it."""
    _, kind, plain = re.findall(r"^(%para\d+_)?(moment\.|variance\.|accu_grads\.)?(?:loss\.network\.)?(.*)", name)[0]
    return f"{plain}.{kind[:-1].replace('accu_grads', 'accumulated')}" if kind else plain


_NOT_A_USE = ("Load", "UpdateState", "Depend", "MakeTuple", "Return")
"""Operators of the graph's structure, which read no values."""

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
    """Parse a collective of the graph: return operator, phase, size of the group, its first four ranks, and bytes of the larger of
    input and output. line: the operator. types: the next line, its types. ranks: number of all ranks."""
    input_bytes, output_bytes = map(_nbytes_of, types.split("->"))
    if op in ("Send", "Receive"):
        other_rank = re.search(rf"{'dest' if op == 'Send' else 'src'}_rank: I64\((\d+)\)", line)
        phase = "backward" if "forward_node_name" in line else "forward"
        return op, phase, 2, (int(other_rank[1]),) if other_rank else (), output_bytes
    phase = _phase(op, line)
    members = re.search(r"group_rank_ids: \(([^)]*)\)", line) or re.search(r"rank_list: \(([^)]*)\)", line)
    group = re.search(r'group: "(\d*)-?[^"]*"', line)
    first_ranks = tuple(int(r) for r in members[1].split(",") if r.strip()) if members else ()
    # groups of ranks/connect.py have their ranks in their names; for those that it does not use itself MindSpore notes all ranks
    ranks_in_name = re.search(r'group: "[a-z]+((?:_\d+)+)"', line)
    first_ranks = tuple(map(int, ranks_in_name[1][1:].split("_"))) if ranks_in_name else first_ranks
    size = len(first_ranks) or (int(group[1]) if group and group[1] else ranks)
    return op, phase, size, first_ranks[:4], max(input_bytes, output_bytes)


def _phase(op: str, line: str) -> str:
    """Return the phase of the step that a collective belongs to. op: not Send or Receive. line: the operator in the graph."""
    if "duplicated: Bool(1)" in line:
        return "recompute"
    if op == "AlltoAllV":  # its gradient is written by hand, and has no id of a node of the forward pass
        return "forward" if "forward_comm_node_unique_id" in line else "backward"
    if f"{OF_COPIES}: Bool(1)" in line:
        return "gradient"
    match, is_differentiated = re.search(r"instance name: (\w+)", line), "forward_node_name" in line
    name = match[1] if match else ""
    phase = next((phase for prefix, phase in _PHASE_OF_NAME if name.startswith(prefix)), "norm")
    if op == "AllReduce" and phase != "gradient":
        # MindSpore may swap the names of equal AllReduces (npu/dropless.py, layouts, norm), so attributes tell them apart
        if "forward_comm_node_unique_id" not in line:
            return "norm"  # it is in no graph that is differentiated
        return "backward" if is_differentiated else "forward"
    return "backward" if is_differentiated and phase == "norm" else phase


def _nbytes_of(types: str) -> int:
    """Return the bytes of all tensors in a text of types."""
    tensors = (tensor for tensor in _tensors(types) if tensor[0] != "int64")  # the lengths of an AlltoAllV
    return sum(math.prod(shape) * (ITEM_SIZE.get(dtype) or np.dtype(dtype).itemsize) for dtype, shape in tensors)


def _wait(process: subprocess.Popen[bytes], description: str) -> None:
    """Wait for the process with a progress bar. An interrupt also ends the process."""
    try:
        with Bar(desc=description, unit="s", bar_format="{desc}: {elapsed}", leave=False) as bar:
            while process.poll() is None:
                time.sleep(0.5)
                bar.update()
    finally:
        process.kill()  # has no effect on a process that has ended
        process.wait()


def _reason(log: str) -> str:
    """Return the error message of a failed compilation: MindSpore's first messages without call stacks, or the exception."""
    messages = re.findall(r"\[ERROR\] PARALLEL\(.*?\] (?:\w+\] )?(.*)", log) + re.findall(r"^failed: (.*)", log, re.M)
    lines = [line.strip() for line in messages if line.strip()]
    return "MindSpore refuses this plan: " + ("; ".join(dict.fromkeys(lines[:4])) or log.strip()[-2000:])


def main() -> None:
    """Compile the step of config.yaml in this folder and write result.json; `compile_step` runs this as a process. It exits at
    once, because unloading the stand-ins for CANN would crash."""
    end_with_parent()
    start = time.perf_counter()
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
                parameter.init_mode.init = Zero()  # the values are not read, and pages of zeros take no memory
        step.compile(*step_inputs(config))
        peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        seconds = round(time.perf_counter() - start, 1)
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
