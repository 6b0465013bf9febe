"""Every executor does every unit once; the folder is the same, byte by byte, whoever made it and however often it was killed."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers.strangers import strangers
from helpers.texts import ENGLISH, tiny_config

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.prepare import reading
from pangu_sigma.data.prepare.executors import LocalProcesses, StageError, executor_of
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import fingerprint

CHINESE = "中国人民的希望。这本书很好，推荐给大家。今天天气不错，我们去公园。他说：“你好。”"


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[Path]:
    """Two files with documents of every domain, copies within and across them, and broken lines."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("texts")
    words, paths = [word for text in ENGLISH for word in text.split(" ")], []
    for name in ("a", "b"):
        lines = list[str]()
        for i in range(150):
            some = "".join(rng.choices(CHINESE, k=rng.randint(20, 200)))
            other = " ".join(rng.choices(words, k=rng.randint(10, 100)))
            lines += [json.dumps({"domain": "zh", "text": some}, ensure_ascii=False)]
            lines += [
                json.dumps({"domain": domain, "text": f"{other}{domain} a{i}@mail.org"}) for domain in ("en", "code")
            ]
            lines += [json.dumps({"domain": "en", "text": f"{other}en a{i}@mail.org and more"})] * (i % 6 == 0)
            lines += [json.dumps({"domain": "bilingual", "text": {"zh": some, "en": other}})]
            lines += ["{", ""] * (i % 40 == 0) + [lines[rng.randrange(len(lines))]] * (i % 5 == 0)
        lines += lines[:30]
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    paths[1].write_text(paths[0].read_text()[:20_000] + paths[1].read_text())
    return paths


