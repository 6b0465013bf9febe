"""The chips that are launched as "Ascend 910": what a plan, a configuration and a launch must know of each. Pure data.

Three families have that name. 910A is the paper's chip. 910B, in bins 1 to 4, is in Atlas 800T A2 and 900 A2; 910_93 is half of the
package of Atlas 900 A3, whose two dies are two NPUs to all software. Figures are the makers' where they are public; "third party"
marks those that others published, and "our assumption" those that nobody states. Rates are for dense products; bandwidths are one
way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GIB = 1 << 30

Chip = Literal["910a", "910b", "910b1", "910b2", "910b3", "910b4", "910_93"]
"""Names of chips. `910b` is the bin of the servers that are sold as Atlas 800T A2, `910b3`."""


@dataclass(frozen=True)
class ChipData:
    """One NPU and the server it is in.

    title: its name for people. soc: the name that CANN gives it, without the bin where software does not tell bins apart.
    memory: bytes. flops: floating-point operations per second by dtype. half: the 16-bit dtype that it is best trained in.
    hbm, pcie, hccs, network: bytes per second that it reads and writes in its memory, moves to or from its host, sends inside the
    host, and sends to other hosts. per_host: NPUs of a server. host_memory: bytes. host_cores: CPU cores of a server.
    dropless: True if CANN has GroupedMatmul, and collectives of uneven parts, for it. saturates: True if overflow becomes the
    largest number and a flag, not infinity.
    """

    title: str
    soc: str
    memory: int
    flops: dict[str, float]
    half: Literal["float16", "bfloat16"]
    hbm: float
    pcie: float
    hccs: float
    network: float
    per_host: int
    host_memory: int
    host_cores: int
    dropless: bool
    saturates: bool


_ATLAS_800T_A2 = {
    "half": "bfloat16",
    "pcie": 32e9,
    "hccs": 7 * 28e9,
    "network": 25e9,
    "per_host": 8,
    "host_memory": 1_500 * 10**9,
    "host_cores": 192,
    "dropless": True,
    "saturates": False,
}


def _bin(number: int, rate: float, memory: int, hbm: float) -> ChipData:
    """A bin of 910B. rate: operations per second in float16 and bfloat16; float32 has a quarter (HF32 is not counted)."""
    flops = {"float16": rate, "bfloat16": rate, "float32": rate / 4}
    return ChipData(f"Ascend 910B{number}", f"Ascend910B{number}", memory, flops, hbm=hbm, **_ATLAS_800T_A2)  # type: ignore[arg-type]


_BIN_3 = _bin(3, 313e12, 64 * GIB, 1.6e12)

CHIP_DATA: dict[Chip, ChipData] = {
    "910a": ChipData(
        title="Ascend 910A",
        soc="Ascend910A",
        memory=32 * GIB,
        flops={"float16": 256e12, "float32": 256e12 / 16},
        half="float16",
        hbm=1.2e12,
        pcie=16e9,
        hccs=30e9,
        network=12.5e9,
        per_host=8,
        host_memory=750 * 10**9,
        host_cores=192,
        dropless=False,
        saturates=True,
    ),
    "910b": _BIN_3,
    "910b1": _bin(1, 414e12, 64 * GIB, 1.6e12),
    "910b2": _bin(2, 354e12, 64 * GIB, 1.6e12),
    "910b3": _BIN_3,
    "910b4": _bin(4, 280e12, 32 * GIB, 0.8e12),
    "910_93": ChipData(
        title="Ascend 910_93",
        soc="Ascend910_9392",
        memory=64 * GIB,
        flops={"float16": 376e12, "bfloat16": 376e12, "float32": 94e12},
        half="bfloat16",
        hbm=1.6e12,
        pcie=32e9,
        hccs=196e9,
        network=25e9,
        per_host=16,
        host_memory=1_500 * 10**9,
        host_cores=320,
        dropless=True,
        saturates=False,
    ),
}
"""Data of each chip."""

CHIP_NAMES: tuple[Chip, ...] = get_args(Chip)
"""Names of all chips, the paper's first."""
