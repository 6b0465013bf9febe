"""The report is drawn from metrics alone, for few domains and many, and for models without routed layers.

What it shows is what the log has; what the log does not have is left out."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.failing_files import FileCalls, Killed, killed_at, refused_at
from helpers.losses import held_out
from matplotlib import image
from matplotlib.figure import Figure

from pangu_sigma.sealed import DamagedFile, sealed, sealed_line
from pangu_sigma.stored.model import TUNING_RESULT
from pangu_sigma.training.log import report
from pangu_sigma.training.log.metrics import EmptyLogError, MetricsLog
from pangu_sigma.training.log.report import RunLog, changes, draw_load, draw_numbers
from pangu_sigma.writable import NotWritable

COUNTS = {"loss_scale": 1.0, "skipped": 0, "clipped": 0, "dropped": 0, "tokens": 100}


def write_recorded(run: Path, tree: dict[str, Any]) -> None:
    """Write the configuration of a run; a report needs no whole one."""
    (run / "configuration.json").write_text(json.dumps({"config": tree}))


def made_up_run(folder: Path, domains: list[str], layers: int, experts: int, evaluate: bool = True) -> None:
    rng = np.random.default_rng(0)
    with MetricsLog(folder, domains, 6, 2) as log:
        for step in range(1, 7):
            metrics = {"step": step, "loss": 5.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0, **COUNTS}
            metrics |= {f"loss/{name}": 5.0 / step for name in domains[:4]}
            log.record(metrics, rng.integers(0, 50, (layers, experts * len(domains))), "", 1.0)
        if evaluate:
            log.evaluation(6, held_out(**dict.fromkeys(domains, 1.0)))


@pytest.mark.parametrize(
    ("domains", "layers", "experts"), [(["zh", "en"], 2, 4), ([f"d{i}" for i in range(40)], 3, 16)]
)
def test_pictures_and_a_page_that_holds_them(tmp_path: Path, domains: list[str], layers: int, experts: int):
    made_up_run(tmp_path, domains, layers, experts)
    text = report.write_report(tmp_path).read_text()
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)', text)
    assert len(pictures) == text.count("<img") == 2
    for alternative, picture in pictures:
        height, width = image.imread(io.BytesIO(base64.b64decode(picture))).shape[:2]
        assert min(height, width) > 200 and len(alternative.split()) > 5
    assert f"<td>{domains[0]}</td><td>0.91667</td><td>1</td>" in text or domains[0] != "zh"
    assert "http" not in text
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["report.html"], "the page needs no other file"


def test_what_was_not_measured_is_left_out(tmp_path: Path):
    made_up_run(tmp_path, ["zh"], 0, 1, evaluate=False)
    text = report.write_report(tmp_path).read_text()
    assert text.count("<img") == 1 and "held_out" not in text
    assert "<th>domain</th><th>loss</th></tr><tr><td>zh</td><td>0.91667</td></tr>" in text
    assert "Step 6 of 6;" in text
    write_recorded(tmp_path, {"train": {"steps": 9}})
    assert "Step 6 of 9;" in report.write_report(tmp_path).read_text(), "the steps that it is to take now"


@pytest.mark.parametrize("stop", [killed_at, refused_at])
def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch, stop):
    """A kill, or an error of the disk, at any call that changes a file: the page there is a whole one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, dpi: file.write(b"a picture"))
    made_up_run(tmp_path, ["zh"], 0, 1)
    page = report.write_report(tmp_path)
    old = page.read_bytes()
    with MetricsLog(tmp_path, ["zh"], 6, 2, 6) as log:
        log.evaluation(6, held_out(zh=0.5))
    with FileCalls()() as calls:
        report.write_report(tmp_path)
    new = page.read_bytes()
    assert new != old
    assert calls.names.count("replace") == 1
    for call in range(1, len(calls.names)):
        page.write_bytes(old)
        with stop(call)(), pytest.raises((Killed, OSError)):
            report.write_report(tmp_path)
        assert page.read_bytes() in (old, new)
    report.write_report(tmp_path)
    assert [file.name for file in page.parent.iterdir()] == ["report.html"], "nothing is left behind"


