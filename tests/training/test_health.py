"""A run that is ill says so by name and stops; one that is well is left alone."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from helpers.edited import stopped_at
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Parameter, Tensor

from experiments.chaos import rank_processes
from experiments.chaos.runs import digests
from experiments.tiny import SAVED_AT, STEPS, TINY_ROWS, tiny_config, tiny_tree
from pangu_sigma.checkpoint.checkpoint import UnhealthyState, way_on
from pangu_sigma.checkpoint.not_finite import describe
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.sections import SpikesConfig, TrainConfig
from pangu_sigma.training.health import DomainHealth, Health, UnhealthyRun, check_health, unhealthy_arrays
from pangu_sigma.training.log.metrics import NoLog, read_metrics
from pangu_sigma.training.log.summary import format_summary, summarise
from pangu_sigma.training.loop import Trainer, train
from pangu_sigma.training.start import start_run

LOSSES = st.lists(st.floats(0.1, 12.0), min_size=1, max_size=40)


# --- what is known of a domain --------------------------------------------------------------------------------------


@given(LOSSES)
def test_mean_and_deviation_are_those_of_the_losses_as_long_as_the_window_holds_them_all(losses: list[float]):
    domain, options = DomainHealth(), SpikesConfig(window=len(losses))
    for loss in losses:
        assert domain.limit(options) == math.inf, "too little is known"
        domain.take(loss, options)
    assert domain.mean == pytest.approx(np.mean(losses))
    assert domain.variance == pytest.approx(np.var(losses), abs=1e-9)
    deviation = max(float(np.std(losses)), 0.01 * float(np.mean(losses)))
    assert domain.limit(options) == pytest.approx(np.mean(losses) + 6 * deviation, rel=1e-6)


def test_one_spike_is_told_from_a_new_level():
    """One loss far above leaves mean and limit nearly where they were; a loss that stays high is the normal one before long."""
    domain, options = DomainHealth(), SpikesConfig(factor=4.0, window=20)
    for step in range(60):
        domain.take(3.0 + 0.1 * math.sin(step), options)
    limit = domain.limit(options)
    assert 3.1 < limit < 3.5
    domain.take(50.0, options)
    assert domain.limit(options) < limit + 0.2, "what is far above counts as the limit"
    high = 0
    while domain.limit(options) < 6.0:
        domain.take(6.0, options)
        high += 1
    assert 1 < high < 40


@given(LOSSES, st.data())
def test_a_state_goes_on_exactly_where_it_was(losses: list[float], data: st.DataObject):
    options = TrainConfig(spikes=SpikesConfig(window=3, factor=0.5), max_skipped_steps=2)
    skipped = data.draw(st.lists(st.booleans(), min_size=len(losses), max_size=len(losses)))
    at = data.draw(st.integers(0, len(losses)))
    whole = resumed = Health(options, ["a", "b"])
    for step, (loss, skip) in enumerate(zip(losses, skipped, strict=True)):
        if step == at:
            resumed = Health(options, ["a", "b"], json.loads(json.dumps(whole.state())))
        found = []
        for health in dict.fromkeys((whole, resumed)):
            health.observe(step, {"ab"[step % 2]: loss}, "", skip)
            found.append((health.spikes, health.stuck_domain, health.has_nonfinite_loss))
        assert found[0] == found[-1]
    assert whole.state() == resumed.state()


def test_skipped_steps_are_counted_by_domain_and_one_after_another():
    """One bad expert skips the steps of its domain only; the steps of the others must not hide that."""
    health = Health(TrainConfig(max_skipped_steps=3), ["good", "bad", "rare"])
    for step, stuck in ((1, None), (3, None), (5, "bad")):
        health.observe(step, {"good": 3.0, "bad": 3.0}, "", True)
        assert health.stuck_domain == stuck
        if not stuck:
            health.observe(step + 1, {"good": 3.0}, "", False)
            assert health.stuck_domain is None
    assert Health(TrainConfig(), ["bad", "new"], health.state()).state()["domains"]["bad"]["skipped"] == 3
    assert [domain.skipped for domain in health.domains.values()] == [1, 3, 0]
    health.observe(7, {"bad": 3.0}, "", False)
    assert (health.stuck_domain, health.domains["bad"].skipped) == (None, 0)


def test_a_loss_that_is_not_finite_is_suspect_and_stays_out_of_the_mean():
    health = Health(TrainConfig(), ["a", "b"])
    health.observe(1, {"a": 2.0, "b": 4.0}, "", False)
    assert not health.has_nonfinite_loss
    for loss in (math.nan, math.inf):
        health.observe(2, {"a": loss, "b": 4.0}, "", True)
        assert health.has_nonfinite_loss
        assert health.spikes == []
    assert (health.domains["a"].mean, health.domains["a"].seen, health.domains["b"].seen) == (2.0, 1, 3)


def test_a_spike_is_named_with_what_it_was_measured_by():
    health = Health(TrainConfig(spikes=SpikesConfig(window=2, factor=5.0)), ["a", "b"])
    for step in (1, 2):
        health.observe(step, {"a": 2.0, "b": 4.0}, "", False)
    health.observe(3, {"a": 2.05, "b": 4.3}, "5a", False)
    (spike,) = health.spikes
    assert (spike.step, spike.domain, spike.loss, spike.mean, spike.limit, spike.samples, spike.skipped) == (
        3, "b", 4.3, 4.0, pytest.approx(4.2), "5a", False,
    )  # fmt: skip
    quiet = Health(TrainConfig(spikes=SpikesConfig(factor=None)), ["a"])
    for loss in [1.0] * 100 + [1e6]:
        quiet.observe(1, {"a": loss}, "", False)
    assert quiet.spikes == [], "nobody asked"


def test_a_step_that_the_graph_took_for_a_spike_is_logged_as_one_even_at_the_edge_of_rounding():
    health = Health(TrainConfig(spikes=SpikesConfig(window=1, factor=5.0, skip=True)), ["a", "b"])
    health.observe(1, {"a": 2.0, "b": 4.0}, "", False)
    health.observe(
        2, {"a": 2.0, "b": np.nextafter(health.domains["b"].limit(health.options.spikes), 0)}, "", True, True
    )
    assert [(spike.domain, spike.skipped) for spike in health.spikes] == [("b", True)]


def test_limits_are_those_of_the_weighted_losses_of_the_domains_of_a_batch():
    health = Health(TrainConfig(spikes=SpikesConfig(window=1, factor=10.0)), ["a", "b", "c"])
    health.observe(1, {"a": 2.0, "c": 4.0}, "", False)
    limits = health.limits(np.array([2, 0, 2, 1]), np.array([0.1, 0.5, 0.2, 0.2]))
    np.testing.assert_allclose(limits, [0.5 * 2.2, np.inf, 0.3 * 4.4], rtol=1e-6)
    assert limits.dtype == np.float32
    assert np.isinf(health.limits(np.array([0]), np.array([1.0]))[1:]).all(), "what is not there has no limit"


# --- values that are not finite -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient(graph_mode, tiny_data, tiny_run, tmp_path_factory) -> Trainer:
    """The tiny run in the middle, to be made ill and well again."""
    return Trainer(
        start_run(stopped_at(tiny_run, SAVED_AT, tmp_path_factory.mktemp("patient") / "run"), tiny_config(tiny_data))
    )


@pytest.fixture
def well(patient: Trainer) -> Iterator[Trainer]:
    """The patient, whose state is put back after the test."""
    parameters = [p for shard in patient.setup.shards.values() for p in shard.values()]
    kept = [p.asnumpy().copy() for p in parameters]
    patient.health = Health(patient.config.train, [d.name for d in patient.config.domains])
    yield patient
    for parameter, values in zip(parameters, kept, strict=True):
        parameter.asnumpy()[...] = values


def step_and_examine(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        batch, *_ = trainer.advance()
        check_health(trainer.health, trainer.setup, trainer.run, trainer.progress.step, batch.active_A, NoLog())


def poison(parameter: Parameter, row: int, value: float) -> None:
    values = parameter.asnumpy()
    values[(row, *(-1 for _ in values.shape[1:]))] = value


@pytest.mark.parametrize(
    ("shard", "name", "row", "value", "named"),
    [
        ("experts_layer_0", "w1", 0, math.nan, ["w1 has 1, first at [0, 31, 23] (layer 0, expert 0 of domain zh)"]),
        ("experts_layer_1", "b2", 5, math.inf, ["b2 has 1, first at [5, 23] (layer 1, expert 5 of domain code)"]),
        ("dense", "norm.gain", 3, math.nan, ["norm.gain has 1, first at [3]"]),
        # the update makes weights of a moment or variance, and their next loss shows both
        ("experts_layer_1", "w2.moment", 2, math.nan, ["w2 has 1, first at [2, ", "w2.moment has 1, first at [2, "]),
        ("experts_layer_0", "w1.variance", 2, math.nan, ["w1 has 1, first at [2, ", "w1.variance has 1, first at"]),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run_by_name(well, shard, name, row, value, named):
    poison(well.setup.shards[shard][name], row, value)
    with pytest.raises(UnhealthyRun) as stopped:
        step_and_examine(well, 12)
    saved = str(well.run.checkpoints / f"step_{SAVED_AT:08d}")
    for part in (*(f"{shard}: {text}" for text in named), saved, "start the same command again"):
        assert part in str(stopped.value)


@pytest.mark.parametrize(
    ("shard", "name", "row", "named"),
    [
        ("experts_layer_1", "w2", 2, r"experts_layer_1: w2\.variance has 1, .*expert 2 of domain en"),
        ("dense", "norm.gain", 3, r"dense_optimizer: norm\.gain\.variance has 1, first at \[3\]"),
    ],
)
def test_a_variance_that_is_infinite_shows_in_no_step_and_stops_the_run_at_its_next_save(well, shard, name, row, named):
    """The weight only decays, which no loss tells; so a bound on the steps until then is train.checkpoint_interval."""
    variances = well.setup.shards["dense_optimizer" if shard == "dense" else shard][f"{name}.variance"]
    poison(variances, row, math.inf)
    last = (row, *(-1 for _ in variances.shape[1:]))
    before = float(well.setup.shards[shard][name].asnumpy()[last])
    step_and_examine(well, 4)
    after = well.setup.shards[shard][name].asnumpy()[last]
    assert after == pytest.approx(before, rel=1e-3), "a step of Adam is far larger"
    with pytest.raises(UnhealthyState, match=named):
        well.save()
    assert f"all finite is {well.run.checkpoints / f'step_{SAVED_AT:08d}'}" in way_on(
        well.run.checkpoints, SINGLE_PROCESS
    )


def test_a_run_whose_values_are_all_finite_is_left_alone(well):
    assert unhealthy_arrays(well.setup) == []
    step_and_examine(well, 3)


def test_all_experts_are_looked_at_unless_some_are_asked_for(well):
    poison(well.setup.shards["experts_layer_1"]["w1"], 4, math.nan)
    assert unhealthy_arrays(well.setup, np.array([[0, 1, 6, 6], [0, 5, 6, 6]])) == []
    assert [array.experts for array in unhealthy_arrays(well.setup)] == [(4,)]


def test_an_expert_is_named_with_its_segment_and_a_common_one_without_a_domain(tiny_data, tmp_path):
    config = tiny_config(tiny_data, model={"segments": ["own", "common"], "common_experts": 7})
    trainer = Trainer(start_run(tmp_path / "run", config))
    poison(trainer.setup.shards["experts_layer_2"]["w1"], 3, math.nan)
    poison(trainer.setup.shards["experts_layer_3"]["w2.moment"], 6, math.nan)
    own, common = unhealthy_arrays(trainer.setup)
    assert (own.name, own.count, common.name, common.count) == ("w1", 1, "w2.moment", 1)
    one, other = describe([own, common], trainer.run.identity.config)
    assert one.endswith("(layer 1, own segment 0, expert 3 of domain en)")
    assert other.endswith("(layer 1, common segment 1, expert 6)")


def test_a_row_is_named_with_its_entry(tiny_data, tmp_path):
    trainer = Trainer(start_run(tmp_path / "run", tiny_config(tiny_data, model={"rows": TINY_ROWS})))
    assert unhealthy_arrays(trainer.setup) == []
    weights = np.ones((3, 8), np.float32)
    weights[2, 5] = np.inf
    trainer.store.rows.put(1, np.array([7, 40, 4999]), weights)
    (row,) = unhealthy_arrays(trainer.setup, [np.zeros(0, int)] * 2)
    assert (row.file, row.name, row.count, row.first) == ("rows_1", "weight", 1, (2, 5))


def test_skips_without_an_end_stop_the_run_and_say_what_it_is_not(well):
    """Gradients that overflow at any scale: no weight is wrong, and going on is no use."""
    options = well.config.train.model_copy(update={"max_skipped_steps": 3})
    well.health = Health(options, [d.name for d in well.config.domains])
    with pytest.raises(UnhealthyRun) as stopped:
        for _ in range(12):
            well.step.scale.value.set_data(Tensor(2.0**126, ms.float32))
            batch, *_ = well.advance()
            check_health(well.health, well.setup, well.run, well.progress.step, batch.active_A, NoLog())
    for part in ("the last 3 steps with domain", "train.max_skipped_steps", "all weights and moments are finite"):
        assert part in str(stopped.value)
    assert max(domain.skipped for domain in well.health.domains.values()) == 3


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ill(graph_mode, tiny_data, tiny_run, tmp_path_factory) -> Path:
    """The tiny run, which one bad value ended some steps after its first checkpoint."""
    copy, whole = stopped_at(tiny_run, SAVED_AT, tmp_path_factory.mktemp("ill") / "run"), Trainer.advance

    def advance(trainer: Trainer):
        if trainer.progress.step == SAVED_AT + 1:
            poison(trainer.setup.shards["experts_layer_0"]["w2"], 3, math.nan)
        return whole(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(UnhealthyRun, match=r"experts_layer_0: w2 has 1, .* \(layer 0, expert 3 of domain en\)"):
            train(tiny_config(tiny_data), copy)
    return copy


def test_one_bad_value_ends_a_whole_run_and_its_log_and_report_say_so(ill):
    """The log counts what its means leave out."""
    lines = read_metrics(ill)
    last = [line for line in lines if line["kind"] == "step"][-1]
    assert (last["skipped"], last["left_out/loss"], last["left_out/loss/en"]) == (1, 1, 1)
    (found,) = [line for line in lines if line["kind"] == "unhealthy"]
    assert found["step"] == last["step"]
    assert found["tensors"] == [
        {"file": "experts_layer_0", "name": "w2", "count": 1, "first": [3, 31, 23], "experts": [3]},
    ]
    summary = summarise(ill)
    assert summary["skipped"] == 1
    assert "1 steps, which changed nothing" in format_summary(summary)


def test_a_spike_that_is_skipped_changes_nothing_and_without_spikes_the_bits_are_the_same(
    tiny_data, tiny_run, ill, tmp_path
):
    """Neither weights nor moments nor the loss scale. The run that was ill goes on from its checkpoint to the bits of the one that
    was not, and a limit that nothing reaches changes none of them."""
    copy = shutil.copytree(ill, tmp_path / "run")
    trainer = Trainer(
        start_run(copy, tiny_config(tiny_data, train={**tiny_tree(tiny_data)["train"], "spikes": {"skip": True}}))
    )
    while trainer.progress.step < STEPS:
        trainer.advance()
    assert digests(trainer.save()) == digests(tiny_run / f"checkpoints/step_{STEPS:08d}")
    before = {(s, n): p.asnumpy().copy() for s, shard in trainer.setup.shards.items() for n, p in shard.items()}
    updates = trainer.progress.updates
    for domain in trainer.health.domains.values():
        domain.seen, domain.mean, domain.variance = 1000, 0.5, 0.0
    batch, rate, result = trainer.advance()
    assert (float(result.applied.asnumpy()), np.isfinite(result.norm.asnumpy())) == (0.0, True)
    after = {(s, n): p.asnumpy() for s, shard in trainer.setup.shards.items() for n, p in shard.items()}
    for key, values in before.items():
        assert values.tobytes() == after[key].tobytes(), key
    assert trainer.progress.updates == updates
    assert {spike.domain for spike in trainer.health.spikes} == set(trainer.losses)
    assert all(spike.skipped and spike.limit == pytest.approx(0.53) for spike in trainer.health.spikes)
    assert trainer.metrics(batch, rate, result)["skipped"] == 1
    trainer.step.scale.value.set_data(Tensor(2.0**126, ms.float32))
    trainer.advance()
    assert float(trainer.step.scale.value.asnumpy()) == 2.0**125, "gradients that overflow halve it, spike or not"
    trainer.step.scale.value.set_data(Tensor(1024.0, ms.float32))
    for domain in trainer.health.domains.values():
        domain.mean = 100.0
    assert float(trainer.advance()[2].applied.asnumpy()) == 1.0


POISONED = f"""{rank_processes.CRASHES_AT_EXIT}
import os, sys
import numpy as np
from pangu_sigma.cli import program
from pangu_sigma.training import loop

