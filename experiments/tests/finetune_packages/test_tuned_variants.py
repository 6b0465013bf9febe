"""Arms at their best rates against the last one, seed by seed; what the seeds do not decide is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.finetune_packages import tuned_variants
from experiments.finetune_packages.tuned_variants import TunedVariant, best_rate, compare_tuned, estimate, write_tuned
from pangu_sigma.config import ConfigError
from pangu_sigma.sealed import sealed

BEFORE, AFTER = 1.0, {"experts": [9.0, 9.1, 9.2], "dense": [5.0, 6.0, 9.3]}
FORGOTTEN = {"experts": [0.0, 0.0, 0.0], "dense": [0.30, 0.31, 0.32]}


def write_result(run: Path, loss: float | None, forgotten: float = 0.0) -> Path:
    (run / "finetune").mkdir(parents=True)
    own = {"difference": {"nats_per_token": forgotten}}
    result = {
        "best": {"before": 5.0, "loss": loss},
        "parameters": {"learn": 1234},
        "forgetting": {"domains": {"zh": own, "en": own}},
    }
    (run / "finetune" / "result.json").write_bytes(sealed(result, record=True))
    return run


@pytest.fixture
def variants(tmp_path, monkeypatch) -> list[TunedVariant]:
    """Two variants with three seeds and two rates; the second rate is the better one. The answers are worth what AFTER has."""

    def answer(model: Path, tuned: Path, test: Path, kept: Path) -> dict[str, Any]:
        variant, seed, *_ = tuned.name.split("_")
        assert kept == tmp_path / "kept" / f"{model.name}.json"
        return {"n": 7, "skipped": 0, "scores": {"chrf": BEFORE if model != tuned else AFTER[variant][int(seed)]}}

    monkeypatch.setattr(tuned_variants, "answer_test", answer)
    found = []
    for variant, forgotten in FORGOTTEN.items():
        tried = {"1e-3": write_result(tmp_path / f"{variant}_0_1e-3", 3.5), "3e-3": tmp_path / f"{variant}_0_3e-3"}
        runs = [write_result(tmp_path / f"{variant}_{seed}_3e-3", 3.0, forgotten[seed]) for seed in range(3)]
        found.append(TunedVariant(variant, tried, [tmp_path / f"parent_{seed}" for seed in range(3)], runs))
    return found


def test_the_best_rate_is_that_of_the_lowest_dev_loss(tmp_path):
    losses = {"1e-3": 2.0, "2e-3": 1.5, "3e-3": 1.5, "4e-3": None}
    tried = {rate: write_result(tmp_path / rate, loss) for rate, loss in losses.items()}
    assert best_rate(tried) == "2e-3"
    with pytest.raises(ConfigError, match=r"no run of the rates 4e-3 has a finite dev loss"):
        best_rate({"4e-3": tried["4e-3"]})
    with pytest.raises(ConfigError, match=r"nothing is not finished: it has no finetune/result\.json"):
        best_rate({"1e-3": tmp_path / "nothing"})


def test_variants_are_compared_with_the_last_one_seed_by_seed(variants, tmp_path):
    compared = compare_tuned(variants, tmp_path / "test.jsonl", tmp_path / "kept")
    experts, dense = compared["variants"]["experts"], compared["variants"]["dense"]
    assert (compared["n"], compared["seeds"], compared["against"], experts["best"]) == (7, 3, "dense", "3e-3")
    chrf = experts["scores"]["chrf"]
    assert chrf["after"]["mean"] == pytest.approx(9.1)
    assert chrf["change"]["values"] == pytest.approx([8.0, 8.1, 8.2])
    assert chrf["more"]["values"] == pytest.approx([4.0, 3.1, -0.1])
    assert (chrf["change"]["certain"], chrf["more"]["certain"]) == (True, False)
    assert dense["scores"]["chrf"]["more"]["values"] == [0.0, 0.0, 0.0]
    assert experts["forgotten"]["zh"]["more"]["mean"] == pytest.approx(-0.31)
    assert dense["forgotten"]["en"]["change"]["certain"]


def test_the_table_says_what_is_not_certain_and_what_is_exactly_nothing(variants, tmp_path):
    text = write_tuned("qa", compare_tuned(variants, tmp_path / "t", tmp_path / "kept"), tmp_path)
    assert (tmp_path / "qa.txt").read_text() == f"{text}\n"
    assert json.loads((tmp_path / "qa.json").read_text())["variants"]["dense"]["learns"] == 1234
    lines = text.splitlines()
    assert lines[0] == "qa: 7 test items, mean of 3 seeds, ± its error over seeds"
    assert any(line.split() == ["experts", "1,234", "3.500", "3.000*"] for line in lines)
    (chrf,) = [line for line in lines if line.startswith("chrf         experts")]
    assert chrf.split() == "chrf experts 1.00 0.00 9.10 0.06 8.10 0.06 2.33 1.24 not certain".split()  # noqa: SIM905
    (zh,) = [line for line in lines if line.startswith("zh           experts")]
    assert zh.split() == "zh experts 0.0000 0.0000 exactly 0 -0.3100 0.0058".split()  # noqa: SIM905
    assert max(map(len, lines)) <= 130


def test_one_seed_decides_nothing():
    assert estimate([2.0]) == {"values": [2.0], "mean": 2.0, "se": None, "certain": False}


def test_forgetting_that_was_not_measured_is_refused(variants, tmp_path):
    file = variants[1].runs[2] / "finetune" / "result.json"
    result = tuned_variants.result_of(variants[1].runs[2]) | {"forgetting": {"skipped": "no text"}}
    file.write_bytes(sealed(result, record=True))
    with pytest.raises(ConfigError, match="dense_2_3e-3: what it has forgotten was not measured: no text"):
        compare_tuned(variants, tmp_path / "t", tmp_path / "kept")
