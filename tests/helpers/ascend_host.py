"""A host of Ascend made of files, and of findmnt as a shell script."""

from __future__ import annotations

import shlex
from pathlib import Path

from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import COMPUTE_UNITS, Host

MODALIAS = "pci:v000019E5d0000{device}sv000019E5sd00003000bc12sc00i00\n"
"""A PCI device's file `modalias`, as the kernel writes it for Huawei's accelerators."""
DEVICES = {"910a": "D801", "910b": "D802", "910_93": "D803"}
"""PCI device of each family."""


class AscendHost:
    """A healthy host of a chip, with methods to break it."""

    def __init__(self, folder: Path, chip: Chip = "910b", npus: int | None = None):
        """folder: the root. npus: how many; None for a whole server."""
        self.root, self.npus = folder, CHIP_DATA[chip].per_host if npus is None else npus
        self.cann = folder / "usr/local/Ascend/cann-9.0.0"
        vendor = folder / "opt/operators/vendors/pangu_sigma"
        self.environment = {
            "PATH": str(folder / "tools"),  # nothing of this machine
            "ASCEND_HOME_PATH": str(self.cann),
            "ASCEND_OPP_PATH": str(self.cann / "opp"),
            "ASCEND_CUSTOM_OPP_PATH": f"{vendor}:",
            "LD_LIBRARY_PATH": f"{vendor}/op_api/lib:{self.cann}/lib64",
        }
        self._files(vendor, COMPUTE_UNITS[family(chip)])
        self.pci_devices(family(chip))
        self.mount("nfs4", "rw,relatime,vers=4.1,hard,local_lock=none,addr=10.0.0.9")

    @property
    def host(self) -> Host:
        return Host(self.root, self.environment, self.root / "mindspore")

    def write(self, name: str, text: str = "") -> None:
        """Write a file of the host."""
        file = self.root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name.lstrip("/")).unlink()

    def pci_devices(self, *families: str) -> None:
        """Write the PCI devices: an NPU of each family, and a network card of the same vendor."""
        for slot, device in enumerate([*(DEVICES[name] for name in families), "1822"]):
            self.write(f"sys/bus/pci/devices/0000:{slot:02x}:00.0/modalias", MODALIAS.format(device=device))

    def mount(self, kind: str, options: str) -> None:
        """Let findmnt name a file system with these options."""
        self.write("tools/findmnt", f"#!/bin/sh\nprintf %s {shlex.quote(f'{kind:<6} {options}')}\n")
        (self.root / "tools/findmnt").chmod(0o755)

    def _files(self, vendor: Path, unit: str) -> None:
        for node in (*(f"davinci{number}" for number in range(self.npus)), "davinci_manager", "devmm_svm", "hisi_hdc"):
            self.write(f"dev/{node}")
        for file in ("lib64/libascendcl.so", f"opp/built-in/op_impl/ai_core/tbe/kernel/{unit}/ops_math/add/Add.o"):
            self.write(str((self.cann / file).relative_to(self.root)))
        self.write("mindspore/lib/plugin/libmindspore_ascend.so.2")
        for folder in ("op_api/lib", f"op_impl/ai_core/tbe/kernel/{unit}"):
            (vendor / folder).mkdir(parents=True)