def advance(trainer):
    held = trainer.store.segments[0].segment.held.tolist()
    if trainer.progress.step == 2 and 3 in held:
        trainer.setup.shards["experts_layer_0"]["w1"].asnumpy()[held.index(3), 0, 0] = np.nan
    return whole(trainer)

whole, loop.Trainer.advance = loop.Trainer.advance, advance
sys.exit(program())
"""


def two_ranks(tree: dict, folder: Path, program: str, statuses: list[int]) -> rank_processes.RankProcesses:
    """Train a configuration in two processes until they end. program: what each of them runs."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    arguments = ["train", str(file), "--output", str(folder / "run")]
    with rank_processes.RankProcesses(2, arguments, folder / "logs", program=program) as ranks:
        assert ranks.wait(300.0) == statuses, ranks.said()
    return ranks


@pytest.mark.slow
def test_all_ranks_stop_for_a_value_on_one_of_them_and_each_names_it(tiny_data, tmp_path):
    tree = tiny_tree(tiny_data) | {"parallel": {"expert": 2}}
    tree["train"] |= {"steps": 12, "spikes": {"skip": True, "window": 4}}
    ranks = two_ranks(tree, tmp_path, POISONED, [2, 2])
    for log in ranks.logs:
        assert "experts_layer_0: w1 has 1, first at [3, 0, 0] (layer 0, expert 3 of domain en)" in log.read_text(), (
            ranks.said()
        )


