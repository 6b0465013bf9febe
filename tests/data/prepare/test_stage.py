"""A unit is done once, whole or not at all, and what a machine lost is noticed."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from experiments.tiny import tiny_config
from pangu_sigma.data.prepare.executors import LocalProcesses, StageError
from pangu_sigma.data.prepare.stage import Passes, Stage, Work, stage_folder, staged, tables_of
from pangu_sigma.errors import DataError
from pangu_sigma.writable import NotWritable


def table(*values: int) -> pa.Table:
    return pa.table({"value": pa.array(values, pa.int64())})


def passes_in(folder: Path) -> Passes:
    return Passes(Work(tiny_config(folder), Stage(folder)), LocalProcesses())


def test_tables_come_back_in_order_and_each_as_a_row_group(tmp_path):
    stage = Stage(tmp_path)
    stage.write("a", iter([table(1, 2), table(), table(3)]))
    assert stage.read("a") == table(1, 2, 3)
    metadata = pyarrow.parquet.read_metadata(tmp_path / "a")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [2, 0, 1]


def test_rows_and_columns_are_read_alone(tmp_path):
    """Row groups whose statistics exclude the rows are not read: a damaged one is not noticed."""
    stage, path = Stage(tmp_path), tmp_path / "a"
    tables = [pa.table({"domain": [n] * 1_000, "text": [f"text {n}"] * 1_000}) for n in range(3)]
    stage.write("a", tables)
    assert stage.read("a", ["text"], pyarrow.dataset.field("domain") == 1) == tables[1].select(["text"])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"text 2", b"TEXT 2"))
    assert stage.read("a", ["text"], pyarrow.dataset.field("domain") == 1).num_rows == 1_000
    with pytest.raises(StageError, match="damaged"):
        stage.read("a", ["text"], pyarrow.dataset.field("domain") == 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes(len(data)),
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data[:1_000] + bytes(100) + data[1_100:],
    ],
)
def test_a_file_that_was_not_written_to_the_disk_is_noticed(tmp_path, damage):
    stage = Stage(tmp_path)
    (tmp_path / "read").mkdir()
    stage.write("read/000000", [table(*range(1_000_000, 1_005_000))])
    path = tmp_path / "read/000000"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StageError, match=rf"^{path}: damaged \(.*; remove {tmp_path} and call again"):
        stage.read("read/000000")
    with pytest.raises(StageError, match="damaged"), stage.database(0.1) as database:
        database.register("rows", stage.results("read"))
        list(tables_of(database, "SELECT sum(value) FROM rows"))


def test_threads_of_arrow_need_no_interpreter(tmp_path, monkeypatch):
    """Such a thread aborts the process if it works while the interpreter ends."""
    threads = set[int]()

    class RecordingFile(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    stage = Stage(tmp_path)
    stage.write("a", [table(1, 2)])
    monkeypatch.setattr(Path, "open", lambda path, mode: RecordingFile(path))
    assert stage.read("a", rows=pyarrow.dataset.field("value") == 2) == table(2)
    assert threads <= {threading.get_ident()}


def test_a_database_says_what_to_raise_where_memory_and_the_disk_end(tmp_path):
    with (
        pytest.raises(StageError, match=r"raise data\.memory_gib=0\.05, or free the disk"),
        Stage(tmp_path).database(0.05) as database,
    ):
        database.execute("SET max_temp_directory_size = '1MB'")
        database.execute(
            "CREATE TEMP TABLE t AS SELECT range AS n, hash(range) AS h FROM range(6_000_000) ORDER BY h, n"
        )


def test_a_pass_is_begun_anew_with_all_after_it_if_its_settings_changed(tmp_path):
    stage, passes = Stage(tmp_path), passes_in(tmp_path)
    for name in "abc":
        passes.begin(name, 1)
        stage.write(f"{name}/000000", [table(1)])
    passes = passes_in(tmp_path)
    passes.begin("a", 1)
    assert stage.path("c/000000").exists()
    passes.begin("b", 2)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a",
        "a/000000",
        "a/key",
        "b",
        "b/key",
    ]


def test_a_linked_stage_is_refused_and_what_it_names_stays(tmp_path):
    (tmp_path / "mine/read").mkdir(parents=True)
    (tmp_path / ".out.stage").symlink_to("mine")
    with pytest.raises(NotWritable, match=r"out\.stage is a link"), staged(tmp_path / "out", removed=True):
        raise AssertionError("it was opened")
    assert (tmp_path / "mine/read").is_dir()


def test_a_missing_file_of_a_stage_is_named_with_the_way_on(tmp_path):
    missing = tmp_path / ".out.stage/encode/000000"
    with (
        pytest.raises(
            StageError,
            match=rf"^{missing}: damaged \(.*No such file.*\); remove {tmp_path}/\.out\.stage and call again",
        ),
        staged(tmp_path / "out", removed=True) as stage,
    ):
        stage.read("encode/000000")


def test_the_file_that_failed_is_named(tmp_path):
    denied = OSError(errno.EACCES, "Permission denied", "english.model")
    message = f"cannot make {tmp_path}/out, where nothing was changed: english.model: Permission denied; change its permissions"
    with pytest.raises(DataError, match=message), staged(tmp_path / "out", removed=True):
        raise denied
    full = (
        f": {tmp_path}/.out.stage: No space left; free space on that disk; what is done stays in {tmp_path}/.out.stage,"
    )
    with pytest.raises(DataError, match=full), staged(tmp_path / "out", removed=True):
        raise OSError(errno.ENOSPC, "No space left")  # a write names no file


def test_the_stage_of_the_working_folder_is_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stage_folder(Path()) == tmp_path.parent / f".{tmp_path.name}.stage"
    assert stage_folder(Path("out")) == tmp_path / ".out.stage"


def test_a_stage_is_the_users_alone_whatever_the_umask_and_stays_unless_all_is_done(tmp_path, caplog):
    before = os.umask(0)
    caplog.set_level("INFO")
    try:
        with staged(tmp_path / "out", removed=False):
            assert stat.filemode((tmp_path / ".out.stage").stat().st_mode) == "drwx------"
    finally:
        os.umask(before)
    assert caplog.messages == [
        f"what is done stays in {tmp_path}/.out.stage, and the same command goes on from there; remove it if you do not go on"
    ]
    with staged(tmp_path / "out", removed=False):
        caplog.clear()
        with pytest.raises(NotWritable, match="is written by"), staged(tmp_path / "out", removed=True):
            raise AssertionError("two processes have it")
        assert not caplog.messages  # nobody is told to remove what another process writes
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), staged(tmp_path / "out", removed=True):
            raise error
    assert (tmp_path / ".out.stage").exists() and len({*caplog.messages}) == 1 and len(caplog.messages) == 3
    with staged(tmp_path / "out", removed=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    def half() -> Iterator[pa.Table]:
        yield table(1)
        _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        Stage(tmp_path).write("a", half())
    assert list(tmp_path.iterdir()) == []


def double(work: Work, item: int) -> Iterator[pa.Table]:
    if item < 0:
        raise ValueError(item)
    with Path(os.environ["DONE"]).open("a") as file:
        file.write(f"{item}\n")
    yield table(item, 2 * item)


def test_a_pass_goes_on_with_the_units_that_have_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv("DONE", str(tmp_path / "done"))
    passes = passes_in(tmp_path / "stage")
    passes.begin("p")
    with pytest.raises(ValueError, match="-3"):
        passes.map(double, [1, 2, -3, 4])
    results = passes.map(double, [1, 2, 3, 4])
    assert (tmp_path / "done").read_text().split() == ["1", "2", "3", "4"]
    assert list(results) == [table(item, 2 * item) for item in range(1, 5)]
