"""Memory that plans reserve for software and for safety. The chip, its links and its server are data of `chips.py`.

A figure without a source is marked "our assumption".
"""

from pangu_sigma.chips import CHIP_DATA, GIB, ChipData
from pangu_sigma.config import Config

MIB = 1 << 20

COMMUNICATOR_BUFFERS = 2 * 200 * MIB
"""Bytes that HCCL allocates per communication group by default: HCCL_BUFFSIZE = 200 MB each way (CANN's documentation)."""

NPU_RESERVE = 1 * GIB
"""Bytes of an NPU reserved for streams, graph, constants and fragmentation of the allocator. Our assumption."""

PROCESS_RESERVE = 4 * GIB
"""Bytes of host memory for one rank's process: Python, MindSpore, compiled graph, batches. Our assumption."""

HOST_RESERVE = 16 * GIB
"""Bytes of host memory for the operating system and its page cache. Our assumption."""

TIGHT_FRACTION = 0.1
"""Fraction of an NPU's or a host's memory that should stay free: a plan that leaves less fits with a warning. Our choice: the
reserves above, the allocator's peak and the lifetimes of tensors are assumptions, and together may be wrong by some GiB."""


def chip_of(config: Config) -> ChipData:
    """Return the chip, with its server, that a configuration is planned for."""
    return CHIP_DATA[config.parallel.chip]
