"""The report is drawn from metrics alone, for few domains and many, and for models without routed layers."""

from __future__ import annotations

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

from pangu_sigma.data.manifest import DomainRecord, Manifest, OverlapRecord, SplitCounts
from pangu_sigma.sealed import DamagedFile, sealed, sealed_line
from pangu_sigma.stored.model import TUNING_RESULT
from pangu_sigma.training.log import report
from pangu_sigma.training.log.metrics import EmptyLogError, MetricsLog
from pangu_sigma.writable import NotWritable

COUNTS = {"loss_scale": 1.0, "skipped": 0, "clipped": 0, "dropped": 0, "tokens": 100}


def write_recorded(run: Path, tree: dict[str, Any]) -> None:
    """Write the configuration of a run; a report needs no whole one."""
    (run / "configuration.json").write_text(json.dumps({"config": tree}))


def made_up_run(folder: Path, domains: list[str], layers: int, experts: int, evaluate: bool = True) -> None:
    rng = np.random.default_rng(0)
    with MetricsLog(folder, domains, 6, 2) as log:
        for step in range(1, 7):
            losses = {f"loss/{name}": 5.0 / step for name in domains[:4]}
            metrics = {
                "step": step,
                "loss": 5.0 / step,
                **losses,
                "learning_rate": 1e-3,
                "gradient_norm": 1.0,
                **COUNTS,
            }
            log.record(metrics, rng.integers(0, 50, (layers, experts * len(domains))), "")
        if evaluate:
            log.evaluation(6, held_out(**dict.fromkeys(domains, 1.0)))


@pytest.mark.parametrize(
    ("domains", "layers", "experts"), [(["zh", "en"], 2, 4), ([f"d{i}" for i in range(40)], 3, 16)]
)
def test_pictures_and_a_page_that_holds_them(tmp_path: Path, domains: list[str], layers: int, experts: int):
    made_up_run(tmp_path, domains, layers, experts)
    page = report.write_report(tmp_path)
    for name in ("loss", "numbers", "expert_load"):
        height, width = image.imread(tmp_path / "report" / f"{name}.png").shape[:2]
        assert min(height, width) > 200
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "<td>zh</td><td>0.917</td><td>1.000</td><td>2.718</td>" in text or domains[0] != "zh"
    assert "http" not in text


def test_what_was_not_measured_is_left_out(tmp_path: Path):
    made_up_run(tmp_path, ["zh"], 0, 1, evaluate=False)
    text = report.write_report(tmp_path).read_text()
    assert not (tmp_path / "report" / "expert_load.png").exists()
    assert "<td>zh</td><td>0.917</td><td>–</td><td>–</td>" in text


