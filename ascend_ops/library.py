"""Build the CPU kernels of this folder once, with the g++ of the machine they run on."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import scipy_openblas32

from ascend_ops.errors import BuildError

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpu"
FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
if platform.machine() == "x86_64":
    # Without it g++ fuses no multiplication with the addition behind it where the sum is the only one of its loop, and a row would
    # have other bits alone than beside others (decode.cc).
    FLAGS += ("--param=avoid-fma-max-bits=0",)


@cache
def cpu_library() -> str:
    """Return the path of the shared library with the CPU kernels. The first use compiles it, for some seconds; later runs reuse it.

    PANGU_SIGMA_CACHE names the folder that keeps it (default ~/.cache/pangu_sigma).
    Raises BuildError with the compiler's message if g++ is missing or fails.
    """
    target = cache_folder() / f"ascend_ops_{_fingerprint()}.so"
    if not target.exists():
        _compile(target)
    return str(target)


def cache_folder() -> Path:
    """Return the folder of compiled libraries: PANGU_SIGMA_CACHE, or ~/.cache/pangu_sigma. Raises BuildError for a user without a
    home: in the system's temporary folder others could put a library of theirs."""
    if folder := os.environ.get("PANGU_SIGMA_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "pangu_sigma"
    except RuntimeError as error:
        raise BuildError(
            "this user has no home folder; set PANGU_SIGMA_CACHE to a folder for compiled kernels"
        ) from error


def _fingerprint() -> str:
    """Return the hash of everything that changes the binary: sources, flags, BLAS and the kind of processor."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    digest.update(scipy_openblas32.get_lib_dir().encode())
    digest.update(platform.machine().encode())
    return digest.hexdigest()[:16]


def _compile(target: Path) -> None:
    """Compile all sources of `cpu/` into the library `target`, linked with scipy's OpenBLAS."""
    lib_dir = scipy_openblas32.get_lib_dir()
    sources = [str(path) for path in sorted(SOURCES.glob("*.cc"))]
    blas = [f"-L{lib_dir}", "-lscipy_openblas", f"-Wl,-rpath,{lib_dir}"]
    compile_library(target, [*FLAGS, f"-I{scipy_openblas32.get_include_dir()}", *sources, *blas], "the CPU kernels")


def compile_library(target: Path, arguments: list[str], subject: str) -> None:
    """Compile a shared library with g++. `target` appears when it is complete, so several processes may build it at the same time.

    arguments: flags and sources for g++. subject: name of the code, for messages.
    Raises BuildError, with the compiler's message, if g++ is missing or fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("compiling %s into %s", subject, target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        try:
            result = subprocess.run(["g++", *arguments, "-o", str(library)], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BuildError(f"g++ is needed to compile {subject} and is not on PATH; install it") from error
        if result.returncode:
            raise BuildError(f"g++ could not compile {subject}:\n{result.stderr}")
        library.rename(target)
