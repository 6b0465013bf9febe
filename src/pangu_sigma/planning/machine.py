"""The machine that plans are made for: servers of eight Ascend 910 with 750 GB. The paper's 512 NPUs would be 64 of them.

Data sheets are given as they are. A figure that cannot be reached in full, or that nobody states, is marked "our assumption";
"unconfirmed" has the meaning of README.md of this package.
"""

from pangu_sigma.chips import GIB

MIB = 1 << 20

NPUS_PER_HOST = 8
"""Number of NPUs in a server (the paper's, unconfirmed). They share its memory, and fast links that nothing outside it has."""

NPU_MEMORY = 32 * GIB
"""Bytes of an NPU's memory. Ascend 910: four stacks of HBM2 of 8 GiB."""

HOST_MEMORY = 750 * 10**9
"""Bytes of a host's memory. The paper's servers have 750 GB (unconfirmed), which is read as the smaller unit."""

PEAK_FLOPS = 256e12
"""Floating-point operations per second of an Ascend 910 in float16 (Hot Chips 31). It has no such rate in float32: the times of a
float32 configuration come out far too short."""

HBM_BANDWIDTH = 1.2e12
"""Bytes per second between an NPU and its memory. Ascend 910 (Hot Chips 31)."""

PCIE_BANDWIDTH = 16e9
"""Bytes per second between an NPU and its host, in one direction. Our assumption: half of PCIe 4.0 x16."""

HCCS_BANDWIDTH = 30e9
"""Bytes per second that an NPU sends to another of its host. Our assumption: a ring keeps one of the chip's three HCCS ports of
240 Gb/s (Hot Chips 31) busy. In these servers the ports join four NPUs and PCIe joins the two fours, which is not modelled."""

NETWORK_BANDWIDTH = 12.5e9
"""Bytes per second that an NPU sends to another host: one RoCE port of 100 Gb/s each. Our assumption: no contention."""

COMMUNICATOR_BUFFERS = 2 * 200 * MIB
"""Bytes that HCCL takes for each group of ranks by default: HCCL_BUFFSIZE = 200 MB to send and as much to receive (CANN's
documentation)."""

NPU_RESERVE = 1 * GIB
"""Bytes of an NPU for streams, graph, constants and fragmentation of the allocator. Our assumption."""

PROCESS_RESERVE = 4 * GIB
"""Bytes of the host for one rank's process: Python, MindSpore, compiled graph, batches. Our assumption."""

HOST_RESERVE = 16 * GIB
"""Bytes of the host for the operating system and its page cache. Our assumption."""

LITTLE_LEFT = 0.1
"""Share of a memory that should be left: with less, a plan fits with a warning. The reserves, the allocator's peak and the order in
which tensors go are assumptions, of some GiB together. Our choice."""
