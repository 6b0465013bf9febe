"""Process around a program of the sandbox: it isolates, starts, watches and ends it, and reports its outcome.

    python -S -s -m pangu_sigma.evaluate.sandbox.jail < task.json

is what `sandbox.py` starts, so that nothing of an evaluation is in reach: this process has read no data and no model. Its child is
the first process of a namespace, and starts the program there; when the child ends, the kernel ends all remaining processes.

A program has passed if its text ran to its end and then wrote a secret that is new each time. The secret waits in a pipe, and
nothing in the process has it before the text has ended; so no early exit, quiet or with status 0, passes. A program that was
written to find this very pipe in its own process could cheat; no scorer that calls functions in one process prevents that.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, NoReturn

from pangu_sigma.evaluate.sandbox import isolation, libc
from pangu_sigma.evaluate.sandbox.program_limits import ProgramLimits
from pangu_sigma.evaluate.sandbox.system_calls import deny_calls

_SECRET, _ANSWER, _TROUBLE = 3, 4, 5
"""File descriptors of a program: the secret, the pipe for its answer, and errors before the program began."""

_PROGRAM = "program.py"

_START = f"""
def start():
    from os import _exit, read, write
    from sys import modules
    modules["program"] = type(modules["sys"])("program")
    with open("{_PROGRAM}", encoding="utf-8") as file:
        text = file.read()
    exec(compile(text, "{_PROGRAM}", "exec"), modules["program"].__dict__)
    write({_ANSWER}, read({_SECRET}, 100))
    _exit(0)
start()
"""
"""Code that the program's interpreter runs. As in HumanEval's own scorer, the module is not named __main__. The process exits
right after writing the secret, before exit handlers of the program."""

_SHOWN_OUTPUT = 4096
"""Bytes at the end of a program's output that are searched for the reason of its failure."""


def run_program(task: dict[str, Any]) -> dict[str, Any]:
    """Run a program in the sandbox. Returns {"passed": bool, "why": str}, or {"missing": str} where it cannot be isolated.

    task: "program": text of the program; "limits": fields of `ProgramLimits`; "unsafe": True to run the program even where it
    cannot be isolated, then under the user's own id, in a folder of its own.
    """
    limits, isolated = ProgramLimits(**task["limits"]), True
    user = os.geteuid()
    try:
        user = isolation.unused_user_id()
        isolation.enter_namespaces()
    except OSError as error:
        if not task["unsafe"]:
            return {"missing": f"namespaces of its own ({_said(error)})"}
        isolated = False
    return _Watch(task["program"], limits, user, isolated).run()