SPIKED = """
import json, sys
from pangu_sigma.cli import program
from pangu_sigma.training import loop

def advance(trainer):
    spike = trainer.progress.step + 1 == 4
    gain = trainer.network.norm.gain.asnumpy()
    before = gain.copy()
    for domain in trainer.health.domains.values():
        domain.seen, domain.mean, domain.variance = 1000, 7.0, 0.0
    if spike and trainer.ranks.rank == 1:
        gain *= 100  # only this rank is surprised
    step = whole(trainer)
    if spike:
        gain[...] = before
    spikes = [s.domain for s in trainer.health.spikes if s.skipped and s.loss > s.limit]
    with open(f"{sys.argv[-1]}.{trainer.ranks.rank}", "a") as file:
        print(json.dumps([float(step[2].applied.asnumpy()), trainer.progress.updates, spikes]), file=file)
    return step

whole, loop.Trainer.advance = loop.Trainer.advance, advance
sys.exit(program())
"""


@pytest.mark.slow
def test_ranks_skip_the_same_step_for_a_spike_that_is_on_one_of_them(tiny_data, tmp_path):
    """One shares the data with the other: the verdict is on the losses of the whole batch."""
    tree = tiny_tree(tiny_data) | {"parallel": {"data": 2}}
    tree["train"] |= {"steps": 6, "spikes": {"skip": True, "window": 4}}
    two_ranks(tree, tmp_path, SPIKED, [0, 0])
    one, other = (list(map(json.loads, (tmp_path / f"run.{rank}").read_text().splitlines())) for rank in range(2))
    assert one == other, "the same verdict, for the same domains"
    assert [applied for applied, *_ in one] == [1, 1, 1, 0, 1, 1] and one[3][2]
    assert [updates for _, updates, _ in one] == [1, 2, 3, 3, 4, 5]
