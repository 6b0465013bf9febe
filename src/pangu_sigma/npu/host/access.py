"""Access to a host for its checks: files below a root, and tools of the vendor and of the system. Tests replace both."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 30.0
"""Timeout of a host's tool in seconds; our choice. npu-smi takes 1 or 2 s, and hangs if the driver hangs."""
_TOOL_FOLDERS = ("usr/local/Ascend/driver/tools", "usr/local/sbin", "usr/local/bin")
"""Folders where the driver's package puts its tools; not every PATH has them."""


class ToolError(Exception):
    """Error of a host's tool that is missing, fails, or does not end. fix: advice to the user."""

    def __init__(self, problem: str, fix: str):
        super().__init__(problem)
        self.fix = fix


@dataclass(frozen=True)
class Host:
    """Host to check. root: folder that stands for / of the host. environment: variables of this shell, with the PATH of the tools.

    mindspore: folder of MindSpore; None for the installed one. mindspore_version: MindSpore's version; empty if not installed.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    mindspore: Path | None = None
    mindspore_version: str = field(default_factory=lambda: _version("mindspore"))

    def path(self, name: str) -> Path:
        """Return the path of a file or folder of the host, such as `/etc/hccn.conf`."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return the text of a file; None if it is missing or cannot be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def tool(self, name: str) -> str | None:
        """Return the path of a tool; None if it is neither on PATH nor in the NPU driver's folders."""
        folders = [self.environment.get("PATH", os.defpath), *(str(self.root / folder) for folder in _TOOL_FOLDERS)]
        return shutil.which(name, path=os.pathsep.join(folders))

    def run(self, name: str, *arguments: str) -> str:
        """Run a tool of the host and return its output. Raises ToolError if the tool is missing, fails, or does not end."""
        command = " ".join([name, *arguments])
        program = self.tool(name)
        if program is None:
            raise ToolError(
                f"{name} is not on PATH", f"{_WHOSE.get(name, f'install {name}')}, or add its folder to PATH"
            )
        try:
            done = subprocess.run(
                [program, *arguments], env=dict(self.environment), capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ToolError(
                f"{command} did not answer in {SECONDS:g} s", "the driver hangs: see dmesg, restart the host"
            ) from None
        except OSError as error:
            raise ToolError(f"{command}: {error.strerror}", f"let this user run {program}") from error
        if done.returncode:
            message = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise ToolError(f"{command} ended with {done.returncode}, saying: {message}", f"mend what {name} names")
        return done.stdout


_WHOSE = {
    "npu-smi": "install the Ascend driver, or mount its npu-smi, tools and libraries into the container",
}


def assignments(text: str) -> dict[str, str]:
    """Parse the `key=value` lines of a text to a dict."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
