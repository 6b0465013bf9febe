"""A store in files is the store in memory, bit for bit, in a bounded part of the memory; what it cannot use it refuses by name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import toy_config

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.ecss import tiers
from pangu_sigma.ecss.store import array_specs, make_store
from pangu_sigma.ecss.tiers import ArraySpec, FileTier, StoreError

pytestmark = pytest.mark.usefixtures("graph_mode")


def tier_of(folder: Path, config: Config | None = None) -> FileTier:
    return FileTier(folder, array_specs(config or toy_config()), cache_gib=1.0)


def content(store) -> dict[str, bytes]:
    layers = enumerate(store.segments)
    return {f"{n} {name}": p.asnumpy().tobytes() for n, experts in layers for name, p in experts.named.items()}


@pytest.mark.parametrize("kind", ["replicated", "independent"])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_it_is_initialised_like_memory(tmp_path: Path, kind: str, moments: str):
    config = toy_config(model={"expert_init": kind}, ecss={"moments": moments})
    actual = []
    for tier in (None, tier_of(tmp_path, config)):
        ms.set_seed(3)
        actual.append(content(make_store(config, tier)))
    assert actual[0] == actual[1]


def test_a_parameter_is_in_the_file_also_after_its_memory_was_released(tmp_path: Path):
    tier = tier_of(tmp_path)
    store = make_store(toy_config(), tier)
    w1 = store.segments[1].named["w1"].asnumpy()
    w1[5] = 7
    expected = w1.tobytes()
    tier.release()
    assert w1.tobytes() == expected
    file = os.pread(tier._file.fileno(), os.fstat(tier._file.fileno()).st_size, 0)
    assert expected in file
    assert list(tmp_path.iterdir()) == [], "the file has no name, and is gone with the process"


def test_letting_go_of_experts_changes_none_of_them(tmp_path: Path):
    config = toy_config()
    tier = FileTier(tmp_path, array_specs(config), cache_gib=1e-9)
    store, rng = make_store(config, tier), np.random.default_rng(0)
    arrays = {name: p.asnumpy() for name, p in store.segments[0].named.items()}
    expected = {name: array.copy() for name, array in arrays.items()}
    for _ in range(20):
        active = rng.choice(8, 3, replace=False)
        for name, array in arrays.items():
            new = rng.integers(0, 9, array[active].shape)
            array[active], expected[name][active] = new, new
        tier.read_ahead([active, active[:1]], [rng.choice(9, 3, replace=False)] * 2)
    assert {name: a.tobytes() for name, a in arrays.items()} == {name: a.tobytes() for name, a in expected.items()}


RESIDENT = """
import sys
from pathlib import Path
import numpy as np
from mindspore.common.initializer import One
from pangu_sigma.ecss.tiers import ArraySpec, FileTier

MIB = 1 << 20
rows, row = 64, (MIB // 4,)
kinds = [("w", "weight", One()), ("m", "moment", None), ("v", "variance", None)]
specs = [ArraySpec(n, name, kind, (rows, *row), "float32", init) for n in (0, 1) for name, kind, init in kinds]


def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile")) / 1024


tier = FileTier(Path(sys.argv[1]), specs, float(sys.argv[2]) / 1024)
before = resident()
arrays = [tier.parameter(spec).asnumpy() for spec in specs]
made = resident() - before
most, expected = 0.0, np.ones((2, rows))
for step in range(70):
    active = [np.array([step, step + 1]) % rows, np.array([3 * step]) % rows]
    for layer in (0, 1):
        for expert in active[layer]:
            expected[layer, expert] += 1
            for array in arrays[3 * layer : 3 * layer + 3]:
                array[expert] += 1
    tier.read_ahead(active, [np.zeros(0, np.int32)] * 2)
    most = max(most, resident() - before)
tier.release()
left = resident() - before
right = all((arrays[3 * layer][:, :: 1000] == expected[layer][:, None]).all() for layer in (0, 1))
print(made, most, left, right)
"""


def test_no_more_of_the_files_is_in_memory_than_was_allowed(tmp_path: Path):
    """384 MiB of experts, of which a step uses 9; 32 are allowed."""
    actual = run_python(RESIDENT, tmp_path, 32)
    assert (actual.returncode, actual.stderr) == (0, "")
    made, most, left, right = actual.stdout.split()
    assert float(made) < 8
    assert 24 < float(most) < 32 + 9 + 8
    assert float(left) < 8
    assert right == "True"


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with the path of this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_disk_without_room_is_an_error_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tiers.os, "posix_fallocate", full)
        message = r"cannot reserve \d+\.\d GiB .*No space left.* GiB are free\); free space, or set ecss\.path"
        with pytest.raises(StoreError, match=message):
            tier_of(tmp_path)
    make_store(toy_config(), tier_of(tmp_path))


def test_a_store_of_many_arrays_has_two_open_files(tmp_path: Path):
    """24 RRE layers in four segments have more arrays than the 1,024 files that a process may open."""
    specs = [ArraySpec(n, "w1", "weight", (2, 8), "float32") for n in range(100)]
    before = len([*Path("/proc/self/fd").iterdir()])
    tier = FileTier(tmp_path, specs, 1.0)
    parameters = [tier.parameter(spec) for spec in specs]
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 2
    assert not any(p.asnumpy().any() for p in parameters)


def test_the_blocks_of_a_file_are_reserved_at_the_start_and_stores_of_a_folder_share_none(tmp_path: Path):
    """A sparse file would be a full disk, and so a crash, in the middle of a step."""
    specs = [ArraySpec(0, "w1", "weight", (4, 8192), "float32"), ArraySpec(0, "step", "step", (4,), "int32")]
    tier = FileTier(tmp_path, specs, 1.0)
    status = os.fstat(tier._file.fileno())
    assert status.st_size == 4 * 8192 * 4 + 4096
    assert status.st_blocks * 512 >= status.st_size
    first, second = (make_store(toy_config(), tier_of(tmp_path)) for _ in range(2))
    first.segments[0].named["step"].asnumpy()[...] = 9
    assert not second.segments[0].named["step"].asnumpy().any()


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"ecss\.path=.*set it to a folder that can be written"):
        tier_of(tmp_path / "file" / "experts")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"set it to a folder that can be written"):
            tier_of(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_combinations_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="store=file needs enabled=true"):
        toy_config(ecss={"enabled": False, "store": "file"})
    with pytest.raises(ConfigError, match="update=worker needs enabled=true"):
        toy_config(ecss={"enabled": False, "update": "worker"})
    with pytest.raises(ConfigError, match=r"bfloat16 needs train\.optimizer\.beta2 <= 0\.99, not 0\.999"):
        toy_config(ecss={"moments": "bfloat16"}, train={"optimizer": {"beta2": 0.999}})
    with pytest.raises(ConfigError, match="cache_gib"):
        toy_config(ecss={"store": "file", "cache_gib": 0})
