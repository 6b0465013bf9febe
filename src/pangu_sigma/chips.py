"""Data of the chips that are sold as "Ascend 910". 910A is the paper's chip. 910B, in bins (speed grades) 1 to 4, is in Atlas 800T
A2 and 900 A2; 910_93 is one of the two dies in a chip of Atlas 900 A3; software sees each die as an NPU. Each figure has its source
beside it, "reported" if we read about the source, not in it. Rates are for dense products; bandwidths are one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GIB = 1 << 30

Chip = Literal["910a", "910b", "910b1", "910b2", "910b3", "910b4", "910_93"]
"""Names of chips. `910b` is the bin (speed grade) of the servers that are sold as Atlas 800T A2, `910b3`."""


@dataclass(frozen=True)
class ChipData:
    """Data sheet of one type of NPU and of its server. title: name of the NPU in messages. soc: CANN's name of the NPU. memory:
    bytes of the NPU. flops: floating-point operations per second, by dtype. half: 16-bit dtype that trains best. hbm, pcie, hccs,
    network: bandwidths in bytes per second: of the NPU's memory, to or from the host, to NPUs of the same host, and to other hosts.
    per_host: number of NPUs of a server. host_memory: bytes of a server.
    dropless: True if CANN has GroupedMatmul, and collectives of uneven parts, for the NPU. saturates: True if overflow gives the
    largest number and a flag, not infinity."""

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
    dropless: bool
    saturates: bool


_ATLAS_800T_A2 = {
    "half": "bfloat16",
    "pcie": 16e9,  # our assumption: half of PCIe 4.0 x16, which joins each NPU to its CPU (data sheet of the server)
    "hccs": 7 * 28e9,  # data sheet: seven links, 392 GB/s of both directions, to all other NPUs of the server
    "network": 25e9,  # data sheet: RoCE of 200 Gb/s an NPU
    "per_host": 8,
    "host_memory": 1_500 * 10**9,  # our assumption; the server has 32 slots for at most 64 GB each
    "dropless": True,
    "saturates": False,
}
"""Data that all bins of 910B share, by the data sheet of their server, Huawei's Atlas 800T A2."""


def _bin(number: int, float16: float, bfloat16: float, float32: float, memory: int, hbm: float) -> ChipData:
    """Return the data of bin `number` (speed grade) of 910B. float16, bfloat16, float32: operations per second. memory: bytes.
    hbm: bytes per second. Rates of float16 and float32 come from data sheets, which add the vector units to the matrix units, and
    leave HF32 out, which rounds float32 to 19 bits. Rates of bfloat16 are of the matrix units alone: cores · 16³ · 2 · clock, with
    cores and clock from CANN 8.1's platform_config/Ascend910B<number>.ini, as in MindStudio Modeling's tensor_cast/device.py."""
    flops = {"float16": float16, "bfloat16": bfloat16, "float32": float32}
    return ChipData(f"Ascend 910B{number}", f"Ascend910B{number}", memory, flops, hbm=hbm, **_ATLAS_800T_A2)  # type: ignore[arg-type]


# 20 cores of 1.8 GHz; 64 GB of 1.6 TB/s; 313 TFLOPS in float16, 82 in float32: data sheet of Atlas 800T A2, and arXiv 2406.00023
_BIN_3 = _bin(3, 313e12, 294.9e12, 82e12, 64 * GIB, 1.6e12)

CHIP_DATA: dict[Chip, ChipData] = {
    "910a": ChipData(
        title="Ascend 910A",
        soc="Ascend910A",
        memory=32 * GIB,  # Hot Chips 31: four stacks of HBM2, of 8 GiB
        # Hot Chips 31; in float32 our assumption. LocMoE (arXiv 2401.13920) has 320e12 and 1.07e12 bytes/s of a later model
        flops={"float16": 256e12, "float32": 256e12 / 16},
        half="float16",
        hbm=1.2e12,  # Hot Chips 31
        pcie=16e9,  # our assumption: half of PCIe 4.0 x16 (Hot Chips 31)
        # Our assumption: a ring keeps one of the three HCCS ports of 240 Gb/s (Hot Chips 31) busy. In these servers the ports join
        # four NPUs and PCIe joins the two fours, which is not modelled. HCCL itself counts on 10e9 (hcomm, device_capacity.cc)
        hccs=30e9,
        network=12.5e9,  # RoCE of 100 Gb/s; HCCL counts on 0.8 of it (hcomm, device_capacity.cc). Our assumption: no contention
        per_host=8,  # the paper's servers: unconfirmed, see docs/paper.md
        host_memory=750 * 10**9,  # the paper's servers: unconfirmed; 750 GB is read as the smaller unit
        dropless=False,
        saturates=True,
    ),
    "910b": _BIN_3,
    # Not in data sheets. 24 cores of 1.85 GHz (CANN); the other rates are our assumption: bin 2's by the clock
    "910b1": _bin(1, 386e12, 363.7e12, 102e12, 64 * GIB, 1.6e12),
    # 24 cores of 1.8 GHz (CANN); 376 TFLOPS in float16, 99 in float32: data sheet of Atlas 800T A2
    "910b2": _bin(2, 376e12, 353.9e12, 99e12, 64 * GIB, 1.6e12),
    "910b3": _BIN_3,
    # 20 cores of 1.5 GHz (CANN); 280 TFLOPS in float16, 75 in float32; 32 GB of 0.8 TB/s: data sheet of Atlas 800I A2
    "910b4": _bin(4, 280e12, 245.8e12, 75e12, 32 * GIB, 0.8e12),
    "910_93": ChipData(
        title="Ascend 910_93",
        soc="Ascend910_9392",
        memory=64 * GIB,  # half of a package; arXiv 2506.12708, data sheet of Atlas 800T A3
        # Half of a package of 752 TFLOPS in float16, 198 in float32 (data sheet of Atlas 800T A3); bfloat16 as in `_bin`
        flops={"float16": 376e12, "bfloat16": 353.9e12, "float32": 99e12},
        half="bfloat16",
        hbm=1.6e12,  # arXiv 2506.12708, data sheet of Atlas 800T A3
        pcie=20e9,  # our assumption: half of a 16th of the 4 x 160 GB/s of the server's CPUs (arXiv 2506.12708, reported)
        hccs=196e9,  # one way, by UB: arXiv 2506.12708; a data sheet has 784 GB/s for both ways of a package
        # RoCE of 400 Gb/s a package: data sheet of Atlas 800T A3, arXiv 2506.12708. In a supernode UB joins the hosts of up to 384
        # packages nearly as fast as the NPUs of one; plans do not count on it, so between those hosts they are too slow
        network=25e9,
        per_host=16,  # eight packages of two
        host_memory=1_500 * 10**9,  # our assumption; 32 of the 64 slots take 64 GB each
        dropless=True,
        saturates=False,
    ),
}
"""Data of each chip, by name."""

CHIP_NAMES: tuple[Chip, ...] = get_args(Chip)
"""Names of all chips, the paper's first."""


def family(chip: Chip) -> str:
    """Return the family of a chip, which selects compiled operators: 910a, 910b or 910_93."""
    return "910b" if chip.startswith("910b") else chip
