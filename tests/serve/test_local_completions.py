"""lm-evaluation-harness over HTTP, unchanged: its `local-completions` with the remote tokenizer gives the numbers of the class in
process."""

from __future__ import annotations

import pytest
from helpers.benchmark_files import json_lines
from helpers.served import server_of
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from pangu_sigma.evaluate.benchmarks import TASKS, BenchmarkRequest, run_benchmarks
from pangu_sigma.evaluate.harness import HarnessModel
from pangu_sigma.generate.text import open_engine

PAIRS = {
    "en": [
        *[("the cat", " sees a dog"), ("the cat", " xyz"), ("", "a red house")],
        *[("the dog hears a ", "bird"), ("a " * 30, "cat")],
    ],
    "zh": [("今天 天气", "不错"), ("我们", "去公园看花"), ("", "你好")],
    "code": [("for x in", " range"), ("x = ", "True")],
}
TEXTS = {"zh": ["今天天气不错"], "code": ["return x"]}
TEXTS["en"] = ["the cat sees a dog", "a small old red green house " * 12]


@pytest.fixture(scope="module")
def url(tiny_run):
    with server_of(open_engine(tiny_run).decoder) as url:
        yield url


def instances(kind: str, arguments: list) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.mark.parametrize("domain", PAIRS)
@pytest.mark.parametrize("at_once", [1, 4])
def test_numbers_are_those_of_the_class_in_process(tiny_run, url, domain, at_once):
    here = HarnessModel(str(tiny_run), domain)
    there = LocalCompletionsAPI(
        base_url=f"{url}/sigma-{domain}/v1/completions", model=f"sigma-{domain}", max_length=32, batch_size=at_once
    )
    assert there.tokenizer_backend == "remote", "it finds out by itself"
    pairs = instances("loglikelihood", PAIRS[domain])
    expected, found = here.loglikelihood(pairs, disable_tqdm=True), there.loglikelihood(pairs, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    texts = instances("loglikelihood_rolling", [(text,) for text in TEXTS[domain]])
    assert there.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(
        here.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-4
    )
    options = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    asked = instances("generate_until", [(text, options) for text in ("the", "x")])
    assert there.generate_until(asked, disable_tqdm=True) == here.generate_until(asked, disable_tqdm=True)


def test_our_tasks_have_the_numbers_of_evaluate(tiny_run, url, tmp_path):
    """`lm_eval --model local-completions --include_path …`: candidates by log-probability, and answers that are drawn."""
    pairs = [("今天天气", "不错", "neutral"), ("我们去", "公园", "entailment"), ("他说", "你好", "contradiction")]
    rows = [{"sentence1": one, "sentence2": two, "label": label} for one, two, label in pairs]
    files = {
        "ocnli/dev.json": json_lines(*rows),
        "cmrc2017/cloze.test.doc_query": "1 ||| 今天 天气 不错 。\n<qid_0> ||| 我们 去 XXXXX 。\n"
        "1 ||| 他 说 你好 。\n<qid_1> ||| 中国 XXXXX 。\n",
        "cmrc2017/cloze.test.answer": "<qid_0> ||| 公园\n<qid_1> ||| 人民\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    asked = BenchmarkRequest(("ocnli", "cmrc2017"), str(tmp_path), "zh")
    expected = run_benchmarks(tiny_run, asked)
    metadata = {"data": str(tmp_path), "seq_length": 32}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    found = simple_evaluate(
        model="local-completions",
        model_args={"base_url": f"{url}/sigma-zh/v1/completions", "model": "sigma-zh", "max_length": 32},
        tasks=["ocnli", "cmrc2017"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    for task, result in expected.items():
        values = found["results"][task]
        counts = {"n": len(found["samples"][task])} | {key: result[key] for key in ("skipped", "truncated")}
        assert {key: values[f"{key},none"] for key in result.keys() - counts} | counts == result
    told = [sample["arguments"][0] for sample in found["samples"]["cmrc2017"]]
    here = HarnessModel(str(tiny_run), "zh").generate_until(instances("generate_until", told), disable_tqdm=True)
    assert here == [sample["resps"][0][0] for sample in found["samples"]["cmrc2017"]] and len(set(here)) == 2
