"""Programs that mean harm fail, harm nothing, and leave nothing; programs that are right pass."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.strangers import strangers

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.sandbox import program_limits
from pangu_sigma.evaluate.sandbox.program_limits import ProgramLimits
from pangu_sigma.evaluate.sandbox.sandbox import Outcome, Sandbox

LIMITS = ProgramLimits(cpu_seconds=1, wall_seconds=40)
"""Time enough on a machine that does much else."""


SOMEBODY = 65000
"""A user id that no account has."""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(LIMITS)
    except ConfigError as error:
        pytest.skip(str(error))


def in_other_namespaces() -> set[int]:
    """Processes of other namespaces of processes than ours: of every sandbox that there is now."""
    own, found = Path("/proc/self/ns/pid").readlink(), set()
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if (each / "ns/pid").readlink() != own:
                found.add(int(each.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """No process of a test is there after it, and no folder. Those of tests beside this one end by themselves."""
    before = in_other_namespaces()
    yield
    left = in_other_namespaces() - before
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= in_other_namespaces()
    assert left == set()
    assert list(Path("/tmp").glob("program-*")) == []


RIGHT = {
    "nothing": "",
    "a function": "def add(a, b):\n    return a + b\nassert add(1, 2) == 3",
    "what the library has": "import json, math, re, random, decimal, collections, heapq, bisect, itertools",
    "a file of its own": "open('a', 'w').write('今天')\nassert open('a').read() == '今天'",
    "it says much": "print('x' * 100_000)",
    "patched names": "import builtins, os, sys\nos.write = os._exit = sys.exit = builtins.open = builtins.exec = None",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    b: int = 1\nassert A() == A(1)",
    "no main program, as HumanEval's scorer runs it": "if __name__ == '__main__':\n    raise ValueError",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(sandbox, name):
    assert sandbox.run(RIGHT[name]) == Outcome(True, "passed")


FORGED = {
    "a wrong answer": "assert 1 == 2",
    "no Python": "def",
    "it leaves": "import sys\nsys.exit(0)\nassert False",
    "it leaves by an exception": "raise SystemExit",
    "it leaves at once": "import os\nos._exit(0)",
    "the word": "import os\nfor to in (1, 2, 4): os.write(to, b'passed')\nprint('passed')\nassert False",
    "the word and leaves": "import os\nos.write(4, b'passed')\nos._exit(0)",
    "at the end": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "a hook": "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False",
    "patched names": "import builtins, os\nbuiltins.AssertionError = builtins.exec = os.write = print\nassert False",
    "no name": "__builtins__.clear() if isinstance(__builtins__, dict) else vars(__builtins__).clear()\nassert False",
    "closed": "import os\nos.closerange(3, 64)",
    "a secret of its own": "import os\nos.write(4, b'0' * 64)",
    "a signal": "import signal\nsignal.raise_signal(9)\nassert False",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "recursion": "def f(): f()\nf()",
    "another program": "import os, sys\nos.execv('/usr/bin/true', ['true'])",
}


@pytest.mark.parametrize("name", FORGED)
def test_no_way_to_end_early_passes(sandbox, name):
    assert not sandbox.run(FORGED[name]).passed


def test_why_a_program_failed_is_said(sandbox):
    assert sandbox.run("assert 1 == 2, 'no'").why == "AssertionError: no"
    assert sandbox.run("import os\nos._exit(0)").why == "ended with status 0 before its tests were through"
    assert sandbox.run("import ctypes\nctypes.string_at(0)").why == "ended by signal 11"


TOO_MUCH = {
    "an endless loop": ("while True: pass", "more than 1 s of computing"),
    "one that ignores its end": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "ended by signal 9",
    ),
    "10 GB": ("x = bytearray(10 * 2**30)", "MemoryError"),
    "10 GB by little": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**26))", "OSError: [Errno 12]"),
    "1 GB of output": (
        "import os\nfor _ in range(2**14): os.write(1, b'x' * 2**16)",
        "more than 1048576 bytes of output",
    ),
    "1 GB of errors": (
        "import os\nfor _ in range(2**14): os.write(2, b'x' * 2**16)",
        "more than 1048576 bytes of output",
    ),
    "a large file": ("open('a', 'wb').write(bytes(2**25))", "OSError: "),
    "a large file at its end": ("open('a', 'wb').truncate(2**40)", "OSError: "),
    "many files": ("for n in range(1000): open(str(n), 'w').close()", "OSError: [Errno 28]"),
    "many open files": ("x = [open('/dev/null') for _ in range(1000)]", "OSError: [Errno 24]"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_the_end(sandbox, name):
    program, why = TOO_MUCH[name]
    outcome = sandbox.run(program)
    assert not outcome.passed
    assert outcome.why.startswith(why)


def test_who_waits_is_ended(sandbox):
    hasty = Sandbox(ProgramLimits(wall_seconds=3))
    assert hasty.run("import time\ntime.sleep(100)") == Outcome(False, "longer than 3 s")
    assert hasty.run("import os, time\nos.closerange(0, 64)\ntime.sleep(100)") == Outcome(False, "longer than 3 s")


ESCAPES = {
    "a fork": "import os\nos.fork()",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except BlockingIOError: pass",
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)"
    ),
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "a command": "import subprocess\nsubprocess.run(['/usr/bin/true'])",
    "a shell": "import os\nassert os.system('true') == 0",
    "memory that is not its own": "import os\nos.memfd_create('a')",
    "a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "rights": "import os\nos.setuid(0)",
    "a mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'a', b'/work', b'tmpfs', 0, None) == 0",
    "the processes": "import os\nos.listdir('/proc/1')",
    "the first process's signal": "import os\nos.kill(1, 9)",
    "a signal to all": "import os\nos.kill(-1, 9)",
    "its folder": "import shutil\nshutil.rmtree('/work')",
    "the library": "import os\nopen(os.__file__, 'a')",
    "the root": "open('/a', 'w')",
    "a device": "open('/dev/a', 'w')",
    "a home": "import os\nassert any(os.listdir(f'/root/{each}') is None for each in ('.ssh', '.cache', '.bashrc'))",
    "accounts": "open('/etc/passwd')",
    "a socket": "import socket\nsocket.socket()",
}
"""Programs that pass if they can do it."""


@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out(sandbox, name):
    assert not sandbox.run(ESCAPES[name]).passed


def test_files_of_others_are_not_there(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("12345")
    secret.chmod(0o666)
    for each in (secret, Path(__file__), Path("/proc/self/environ"), Path(f"/proc/{os.getpid()}/mem")):
        assert not sandbox.run(f"open({str(each)!r}, 'rb')").passed
    assert not sandbox.run(f"open({str(secret)!r}, 'w')").passed
    assert secret.read_text() == "12345"
    for folder in (tmp_path, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path.cwd(), Path.home()):
        target = folder / "was-here"
        assert not sandbox.run(f"open({str(target)!r}, 'w')").passed
        assert not target.exists()


def test_surroundings_are_not_told(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET", "12345")
    assert sandbox.run(
        "import os\nassert 'SECRET' not in os.environ and set(os.environ) <= {'HOME', 'TMPDIR', 'LANG', "
        "'PYTHONHASHSEED'}"
    ).passed
    assert sandbox.run(
        "import os, sys\nassert os.getuid() and os.getgroups() in ([], [os.getgid()])\nassert sys.argv == ['-c']"
    ).passed


def test_all_but_its_folder_is_read_only(sandbox):
    shown = "('/', '/usr', os.path.dirname(os.__file__), '/dev/null')"
    assert sandbox.run(f"import os\nassert all(os.statvfs(each).f_flag & os.ST_RDONLY for each in {shown})").passed


def test_the_network_is_not_there(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        assert subprocess.run([sys.executable, "-c", program]).returncode == 0
        assert not sandbox.run(program).passed


def test_the_parent_cannot_be_signalled(sandbox):
    assert not sandbox.run(f"import os\nos.kill({os.getpid()}, 15)").passed
    assert not sandbox.run("import os\nos.kill(os.getppid(), 9)\nos.kill(os.getppid(), 0)").passed


def test_several_run_beside_each_other_and_stay_in_order(sandbox, monkeypatch):
    several = Sandbox(LIMITS)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert [each.passed for each in several.run_all(["", "assert 0", "", "1/0"])] == [True, False, True, False]
    together = threading.Barrier(3)

    def run(program: str) -> Outcome:
        together.wait(timeout=30)
        return Outcome(True, program)

    monkeypatch.setattr(several, "run", run)
    assert [each.why for each in several.run_all(["a", "b", "c"])] == ["a", "b", "c"]


def test_a_sandbox_that_can_run_nothing_is_refused(sandbox):
    with pytest.raises(ConfigError, match="an empty program does not run in the sandbox"):
        Sandbox(ProgramLimits(output_bytes=1 << 20, memory_bytes=1 << 22))


def reachable_python() -> str:
    """An interpreter that everybody may start."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3.11", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            code = "import sys; assert sys.version_info >= (3, 11)"
            if subprocess.run([path, "-c", code], user=SOMEBODY, group=SOMEBODY, extra_groups=[]).returncode == 0:
                return path
    pytest.skip("no interpreter that somebody else may start")


