"""What `Watch` finds in arrays that are there whole."""

from __future__ import annotations

from pangu_sigma.checkpoint.not_finite import NotFinite, Watch
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.safetensors_file import chunks


def find_not_finite(files: Files) -> list[NotFinite]:
    """The arrays that hold NaN or infinity, in the order of the files and by name."""
    found = []
    for file, arrays in files.items():
        watch = Watch(file, arrays)
        for name, array in arrays.items():
            for first, values in chunks(array.values):
                watch.see(name, first, values)
        found += watch.found
    return found
