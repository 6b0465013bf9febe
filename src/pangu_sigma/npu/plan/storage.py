"""What the ranks of a plan read of the prepared text. Pure Python.

Every rank reads all samples of a batch, because its routing plan needs their ids (`data/batches.py`). The ranks of a host read the
same at the same time, and its page cache asks the storage once for all of them. The first sample of a chunk reads the chunk whole,
to verify it (`data/token_files.py`); in the first steps nearly every sample is such a one. Held-out text, which is short, is not
counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from pangu_sigma.config import Config
from pangu_sigma.data.indexed import CHUNK_BYTES

_ID_BYTES = 4


@dataclass(frozen=True)
class StorageReads:
    """Bytes a second of token files, for the whole job.

    ranks: that all ranks read of samples. storage: that their hosts ask a shared storage for. first_steps: that they ask it for
    while the chunks of all samples have to be verified, which reads the whole text once on each host.
    """

    ranks: float
    storage: float
    first_steps: float


def storage_reads(config: Config, hosts: int, step_seconds: float) -> StorageReads:
    """Return what a job reads. hosts: number of its hosts. step_seconds: seconds of a step."""
    length, per_second = config.model.seq_length, config.train.accumulation * config.train.batch_size / step_seconds
    sample = _ID_BYTES * (length + 1)  # and the token after it
    # as many starts of a sample as it has further tokens are in a second chunk
    chunks = CHUNK_BYTES + _ID_BYTES * length
    return StorageReads(
        ranks=config.parallel.ranks * per_second * sample,
        storage=hosts * per_second * sample,
        first_steps=hosts * per_second * chunks,
    )
