"""Programs are refused before a model is asked, where they cannot be run; which prompt is asked depends on the room."""

from __future__ import annotations

import pytest
from helpers.told_decoder import told_engine

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.benchmarks.pass_at_k import CodeOptions, CodeProblem, pass_at_k
from pangu_sigma.evaluate.sandbox import sandbox

PROBLEM = CodeProblem(1, ["an example. add:", "add:"], "x = ", "\nassert x == 2")


def test_the_first_prompt_that_fits_is_asked_and_fewer_examples_are_counted(caplog):
    try:
        whole = pass_at_k(told_engine({"an example. add:": "1 + 1"}), "up", [PROBLEM], (), CodeOptions(), 3)
    except ConfigError as error:
        pytest.skip(str(error))
    assert whole.figures() == {"pass@1": 1.0, "n": 1, "skipped": 3, "truncated": 0}
    short = pass_at_k(told_engine({"add:": "1 + 2"}, seq_length=20), "up", [PROBLEM], (), CodeOptions(), 0)
    assert short.figures() == {"pass@1": 0.0, "n": 1, "skipped": 0, "truncated": 1}
    assert "1 of 1 prompts have fewer examples than is usual, to fit" in caplog.messages


def test_no_model_is_asked_where_programs_cannot_run(monkeypatch):
    monkeypatch.setattr(sandbox.Sandbox, "_jailed", lambda self, program, unsafe: {"missing": "all of it"})
    engine = told_engine({})
    with pytest.raises(ConfigError, match="programs cannot be isolated here: all of it"):
        pass_at_k(engine, "up", [PROBLEM], (), CodeOptions(), 0)
    assert engine.decoder.prompts == set()


def test_k_is_what_samples_allow():
    assert CodeOptions().ks == [1]
    assert CodeOptions(samples=20, temperature=0.8).ks == [1, 10]
