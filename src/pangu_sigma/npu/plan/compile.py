"""Compile the training step of one rank for Ascend on a machine without an NPU, and read the graph that MindSpore saves.

A process of its own compiles (`python -m pangu_sigma.npu.plan.compile`); cann_stub.py says why. README.md: what it can show.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.errors import UserError
from pangu_sigma.npu.communicators import OF_COPIES
from pangu_sigma.npu.cuts import HOST, ITEM_SIZE, NPU
from pangu_sigma.npu.plan.cann_stub import ascend_environment, name_soc
from pangu_sigma.npu.plan.traffic import CollectiveCalls
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.ranks.worker import end_with_parent

COLLECTIVES = ("AllReduce", "AllGather", "AlltoAll", "AlltoAllV", "ReduceScatter", "Send", "Receive")


class PlanRefused(UserError, RuntimeError):
    """Error of a plan that MindSpore does not compile; the message holds MindSpore's reason."""


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

    peak_gib: peak memory of the compiling process in GiB. collectives: those that MindSpore placed. parameters: of the graph.
    stored: arrays of the store of experts, which must not be in the graph: MindSpore would copy them to the NPU in each step.
    host_operators: number of operators that are pinned to the host, by name. operators: of all operators of the step.
    additions: number of times that the step adds a gradient to the accumulator of a weight, by the weight's name.
    handed: shapes of the gradients of experts that the step hands to the host, sorted.
    early_writes: parameters to which the step assigns values that do not follow from the network's results. MindSpore's later
        passes may take away the order that keeps such a write in front of what reads it.
    """

    rank: int
    seconds: float
    peak_gib: float
    collectives: list[CollectiveCalls]
    parameters: list[PlacedParameter]
    stored: list[PlacedParameter]
    host_operators: dict[str, int]
    additions: dict[str, int]
    operators: dict[str, int]
    handed: list[list[int]]
    early_writes: list[str]


def compile_step(config: Config, rank: int = 0) -> Compiled:
    """Compile the training step of `rank` under `config.parallel`.

    Raises ConfigError if the Ascend step does not support the configuration, and PlanRefused with MindSpore's reason, or if the
    compiling process was killed. The largest plans take minutes and gigabytes; a progress bar counts the seconds.
    """
    check_ascend(config)
    with tempfile.TemporaryDirectory(prefix="pangu_sigma_plan_") as folder:
        work = Path(folder)
        (work / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        environment = ascend_environment(config.parallel.ranks, rank)
        environment["MS_DEV_DUMP_IR_PASSES"] = "validate"  # else MindSpore saves a hundred graphs
        command = [sys.executable, "-m", "pangu_sigma.npu.plan.compile", "config.yaml"]
        with open(work / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _wait(process, f"compile {config.name} for {config.parallel.ranks} ranks")
        if process.returncode < 0:
            raise PlanRefused(
                f"compiling the step was killed by signal {-process.returncode}, perhaps for lack of memory, which grows with "
                "layers times train.accumulation (6 GiB for 40 layers, 2 micro-batches); compile on a larger machine"
            )
        if process.returncode or not (work / "result.json").exists():
            raise PlanRefused(_reason((work / "log").read_text(encoding="utf-8", errors="replace")))
        result = json.loads((work / "result.json").read_text())
        stored = [PlacedParameter(name, shape, dtype, HOST) for name, shape, dtype in result.pop("stored")]
        graph = max(work.rglob("*_validate_*.ir"), key=lambda path: path.name)
        with open(graph, encoding="utf-8") as lines:
            return Compiled(rank, stored=stored, **result, **read_graph(lines, config.parallel.ranks))


def read_graph(lines: Iterator[str], ranks: int) -> dict[str, Any]:
    """Read a graph that MindSpore saved. Return the fields of `Compiled` that describe the graph, by name.

    lines: lines of the `*.ir` file: parameters (`%para…`), then for each operator a line, a line with the types of its inputs and
        outputs, and its scope. ranks: number of all ranks, the size of a group whose size the graph does not say."""
    bytes_of_calls: dict[tuple[str, str, int], list[int]] = {}
    host_operators, additions, operators = Counter[str](), Counter[str](), Counter[str]()
    placements: dict[str, tuple[list[int], str]] = {}  # slice and dtype of each parameter
    # names of parameters that operators on the host, and on the NPU, read; for a result that only passes its input on, the input
    on_host, on_device, loaded_from = set[str](), set[str](), dict[str, str]()
    order, handed = _Order(), list[list[int]]()
    for line in lines:
        if line.startswith("%para"):
            if "has_default" in line:  # inputs of the step have no default
                name, dtype, shape = _parameter(line)
                placements[name] = (shape, dtype)
            continue
        match = re.match(r"\s+(%\d+)\(.*?\) = (?:PrimFunc_)?(\S+?)\((.*?)\)(?: \{| \w+_attrs:|$)", line)
        if match is None:
            order.read_scope(line)
            continue
        result, operator, inputs = match[1], match[2], re.findall(r"%\w[^,\s)]*", match[3])
        order.read_operator(result, operator, inputs)
        sources = [loaded_from.get(name, name) for name in inputs]
        parameters = {_plain_name(name) for name in sources if name.startswith("%para")}
        operators[operator] += 1
        if operator in ("Load", "Depend") and sources:
            loaded_from[result] = sources[0]
        if 'primitive_target: "CPU"' in line:
            custom_function = re.search(r'func_name: "[^"]*:(\w+)"', line)
            host_operators[custom_function[1] if custom_function else operator] += 1
            on_host |= parameters
            if custom_function and custom_function[1] == "StartUpdate":  # its inputs of one axis are lists
                handed += [shape for _, shape in _tensors(next(lines).split("->")[0]) if len(shape) != 1]
        elif operator not in _NOT_A_USE:
            on_device |= parameters
        if operator == "AssignAdd":
            additions.update(name.removesuffix(".accumulated") for name in parameters)
        if operator in COLLECTIVES:
            phase, size = _phase(operator, line), _group_size(operator, line, ranks)
            bytes_of_calls.setdefault((operator, phase, size), []).append(_collective_bytes(operator, next(lines)))
    return {
        "collectives": [
            CollectiveCalls(op, phase, size, len(nbytes), sum(nbytes))
            for (op, phase, size), nbytes in sorted(bytes_of_calls.items())
        ],
        "parameters": [
            PlacedParameter(name, shape, dtype, HOST if name in on_host - on_device else NPU)
            for name, (shape, dtype) in placements.items()
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
        self.result, self.operator = "", ""  # of the operator that was read last
        self.inputs: dict[str, list[str]] = {}
        self.network_results: set[str] = set()
        self.assignments: list[tuple[str, str]] = []  # parameter, value

    def read_operator(self, result: str, operator: str, inputs: list[str]) -> None:
        """Record an operator. result: name of its result. inputs: names of its inputs."""
        self.result, self.operator = result, operator
        # the other inputs of these three operators are no data: they only say what runs before
        data_inputs = {"UpdateState": 0, "Load": 1, "Depend": 1}.get(operator, len(inputs))
        self.inputs[result] = inputs[:data_inputs]
        if operator == "Assign":
            self.assignments.append((inputs[0], inputs[1]))

    def read_scope(self, line: str) -> None:
        """Record the last operator as one of the network, if the line says so. line: a line behind the operator's."""
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
    """Return a parameter's name as in `npu/cuts.py`: `%para7_moment.loss.network.embedding` becomes `embedding.moment`. MindSpore
    puts a number, the purpose of a clone, and cells before it."""
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


