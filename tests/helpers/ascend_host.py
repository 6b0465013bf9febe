"""A host of Ascend made of files and of tools that are shell scripts: what npu-smi and others print is in their published format.

npu-smi info      910A's family: github.com/vllm-project/vllm-ascend/issues/1047; 910B: issues/975 there; 910_93: issues/2035 and,
                  of npu-smi 26, issues/12980
ascend_toolkit_install.info  MindCluster's manual of Ascend FaultDiag, "Collecting Logs Before Training and Inference"
health            hiascend.com, npu-smi of Atlas 200I A2, 26.0.RC1, npusmi_028: OK, Warning, Alarm, Critical, UNKNOWN
"""

from __future__ import annotations

import shlex
from pathlib import Path

from pangu_sigma.chips import CHIP_DATA, Chip
from pangu_sigma.npu.host.access import Host
from pangu_sigma.npu.host.software_checks import COMPUTE_UNITS

NAMES = {"910a": "910ProB", "910b": "910B3", "910b3": "910B3", "910b4": "910B4", "910_93": "Ascend910"}
"""What npu-smi calls chips."""
_RULE = "+---------------------------+---------------+----------------------------------------------------+"
_DOUBLE = _RULE.replace("-", "=")
_MB = 1 << 20


def npu_smi_info(name: str, npus: int, total: int, health: dict[int, str] | None = None) -> str:
    """The output of `npu-smi info`. health: of NPUs that differ, by number."""
    dies = 2 if name == "Ascend910" else 1
    chip = "Chip  Phy-ID" if dies == 2 else "Chip"
    lines = [
        "+" + "-" * 96 + "+",
        "| npu-smi 26.0.rc1                 Version: 26.0.rc1                                             |",
        _RULE,
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        f"| {chip:<26}| Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        _DOUBLE,
    ]
    for number in range(npus):
        card, die = divmod(number, dies)
        state, taken = (health or {}).get(number, "OK"), total // 20
        slot = f"{die:<6}{number:<19}" if dies == 2 else f"{die:<25}"
        lines += [
            f"| {card:<6}{name:<19} | {state:<13} | {'91.1':<12}{'32':<18}{'0    / 0':<20} |",
            f"| {slot} | 0000:{0x9D + number:02X}:00.0  | {'0':<12}{'0    / 0':<18}{taken:<5}/ {total:<13} |",
            _DOUBLE if die == dies - 1 else "+" + "-" * 96 + "+",
        ]
    lines += [
        _RULE,
        "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |",
        _DOUBLE,
    ]
    for card in range(npus // dies):
        lines += [f"| No running processes found in NPU {card:<60}|", _DOUBLE]
    return "\n".join(lines) + "\n"


class AscendHost:
    """A healthy host of a chip, with methods to break it."""

    def __init__(self, folder: Path, chip: Chip = "910b", npus: int | None = None):
        """folder: the root. npus: how many; None for a whole server."""
        self.root, self.chip, self.data = folder, chip, CHIP_DATA[chip]
        self.npus = self.data.per_host if npus is None else npus
        self.cann, self.tools = folder / "usr/local/Ascend/cann-9.0.0", folder / "tools"
        vendor = folder / "opt/operators/vendors/pangu_sigma"
        self.environment = {
            "PATH": str(self.tools),  # nothing of this machine
            "ASCEND_HOME_PATH": str(self.cann),
            "ASCEND_OPP_PATH": str(self.cann / "opp"),
            "ASCEND_CUSTOM_OPP_PATH": f"{vendor}:",
            "LD_LIBRARY_PATH": f"{vendor}/op_api/lib:{self.cann}/lib64",
            "MS_COMPILER_CACHE_PATH": str(folder / "tmp/kernels"),
        }
        self._files(vendor, COMPUTE_UNITS[chip if chip in COMPUTE_UNITS else "910b"])
        self._tools()

    @property
    def host(self) -> Host:
        return Host(self.root, self.environment, self.root / "mindspore", "2.9.0")

    def write(self, name: str, text: str = "") -> None:
        """Write a file of the host."""
        file = self.root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name.lstrip("/")).unlink()

    def tool(self, name: str, text: str) -> None:
        """Write a tool: a shell script."""
        self.write(f"tools/{name}", f"#!/bin/sh\n{text}\n")
        (self.tools / name).chmod(0o755)

    def npu_smi(
        self,
        npus: int | None = None,
        name: str | None = None,
        total: int | None = None,
        **options,
    ) -> None:
        """Let npu-smi print a table, with what differs from a healthy one: see `npu_smi_info`."""
        text = npu_smi_info(
            name or NAMES[self.chip],
            self.npus if npus is None else npus,
            total or self.data.memory // _MB,
            **options,
        )
        self.tool("npu-smi", f"printf %s {shlex.quote(text)}")

    def _files(self, vendor: Path, unit: str) -> None:
        for node in (*(f"davinci{number}" for number in range(self.npus)), "davinci_manager", "devmm_svm", "hisi_hdc"):
            self.write(f"dev/{node}")
        ascend = "usr/local/Ascend"
        for file in ("lib64/libascendcl.so", f"opp/built-in/op_impl/ai_core/tbe/kernel/{unit}/ops_math/add/Add.o"):
            self.write(str((self.cann / file).relative_to(self.root)))
        self.write(f"{ascend}/cann-9.0.0/include/acl/acl_base.h")
        self.write(f"{ascend}/cann-9.0.0/compiler/version.info", "Version=9.0.0\nversion_dir=cann-9.0.0\n")
        self.write("mindspore/lib/plugin/libmindspore_ascend.so.2")
        for folder in ("op_api/lib", f"op_impl/ai_core/tbe/kernel/{unit}"):
            (vendor / folder).mkdir(parents=True)

    def _tools(self) -> None:
        self.npu_smi()
        self.tool("g++", "")
