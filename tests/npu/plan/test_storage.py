"""What a job reads a second of its text, against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.config_file import load_config
from pangu_sigma.data.indexed import CHUNK_BYTES
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.storage import storage_reads
from pangu_sigma.npu.plan.tables import format_plan


def test_what_512_npus_read_by_hand():
    """512 sequences of 1,025 ids of 4 bytes a step: 2,099,200 bytes, by each of 512 ranks, by each of 64 hosts once."""
    config = load_config(MODEL_CONFIGS / "sigma_1t.yaml")
    read = storage_reads(config, hosts=64, step_seconds=8.0)
    assert read.ranks == 512 * 2_099_200 / 8
    assert read.storage == 64 * 2_099_200 / 8 == 16_793_600
    assert read.first_steps == 64 * 512 * (262_144 + 4 * 1_024) / 8
    plan = make_plan(config, 512)
    assert plan.storage_bytes_per_second == storage_reads(config, 64, plan.seconds.step)
    assert plan.as_dict()["storage_bytes_per_second"].keys() == {"ranks", "storage", "first_steps"}
    assert (
        "read of the text in a second, in GB: 0.0179 by 64 hosts from shared storage, 0.143 by the NPUs of all\n"
        "  at first up to 1.16: a sample's chunk is read whole and verified, all of the text once on each host"
    ) in format_plan(plan)


def test_micro_batches_are_counted():
    config = load_config(MODEL_CONFIGS / "sigma_1t.yaml", ["train.batch_size=128", "train.accumulation=4"])
    assert storage_reads(config, 64, 8.0).storage == 16_793_600


@pytest.mark.parametrize("length", [8, 1_024, 65_536])
def test_chunks_of_a_sample_are_those_of_samples_anywhere(length):
    """A sample of S + 1 ids that begins at every id of a chunk, mean of its chunks: 1 + S / ids of a chunk."""
    starts = np.arange(CHUNK_BYTES // 4)
    chunks = 1 + (starts + length) // (CHUNK_BYTES // 4)
    config = load_config(MODEL_CONFIGS / "sigma_1t.yaml", [f"model.seq_length={length}"])
    assert storage_reads(config, 1, 512.0).first_steps == pytest.approx(CHUNK_BYTES * chunks.mean())
