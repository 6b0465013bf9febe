"""Small files of Chinese benchmarks in their published formats, made by us, and a model for lm-eval that answers by rule.

Each format is cited where its file is written. The last entry of some files has no label or no answer, as in the published ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM


def write_benchmarks(folder: Path) -> None:
    """All files, at `folder`/<task>/<published name>."""
    for task, files in FILES.items():
        for name, content in files.items():
            path = folder / task / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def json_lines(*rows: Any) -> str:
    """A file of one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(tree: Any) -> str:
    """A file that is JSON as a whole."""
    return json.dumps(tree, ensure_ascii=False, indent=1)


def _nli(*labels: str) -> str:
    """https://github.com/CLUEbenchmark/OCNLI, data/ocnli/dev.json; CMNLI, in CLUEbenchmark/CLUE, has fewer keys."""
    pairs = ["他在喝茶 他没有喝酒", "今天下雨 明天下雨", "门开着 门关着", "她会唱歌 她会跳舞", "山很高 山不低"]
    rows = []
    for number, (pair, label) in enumerate(zip(pairs, labels, strict=True)):
        one, two = pair.split()
        rows.append({"level": "easy", "sentence1": one, "sentence2": two, "label": label, "genre": "lit", "id": number})
    return json_lines(*rows)


def _pronoun(text: str, label: str, **words: str) -> dict[str, Any]:
    """https://github.com/CLUEbenchmark/CLUEWSC2020, README."""
    return {"target": {"span2_index": 9, "span1_index": 2, **words}, "idx": 0, "label": label, "text": text}


def _c3(passage: list[str], *questions: tuple[str, list[str], str]) -> list[Any]:
    """https://github.com/nlpdata/c3, README and data."""
    return [passage, [dict(zip(("question", "choice", "answer"), each, strict=True)) for each in questions], "1-1"]


def _squad(*articles: dict[str, Any]) -> str:
    """https://github.com/ymcui/cmrc2018, squad-style-data; https://github.com/DRCKnowledgeTeam/DRCD has the same keys."""
    return as_json({"version": "v1.0", "data": list(articles)})


def _article(context: str, *questions: tuple[str, list[str]]) -> dict[str, Any]:
    qas = []
    for number, (question, answers) in enumerate(questions):
        found = [{"text": each, "answer_start": 0} for each in answers]
        qas.append({"question": question, "id": f"DEV_0_QUERY_{number}", "answers": found})
    return {"paragraphs": [{"id": "DEV_0", "context": context, "qas": qas}], "id": "DEV_0", "title": "题目"}


def _document(selected: bool, *paragraphs: str) -> dict[str, Any]:
    """https://github.com/baidu/DuReader, DuReader-2.0/data/demo/devset."""
    return {"is_selected": selected, "title": "题目", "paragraphs": list(paragraphs), "most_related_para": 0}


def _searched(question: str, documents: list[dict[str, Any]], *answers: str) -> dict[str, Any]:
    more = {"question_type": "DESCRIPTION", "fact_or_opinion": "FACT", "question_id": 1}
    return {"documents": documents, "question": question, "answers": list(answers)} | more


def _asked(question: str, **answers: str) -> dict[str, Any]:
    """https://kexue.fm/archives/4338; keys as https://github.com/mindspore-lab/pangu_alpha, src/webqa, reads them."""
    evidences = {name: {"answer": [answer], "evidence": "白云山在广州。"} for name, answer in answers.items()}
    return {"question": question, "evidences": evidences}


def _passage(question: str, *sentences: str) -> str:
    """https://github.com/ymcui/Chinese-Cloze-RC, its README; words of a sentence are cut apart by blanks."""
    return "".join(f"{number} ||| {text}\n" for number, text in enumerate([*sentences, question], 1))


CMRC2019 = "小猫想钓鱼，[BLANK1]。蝴蝶飞来了，[BLANK2]。妈妈钓到一条大鱼，[BLANK3]。"
IFLYTEK = ["打车", "地图导航", "免费WIFI", "租车", "同城服务", "快递物流"]
CHOICES = ["小猫去追蝴蝶", "小猫跟妈妈去河边", "小猫很惭愧", "小猫睡着了"]
_PHONE, _FOOL = "放在床上的手机响了，它很吵。", "所谓 的 “ 傻钱 ” XXXXX ， 其实 简单 。"
_STORY = {"context": CMRC2019, "choices": CHOICES, "context_id": "DEV_0"}
_MASKED = "他立即想到自己为什么如此气愤。然而贝思使他害怕，而且<mask><mask>。"

