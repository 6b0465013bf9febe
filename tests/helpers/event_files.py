"""TensorBoard's event files, read without TensorBoard."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> list[Event]:
    """The events of the only file of a folder: each is its length, a checksum, itself, a checksum."""
    (file,) = folder.iterdir()
    content, actual = file.read_bytes(), []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        actual.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return actual