def test_a_linked_folder_of_reports_is_not_followed(tmp_path: Path):
    made_up_run(tmp_path / "run", ["zh"], 0, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run" / "report").symlink_to(tmp_path / "mine")
    with pytest.raises(NotWritable, match=r"run/report is a link"):
        report.write_report(tmp_path / "run")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_run_without_steps_says_what_to_do(tmp_path: Path):
    with MetricsLog(tmp_path, ["zh"], 5, 5):
        pass
    with pytest.raises(ValueError, match=r"no logged step.*log_interval"):
        report.write_report(tmp_path)


ENTRIES = {
    "0": {"met": 1200, "stored": 5000, "collisions": None},
    "1": {"met": 900, "stored": 1000, "collisions": 1403},
}


def with_what_happened(folder: Path) -> Path:
    """A made-up run whose log has every kind of line, one of them of a later version."""
    made_up_run(folder, ["zh", "en"], 2, 4)
    step = {"step": 8, "learning_rate": 1e-3, "left_out/loss": 2, "left_out/loss/zh": 2}
    tensor = {"file": "experts_layer_1", "name": "w1", "count": 1, "first": [3, 0, 0], "experts": [3, 5]}
    gain = {"file": "dense", "name": "<gain>", "count": 1, "first": [3], "experts": []}
    spike = {"step": 7, "domain": "en", "loss": 9.25, "mean": 3.5, "limit": 4.125, "samples": "abcd", "skipped": True}
    lines = [
        {"kind": "step", **step, **COUNTS, "skipped": 2, "tokens": 200},
        {"kind": "spike", **spike},
        {"kind": "unhealthy", "step": 7, "tensors": []},
        {"kind": "unhealthy", "step": 8, "tensors": [tensor, gain]},
        {"kind": "config", "step": 4, "changes": [["train.batch_size", 4, 8], ["data.path", "<a>", "b"]]},
        {"kind": "rows", "step": 4, "entries": {"0": {"met": 1, "stored": 9, "collisions": 0}}, "scales": {"0": 0.1}},
        {"kind": "rows", "step": 8, "entries": ENTRIES, "scales": {"0": 0.1, "1": -0.25}},
        {"kind": "of a later version", "step": 8},
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(map(sealed_line, lines))
    tree = {"name": "mine", "data": {"path": str(folder)}, "domains": [{"name": "zh"}], "train": {"batch_size": 8}}
    write_recorded(folder, tree)
    return folder


def test_the_page_tells_what_went_wrong_and_what_changed(tmp_path: Path):
    text = report.write_report(with_what_happened(tmp_path / "run")).read_text()
    for part in (
        "2 steps skipped, which changed nothing;\n2 of them without a finite loss",
        "1 loss spikes",
        "rows, 0      1,200 of 5,000 met (24.00%); rows, 1      900 of 1,000 met (90.00%), about 1,403 pairs more than rows; "
        "row scales   0.1, -0.25, layer by layer, after step 8.",
        "Values that are not finite after step 8",
        "<th>file</th><th>name</th><th>count</th><th>first</th><th>experts</th></tr>"
        "<tr><td>experts_layer_1</td><td>w1</td><td>1</td><td>[3, 0, 0]</td><td>[3, 5]</td></tr>"
        "<tr><td>dense</td><td>&lt;gain&gt;</td><td>1</td><td>[3]</td><td>[]</td></tr>",
        "<td>7</td><td>en</td><td>9.25</td><td>3.5</td><td>4.125</td><td>abcd</td><td>yes</td>",
        "<td>4</td><td>train.batch_size</td><td>4</td><td>8</td>",
        "<td>data.path</td><td>&#34;&lt;a&gt;&#34;</td>",
        "<td>zh</td><td>0.91667</td><td>2</td><td>1</td><td>1</td><td>4</td>",
        "<summary>Configuration</summary>",
        "<td>train.batch_size</td><td>8</td>",
    ):
        assert part in text, part
    assert "after step 7" not in text, "nothing was found there"


def test_several_runs_share_a_page_whose_tables_say_how_they_differ(tmp_path: Path):
    one, two = with_what_happened(tmp_path / "one"), tmp_path / "b" / "one"
    made_up_run(two, ["zh", "code"], 1, 4)
    before = sorted(two.iterdir())
    text = report.write_report(one, [two], "domain  one − two\nzh         −0.25").read_text()
    assert sorted(two.iterdir()) == before, "only the first run's report is written"
    assert "<pre>domain  one − two\nzh         −0.25</pre>" in text, "as in the terminal"
    assert f"<h1>Runs {one}, {two}</h1>" in text, "runs of one name are told apart by their folders"
    assert text.count("<td>train.batch_size</td><td>8</td><td>null</td>") == 2, "a key that differs, and all keys"
    assert text.count("data:image/png;base64,") == 3, "a heat map for each run"


def test_a_run_of_skipped_steps_only_has_a_report(tmp_path: Path):
    """No loss, no norm, no held-out loss is finite."""
    nan = float("nan")
    with MetricsLog(tmp_path, ["zh"], 2, 1) as log:
        for step in (1, 2):
            ill = COUNTS | {"loss": nan, "loss/zh": nan, "gradient_norm": nan, "skipped": 1}
            log.record({"step": step, "learning_rate": 1e-3, **ill}, np.zeros((0, 4)), "", 1.0)
        log.evaluation(2, held_out(zh=nan))
    text = report.write_report(tmp_path).read_text()
    assert "2 steps skipped" in text
    assert "<th>domain</th><th>left_out/loss</th><th>held_out_unigram</th>" in text, "nothing else is finite"
    assert "<td>zh</td><td>2</td><td>4</td>" in text


def test_a_tuned_runs_report_shows_its_own_data_and_forgetting_above_all(tmp_path: Path):
    """Of a made-up run that was fine-tuned in one domain."""
    folder = with_what_happened(tmp_path / "run")
    account = {"lines": 40, "samples": 41, "left_out": {"too long": 3}, "tokens": 900}
    change = {"nats_per_token": 0.125, "se": 0.03}
    result = {
        "train_file": {"path": "train.jsonl", "domains": {"zh": account}},
        "parameters": {"learn": 1_000, "all": 7_930},
        "best": {"step": 20, "loss": 6.0588, "before": 6.1085, "stale": 0},
        "forgetting": {
            "domains": {"en": {"before": {"loss": 5.0}, "after": {"loss": 5.125}, "difference": change}},
        },
    }
    lineage = {"kind": "finetune", "parent": "/runs/five", "parent_step": 80, "options": {"task": "qa"}}
    (folder / "finetune").mkdir()
    (folder / TUNING_RESULT).write_bytes(sealed(result, record=True))
    (folder / "lineage.json").write_bytes(sealed(lineage, record=True))
    text = report.write_report(folder).read_text()
    for part in (
        "<td>parent</td><td>/runs/five</td></tr><tr><td>parent_step</td><td>80</td>",
        "<td>options/task</td><td>qa</td>",
        "<td>parameters/learn</td><td>1,000</td></tr><tr><td>parameters/all</td><td>7,930</td>",
        "<td>best/step</td><td>20</td></tr><tr><td>best/loss</td><td>6.0588</td></tr><tr><td>best/before</td><td>6.1085</td>",
        "<h2>Train_file</h2>",
        "<td>zh</td><td>40</td><td>41</td><td>3</td><td>900</td>",
        "<h2>Forgetting</h2>",
        "<th>domain</th><th>before/loss</th><th>after/loss</th><th>difference/nats_per_token</th><th>difference/se</th>",
        "<td>en</td><td>5</td><td>5.125</td><td>0.125</td><td>0.03</td></tr>",
        "<th>dev_loss</th>",
    ):
        assert part in text, part
    assert "4.000" not in text, "nor are its unigrams shown beside dev losses"
    (folder / TUNING_RESULT).write_text((folder / TUNING_RESULT).read_text().replace("6.0588", "6.0589"))
    with pytest.raises(DamagedFile, match=r"result\.json: its content does not match its own hash"):
        report.write_report(folder)
    (folder / TUNING_RESULT).unlink()
    assert (
        "<td>forgetting/skipped</td><td>the fine-tuning is not finished</td>" in report.write_report(folder).read_text()
    )


def test_a_log_with_damaged_lines_is_drawn_without_them_unless_it_is_the_first(tmp_path, caplog):
    made_up_run(tmp_path, ["zh"], 1, 4)
    file = tmp_path / "metrics.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    assert '"learning_rate"' in others[0]
    others[0] = others[0].replace('"learning_rate"', '"learning_rats"')
    file.write_text("".join([first, *others]))
    assert report.write_report(tmp_path).exists()
    assert f"{file}: line 2 was changed" in caplog.text
    file.write_text("".join([first[:40], "\n", *others]))
    with pytest.raises(EmptyLogError, match=r"metrics\.jsonl: its first line, with the domains, is missing"):
        report.write_report(tmp_path)


COMMON = {"model": {"segments": ["own", "common"], "common_experts": 6, "experts_per_domain": 4}}


@pytest.mark.parametrize(
    ("model", "tokens_NK", "said"),
    [
        (
            {},
            [[0] * 8, [0, 0, 0, 0, 90_000, 0, 0, 0]],
            r"had 3\.9\d times its fair share: expert 4 of segment 1\.0 own\. .*",
        ),
        (
            COMMON,
            [[0] * 8, [0, 90_000, 0, 0, 0, 0, 0, 0]],
            r"had 5\.\d\d times its fair share: expert 1 of segment 0\.1 common\. .*",
        ),
    ],
    ids=["own", "common"],
)
def test_an_expert_with_much_of_the_text_is_named_with_what_would_help(tmp_path: Path, model, tokens_NK, said):
    folder = with_what_happened(tmp_path / "run")
    tree = json.loads((folder / "configuration.json").read_text())["config"] | model
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(sealed_line({"kind": "load", "step": 8, "tokens_NK": tokens_NK}))
    write_recorded(folder, tree | {"routing": {"table": "random"}})
    assert re.search(rf"{said}routing\.table=balanced", report.write_report(folder).read_text())
    write_recorded(folder, tree | {"routing": {"table": "balanced"}})
    assert "most loaded" not in report.write_report(folder).read_text()


def test_a_number_is_a_row_of_the_page_by_the_name_that_its_record_has(tmp_path: Path):
    with MetricsLog(tmp_path, ["zh"], 4, 1) as log:
        for step, value in enumerate((3.0, 1.0, 2.0, 2.5), 1):
            log.record({"step": step, **COUNTS, "new/one": value}, np.zeros((0, 4)), "", 1.0)
    text = report.write_report(tmp_path).read_text()
    assert "<td>new/one</td><td>1</td><td>2.25</td><td>3</td><td>2.5</td>" in text
    assert "<td>loss_scale</td><td>1</td><td>1</td><td>1</td><td>1</td>" in text, "also one that does not change"


def log(name: str = "a", config: dict | None = None, later: dict | None = None, **lines: list[dict]) -> RunLog:
    step = {"step": 5, "loss/zh": 2.0, "skipped": 0, "learning_rate": 1e-3, "loss_scale": 8.0, "gradient_norm": 1.0}
    lines |= {"step": [step, {**step, "step": 10, "skipped": 3, "gradient_norm/experts": 0.5, **(later or {})}]}
    lines |= {"run": [{"domains": ["zh", "en"]}]}
    return RunLog(name, lines, config or {})


def panels(runs: list[RunLog]) -> dict[str, dict[str, list]]:
    """Lines of each panel of the figure of numbers but the losses, by title and label."""
    lines = {axes.get_title(): axes.lines for axes in draw_numbers(runs).axes[1:]}
    return {
        title: {line.get_label(): [*map(list, line.get_data())] for line in drawn} for title, drawn in lines.items()
    }


def with_segments(segments: list[str], common: int, tokens_NK: list[list[int]]) -> RunLog:
    """A run of two domains with two own experts each."""
    config = {f"model.segments.{n}": kind for n, kind in enumerate(segments)}
    config |= {"model.experts_per_domain": 2, "model.common_experts": common}
    return log(config=config, load=[{"tokens_NK": tokens_NK}])


@pytest.mark.parametrize("common", [3, 6])
def test_own_segments_and_then_common_ones_share_a_map(common):
    """A log has as many columns as the largest segment has experts, and a column of no expert is empty."""
    tokens_NK = np.zeros((4, max(4, common)), int)
    tokens_NK[[0, 2], :4] = [[10, 30, 5, 5], [20, 20, 10, 0]]
    tokens_NK[[1, 3], :3] = [[10, 20, 30], [60, 0, 0]]
    axes, _ = draw_load(with_segments(["own", "common"], common, tokens_NK.tolist())).axes
    relative_NK = axes.images[0].get_array().filled(np.nan)
    assert np.array_equal(relative_NK[:2, :4], [[0.5, 1.5, 1.0, 1.0], [1.0, 1.0, 2.0, 0.0]])
    assert np.array_equal(relative_NK[2, :3], np.array([10, 20, 30]) / (60 / common))
    assert np.isnan(relative_NK[:2, 4:]).all() and np.isnan(relative_NK[2:, common:]).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.0 own", "1.0 own", "0.1 common", "1.1 common"]
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["zh", "en"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "expert (number in its segment)",
        "RRE layer.segment (0 = lowest)",
    )


def test_losses_spikes_and_the_level_of_counting_share_a_panel():
    spike, at = {"step": 7, "domain": "zh", "loss": 9.0}, {"per_domain_loss": {"zh": 2.5}, "unigram": {"zh": 6.0}}
    run = log(spike=[spike], evaluation=[{"step": step, **at} for step in (5, 10)])
    axes = draw_numbers([run]).axes[0]
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    losses = {"zh": 2.0, "held_out_loss zh": 2.5, "held_out_unigram zh": 6.0}
    assert {name: drawn[name] for name in losses} == {name: ([5, 10], [level] * 2) for name, level in losses.items()}
    assert ([7], [9.0]) in drawn.values()
    assert panels([run])["skipped"] == {"all": [[5, 10], [0, 3]]}, "the line that had skips"


def test_a_number_has_a_panel_by_its_name_where_it_changes_and_several_runs_share_it():
    drawn = panels([log(later={"gradient_norm": 2.0, "gradient_norm/experts": 0.5})] * 2)["gradient norm"]
    assert drawn == {"a all": [[5, 10], [1.0, 2.0]]}, "the part of experts is known once, which is no change"
    run = log(later={"gradient_norm": 2.0})
    run.numbers["gradient_norm/experts"] = np.array([5, 10]), np.array([0.25, 0.5])
    assert panels([run])["gradient norm"].keys() == {"all", "experts"}
    same = {name for name, (_, values) in run.numbers.items() if not changes(name, values)}
    assert {"loss_scale", "learning_rate"} < same
    assert {*panels([log(later={"loss_scale": 4.0})])} == {"skipped", "loss scale"}
    assert {*panels([log(later={"learning_rate": 9e-4})])} == {"skipped", "learning rate"}, "small, and it changes"
    for stall, expected in ((0.0002, {}), (0.5, {"update stall": {"all": [[5, 10], [0.0, 0.5]]}})):
        run = log(later={"skipped": 0})
        run.numbers["update_stall"] = np.array([5, 10]), np.array([0.0, stall])
        run.numbers["fetched_mib"] = np.array([5, 10]), np.array([2.0, 2.0])
        assert panels([run]) == expected
    runs = [log("a"), log("b")]
    for run in runs:
        run.numbers["new_one/x"] = np.array([5, 10]), np.array([1.0, 2.0])
    assert panels(runs)["new one"] == {label: [[5, 10], [1.0, 2.0]] for label in ("a x", "b x")}


def test_a_dense_run_with_segments_in_its_configuration_has_no_load():
    """`train sigma_tiny --set model.rre_layers=0` leaves the segments; its load lines are one row of zeros."""
    dense = with_segments(["own", "own", "common", "common"], 3, [[0] * 4])
    assert draw_load(dense) is None
    assert draw_load(log()) is None
