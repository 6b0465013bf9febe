"""Compile kernels and host sides of the operators with g++ against the headers of this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ascend_ops.library import cache_folder, compile_library

PROJECT = Path(__file__).parent.parent
FOLDERS = ("emulation", "op_host", "op_kernel")
"""Folders of the sources that decide a compiled library."""


def compile_harness(source: str, macros: dict[str, str], project: Path = PROJECT, folder: Path | None = None) -> Path:
    """Compile the C++ file `emulation/<source>` of `project`, with what it includes, to a shared library, and return its path.

    macros: names and values to define. folder: where the library is kept; None: the folder of all compiled libraries
    (`library.cache_folder`).
    Raises BuildError with the compiler's message.
    """
    definitions = [f"-D{name}={value}" for name, value in macros.items()]
    digest = hashlib.sha256(" ".join([source, *definitions]).encode())
    files = (path for name in FOLDERS for path in (project / name).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".h", ".cpp")):
        digest.update(path.name.encode() + path.read_bytes())
    target = (folder or cache_folder()) / f"{Path(source).stem}_{digest.hexdigest()[:16]}.so"
    if not target.exists():
        # -fno-gnu-unique: else libraries of one process share the static variables of inline functions, and with them their state
        flags = ["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC", "-fno-gnu-unique", f"-I{project / 'emulation'}"]
        compile_library(
            target, [*flags, *definitions, str(project / "emulation" / source)], f"{source} of the emulation"
        )
    return target