def _group_size(op: str, line: str, ranks: int) -> int:
    """Return the number of ranks in the group of a collective. line: the operator in the graph. ranks: number of all ranks."""
    if op in ("Send", "Receive"):
        return 2
    # groups of ranks/connect.py have their ranks in their names, such as expert_0_4; for some of them MindSpore notes all ranks
    if ranks_in_name := re.search(r'group: "[a-z]+((?:_\d+)+)"', line):
        return ranks_in_name[1].count("_")
    members = re.search(r"group_rank_ids: \(([^)]*)\)", line) or re.search(r"rank_list: \(([^)]*)\)", line)
    if members and (count := len(re.findall(r"\d+", members[1]))):
        return count
    size_in_name = re.search(r'group: "(\d+)', line)  # of a group of MindSpore
    return int(size_in_name[1]) if size_in_name else ranks


def _collective_bytes(op: str, types: str) -> int:
    """Return the bytes of a collective: the larger of its input and its output, but for a Send or a Receive the output. types: the
    line behind the operator in the graph, with the types of its inputs and outputs."""
    input_bytes, output_bytes = map(_nbytes_of, types.split("->"))
    return output_bytes if op in ("Send", "Receive") else max(input_bytes, output_bytes)


def _phase(op: str, line: str) -> str:
    """Return the phase of the step that a collective belongs to, as in `CollectiveCalls`. op: name of the collective. line: its
    line in the graph, from whose attributes, and MindSpore's name of it, the phase follows."""
    if op in ("Send", "Receive"):
        return "backward" if "forward_node_name" in line else "forward"
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
    # a name without a known prefix: in the backward pass it is the gradient of a collective
    return "backward" if is_differentiated and phase == "norm" else phase


def _nbytes_of(types: str) -> int:
    """Return the bytes of all tensors in a text of types, except int64 ones, which are the lengths of an AlltoAllV."""
    tensors = ((dtype, shape) for dtype, shape in _tensors(types) if dtype != "int64")
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
    """Return the message for a failed compilation. It has MindSpore's first four messages without call stacks, or the exception;
    if `log`, the output of the compiling process, has neither, it has the end of the log."""
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
