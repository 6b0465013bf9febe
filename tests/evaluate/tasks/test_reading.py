"""Each task on a small file in its published format: what the model is asked, to the character, and its score, to the digit.

The model likes texts that contain certain words, and answers a question with a text that the question decides.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from helpers.benchmark_files import CHOICES, CMRC2019, FILES, RuledModel, as_json, json_lines, write_benchmarks
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pangu_sigma.evaluate.benchmarks import TASKS

LIKED = [
    *("?对，", "语义相同", "不是真实", "关于科技的", "关于打车的", "指的是“", "百尺竿头", "河边"),
    *("\n答:男的\n", "\n答:图书馆\n", "\n答:一百"),
]
ANSWERS = {
    "谁运营": "由盛大运营",
    "生命数耗完": "踢爆。",
    "新教強調什麼": "因信稱義",
    "誰強調": "信徒",
    "为什么烫": "因为水温高",
    "能直接喝": "不可以 直接喝",
    "白云山": "382米高",
    "史记": "司马迁",
    "“傻钱”": "策略，",
    "名字叫": "老虎",
    "森林里": "小鸟",
    "野牛": "“ 老虎 ”打架",
}
"""What the model answers if its prompt has these words; nothing otherwise."""


def score(context: str, continuation: str) -> tuple[float, bool]:
    if continuation in ("气愤", "驸马"):
        return (-1.0, True) if continuation == "气愤" else (-3.0, False)
    assert context == "", "candidates are texts of their own"
    return -float(len(continuation)) * (0.5 if any(each in continuation for each in LIKED) else 1.0), False


def answer(prompt: str) -> str:
    return next((text for words, text in ANSWERS.items() if words in prompt), "")


GOLDEN: dict[str, list[str]] = {
    "cmnli": ["他在喝茶?对，他没有喝酒", "他在喝茶?或许，他没有喝酒", "他在喝茶?错，他没有喝酒"],
    "ocnli": ["他在喝茶?对，他没有喝酒", "他在喝茶?或许，他没有喝酒", "他在喝茶?错，他没有喝酒"],
    "afqmc": [
        "下面两个句子语义不同：花呗提额在哪。哪里可以提花呗额度",
        "下面两个句子语义相同：花呗提额在哪。哪里可以提花呗额度",
    ],
    "csl": [
        "摘要：本文研究声呐成像，关键词：声呐,成像不是真实关键词",
        "摘要：本文研究声呐成像，关键词：声呐,成像是真实关键词",
    ],
    "cluewsc2020": [
        "放在床上的手机响了，它很吵。其中“它”指的是“床”。",
        "放在床上的手机响了，它很吵。其中“它”指的不是“床”。",
    ],
    "c3": [
        "问: 女的去哪儿?\n答:医院\n该答案来自对话: 男：你去哪儿?女：我去图书馆。",
        "问: 女的去哪儿?\n答:图书馆\n该答案来自对话: 男：你去哪儿?女：我去图书馆。",
    ],
    "chid": ["希望能百尺竿头再进一步。", "希望能随波逐流再进一步。", "希望能逆水行舟再进一步。"],
    "cmrc2019": [f"小猫想钓鱼，{each}。蝴蝶飞来了，。妈妈钓到一条大鱼，。" for each in CHOICES],
    "cmrc2018": ["阅读文章：生命数耗完即算为踢爆。\n问：生命数耗完即算为什么？\n答："],
    "drcd": ["阅读文章：新教強調因信稱義。\n问：新教強調什麼？\n答："],
    "dureader": ["阅读文章：水温过高。所以烫。\n问：为什么烫\n答："],
    "webqa": ["问：白云山多高？\n答："],
    "pd_cft": ["美国股市上涨。所谓的“傻钱”"],
    "cmrc2017": ["森林里有鸟。"],
    "wplc": ["他立即想到自己为什么如此气愤。然而贝思使他害怕，而且"],
}
"""What the model is asked for the first item."""

DECODING: dict[str, dict[str, Any]] = {
    "cmrc2018": {"top_p": 0.8, "temperature": 0.8},
    "drcd": {"top_p": 0.8, "temperature": 0.8},
    "dureader": {"top_p": 0.9, "temperature": 0.7},
    "webqa": {"top_k": 5, "temperature": 1.0},
    "pd_cft": {"top_k": 1, "temperature": 0.9},
    "cmrc2017": {"top_p": 0.9, "temperature": 1.0},
}
"""PanGu-α, Table 8; a temperature stands in each, because 0 is what the harness's clients take without one."""