def limited() -> Config:
    """With every pass."""
    config = tiny_config(slot_rows=800)
    data = {"max_mib_per_domain": 0.06, "near_duplicates": 0.7}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def prints(folder: Path) -> dict[str, dict]:
    return {p.relative_to(folder).as_posix(): fingerprint(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Blocks of 16 KiB, so that there are many."""
    monkeypatch.setattr(reading, "block_size", lambda total: 16 << 10)


@pytest.fixture(scope="module")
def expected(texts, tmp_path_factory) -> dict[str, dict]:
    """The folder with blocks of the usual size, which hold all."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    record = prepare(limited(), texts, folder).domains["en"]
    assert min(record.duplicates, record.over_limit, record.near_duplicates) > 10
    return prints(folder)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_and_blocks_give_the_same(texts, expected, tmp_path, workers):
    config = limited()
    config = config.model_copy(update={"data": config.data.model_copy(update={"memory_gib": 4.0})})
    prepare(config, texts, tmp_path / "out", Options(workers))
    assert prints(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import sys
from pathlib import Path
from data.prepare.test_executors import limited
from pangu_sigma.data.prepare import prepare as module, reading

reading.block_size = lambda total: 16 << 10
module.prepare(limited(), [Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), module.Options(2))
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # a program of its own finds these tests


def kill_and_go_on(texts: list[Path], out: Path, moments: list[float]) -> int:
    """Kill the preparation so many seconds after its stage appears, then let it end. Return how often it was killed."""
    command = [sys.executable, "-c", KILLED, str(out), *map(str, texts)]
    stage, killed = out.with_name(f".{out.name}.stage"), 0
    for moment in moments:
        process = subprocess.Popen(command, start_new_session=True, env=ENVIRONMENT)
        while not stage.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return killed


RNG = random.Random(0)


@pytest.mark.parametrize(
    "moments",
    [
        # an early one first: once a preparation has ended, no later call can be killed in it
        [0.1, *sorted(RNG.uniform(0.2, 1.0) for _ in range(2))],
        *(pytest.param([RNG.uniform(0, 12)], marks=pytest.mark.slow) for _ in range(20)),
    ],
    ids=range(21),
)
def test_a_killed_preparation_goes_on_to_the_same(texts, expected, tmp_path, moments):
    assert kill_and_go_on(texts, tmp_path / "out", moments) > 0 or len(moments) == 1
    assert prints(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_keeps_what_is_done_and_says_so(texts, expected, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr("pangu_sigma.data.prepare.writing.write_tokens", full)
        with pytest.raises(
            DataError, match=r"No space left on device; .* is done stays in .*\.out\.stage, and the same"
        ):
            prepare(limited(), texts, tmp_path / "out")
    monkeypatch.setattr("pangu_sigma.data.prepare.encoding.segment", None)
    prepare(limited(), texts, tmp_path / "out")
    assert prints(tmp_path / "out") == expected


def end_at_two(number: int, unit: int) -> None:
    if unit == 2:
        os._exit(9)


def fail_at_two(number: int, unit: int) -> None:
    if unit == 2:
        raise DataError("two is wrong")


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [(end_at_two, StageError, r"p: a worker process was ended.*goes on"), (fail_at_two, DataError, "two is wrong")],
)
def test_errors_of_workers_reach_the_caller(task, error, said):
    executor = LocalProcesses(2)
    try:
        with pytest.raises(error, match=said):
            executor.run(task, list(enumerate(range(9))), "p", 9)
    finally:
        executor.close()


def name_an_option(number: int, unit: int) -> None:
    raise DataError(argument("--input"))


@pytest.mark.parametrize("name", ["input", "--input"])
def test_messages_of_workers_name_arguments_as_the_caller_does(monkeypatch, name):
    monkeypatch.setattr("pangu_sigma.errors.on_command_line", name == "--input")
    with closing(LocalProcesses(2)) as executor, pytest.raises(DataError, match=f"^{name}$"):
        executor.run(name_an_option, list(enumerate(range(2))), "p", 2)


def test_processes_import_nothing_from_the_working_folder_and_run_no_script_again(tmp_path):
    """Neither workers nor the process that tracks resources, which every program starts but once."""
    ran, script = strangers(tmp_path / "here"), tmp_path / "script.py"
    script.write_text(
        "from pangu_sigma.data.prepare.executors import LocalProcesses\n"
        "import os, time\n"
        "print('once')\n"
        "executor, before = LocalProcesses(2), os.environ.copy()\n"
        "executor.run(divmod, [(1, 2), (3, 4), (5, 6)], 'p', 3)\n"
        "executor.close()\n"
        "assert os.environ.copy() == before\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path / "here", capture_output=True, text=True)
    assert (ran(), done.returncode, done.stdout) == ([], 0, "once\n")


def wait_for_an_hour(number: int, unit: int) -> None:
    if unit:
        time.sleep(3600)
    raise DataError("zero is wrong")


def test_an_error_does_not_wait_for_the_units_of_other_processes():
    executor, begin = LocalProcesses(2), time.monotonic()
    try:
        with pytest.raises(DataError, match="zero is wrong"):
            executor.run(wait_for_an_hour, [(1, 1), (0, 0)], "p", 2)
    finally:
        executor.close()
    assert time.monotonic() - begin < 60


def test_input_that_disappears_while_it_is_read_is_named_and_what_is_done_stays(texts, tmp_path, monkeypatch):
    path = tmp_path / "c.jsonl"
    path.write_text(texts[0].read_text())
    real = reading.input_units

    def units_of_a_file_that_disappears(files, size):
        units = real(files, size)
        path.unlink()
        return units

    monkeypatch.setattr(reading, "input_units", units_of_a_file_that_disappears)
    with pytest.raises(StageError, match=r"input .*c\.jsonl: cannot be read: No such file .*; what is done stays"):
        prepare(limited(), [path], tmp_path / "out", Options(2))
    assert (tmp_path / ".out.stage").exists()


def test_an_error_of_the_text_ends_the_pass_while_other_processes_write(texts, tmp_path):
    damaged, content = tmp_path / "c.jsonl.gz", bytearray(gzip.compress(texts[0].read_bytes(), 0))
    content[200_000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.jsonl\.gz: the gzip stream is damaged"):
        prepare(limited(), [damaged, *texts], tmp_path / "out", Options(2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ray": "auto", "workers": 2}, "ray: Ray decides what runs where; leave workers out"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        executor_of(**{"workers": None, "ray": None, "memory_gib": 2.0, "size": 0} | options)


def test_the_missing_ray_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray: Ray is not installed; run: pip install ray==2\.60\.0"):
        executor_of(None, "auto", 2.0, 0)


def test_memory_bounds_the_workers(caplog):
    found = executor_of(8, None, 1.5, 0)
    assert isinstance(found, LocalProcesses) and found.workers == 2
    assert "8 processes of 768 MiB need more memory than data.memory_gib=1.5; 2 will work" in caplog.text
