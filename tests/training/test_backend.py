"""What a backend decides by itself; that it trains is told by test_loop.py and by tests/npu/test_backend.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.threads import on_ranks
from helpers.toy import toy_config

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.ecss.tiers import FileTier, HostTier
from pangu_sigma.npu.backend import AscendBackend
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.training.backend import Backend, tier_of
from pangu_sigma.training.start import check_cpu

pytestmark = pytest.mark.usefixtures("graph_mode")


class Rank(Ranks):
    """One of several ranks, which meets nobody."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world


def run_in(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(path=folder, table=SimpleNamespace(hash="routing"))


def in_files(parallel: dict[str, int], **keys: str) -> Config:
    return toy_config(ecss={"store": "file", "cache_gib": 1e-3, **keys}, parallel=parallel)


def test_experts_are_in_memory_unless_files_are_asked_for(tmp_path):
    assert type(tier_of(toy_config(), SINGLE_PROCESS, run_in(tmp_path))) is HostTier
    assert not list(tmp_path.iterdir())


def test_files_are_in_the_run_folder_or_where_the_configuration_says(tmp_path):
    """Files without names, so that ranks share a folder; the folder is made."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    assert isinstance(tier_of(in_files({}), SINGLE_PROCESS, run_in(run)), FileTier)
    config = in_files({"data": 2}, path=str(disk))
    assert on_ranks(2, lambda ranks: type(tier_of(config, ranks, run_in(run)))) == [FileTier] * 2
    assert disk.is_dir()
    assert not list(disk.iterdir())


def test_the_losses_of_ranks_that_see_the_same_tokens_count_once():
    config = toy_config(
        data={"domains_per_step": 2},
        train={"accumulation": 2, "batch_size": 8},
        parallel={"stages": 2, "tensor": 2, "data": 2},
    )
    ranks = range(config.parallel.ranks)
    counted = [rank for rank in ranks if AscendBackend().adds_losses(config, Rank(rank, len(ranks)))]
    assert counted == [4, 6], "of the last stage, one rank of each tensor group"
    cpu = toy_config(parallel={"data": 2})
    assert all(Backend().adds_losses(cpu, Rank(rank, 2)) for rank in (0, 1))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"compute_dtype": "half"}, "parallel": {"chip": "910b"}},
            r"^train\.compute_dtype=bfloat16 needs Ascend: MindSpore multiplies no bfloat16 on the CPU; set it to float32$",
        ),
        ({"parallel": {"tensor": 2}}, r"^parallel\.tensor=2 needs Ascend: .*; set it to 1$"),
        (
            {"parallel": {"stages": 2}, "train": {"accumulation": 2, "batch_size": 8}},
            r"^parallel\.stages=2 needs Ascend: .*; set it to 1$",
        ),
    ],
)
def test_what_needs_ascend_is_refused_on_the_cpu(sections, message):
    for check in (check_cpu, Backend().connect):
        with pytest.raises(ConfigError, match=message):
            check(toy_config(**sections))
    check_cpu(toy_config(train={"compute_dtype": "float16"}))