@pytest.mark.parametrize("stop", [killed_at, refused_at])
def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch, stop):
    """A kill, or an error of the disk, at any call that changes a file: the page and the picture there are whole ones."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in ("draw_numbers", "draw_load"):
        monkeypatch.setattr(report, name, lambda logs: None)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, dpi: file.write(b"a picture"))
    made_up_run(tmp_path, ["zh"], 0, 1)
    report.write_report(tmp_path)
    names = ("report.html", "loss.png")
    old = {name: (tmp_path / "report" / name).read_bytes() for name in names}
    with MetricsLog(tmp_path, ["zh"], 6, 2, 6) as log:
        log.evaluation(6, held_out(zh=0.5))
    with FileCalls()() as calls:
        report.write_report(tmp_path)
    new = {name: (tmp_path / "report" / name).read_bytes() for name in names}
    assert new["report.html"] != old["report.html"]
    assert calls.names.count("replace") == 2
    for call in range(1, len(calls.names)):
        for name in names:
            (tmp_path / "report" / name).write_bytes(old[name])
        with stop(call)(), pytest.raises((Killed, OSError)):
            report.write_report(tmp_path)
        for name in names:
            assert (tmp_path / "report" / name).read_bytes() in (old[name], new[name])
    report.write_report(tmp_path)
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == sorted(names), "nothing is left behind"


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
    """A made-up run whose log has every kind of line, one of them of a later version, and whose data are still there."""
    made_up_run(folder, ["zh", "en"], 2, 4)
    step = {"kind": "step", "step": 8, "learning_rate": 1e-3, "left_out/loss": 2, "left_out/loss/zh": 2}
    step |= COUNTS | {"skipped": 2, "tokens": 200}
    tensor = {"file": "experts_layer_1", "name": "w1", "count": 1, "first": [3, 0, 0], "experts": [3, 5]}
    spike = {"step": 7, "domain": "en", "loss": 9.25, "mean": 3.5, "limit": 4.125, "samples": "abcd", "skipped": True}
    lines = [
        step,
        {"kind": "spike", **spike},
        {"kind": "unhealthy", "step": 7, "tensors": []},
        {
            "kind": "unhealthy",
            "step": 8,
            "tensors": [tensor, {"file": "dense", "name": "<gain>", "count": 1, "first": [3], "experts": []}],
        },
        {"kind": "config", "step": 4, "changes": [["train.batch_size", 4, 8], ["data.path", "<a>", "b"]]},
        {"kind": "rows", "step": 4, "entries": {"0": {"met": 1, "stored": 9, "collisions": 0}}, "scales": {"0": 0.1}},
        {"kind": "rows", "step": 8, "entries": ENTRIES, "scales": {"0": 0.1, "1": -0.25}},
        {"kind": "of a later version", "step": 8},
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(map(sealed_line, lines))
    write_recorded(folder, {"name": "mine", "data": {"path": str(folder)}, "train": {"batch_size": 8}})
    split = SplitCounts(documents=10, tokens=1000, bytes=5000, unknown=10, folded=0)
    overlap = OverlapRecord(
        window=13, windows=9, share=0.002, wanted=1, passed_over=0, passed_over_tokens=0,
        max_overlap=0.01, min_tokens=1, boilerplate=0.58, boilerplate_windows=1,
    )  # fmt: skip
    record = DomainRecord(
        slot="zh", rows=600, offered=1023, duplicates=1, too_long=2, train=split, held_out=split, unigram_entropy=6.5,
        shift=1.83, shift_deviation=0.584, sources=[], over_limit=0, offered_bytes=9, left_out_bytes=0, overlap=overlap,
        near_duplicates=0,
    )  # fmt: skip
    Manifest(
        fingerprint="", vocabulary_hash="", vocabulary_size=1, domains={"zh": record}, quarantined={}, config={}
    ).save(folder)
    return folder


def test_the_page_tells_what_went_wrong_what_changed_and_what_became_of_the_text(tmp_path: Path):
    text = report.write_report(with_what_happened(tmp_path / "run")).read_text()
    for part in (
        "2 steps skipped, which changed nothing; 2 of them without a finite loss",
        "1 loss spikes",
        "Rows of pairs of tokens after step 8: 1,200 of 5,000 met; 900 of 1,000 met, about 1,403 pairs more than rows; "
        "scale in front of each layer 0.100, -0.250.",
        "After step 8: values that are not finite in experts_layer_1: w1 of expert 3, 5; dense: &lt;gain&gt;",
        "<td>7</td><td>en</td><td>9.250</td><td>3.500</td><td>4.125</td><td>abcd</td><td>yes</td>",
        "<td>4</td><td>train.batch_size</td><td>4</td><td>8</td>",
        "<td>data.path</td><td>&#34;&lt;a&gt;&#34;</td>",
        "<td>zh</td><td>1,023</td><td>1</td><td>2</td><td>0</td><td>20</td><td>2,000</td><td>1,000</td><td>1.00%</td>"
        "<td>0.20%</td><td>58.0%</td><td>+1.83 ± 0.58</td></tr>",
        "<p>Shift: unigram loss of the held-out text above that of random text of its domain",
        "<td>zh</td><td>0.917</td><td>1.000</td><td>2.718</td><td>4.000</td><td>–</td><td>2</td><td>0</td>",
        "<summary>Configuration</summary>",
        "<td>train.batch_size</td><td>8</td>",
    ):
        assert part in text, part
    assert "After step 7" not in text, "nothing was found there"


def test_several_runs_share_a_page_whose_tables_say_how_they_differ(tmp_path: Path):
    one, two = with_what_happened(tmp_path / "one"), tmp_path / "two"
    made_up_run(two, ["zh", "code"], 1, 4)
    before = sorted(two.iterdir())
    missing = "two has no held-out loss of it"
    found = {"zh": {"nats_per_token": -0.25, "se": 0.01}, "en": {"none": missing}}
    text = report.write_report(one, [two], [found]).read_text()
    assert sorted(two.iterdir()) == before, "only the first run's report is written"
    assert "<th>one</th><th>two</th><th>one − two</th><th>±</th>" in text, "one minus two, as in the terminal"
    assert "<td>zh</td><td>1.000</td><td>1.000</td><td>-0.250</td><td>0.010</td>" in text
    assert "<td>en</td><td>1.000</td><td>–</td><td>–</td><td>–</td>" in text
    assert f"<p>No difference for en: {missing}.</p>" in text
    assert "<td>train.batch_size</td><td>8</td><td>null</td>" in text
    assert text.count("data:image/png;base64,") == 4, "a heat map for each run"


def test_a_run_of_skipped_steps_only_has_a_report(tmp_path: Path):
    """No loss, no norm, no held-out loss is finite."""
    nan = float("nan")
    with MetricsLog(tmp_path, ["zh"], 2, 1) as log:
        for step in (1, 2):
            ill = COUNTS | {"loss": nan, "loss/zh": nan, "gradient_norm": nan, "skipped": 1}
            log.record({"step": step, "learning_rate": 1e-3, **ill}, np.zeros((0, 4)), "")
        log.evaluation(2, held_out(zh=nan))
    text = report.write_report(tmp_path).read_text()
    assert "2 steps skipped" in text
    assert "<td>zh</td><td>–</td><td>–</td><td>–</td><td>4.000</td><td>–</td><td>2</td><td>0</td>" in text


def tuned_run(folder: Path) -> Path:
    """A made-up run that was fine-tuned in one domain, beside the prepared text of its parent."""
    with_what_happened(folder)
    account = {"lines": 40, "samples": 41, "cut": 2, "left_out": {"too long": 3}, "tokens": 900, "counted": 300}
    files = {
        name: {"path": f"{name}.jsonl", "domains": {"zh": account | {"sequences": 7}}}
        for name in ("train_file", "dev_file")
    }
    change = {"nats_per_token": 0.125, "se": 0.03, "bits_per_byte": 0.1, "bits_per_byte_se": 0.01}
    result = files | {
        "parameters": {"learn": 1_000, "all": 7_930},
        "common_kept": 2_000,
        "best": {"step": 20, "loss": 6.0588, "before": 6.1085, "stale": 0},
        "forgetting": {
            "domains": {
                "en": {"before": {"loss": 5.0}, "after": {"loss": 5.125}, "difference": change},
                "zh": {
                    "before": {"loss": 5.5},
                    "after": {"loss": 5.5},
                    "difference": change | {"nats_per_token": 0.0, "se": 0.0},
                },
            }
        },
    }
    options = {"task": "qa", "learn": "experts"}
    lineage = {"kind": "finetune", "parent": "/runs/five", "parent_step": 80, "options": options}
    (folder / "finetune").mkdir()
    (folder / TUNING_RESULT).write_bytes(sealed(result, record=True))
    (folder / "lineage.json").write_bytes(sealed(lineage, record=True))
    return folder


def test_a_tuned_runs_report_shows_its_own_data_and_forgetting_above_all(tmp_path: Path):
    folder = tuned_run(tmp_path / "run")
    text = report.write_report(folder).read_text()
    for part in (
        "<td>parent</td><td>/runs/five, step 80</td>",
        "<td>task</td><td>qa</td>",
        "<td>learned</td><td>experts: 1,000 of 7,930 parameters; the 2,000 of common segments keep their bits</td>",
        "<td>loss on the dev set before</td><td>6.109</td>",
        "<td>at its best, the state that is kept</td><td>6.059</td>",
        "<td>after step</td><td>20</td>",
        "<h3>train_file.jsonl</h3>",
        "<td>zh</td><td>40</td><td>41</td><td>2</td><td>7</td><td>900</td><td>300</td><td>3</td>",
        "<h2>Forgetting: held-out text of the parent, nats per token</h2>",
        "<td>en</td><td>5.0000</td><td>5.1250</td><td>0.1250</td><td>0.0300</td>",
        "<td>zh</td><td>5.5000</td><td>5.5000</td><td>exactly 0</td><td>0.0000</td>",
        "<th>loss on dev set</th>",
    ):
        assert part in text, part
    assert "<h2>Data" not in text, "they are the parent's"
    assert "6.500" not in text, "nor are its unigrams shown beside dev losses"
    (folder / TUNING_RESULT).write_text((folder / TUNING_RESULT).read_text().replace("6.0588", "6.0589"))
    with pytest.raises(DamagedFile, match=r"result\.json: its content does not match its own hash"):
        report.write_report(folder)
    (folder / TUNING_RESULT).unlink()
    assert "Not measured: the fine-tuning is not finished" in report.write_report(folder).read_text()


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
        ({}, [[0] * 8, [0, 0, 0, 0, 90_000, 0, 0, 0]], r"had 3\.9\d times its fair share, in en, RRE layer 1: .*"),
        (
            COMMON,
            [[0] * 8, [0, 90_000, 0, 0, 0, 0, 0, 0]],
            r"had 5\.\d\d times its fair share, in an expert common to all domains, RRE layer 0, segment 1: .*",
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
    assert re.search(rf"{said}\nrouting\.table=balanced", report.write_report(folder).read_text())
    write_recorded(folder, tree | {"routing": {"table": "balanced"}})
    assert "most loaded" not in report.write_report(folder).read_text()


def test_pictures_have_an_alternative_text_and_what_does_not_change_is_a_sentence(tmp_path: Path):
    made_up_run(tmp_path, ["zh"], 1, 4)
    text = report.write_report(tmp_path).read_text()
    described = re.findall(r'<img alt="([^"]*)"', text)
    assert len(described) == text.count("<img") == 3
    assert all(len(words.split()) > 5 for words in described)
    constant = "learning rate 0.001, gradient norm 1, loss scale 1, skipped 0, clipped 0, dropped 0"
    assert f"<p>The same at every step: {constant}.</p>" in text


def test_a_number_that_changes_is_a_row_of_the_page_by_the_name_that_its_record_has(tmp_path: Path):
    with MetricsLog(tmp_path, ["zh"], 4, 1) as log:
        for step, value in enumerate((3.0, 1.0, 2.0, 2.5), 1):
            log.record({"step": step, **COUNTS, "new/one": value}, np.zeros((0, 4)), "")
    text = report.write_report(tmp_path).read_text()
    assert "<td>new/one</td><td>1</td><td>2.25</td><td>3</td><td>2.5</td>" in text
