"""lm-evaluation-harness over HTTP, unchanged: its `local-completions` with the remote tokenizer gives the numbers of the class in
process."""

from __future__ import annotations

import pytest
from helpers.served import server_of
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

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


@pytest.mark.parametrize(("domain", "at_once"), [("en", 1), ("zh", 4), ("code", 4)])
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
