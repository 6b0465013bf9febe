"""Which parameters a checkpoint holds, which rank writes them, and how they come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.saved import save_checkpoint
from helpers.toy import randomise, toy_config, toy_network, weights_of

from pangu_sigma.checkpoint.checkpoint import CheckpointError, Identity, load_checkpoint
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.state import Shards, files_of, parts_of, restore, shards_of
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.optimizer.dense_adam import DenseAdam
from pangu_sigma.optimizer.update import LossScale
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks

pytestmark = pytest.mark.usefixtures("graph_mode")

IDENTITY = Identity("vocabulary", "routing", {})


class Rank(Ranks):
    """One of several ranks, which writes what it is told to and meets nobody."""

    world = 2

    def __init__(self, rank: int):
        self.rank = rank


def whole(seed: int, **model: int) -> tuple[Shards, ExpertStore]:
    config = toy_config(model=model)
    network, store = toy_network(config, seed)
    return shards_of(network, store, DenseAdam(config, network.trainable_params()), LossScale(config)), store


def saved(folder: Path, files: Files) -> Path:
    return save_checkpoint(folder, 5, files, {}, IDENTITY, 1)


def arrays(shards: Shards) -> dict[str, bytes]:
    return {f"{s}/{n}": p.asnumpy().tobytes() for s, parameters in shards.items() for n, p in parameters.items()}


def test_a_checkpoint_holds_weights_optimizer_and_scale_and_without_them_weights_alone():
    config = toy_config()
    network, store = toy_network(config)
    experts = {"experts_layer_0", "experts_layer_1"}
    assert set(shards_of(network, store)) == {"dense"} | experts
    shards = shards_of(network, store, DenseAdam(config, network.trainable_params()), LossScale(config))
    assert set(shards) == {"dense", "dense_optimizer", "loss_scale"} | experts
    names = set(dict(network.parameters_and_names()))
    assert set(shards["dense"]) == names
    assert set(shards["dense_optimizer"]) == {f"{n}.{k}" for n in names for k in ("moment", "variance")} | {"step"}
    assert set(shards["experts_layer_0"]) >= {"w1", "b1.moment", "w2.variance", "step"}


def test_what_one_process_saved_another_restores_bit_for_bit(tmp_path):
    written, store = whole(1)
    files = files_of(written, parts_of(store), SINGLE_PROCESS)
    assert set(files) == set(written)
    assert all(array.is_whole for held in files.values() for array in held.values())
    read, _ = whole(2)
    assert arrays(read) != arrays(written)
    restore(read, load_checkpoint(saved(tmp_path, files)))
    assert arrays(read) == arrays(written)


def expert_config(ranks: int) -> Config:
    return toy_config(data={"domains_per_step": 2}, parallel={"expert": ranks})


def test_ranks_write_their_own_experts_and_the_first_the_rest(tmp_path):
    network, _ = toy_network(toy_config())
    files: Files = {}
    for rank in (0, 1):
        store = make_store(expert_config(2), rank=rank)
        randomise(weights_of(store), rank)
        shards = shards_of(network, store)
        own = files_of(shards, parts_of(store), Rank(rank))
        assert set(own) == {f"experts_layer_{n}.0000{rank}" for n in (0, 1)} | ({"dense"} if rank == 0 else set())
        assert files_of({"dense": shards["dense"]}, parts_of(store), Rank(1)) == {}
        files |= own
    together, store = toy_network(toy_config(), seed=3)
    shards = shards_of(together, store)
    restore(shards, load_checkpoint(saved(tmp_path, files)))
    for rank in (0, 1):
        held = make_store(expert_config(2), rank=rank).segments[1].segment.held
        part = files[f"experts_layer_1.0000{rank}"]["w1"].values
        assert np.array_equal(shards["experts_layer_1"]["w1"].asnumpy()[held], part)


def test_a_missing_file_and_another_shape_are_refused(tmp_path):
    shards, store = whole(1)
    files = files_of(shards, parts_of(store), SINGLE_PROCESS)
    found = load_checkpoint(saved(tmp_path / "whole", files))
    with pytest.raises(CheckpointError, match=r"of shape .* the model needs .*another configuration"):
        restore(whole(1, ffn=40)[0], found)
    del files["experts_layer_1"]
    with pytest.raises(CheckpointError, match="is missing in shard experts_layer_1"):
        restore(shards, load_checkpoint(saved(tmp_path / "part", files)))