def test_the_jail_imports_nothing_from_the_working_folder(sandbox, tmp_path, monkeypatch):
    ran = strangers(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert sandbox.run("import json").passed and ran() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_who_is_not_root_uses_user_namespaces():
    python = reachable_python()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pangu_sigma"
        shutil.copytree(Path(program_limits.__file__).parent, package / "evaluate/sandbox")
        for each in (Path(folder), *Path(folder).rglob("*")):
            each.chmod(0o755)

        def said(program: str) -> dict[str, Any]:
            task = {"program": program, "limits": asdict(ProgramLimits()), "unsafe": False, "parent": os.getpid()}
            done = subprocess.run(
                [python, "-B", "-s", "-S", "-m", "pangu_sigma.evaluate.sandbox.jail"],
                input=json.dumps(task).encode(),
                capture_output=True,
                check=True,
                env={"PYTHONPATH": folder},
                user=SOMEBODY,
                group=SOMEBODY,
                extra_groups=[],
            )
            return json.loads(done.stdout)

        if "missing" in (first := said("")):
            pytest.skip(f"no user namespaces: {first['missing']}")
        assert [name for name in RIGHT if not said(RIGHT[name])["passed"]] == []
        names = ["a fork", "rights", "a mount", "a namespace", "the root", "the library", "accounts", "a socket"]
        assert [name for name in [*names, "its folder"] if said(ESCAPES[name])["passed"]] == []
        assert said(
            "import os\nassert set(os.listdir('/')) <= {'work', 'dev', 'etc', 'usr', 'lib', 'lib32', 'lib64', 'opt'}"
        )["passed"]
        assert not said(f"open({str(package / 'evaluate/sandbox/jail.py')!r})")["passed"]


def evaluator(code: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen:
    """Another process that has a sandbox."""
    setting = "from pangu_sigma.evaluate.sandbox.sandbox import *\nlimits = ProgramLimits(wall_seconds=300)\n"
    return subprocess.Popen(
        [sys.executable, "-c", setting + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=prepare,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )


def test_programs_end_with_who_started_them(sandbox):
    before = in_other_namespaces()
    other = evaluator("Sandbox(limits).run('import time\\ntime.sleep(1000)')")
    deadline = time.monotonic() + 60
    while len(in_other_namespaces() - before) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(in_other_namespaces() - before) >= 2
    other.kill()  # what is left is looked for after each test
    other.communicate()


def drop_admin() -> None:
    """Take the capability SYS_ADMIN away from root."""
    assert ctypes.CDLL(None).prctl(24, 21, 0, 0, 0) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away from root")
def test_without_isolation_it_is_refused_or_said(tmp_path):
    refused, _ = evaluator("Sandbox(limits)", drop_admin).communicate(timeout=100)
    assert "programs cannot be isolated here: namespaces of its own (unshare: Operation not permitted)" in refused
    assert "allow_code_execution" in refused
    said, _ = evaluator(
        f"""
sandbox = Sandbox(ProgramLimits(1), unsafe=True)
print([sandbox.run(each).passed for each in (
    "assert True",
    "open('a', 'w').write('a')",
    "assert False",
    "import os; os._exit(0)",
    "while True: pass",
    "x = bytearray(10 * 2**30)",
    "import os\\nos.fork()",
    "import socket\\nsocket.socket()",
    "import os\\nwhile True: os.write(1, b'x' * 2**16)",
    "import os\\nos.kill({os.getpid()}, {signal.SIGTERM.value})",
)])
""",
        drop_admin,
    ).communicate(timeout=100)
    assert "programs are not isolated, because namespaces of its own" in said
    assert str([True, True] + [False] * 8) in said