# of two items: EM is 1 and 0; F1 is 1, and 2 of 5 and of 4 characters
_SQUAD = (1 + 2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4)) / 2
SCORES: dict[str, tuple[dict[str, float], int, int]] = {
    "cmnli": ({"acc": 2 / 4, "acc_norm": 2 / 4}, 4, 1),
    "ocnli": ({"acc": 1 / 4, "acc_norm": 1 / 4}, 4, 1),
    "afqmc": ({"acc": 2 / 3, "acc_norm": 2 / 3}, 3, 0),
    "csl": ({"acc": 1 / 2, "acc_norm": 1 / 2}, 2, 0),
    "cluewsc2020": ({"acc": 1 / 2, "acc_norm": 1 / 2}, 2, 0),
    "c3": ({"acc": 2 / 3, "acc_norm": 2 / 3}, 3, 0),
    "chid": ({"acc": 1 / 3, "acc_norm": 1 / 3}, 3, 0),
    "cmrc2019": ({"acc": 1 / 3, "acc_norm": 1 / 3}, 3, 0),
    "cmrc2018": ({"exact_match": 1 / 2, "f1": _SQUAD}, 2, 0),
    "drcd": ({"exact_match": 1 / 2, "f1": 1 / 2}, 2, 0),
    "dureader": (
        {
            "rouge_1": (10 / 15 + 8 / 15) / 2,
            "rouge_l": (0.7721518987341772 + 0.5147679324894514) / 2,
            "bleu_4": 0.40567319804592505,
        },
        2,
        1,
    ),  # BLEU-4 as DuReader's script printed it
    "webqa": ({"exact_match": 1 / 2, "f1": (2 * (2 / 3) * 1 / (2 / 3 + 1) + 1) / 2}, 2, 1),
    "pd_cft": ({"acc_pd": 1 / 2, "acc_cft": 0.0}, 3, 0),
    "cmrc2017": ({"acc": 1 / 2}, 2, 0),
    "wplc": ({"perplexity": math.exp(2.0), "acc": 1 / 2}, 2, 0),
}
"""Metrics by hand, number of items and of skipped entries."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(path)
    return path


def manager(folder: Path, **metadata: Any) -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(folder)} | metadata)


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Any]:
    """All seventeen tasks, evaluated by the harness; and the tasks themselves."""
    tasks = (known := manager(folder)).load(["pangu_alpha"])["tasks"]
    model = RuledModel(score, answer)
    results = simple_evaluate(model=model, tasks=[*tasks.values()], bootstrap_iters=0, task_manager=known)
    return {"tasks": tasks, **results}


def test_there_are_seventeen_and_a_file_of_ours_for_each(found):
    assert len(found["tasks"]) == 17
    others = {"humaneval", "mbpp", "translation_en_zh", "translation_zh_en"}
    assert found["tasks"].keys() == FILES.keys() == {file.stem for file in TASKS.glob("*.yaml")} - others
    assert found["tasks"].keys() == GOLDEN.keys() | {"tnews", "iflytek"} == SCORES.keys() | {"tnews", "iflytek"}


@pytest.mark.parametrize("task", GOLDEN)
def test_a_prompt_is_the_template_filled_to_the_character(found, task):
    first = found["samples"][task][0]["arguments"]
    texts = [arguments[1] if task in SCORES and "acc_norm" in SCORES[task][0] else arguments[0] for arguments in first]
    assert texts == GOLDEN[task]


@pytest.mark.parametrize("task", DECODING)
def test_decoding_is_as_published(found, task):
    (arguments,) = found["samples"][task][0]["arguments"]
    asked = dict(arguments[1])
    assert asked.pop("until") == ["\n"] and asked.pop("do_sample") is True
    room = asked.pop("max_gen_toks")
    assert asked == DECODING[task]
    told = load_yaml(TASKS / f"{task}.yaml")["dataset_kwargs"].get("answer", 50)
    assert room == told, "the text leaves room for the answer"


@pytest.mark.parametrize("task", SCORES)
def test_a_score_is_what_the_rule_gives_to_the_digit(found, task):
    metrics, items, skipped = SCORES[task]
    values = {
        key.removesuffix(",none"): value for key, value in found["results"][task].items() if isinstance(value, float)
    }
    assert values == pytest.approx(metrics, abs=1e-12)
    assert len(found["samples"][task]) == items
    assert len(found["tasks"][task].dataset["skipped"]) == skipped


@pytest.mark.parametrize(("task", "liked", "template"), [("tnews", "科技", "文章"), ("iflytek", "打车", "应用程序")])
def test_four_labels_are_drawn_by_the_text(found, folder, task, liked, template):
    """The true one, and those whose SHA-256 with the text is smallest, in the order of all."""
    words = load_yaml(TASKS / f"{task}.yaml")["dataset_kwargs"]["labels"]
    if task == "iflytek":
        rows = map(json.loads, FILES[task]["labels.json"].splitlines())
        words = {row["label"]: row["label_des"] for row in rows}
    assert len(words) == {"tnews": 15, "iflytek": 6}[task]
    right = []
    lines = [json.loads(line) for line in FILES[task]["dev.json"].splitlines()]
    for line, sample in zip(lines, found["samples"][task], strict=True):
        by_hash = sorted(words, key=lambda label: hashlib.sha256(f"{line['sentence']}\n{label}".encode()).digest())
        others = [label for label in by_hash if label != line["label"]][:3]
        offered = sorted([line["label"], *others], key=list(words).index)
        texts = [f"这是关于{words[label]}的{template}：{line['sentence']}" for label in offered]
        assert [arguments[1] for arguments in sample["arguments"]] == texts
        assert sample["target"] == offered.index(line["label"])
        best = max(range(4), key=lambda n: -len(texts[n]) * (0.5 if words[offered[n]] == liked else 1.0))
        right.append(offered[best] == line["label"])
    assert found["results"][task]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_the_log_says_once_what_is_skipped_and_where(folder, caplog):
    with caplog.at_level(logging.WARNING, "pangu_sigma.evaluate.tasks"):
        manager(folder).load(["ocnli"])
    told = (
        "ocnli: 1 lines or entries without a label or an answer are skipped, the first is dev.json:5; 4 items are left"
    )
    assert caplog.messages.count(told) == 1


@pytest.mark.parametrize(
    ("task", "seq_length", "expected"),
    [
        # an <eot> and a token after it, what else there is, the longest of candidates, and the rest
        ("cmrc2018", 2 + 32 + 11 + 11 + 5, "阅读文章：生命数耗完\n问：生命数耗完即算为什么？\n答："),
        ("csl", 2 + 20 + 4, "摘要：本文研究，关键词：声呐,成像不是真实关键词"),
        (
            "c3",
            2 + len("问: 女的去哪儿?\n答:图书馆\n该答案来自对话: ") + 4,
            "问: 女的去哪儿?\n答:医院\n该答案来自对话: 男：你去",
        ),
        ("pd_cft", 2 + 8 + 6, "谓的“傻钱”"),
        ("wplc", 2 + 2 + 3, "，而且"),
        ("cmrc2019", 2 + 8 + 10, "小猫想钓鱼，小猫去追蝴蝶。蝴蝶飞"),
        ("chid", 2 + 4 + 5, "希望能百尺竿头再进"),
        ("wplc", 1, "且"),
    ],
)
def test_a_text_that_is_too_long_is_cut_and_its_item_says_so(folder, task, seq_length, expected, caplog):
    with caplog.at_level(logging.WARNING, "pangu_sigma.evaluate.tasks"):
        loaded = manager(folder, seq_length=seq_length).load([task])["tasks"][task]
    doc = loaded.eval_docs[0]
    first = loaded.construct_requests(doc, loaded.fewshot_context(doc, 0), metadata=(task, 0, 1))
    argument = first[0].args[1] if isinstance(first, list) else first.args[0]
    assert (argument, doc["cut"]) == (expected, True)
    assert any("were cut to seq_length" in message for message in caplog.messages)
    assert not manager(folder).load([task])["tasks"][task].eval_docs[0]["cut"]


def test_examples_are_other_items_with_their_answers(folder):
    task = manager(folder).load(["afqmc"])["tasks"]["afqmc"]
    task.set_fewshot_seed(1)
    doc = task.eval_docs[0]
    texts = [other["texts"][other["gold"]] + "\n" for other in task.eval_docs if other != doc]
    assert task.fewshot_context(doc, 2) in (texts[0] + texts[1], texts[1] + texts[0])
    task = manager(folder).load(["cmrc2018"])["tasks"]["cmrc2018"]
    task.set_fewshot_seed(1)
    assert task.fewshot_context(task.eval_docs[0], 1).startswith(
        "阅读文章：生命数耗完即算为踢爆。\n问：谁运营？\n答：盛大游戏\n阅读文章："
    )


GOOD = {"sentence1": "一", "sentence2": "二", "label": "neutral"}
QA = {"question": "问？", "answers": ["答"], "documents": [{"is_selected": True, "paragraphs": ["文"]}]}
CHID = {"content": ["成#idiom000378#语"], "candidates": ["百尺竿头", "随波逐流"]}
C3 = [["文"], [{"question": "问", "choice": ["甲", "乙"], "answer": "甲"}], "id"]
PD = "1 ||| 一 句 。\n2 ||| 一 XXXXX 。 ||| 句\n"
SQUAD = json.loads(FILES["cmrc2018"]["cmrc2018_dev.json"])["data"][0]
C19 = {"context": CMRC2019, "choices": CHOICES, "answers": [1, 0, 2]}
WSC = {"text": "甲", "label": "true", "target": {"span1_text": "甲", "span2_text": "它"}}
WPLC = {"masked_text": "甲<mask>", "correct_word": "乙"}
WEB = {"question": "问？", "evidences": {"a": {"answer": ["答"]}}}
NO_ANSWER = {"question": "问？", "evidences": {"a": {"answer": ["no_answer"]}}}
MBPP = [
    {"task_id": number, "text": "t", "code": "c", "test_setup_code": "", "test_list": ["assert 1"]}
    for number in (2, 11)
]

SKIPPED: list[tuple[str, str, str, str]] = [
    ("ocnli", "dev.json", json_lines(GOOD, GOOD | {"label": "-"}), "dev.json:2"),
    ("dureader", "zhidao.dev.json", json_lines(QA, QA | {"answers": []}), "zhidao.dev.json:2"),
    ("dureader", "zhidao.dev.json", json_lines(QA, QA | {"documents": [{"paragraphs": ["文"]}]}), "zhidao.dev.json:2"),
    ("webqa", "me_test.ann.json", as_json({"q1": WEB, "q2": NO_ANSWER}), "me_test.ann.json, q2"),
    ("pd_cft", "pd.test", PD + "1 ||| XXXXX 一 句 。 ||| 第\n", "pd.test:3"),
]
"""Task, file, contents with an item and an entry that has none by design, and the location of that entry."""

BAD: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("ocnli", "dev.json"): [
        (json_lines(GOOD) + "{'sentence1': 1}\n", ":2: Expecting property name"),
        (json_lines(GOOD, ["一"]), ":2: 'list' object is not a mapping"),
        (json_lines(GOOD, GOOD | {"label": "neither"}), ":2: label: one of entailment, .*found 'neither'"),
        (json_lines(GOOD, GOOD | {"label": 1}), ":2: label: text expected, found 1"),
        (json_lines(GOOD) + "\n" + json_lines({"sentence1": "一", "label": "neutral"}), ":3: 'sentence2' expected"),
        ("", "ocnli has no item; expected is the format of"),
    ],
    ("iflytek", "labels.json"): [(json_lines({"label": "5"}), ":1: 'label_des' expected")],
    ("csl", "dev.json"): [
        (json_lines({"abst": "甲", "keyword": [], "label": "1"}), ":1: keyword: a list of texts that is not empty"),
    ],
    ("cluewsc2020", "dev.json"): [
        (json_lines(WSC, WSC | {"target": "它"}), ":2: string indices must be integers"),
    ],
    ("c3", "c3-d-dev.json"): [
        (as_json([C3, [["文"]]]), ", entry 2: list index out of range"),
        (as_json([C3, [["文"], [{"question": "问", "choice": ["甲"], "answer": "乙"}], "i"]]), "answer: one of"),
    ],
    ("chid", "dev.json"): [
        (json_lines(CHID, CHID | {"content": ["#idiom000001#"]}), ":2: #idiom000001# in dev_answer.*a number below 2"),
        (json_lines(CHID, CHID | {"content": ["没有"]}), ":2: content: a passage with a blank"),
    ],
    ("cmrc2019", "cmrc2019_dev.json"): [
        (as_json({"data": [C19, C19 | {"answers": [9]}]}), ", entry 2: answers: a number below 4 expected, found 9"),
        (
            as_json({"data": [C19, C19 | {"answers": [True]}]}),
            ", entry 2: answers: a number below 4 expected, found True",
        ),
        (as_json({"data": [C19, C19 | {"answers": [0] * 4}]}), r"\[BLANK4\] expected"),
    ],
    ("cmrc2018", "cmrc2018_dev.json"): [
        ('{"data": [', ": Expecting value: line 1 column"),
        (as_json({"data": [SQUAD, {"paragraphs": [{"context": "文"}]}]}), ", entry 2: 'qas' expected"),
    ],
    ("drcd", "DRCD_dev.json"): [
        (
            as_json({"data": [SQUAD, {"paragraphs": [{"context": "文", "qas": [{"question": "问", "answers": []}]}]}]}),
            ", entry 2: answers: one text or more expected",
        ),
    ],
    ("dureader", "zhidao.dev.json"): [
        (json_lines(QA, QA | {"answers": [1]}), r":2: answers: a list of texts .*found \[1\]"),
    ],
    ("webqa", "me_test.ann.json"): [
        ("[1]", ": cannot convert dictionary"),
        (as_json({"q1": WEB, "q2": WEB | {"evidences": []}}), ", q2: 'list' object has no attribute"),
    ],
    ("pd_cft", "pd.test"): [
        (PD + "1 ||| 一 句 。 ||| 二\n", ":3: XXXXX once in the question expected, found 0"),
        (PD + "没有 编号\n2 ||| 一 XXXXX ||| 句\n", r":4: lines of a number \|\|\| a sentence"),
        (PD + "1 ||| 到此 为止\n", ":3: lines of a number"),
    ],
    ("cmrc2017", "cloze.test.answer"): [("<qid_0> 啄木鸟\n", r":1: <qid_N> \|\|\| answer expected")],
    ("cmrc2017", "cloze.test.doc_query"): [
        (
            FILES["cmrc2017"]["cloze.test.doc_query"] + "1 ||| 没有 答案 。\n<qid_2> ||| 没有 XXXXX 。\n",
            ":8: an answer of <qid_2> expected",
        ),
    ],
    ("wplc", "dev.json"): [
        (json_lines(WPLC, WPLC | {"masked_text": "<mask>甲<mask>"}), ":2: masked_text: a text and one <mask>"),
    ],
    ("humaneval", "HumanEval.jsonl"): [
        (json_lines({"task_id": "HumanEval/0", "prompt": None}), ":1: prompt: text expected")
    ],
    ("mbpp", "mbpp.jsonl"): [
        (json_lines(*MBPP, MBPP[1] | {"test_list": []}), ":3: test_list: a list of texts that is not empty"),
        (json_lines(MBPP[0]), "mbpp has no item"),
        (json_lines(MBPP[1]), "mbpp has no item"),
    ],
    ("translation_en_zh", "test.jsonl"): [
        (json_lines({"source": " ", "reference": "甲"}), ":1: source: text expected, found ' '"),
    ],
}
"""By task and file: contents, and what the error says after the name of the file."""

MISSING = [("ocnli", "dev.json"), ("chid", "dev_answer.json"), ("c3", "c3-m-dev.json")]


def changed(tmp_path: Path, task: str, file: str, content: str) -> Path:
    write_benchmarks(tmp_path)
    (tmp_path / task).mkdir(exist_ok=True)
    (tmp_path / task / file).write_text(content, encoding="utf-8")
    return tmp_path


def read(task: str, folder: Path) -> Any:
    config = load_yaml(TASKS / f"{task}.yaml")
    return config["custom_dataset"](data=str(folder), version=1, **config["dataset_kwargs"])


@pytest.mark.parametrize(("task", "file", "content", "where"), SKIPPED)
def test_what_has_no_label_by_design_is_skipped_and_counted(tmp_path, task, file, content, where):
    found = read(task, changed(tmp_path, task, file, content))
    assert [each for each in found["skipped"]["where"] if each.startswith(file)] == [where]
    assert len(found["items"]) > 0


@pytest.mark.parametrize(
    ("task", "file", "content", "message"), [(*of, *case) for of, cases in BAD.items() for case in cases]
)
def test_a_bad_line_is_an_error_with_its_place_and_what_was_expected(tmp_path, task, file, content, message):
    place = "" if "has no item" in message else f"{re.escape(file)}.*"
    with pytest.raises(ValueError, match=f"{place}{message}.*https://"):
        read(task, changed(tmp_path, task, file, content))


@pytest.mark.parametrize(("task", "file"), MISSING)
def test_a_file_that_is_not_there_is_named_with_its_publisher(tmp_path, task, file):
    write_benchmarks(tmp_path)
    (tmp_path / task / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(file)} is not there; {task} is published at https://"):
        read(task, tmp_path)


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    write_benchmarks(tmp_path)
    for task, file, content, line in (("ocnli", "dev.json", json_lines(GOOD), 3), ("pd_cft", "pd.test", PD, 5)):
        (tmp_path / task / file).write_bytes(content.encode() * 2 + content.encode("gb18030"))
        with pytest.raises(ValueError, match=f"{re.escape(file)}:{line}: 'utf-8' codec can't decode"):
            read(task, tmp_path)


def test_a_packed_file_is_the_same_and_a_damaged_one_is_refused(tmp_path):
    write_benchmarks(tmp_path)
    plain, packed = (tmp_path / "ocnli" / name for name in ("dev.json", "dev.json.gz"))
    expected = read("ocnli", tmp_path)["items"].to_list()
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    plain.unlink()
    assert read("ocnli", tmp_path)["items"].to_list() == expected
    whole = packed.read_bytes()
    for damaged in (whole[:-12], b"{}", whole[:20] + b"0000" + whole[24:]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dev\.json\.gz: .*; get the file again from https://"):
            read("ocnli", tmp_path)


@pytest.mark.parametrize("direction", ["en_zh", "zh_en"])
def test_translations_get_the_numbers_of_sacrebleu(tmp_path, direction):
    english = ["The weather is fine today.", "He goes to school by bus, and she walks.", "I do not know."]
    chinese = ["今天天气很好。", "他坐公共汽车上学，她走路。", "我不知道。"]
    if direction == "en_zh":
        sources, references, prompt, cut = english, chinese, "English: {}\nChinese:", "zh"
        told = ["今天的天气很好。", "他坐汽车去学校，她步行。", ""]
    else:
        sources, references, prompt, cut = chinese, english, "中文：{}\n英文：", "13a"
        told = ["The weather is good today.", "He goes to school by bus and she walks.", "I do not know."]
    name, pairs = f"translation_{direction}", zip(sources, references, strict=True)
    rows = [{"source": source, "reference": reference} for source, reference in pairs]
    known = manager(changed(tmp_path, name, "test.jsonl", json_lines(*rows)))
    answers = {prompt.format(source): f" {text}" for source, text in zip(sources, told, strict=True)}
    model = RuledModel(score, answers.__getitem__)
    tasks = [*known.load([name])["tasks"].values()]
    found = simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, task_manager=known)["results"][name]
    assert found["bleu,none"] == sacrebleu.corpus_bleu(told, [references], tokenize=cut).score
    assert found["chrf,none"] == sacrebleu.corpus_chrf(told, [references]).score
    assert 0 < found["bleu,none"] < 100
    assert model.asked[0][1] == {"until": ["\n"], "do_sample": False, "max_gen_toks": 256}


def test_without_a_folder_the_error_says_how_it_is_given():
    with pytest.raises(ValueError, match=r"--metadata .*expects FOLDER/wplc/dev\.json, published at https://openi"):
        config = load_yaml(TASKS / "wplc.yaml")
        config["custom_dataset"](**config["dataset_kwargs"])
    with pytest.raises(ValueError, match="seq_length='long' among the metadata is not allowed"):
        config["custom_dataset"](data="x", seq_length="long", **config["dataset_kwargs"])


def test_the_tasks_need_nothing_of_this_project(tmp_path):
    """In a process that could not import it."""
    problem = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), "x")
    folder = changed(tmp_path, "humaneval", "HumanEval.jsonl", json_lines(problem))
    code = f"""
import sys
sys.modules["pangu_sigma"] = None
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path={str(TASKS)!r}, include_defaults=False, metadata={{"data": {str(folder)!r}}})
print(len(manager.load(["pangu_alpha", "humaneval"])["tasks"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "18"
