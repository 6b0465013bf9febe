"""Resource limits of a program in the sandbox."""

from __future__ import annotations

import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgramLimits:
    """Resource limits of one program in the sandbox; our choice. HumanEval allows 3 s of wall time, which other load uses up.

    cpu_seconds: CPU time, whole seconds. wall_seconds: time from start to end. memory_bytes: address space. output_bytes: standard
    output and standard error together. folder_bytes: all files in the program's folder. files: files and folders there.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    files: int = 64

    def apply(self) -> None:
        """Apply the limits to this process, once it has its user id: Linux does not limit root's number of processes."""
        for what, most in (
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_FSIZE, self.folder_bytes),
            (resource.RLIMIT_NOFILE, self.files),
            (resource.RLIMIT_NPROC, 1),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
        ):
            resource.setrlimit(what, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_seconds, self.cpu_seconds + 1))  # SIGXCPU, then SIGKILL
