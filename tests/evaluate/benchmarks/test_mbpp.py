"""MBPP in its published format: the prompt that others ask, and what the model says run with the three tests.

The format is that of https://github.com/google-research/google-research/tree/master/mbpp (README, and mbpp.jsonl).
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
import yaml
from helpers.told_decoder import told_engine

from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.mbpp import PROGRAM_ENDS, run

pytestmark = pytest.mark.usefixtures("programs_can_run")


def problem(number: int, **change: object) -> dict:
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def add_{number}(x):\r\n  return x + {number}",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert add_{number}({x}) == {x + number}" for x in (1, 2, 3)],
        "challenge_test_list": [],
    } | change


EXAMPLES = [problem(number) for number in (2, 3, 4)]


def harness_prompt(asked: dict, examples: list[dict]) -> str:
    """The prompt that lm-evaluation-harness makes of its own task file."""
    import lm_eval.tasks

    task = yaml.load((Path(lm_eval.tasks.__file__).parent / "mbpp/mbpp.yaml").read_text(), yaml.BaseLoader)
    assert tuple(task["generation_kwargs"]["until"]) == PROGRAM_ENDS
    to_text, to_target = (
        jinja2.Template(task[key], keep_trailing_newline=True) for key in ("doc_to_text", "doc_to_target")
    )
    shown = [to_text.render(each) + to_target.render(each, is_fewshot=True) + "\n\n" for each in examples]
    return "".join(shown) + to_text.render(asked)


def written(folder: Path, *problems: dict) -> Path:
    (folder / "mbpp.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems))
    return folder


def test_the_test_split_is_asked_as_others_ask_it(tmp_path, caplog):
    setup = problem(
        510, test_setup_code="start = add_510(0)", test_list=[f"assert start == {x}" for x in (510, 510.0, "510 + 0")]
    )
    asked = [problem(11), problem(12), setup]
    others = [problem(1), problem(10), problem(511), problem(974)]
    prompts = [harness_prompt(each, EXAMPLES) for each in asked]
    answers = [asked[0]["code"] + "\n[DONE]\nmore", "def add_12(x):\n  return x", setup["code"]]
    engine = told_engine(dict(zip(prompts, answers, strict=True)))
    result = run(engine, "up", written(tmp_path, *others, *EXAMPLES, *asked))
    assert engine.decoder.prompts == set(prompts)
    assert result.figures() == {"pass@1": pytest.approx(2 / 3), "n": 3, "skipped": 0, "truncated": 0}
    assert run(engine, "up", tmp_path, limit=1).metrics == {"pass@1": 1.0}
    assert "3 problems are used, and the published test split of MBPP has 500" in caplog.text


def test_examples_that_do_not_fit_are_left_out_and_counted(tmp_path):
    asked = problem(11)
    prompt = harness_prompt(asked, EXAMPLES[:1])
    engine = told_engine({prompt: asked["code"]}, seq_length=len(prompt) + 60)
    result = run(engine, "up", written(tmp_path, *EXAMPLES, asked), max_new_tokens=60)
    assert result.figures() == {"pass@1": 1.0, "n": 1, "skipped": 0, "truncated": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task_id": "12"}, "task_id: a whole number expected, found '12'"),
        ({"test_list": []}, "test_list: one test or more expected, found none"),
        ({"test_list": [1]}, "test_list: a list of texts expected, found [1]"),
        ({"code": None}, "code: a text expected, found None"),
        ({"task_id": 11}, "task_id: another one in each line expected, found 11 again"),
    ],
)
def test_a_line_that_is_no_problem_is_skipped_and_counted(tmp_path, caplog, change, expected):
    result = run(told_engine({}), "up", written(tmp_path, *EXAMPLES, problem(11), problem(12) | change))
    assert result.figures() == {"pass@1": 0.0, "n": 1, "skipped": 1, "truncated": 0}
    assert f"mbpp.jsonl:5: {expected}" in caplog.text


def test_a_file_without_what_is_asked_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"mbpp.jsonl is not there; get it from https://github.com/google-research"):
        run(told_engine({}), "up", tmp_path)
    with pytest.raises(DataError, match="has no problem of task_id 3, an example of the prompt"):
        run(told_engine({}), "up", written(tmp_path, EXAMPLES[0], EXAMPLES[2], problem(11)))
    with pytest.raises(DataError, match="has no problem of task_id 11 to 510"):
        run(told_engine({}), "up", written(tmp_path, *EXAMPLES, problem(511)))
