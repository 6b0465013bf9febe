"""What plans assume of a machine and is no property of a chip: what software takes, and what is left to be safe.

The chip, its links and its server are data of `chips.py`. A figure that nobody states is marked "our assumption".
"""

from pangu_sigma.chips import CHIP_DATA, GIB, ChipData
from pangu_sigma.config import Config

MIB = 1 << 20

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


def chip_of(config: Config) -> ChipData:
    """The chip that a configuration is planned for, and its server."""
    return CHIP_DATA[config.parallel.chip]
