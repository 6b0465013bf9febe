"""The CPU kernels are compiled where they run: once, whole or not at all, and a failure says what to do."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ascend_ops import library
from ascend_ops.errors import BuildError, UserError
from ascend_ops.library import cache_folder, compile_library, cpu_library


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "seven.cc"
    file.write_text('extern "C" int seven() { return 7; }\n')
    return file


def arguments(source: Path) -> list[str]:
    return ["-shared", "-fPIC", str(source)]


def test_the_library_takes_the_widest_instruction_set_and_can_be_held_to_any(isa_libraries: dict[str, str]):
    assert "scalar" in isa_libraries
    unlimited = ctypes.CDLL(cpu_library())
    unlimited.KernelIsa.restype = ctypes.c_char_p
    assert os.environ.get("PANGU_SIGMA_ISA") or unlimited.KernelIsa().decode() == next(iter(isa_libraries))


def test_several_may_build_it_at_the_same_time_and_nothing_else_is_there(source: Path, tmp_path: Path):
    target = tmp_path / "shared" / "seven.so"
    with ThreadPoolExecutor(4) as pool:
        for built in [pool.submit(compile_library, target, arguments(source), "seven") for _ in range(4)]:
            built.result()
    assert ctypes.CDLL(str(target)).seven() == 7
    assert list(target.parent.iterdir()) == [target]


def test_what_g_plus_plus_says_is_in_the_message_and_no_library_is_left(source: Path, tmp_path: Path):
    source.write_text("int seven() { return nowhere; }\n")
    target = tmp_path / "out" / "seven.so"
    with pytest.raises(BuildError, match=r"(?s)could not compile seven:\n.*nowhere.*not declared"):
        compile_library(target, arguments(source), "seven")
    assert list(target.parent.iterdir()) == []


def test_a_machine_without_g_plus_plus_is_told_what_to_install(source: Path, tmp_path: Path, monkeypatch):
    """An error that a user can mend."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"g\+\+ is needed to compile the CPU kernels and is not on PATH; install it"):
        compile_library(tmp_path / "out" / "seven.so", arguments(source), "the CPU kernels")


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PANGU_SIGMA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PANGU_SIGMA_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/pangu_sigma")
    monkeypatch.setenv("PANGU_SIGMA_CACHE", "")
    assert cache_folder() == Path("/somewhere/.cache/pangu_sigma"), "and not the working folder"


def test_a_user_without_a_home_needs_the_variable(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # in no /etc/passwd
    monkeypatch.delenv("PANGU_SIGMA_CACHE", raising=False)
    with pytest.raises(BuildError, match="no home folder; set PANGU_SIGMA_CACHE"):
        cache_folder()
    monkeypatch.setenv("PANGU_SIGMA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_the_kernels_are_compiled_once_for_all_that_decides_them(tmp_path: Path, monkeypatch):
    """Another flag or another source is another file; the same ones are compiled no second time."""
    compiled = []

    def compile_to(target: Path) -> None:
        compiled.append(target)
        target.touch()

    sources = tmp_path / "cpu"
    sources.mkdir()
    (sources / "a.cc").write_text("// one")
    monkeypatch.setenv("PANGU_SIGMA_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "SOURCES", sources)
    monkeypatch.setattr(library, "_compile", compile_to)
    first = cpu_library.__wrapped__()
    assert first == cpu_library.__wrapped__() == str(compiled[0])
    (sources / "a.cc").write_text("// two")
    second = cpu_library.__wrapped__()
    monkeypatch.setattr(library, "FLAGS", ("-O0",))
    third = cpu_library.__wrapped__()
    assert len({first, second, third}) == len(compiled) == 3
