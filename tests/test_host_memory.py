"""The memory needed against the memory there, before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.tiny import tiny_config
from pangu_sigma import api, host_memory
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.host_memory import available_memory, training_needs

GIB = 1 << 30


def machine(root: Path, free: int, swap: int = 0, groups: str = "", files: dict[str, str] | None = None) -> Path:
    """A root that says so much memory is free, and what the cgroups say."""
    texts = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {free // 1024} kB\nSwapFree: {swap // 1024} kB\n"}
    for name, text in (texts | {"proc/self/cgroup": groups} | (files or {})).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_and_swap_may_be_taken(tmp_path: Path):
    assert available_memory(machine(tmp_path, 3 * GIB, GIB)) == 4 * GIB
    assert available_memory(tmp_path, swap=False) == 3 * GIB
    assert available_memory(tmp_path / "none") is None
    assert (available_memory() or 0) > 0


@pytest.mark.parametrize(
    ("groups", "base"),
    [("0::/a/b\n", "sys/fs/cgroup/a"), ("3:cpu:/x\n0::/host/path\n", "sys/fs/cgroup")],
    ids=["of a parent", "in a container"],
)
def test_the_limit_of_a_cgroup_counts_and_its_file_cache_is_free(tmp_path: Path, groups, base):
    files = {
        f"{base}/memory.max": f"{2 * GIB}\n",
        f"{base}/memory.current": f"{GIB}\n",
        f"{base}/memory.stat": "anon 1\ninactive_file 1024\n",
    }
    assert available_memory(machine(tmp_path, 9 * GIB, groups=groups, files=files)) == GIB + 1024
    (tmp_path / base / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 9 * GIB


def test_a_run_that_does_not_fit_is_refused_with_both_numbers_and_the_keys(tmp_path: Path):
    config = tiny_config(tmp_path, model={"hidden": 2048, "ffn": 8192, "experts_per_domain": 64})
    with pytest.raises(ConfigError) as error:
        host_memory.check_training_fits(config, root=machine(tmp_path, 8 * GIB))
    stored = 2 * 3 * 64 * (2 * 2048 * 8192 + 8192 + 2048) * 12 / GIB
    message = str(error.value)
    assert f"experts and their Adam state {stored:,.1f}" in message
    assert "8.0 GiB are free here; lower model.experts_per_domain" in message
    assert "ecss.store=file" in message
    host_memory.check_training_fits(config, root=machine(tmp_path, 9999 * GIB))
    host_memory.check_reading_fits(
        config, root=machine(tmp_path, 8 * GIB)
    )  # experts stay in the files of the checkpoint
    with pytest.raises(ConfigError, match="dense weights"):
        host_memory.check_reading_fits(config, root=machine(tmp_path, GIB // 8))


def test_a_cache_of_too_many_lanes_is_refused_with_both_numbers(tmp_path: Path):
    config = tiny_config(tmp_path, model={"seq_length": 1024, "hidden": 64})
    host_memory.check_cache_fits(config, 1000, machine(tmp_path, 2 * GIB))
    sizes = r"2000 texts at a time needs at least 2\.9 GiB .* 2\.0 GiB are free here; lower lanes"
    with pytest.raises(ConfigError, match=sizes):
        host_memory.check_cache_fits(config, 2000, machine(tmp_path, 2 * GIB))


def test_every_process_of_this_machine_counts(tmp_path: Path):
    config = tiny_config(tmp_path, model={"hidden": 1024}, parallel={"expert": 2})
    needed = sum(need.nbytes for need in training_needs(config))
    root = machine(tmp_path, int(1.5 * needed))
    host_memory.check_training_fits(config, 1, root)
    with pytest.raises(ConfigError, match="in each of 2 processes"):
        host_memory.check_training_fits(config, 2, root)


def test_the_need_is_what_a_run_certainly_keeps(tmp_path: Path):
    """Files take no memory, half the moments take half, more ranks store less each."""

    def stored(**sections: dict) -> int:
        return training_needs(tiny_config(tmp_path, **sections))[0].nbytes

    whole = stored()
    assert whole == 12 * tiny_config(tmp_path).num_params().experts
    assert stored(ecss={"store": "file"}) == 0
    assert stored(ecss={"moments": "bfloat16"}) == whole * 8 // 12
    assert stored(parallel={"expert": 2}) == whole // 2


def test_rows_count_as_far_as_a_run_can_meet_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In memory with `host`, on the disk with `file`; a row that no step can meet takes no room."""
    width = tiny_config(tmp_path).model.hidden

    def config(rows: int, steps: int, store: str = "host") -> Config:
        model = {"rows": [{"order": 2, "rows": rows, "width": width}]}
        return tiny_config(tmp_path, model=model, train={"steps": steps}, ecss={"store": store})

    record, tokens = 4 * (3 * width + 1), config(9, 1).step_tokens
    for rows, steps, nbytes in ((500, 10**9, 500 * record), (1 << 29, 7, 7 * tokens * (record + 4096))):
        need = next(n for n in training_needs(config(rows, steps)) if n.name.startswith("rows"))
        assert need.nbytes == nbytes
    assert not any(n.nbytes for n in training_needs(config(9, 1, "file")) if n.name.startswith("rows"))
    with pytest.raises(ConfigError, match=r"rows that the run can meet, and their Adam state .*ecss\.store=file"):
        host_memory.check_training_fits(config(1 << 29, 10**9), root=machine(tmp_path, 8 * GIB))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=GIB))
    host_memory.check_rows_fit(config(500, 10**9, "file"), tmp_path)
    small, processes = config(500, 10**9, "file"), GIB // (500 * record)
    host_memory.check_rows_fit(small, tmp_path, processes)
    with pytest.raises(ConfigError, match=r"up to 1\.0 GiB, and 1\.0 GiB are free"):
        host_memory.check_rows_fit(small, tmp_path, processes + 1)
    with pytest.raises(ConfigError, match=r"^ecss\.path=.* up to [\d.,]+ GiB, and 1\.0 GiB are free; free space"):
        host_memory.check_rows_fit(config(1 << 29, 10**9, "file"), tmp_path)


def test_training_asks_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pangu_sigma.host_memory.available_memory", lambda root: np.iinfo(np.int64).max // (1 << 50))
    with pytest.raises(ConfigError, match=r"training tiny needs at least .* GiB are free here"):
        api.train(tiny_config(tmp_path), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