class _Watch:
    """Run of one program, from start to end."""

    def __init__(self, program: str, limits: ProgramLimits, user: int, isolated: bool):
        self._program, self._limits, self._user, self._isolated = program, limits, user, isolated
        self._secret = secrets.token_hex(32).encode()
        self._folder = isolation.WORK if isolated else tempfile.mkdtemp(prefix="program-")
        self._written, self._tail = 0, b""

    def run(self) -> dict[str, Any]:
        """Start, watch and end the program."""
        child, woken = 0, _wakes_at_ends_of_children()
        try:
            output, answer, trouble, child = self._start()
            status, late = self._follow(child, output, woken)
            child = 0
            if message := _all_of(trouble):
                return {"missing": message.decode()}
            passed = not late and status == 0 and secrets.compare_digest(_all_of(answer), self._secret)
            return {"passed": passed, "why": "passed" if passed else late or self._reason(status)}
        finally:
            if child:
                _end(child)
            if not self._isolated:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> tuple[int, int, int, int]:
        """Start the program, and return the pipes to read (output, answer, trouble) and the process to wait for."""
        (output, output_in), (secret, secret_in), (answer, answer_in), (trouble, trouble_in) = (
            os.pipe() for _ in range(4)
        )
        os.write(secret_in, self._secret)
        os.close(secret_in)
        child = os.fork()
        if not child:
            nothing = os.open(os.devnull, os.O_RDONLY)
            _keep_open(nothing, output_in, output_in, secret, answer_in, trouble_in)
            self._in_child()
        for each in (output_in, secret, answer_in, trouble_in):
            os.close(each)
        return output, answer, trouble, child

    def _in_child(self) -> NoReturn:
        """Become the program, or in a namespace the process that waits for it."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            libc.die_with_parent(signal.SIGKILL)
            os.umask(0o022)
            if self._isolated:
                isolation.make_minimal_root(self._limits, self._user)
                if program := os.fork():
                    os.close(_TROUBLE)
                    _, ended = os.waitpid(program, 0)
                    os._exit(_as_in_a_shell(ended))
            self._become_program()
        except OSError as error:
            os.write(_TROUBLE, _said(error).encode())
        except BaseException as error:
            os.write(_TROUBLE, repr(error).encode())
        finally:
            os._exit(1)

    def _become_program(self) -> NoReturn:
        os.setsid()
        if self._isolated:
            isolation.drop_privileges(self._user)
        os.chdir(self._folder)
        with open(_PROGRAM, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(self._program)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._limits.apply()
        libc.gain_no_privileges()
        deny_calls()
        surroundings = {"HOME": self._folder, "TMPDIR": self._folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-s", "-S", "-P", "-B", "-c", _START], surroundings)

    def _follow(self, child: int, output: int, woken: int) -> tuple[int, str]:
        """Wait until the child has ended, or end it at a limit. Returns its status, and the limit or ""."""
        deadline, late = time.monotonic() + self._limits.wall_seconds, ""
        waiting = [output, woken]
        while not late:
            left = deadline - time.monotonic()
            if left <= 0:
                late = f"longer than {self._limits.wall_seconds:g} s"
                break
            ready, _, _ = select.select(waiting, [], [], left)
            if woken in ready:
                os.read(woken, 100)
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    return _as_in_a_shell(status), self._rest_of(output)
            if output in ready and not self._take(output):
                waiting.remove(output)
            late = self._too_much()
        return _end(child), late

    def _take(self, output: int) -> bytes:
        new = os.read(output, 1 << 16)
        self._written += len(new)
        self._tail = (self._tail + new)[-_SHOWN_OUTPUT:]
        return new

    def _rest_of(self, output: int) -> str:
        """Read what an ended program left in the pipe, and return the limit if it is too much, or ""."""
        os.set_blocking(output, False)
        try:
            while self._take(output):
                pass
        except BlockingIOError:
            pass
        return self._too_much()

    def _too_much(self) -> str:
        most = self._limits.output_bytes
        return f"more than {most} bytes of output" if self._written > most else ""

    def _reason(self, status: int) -> str:
        """Return the reason why a program that ended by itself has not passed."""
        if status == 128 + signal.SIGXCPU:
            return f"more than {self._limits.cpu_seconds} s of computing"
        if status > 128:
            return f"ended by signal {status - 128}"
        lines = self._tail.decode("utf-8", errors="replace").strip().splitlines()
        if status == 1 and lines:
            return lines[-1][:200]
        return f"ended with status {status} before its tests were through"


def _keep_open(*descriptors: int) -> None:
    """Number file descriptors from 0 on, and close all others. The last one closes itself when the process becomes a program."""
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in descriptors]
    for number, each in enumerate(high):
        os.dup2(each, number, inheritable=number < len(high) - 1)
    os.closerange(len(high), 200)


def _wakes_at_ends_of_children() -> int:
    """Return a file descriptor that becomes readable whenever a child ends."""
    woken, wakes = os.pipe()
    for each in (woken, wakes):
        os.set_blocking(each, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    return woken


def _end(child: int) -> int:
    """End a child and, with it, all processes of its namespace. Returns its status."""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _as_in_a_shell(status)


def _as_in_a_shell(status: int) -> int:
    """Return an exit status, or 128 plus the signal that ended a process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _all_of(descriptor: int) -> bytes:
    """Return the contents of a pipe that has no writers any more."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def _said(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}"


def main() -> None:
    """Read the sandbox's task from standard input, and write its result to standard output."""
    libc.die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    task = json.load(sys.stdin.buffer)
    if os.getppid() == task["parent"]:
        json.dump(run_program(task), sys.stdout)


if __name__ == "__main__":
    main()