FILES: dict[str, dict[str, str]] = {
    "cmnli": {"dev.json": _nli("entailment", "neutral", "contradiction", "entailment", "-")},
    "ocnli": {"dev.json": _nli("neutral", "neutral", "entailment", "contradiction", "-")},
    # https://github.com/CLUEbenchmark/CLUE, README, 1. AFQMC
    "afqmc": {
        "dev.json": json_lines(
            {"sentence1": "花呗提额在哪", "sentence2": "哪里可以提花呗额度", "label": "1"},
            {"sentence1": "借呗怎么还", "sentence2": "花呗怎么开通", "label": "0"},
            {"sentence1": "借呗怎么关", "sentence2": "怎么关借呗", "label": "1"},
        )
    },
    # https://github.com/CLUEbenchmark/CLUE, README, 6. CSL
    "csl": {
        "dev.json": json_lines(
            {"id": 1, "abst": "本文研究声呐成像", "keyword": ["声呐", "成像"], "label": "1"},
            {"id": 2, "abst": "本文研究稀土", "keyword": ["水稻"], "label": "0"},
        )
    },
    # https://github.com/CLUEbenchmark/CLUE, README, 2. TNEWS; the downloaded file calls the name label_desc, and has keywords
    "tnews": {
        "dev.json": json_lines(
            {"label": "109", "label_desc": "news_tech", "sentence": "新手机发布", "keywords": ""},
            {"label": "103", "label_desc": "news_sports", "sentence": "球队赢了", "keywords": "球队"},
            {"label": "102", "label_desc": "news_entertainment", "sentence": "演员自拍", "keywords": ""},
        )
    },
    # https://github.com/CLUEbenchmark/CLUE, README, 3. IFLYTEK
    "iflytek": {
        "labels.json": json_lines(*({"label": str(n), "label_des": word} for n, word in enumerate(IFLYTEK))),
        "dev.json": json_lines(
            {"label": "5", "label_des": "快递物流", "sentence": "在手机上寄快递"},
            {"label": "0", "label_des": "打车", "sentence": "附近的车马上就到"},
        ),
    },
    "cluewsc2020": {
        "dev.json": json_lines(
            _pronoun(_PHONE, "false", span1_text="床", span2_text="它"),
            _pronoun(_PHONE, "true", span1_text="手机", span2_text="它"),
        )
    },
    "c3": {
        "c3-d-dev.json": as_json(
            [
                _c3(
                    ["男：你去哪儿?", "女：我去图书馆。"],
                    ("女的去哪儿?", ["医院", "图书馆"], "图书馆"),
                    ("谁在问?", ["男的", "女的", "孩子"], "男的"),
                )
            ]
        ),
        "c3-m-dev.json": as_json(
            [
                _c3(["水在零度结冰。"], ("水何时结冰?", ["零度时", "一百度时"], "零度时")),
            ]
        ),
    },
    # https://github.com/CLUEbenchmark/CLUE, README, 9. ChID
    "chid": {
        "dev.json": json_lines(
            {
                "content": ["希望能#idiom000378#再进一步。", "去#idiom000379#？还是迎难而上？#idiom000380#更累。"],
                "candidates": ["百尺竿头", "随波逐流", "逆水行舟"],
            },
        ),
        "dev_answer.json": as_json({"#idiom000378#": 0, "#idiom000379#": 1, "#idiom000380#": 2}),
    },
    # https://github.com/ymcui/cmrc2019, data/cmrc2019_dev.json
    "cmrc2019": {"cmrc2019_dev.json": as_json({"data": [_STORY | {"answers": [1, 0, 2]}]})},
    "cmrc2018": {
        "cmrc2018_dev.json": _squad(
            _article(
                "生命数耗完即算为踢爆。", ("生命数耗完即算为什么？", ["踢爆", "算为踢爆"]), ("谁运营？", ["盛大游戏"])
            ),
        )
    },
    "drcd": {
        "DRCD_dev.json": _squad(
            _article("新教強調因信稱義。", ("新教強調什麼？", ["因信稱義"]), ("誰強調？", ["新教"]))
        )
    },
    "dureader": {
        "zhidao.dev.json": json_lines(
            _searched(
                "为什么烫",
                [_document(False, "无关。"), _document(True, "水温过高。", "所以烫。")],
                *("温度高", "是因为水温过高造成的"),
            ),
            _searched("能直接喝吗", [_document(True, "要烧开。")], "不能直接喝，要烧开"),
            _searched("没有文章", [], "无"),
        )
    },
    "webqa": {
        "me_test.ann.json": as_json(
            {
                "Q_ANN_TST_000000": _asked("白云山多高？", a="382米", b="no_answer"),
                "Q_ANN_TST_000001": _asked("谁写了史记？", a="司马迁"),
                "Q_ANN_TST_000002": _asked("没有？", a="no_answer"),
            }
        )
    },
    "pd_cft": {
        "pd.test": _passage(f"{_FOOL} ||| 策略", "美国 股市 上涨 。", _FOOL)
        + _passage("股市 XXXXX 了 。 ||| 上涨", "今天 开市 。"),
        "cft.test.auto": _passage("他 的 名字 叫 XXXXX 。 ||| 狮子", "草丛 里 有 虫儿 。", "他 的 名字 叫 XXXXX 。"),
    },
    # https://github.com/ymcui/cmrc2017, validation
    "cmrc2017": {
        "cloze.test.doc_query": "1 ||| 森林 里 有 鸟 。\n2 ||| XXXXX 在 树 上 啄啄 。\n<qid_0> ||| XXXXX 在 树 上 啄啄 。\n"
        "1 ||| 野牛 和 一 只 XXXXX 打架 。\n2 ||| 野牛 赢 了 。\n<qid_1> ||| 野牛 和 一 只 XXXXX 打架 。\n",
        "cloze.test.answer": "<qid_0> ||| 啄木鸟\n<qid_1> ||| 老虎\n",
    },
    # https://openi.pcl.ac.cn/PCL-Platform.Intelligence/Chinese_WPLC, whose README has the example of the first line
    "wplc": {
        "dev.json": json_lines(
            {"masked_text": _MASKED, "correct_word": "气愤"},
            {"masked_text": "公主废了这个<mask>。", "correct_word": "驸马"},
        )
    },
}
"""Contents of the files by name, by task."""


class RuledModel(LM):
    """A model whose answers are known. asked: all arguments, as the harness gave them.

    score: log-probability of a continuation after a context, and whether greedy decoding gives it. answer: what follows a prompt.
    """

    def __init__(self, score: Callable[[str, str], tuple[float, bool]], answer: Callable[[str], str]):
        super().__init__()
        self._score, self._answer = score, answer
        self.asked: list[tuple[Any, ...]] = []

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [self._score(*request.args) for request in requests]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self._answer(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no task of ours asks for it")
