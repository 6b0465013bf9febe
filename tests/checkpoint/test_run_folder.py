from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.run_folder import one_writer, run_config
from pangu_sigma.config import ConfigError
from pangu_sigma.training.start import start_run
from pangu_sigma.writable import NotWritable


def test_the_identity_follows_vocabulary_and_tables_and_carries_the_configuration(tiny_data, tmp_path):
    one = start_run(tmp_path / "a", tiny_config(tiny_data)).identity
    same = start_run(tmp_path / "b", tiny_config(tiny_data, train={"steps": 7})).identity
    other = start_run(tmp_path / "c", tiny_config(tiny_data, routing={"seed": 1})).identity
    assert (one.vocabulary_hash, one.routing_hash) == (same.vocabulary_hash, same.routing_hash)
    assert one.routing_hash != other.routing_hash
    assert same.config["train"]["steps"] == 7


def test_the_run_is_the_truth_about_itself(tiny_data, tmp_path):
    run = start_run(tmp_path / "run", tiny_config(tiny_data)).path
    assert run_config(run) == tiny_config(tiny_data)
    assert run_config(run, ["train.steps=7"]) == tiny_config(tiny_data, train={"steps": 7})
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key"):
        run_config(run, ["train.stepz=7"])
    with pytest.raises(ConfigError, match=r"no configuration\.json; pass a configuration"):
        run_config(run / "none")


@pytest.mark.parametrize("path", ["/proc/run", "{}/file", "{}/file/run"])
def test_a_folder_that_cannot_be_locked_is_refused_by_name(tmp_path, path):
    (tmp_path / "file").write_text("x")
    folder = Path(path.format(tmp_path))
    with pytest.raises(ConfigError, match=r"(proc|file).*: .*choose another one with --output"), one_writer(folder):
        pytest.fail("it was locked")


@pytest.mark.parametrize("name", ["checkpoints", "report", "tensorboard", "logs", "profile", "metrics.jsonl"])
def test_what_a_run_writes_is_no_link_and_the_run_itself_may_be(tmp_path, name):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with one_writer(tmp_path / "run"):
        pass
    link = tmp_path / "run" / name
    link.symlink_to(tmp_path)
    with pytest.raises(NotWritable, match=rf"^{link} is a link"), one_writer(tmp_path / "run"):
        pytest.fail("it was locked")
