"""The machine that plans are made for: servers of eight Ascend 910 with 750 GB, as the paper used 64 of them (spec §3.1).

Data sheets are given as they are. Where only part of a figure can be reached, or nobody states one, it says "our assumption".
"""

GIB = 1 << 30
MIB = 1 << 20

NPUS_PER_HOST = 8
"""Spec §3.1. They share the host's memory, and fast links that nothing outside the host has."""

NPU_MEMORY = 32 * GIB
"""Ascend 910: four stacks of HBM2 of 8 GiB."""

HOST_MEMORY = 750 * 10**9
"""Spec §3.1: 750 GB, read as the smaller unit."""

PEAK_FLOPS = 256e12
"""Ascend 910, float16 (Hot Chips 31). It has no such rate in float32: times of a float32 configuration are far too short."""

HBM_BANDWIDTH = 1.2e12
"""Bytes per second. Ascend 910 (Hot Chips 31)."""

PCIE_BANDWIDTH = 16e9
"""Bytes per second of an NPU in one direction. Our assumption: half of PCIe 4.0 x16."""

HCCS_BANDWIDTH = 30e9
"""Bytes per second that an NPU sends to another of its host. Our assumption: a ring keeps one of the chip's three HCCS ports of
240 Gb/s (Hot Chips 31) busy. In these servers the ports join four NPUs and PCIe joins the two fours, which is not modelled."""

NETWORK_BANDWIDTH = 12.5e9
"""Bytes per second that an NPU sends to another host: one RoCE port of 100 Gb/s each. Our assumption: no contention."""

COMMUNICATOR_BUFFERS = 2 * 200 * MIB
"""HCCL's default for each group of ranks: HCCL_BUFFSIZE = 200 MB to send and as much to receive (CANN's documentation)."""

NPU_RESERVE = 1 * GIB
"""Our assumption: streams, graph, constants, fragmentation of the allocator."""

PROCESS_RESERVE = 4 * GIB
"""Our assumption: host memory of one rank's process: Python, MindSpore, compiled graph, batches."""

HOST_RESERVE = 16 * GIB
"""Our assumption: operating system and page cache."""
