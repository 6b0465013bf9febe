"""Reader of the file of `export --format safetensors`: all weights, with the configuration in the metadata.

The metadata also hold `xxh3_128`, the hash of the whole file with zeros in place of the hash's 32 digits.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of
from pangu_sigma.config import Config
from pangu_sigma.config_file import config_in_text
from pangu_sigma.sealed import DamagedFile
from pangu_sigma.stored.model import Kind, Listed, StoredModel

HASH = "xxh3_128"
"""Metadata key of the hash of a file of weights."""
NO_HASH = "0" * 32
"""Placeholder of the hash of a file of weights while the hash is computed."""


class StoredWeights(StoredModel):
    """Model in one safetensors file that `export_safetensors` wrote. The file's arrays are the dense tensors, and of experts
    `experts.<segment>.<name>`, [experts, …], segments numbered over all RRE layers."""

    kind: Kind = "weights"

    @cached_property
    def config(self) -> Config:
        return config_in_text(metadata_of(self.path)["config"], str(self.path))

    @cached_property
    def hash(self) -> str:
        """Hash of the file, as its metadata states it."""
        return metadata_of(self.path)[HASH]

    @property
    def hashes(self) -> dict[str, str]:
        return {"file": self.hash}

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        if self._verified:
            verify_weights(self.path)
        return map_arrays(self.path)

    def array(self, shard: str, name: str) -> LazyArray | None:
        values = self._arrays.get(name if shard == WEIGHTS else f"experts.{shard.removeprefix(EXPERTS)}.{name}")
        return None if values is None else LazyArray.of(values, name)

    def listed(self) -> Listed:
        return (("", name, values.shape, values.dtype.name) for name, values in self._arrays.items())


def verify_weights(file: Path) -> None:
    """Verify a file of weights by the hash in its metadata. Raises DamagedFile if a bit changed, or if the file has no hash."""
    try:
        digits, at = hash_of_weights(file)
        with open(file, "rb") as stream:
            stream.seek(at)
            written = stream.read(len(NO_HASH))
    except (OSError, ValueError, KeyError) as error:
        raise DamagedFile(f"{file}: {error}; it is damaged, or has no hash: export it again") from error
    if written != digits.encode():
        raise DamagedFile(f"{file}: its content does not match its own hash; it is damaged, export it again")


def hash_of_weights(file: Path) -> tuple[str, int]:
    """Compute the hash of a safetensors file of an export, over all bytes but those of the hash that is stored in its header.

    Returns the computed hash, and the offset of the stored one in bytes.
    """
    written = metadata_of(file)[HASH].encode()
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        length = stream.read(8)
        header = length + stream.read(int.from_bytes(length, "little"))
        at = header.index(b'"%s": "%s"' % (HASH.encode(), written)) + len(HASH) + 5
        digest.update(header[:at] + NO_HASH.encode() + header[at + len(NO_HASH) :])
        while chunk := stream.read(8 << 20):
            digest.update(chunk)
    return digest.hexdigest(), at
