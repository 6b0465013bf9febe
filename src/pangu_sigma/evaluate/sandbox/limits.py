"""What a program may use."""

from __future__ import annotations

import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgramLimits:
    """The most that one program may use; our choice. HumanEval's own scorer gives 3 s of wall time, where neighbours cost time too.

    cpu_seconds: of computing, whole seconds. wall_seconds: from the start to the end. memory_bytes: of address space.
    output_bytes: written to standard output and standard error together. folder_bytes: in all files of its folder.
    files: number of files and folders that it may have there.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    files: int = 64

    def apply(self) -> None:
        """Set what the kernel counts for a process, once it has its user id: root is bound by no number of processes."""
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
