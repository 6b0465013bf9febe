"""Loaders of Chinese benchmarks for lm-evaluation-harness, from their published files. Needs nothing of this project.

Files are at FOLDER/<task>/<published file name>; --metadata '{"data": "FOLDER"}' tells the harness FOLDER. Each function is the
`custom_dataset` of tasks whose YAML configures it by `dataset_kwargs`. It returns the split "items", and the split "skipped":
lines that could not be used, each with what was expected. A missing or unreadable file, or one without a usable line, is an error.

A text that would not fit into seq_length tokens (also in the metadata, by default 1,024), counted as one token per character, is
cut, and its item has "cut" set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict

logger = logging.getLogger("pangu_sigma.evaluate.benchmarks.tasks")

_ASKING = "阅读文章：\n问：\n答："
"""Fixed text in the template of questions on a document."""
_BLANK, _IDIOM, _MASK = "XXXXX", re.compile(r"#idiom\d+#"), re.compile(r"(?:<mask>)+")
_SHOWN = 5
"""Number of skipped lines that the log explains; all of them are in the split "skipped"."""

Item = dict[str, Any]
ItemRows = Iterator[tuple[str, Any]]
"""Rows from which items are made, each after its location in the file; a `NoItem` for a row that could not be read."""


class NoItem(ValueError):
    """Error of a line or entry of a benchmark's file of which no item can be made; the message names what was expected."""


class TaskFiles(NamedTuple):
    """Location of a benchmark's files. data: folder of all benchmarks. folder: name of this one's folder in it. published: URL of
    the page with the files and their format. seq_length: maximum number of tokens of a text, one counted for each character."""

    data: str | None
    folder: str
    published: str
    seq_length: int = 1024

    def path(self, file: str) -> Path:
        """Return the path of a benchmark's file. Raises FileNotFoundError if it is missing, ValueError if no folder was given."""
        if not self.data:
            raise ValueError(
                f"{self.folder} reads files, and no folder was given: --files FOLDER of pangu-sigma benchmark, or --metadata "
                f'\'{{"data": "FOLDER"}}\' of lm_eval; it expects FOLDER/{self.folder}/{file}, published at {self.published}'
            )
        path = Path(self.data) / self.folder / file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there; {self.folder} is published at {self.published}, and its file {file} belongs there"
            )
        return path

    def room(self, *others: str | int) -> int:
        """Return how many characters of a text, at least 1, fit beside `others` (texts or lengths), an <eot> and one new token."""
        return max(1, self.seq_length - 2 - sum(o if isinstance(o, int) else len(o) for o in others))

    def json_lines(self, file: str) -> ItemRows:
        """Yield the objects of a JSON Lines file, each after its location: file and line number."""
        for number, line in enumerate(self.path(file).read_bytes().split(b"\n"), 1):
            if line.strip():
                yield f"{file}:{number}", _parsed(line)

    def json_file(self, file: str) -> Any:
        """Read a file that is one JSON value. Raises ValueError if it is not."""
        path = self.path(file)
        try:
            return json.loads(path.read_bytes().decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON in UTF-8: {error}; expected: the file of {self.published}") from error

    def items(self, rows: ItemRows, item: Callable[[Any], Iterable[Item]]) -> DatasetDict:
        """Make a data set of the splits "items" and "skipped". item: function that makes the items of a row; if it raises NoItem,
        the row goes to "skipped". Raises ValueError if there is no item."""
        items, skipped = list[Item](), list[dict[str, str]]()
        for where, row in rows:
            try:
                if isinstance(row, NoItem):
                    raise row
                items += item(row)
            except NoItem as reason:
                skipped.append({"where": where, "why": str(reason)})
        shown = "; ".join(f"{each['where']}: {each['why']}" for each in skipped[:_SHOWN])
        if not items:
            raise ValueError(
                f"{Path(self.data or '') / self.folder} has no usable item: {shown or 'its file is empty'}; expected is the format "
                f"of {self.published}"
            )
        if skipped:
            logger.warning(
                "%s: %d lines or entries skipped, %d items are left: %s", self.folder, len(skipped), len(items), shown
            )
        if cut := sum(each["cut"] for each in items):
            logger.warning(
                "%s: %d of %d items were cut to seq_length=%d tokens of a character each",
                *(self.folder, cut, len(items), self.seq_length),
            )
        columns = {key: [each[key] for each in skipped] for key in ("where", "why")}
        return DatasetDict({"items": Dataset.from_list(items), "skipped": Dataset.from_dict(columns)})


def labelled(
    file: str,
    template: str,
    labels: Mapping[str, str] | str,
    cut: str | None = None,
    candidates: int | None = None,
    **source: Any,
) -> DatasetDict:
    """Load a classification task, as a template with each label's word: CMNLI, OCNLI, AFQMC, CSL, CLUEWSC2020, TNEWS, IFLYTEK.

    template: text with fields of a line in braces, or of the object "target" in it, and {label}. labels: the word of each label, or
    the name of a file with them. cut: field to cut if the text is too long. candidates: number of labels to choose from: the true
    one, and those whose SHA-256 with the text is smallest, so that each item has its own reproducible draw. None: all labels.
    """
    of = _task_files(source)
    words = dict(_labels(of, labels)) if isinstance(labels, str) else dict(labels)
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name and name != "label"]

    def item(row: Any) -> list[Item]:
        label = _text(row, "label")
        if label not in words:
            raise NoItem(f"label: one of {', '.join(list(words)[:20])} expected, found {label!r}")
        inner = row.get("target", row)
        values = {name: _text(row if name in row else inner, name) for name in fields}
        shortened = False
        if cut:
            room = of.room(template.format(label=max(words.values(), key=len), **values | {cut: ""}))
            shortened, values[cut] = len(values[cut]) > room, values[cut][:room]
        offered = _drawn(list(words), label, "".join(values.values()), candidates)
        texts = [template.format(label=words[each], **values) for each in offered]
        return [{"texts": texts, "gold": offered.index(label), "cut": shortened}]

    return of.items(of.json_lines(file), item)


def squad(file: str, answer: int, **source: Any) -> DatasetDict:
    """Load questions on paragraphs, in SQuAD's format: CMRC2018, DRCD. answer: maximum tokens of an answer."""
    of = _task_files(source)

    def rows() -> ItemRows:
        for article_at, article in _each(of.json_file(file), "data", file):
            for paragraph_at, paragraph in _each(article, "paragraphs", article_at):
                for at, question in _each(paragraph, "qas", paragraph_at):
                    yield at, question if isinstance(question, NoItem) else (paragraph, question)

    def item(row: Any) -> list[Item]:
        document, question = _text(row[0], "context"), _text(row[1], "question")
        answers = [_text(each, "text") for each in _list(row[1], "answers")]
        return [_question(of, document, question, answers, answer)]

    return of.items(rows(), item)


def dureader(file: str, answer: int, **source: Any) -> DatasetDict:
    """Load DuReader's search engine questions for lm-evaluation-harness. An item has a question, its answers, and as document all
    paragraphs of the first one marked as selected, cut to leave room for an answer. answer: maximum tokens of that answer."""
    of = _task_files(source)

    def item(row: Any) -> list[Item]:
        question, answers = _text(row, "question"), _texts(row, "answers")
        selected = [
            each for each in _list(row, "documents") if isinstance(each, dict) and each.get("is_selected") is True
        ]
        if not selected:
            raise NoItem("documents: one of them with is_selected true expected")
        document = "".join(_texts(selected[0], "paragraphs"))
        return [_question(of, document, question, answers, answer)]

    return of.items(of.json_lines(file), item)


def webqa(file: str, **source: Any) -> DatasetDict:
    """Load WebQA's questions, without a text to read. An item's answers are those of all its evidences that have one."""
    of = _task_files(source)
    tree = of.json_file(file)
    if not isinstance(tree, dict):
        raise ValueError(f"{of.path(file)}: an object of questions expected, found {_shown(tree)}")

    def item(row: Any) -> list[Item]:
        question, evidences = _text(row, "question"), _field(row, "evidences")
        if not isinstance(evidences, dict):
            raise NoItem(f"evidences: an object expected, found {_shown(evidences)}")
        told = chain.from_iterable(_texts(each, "answer") for each in evidences.values())
        answers = list(dict.fromkeys(each for each in told if each != "no_answer"))
        if not answers:
            raise NoItem("evidences: an answer in one of them expected, all have no_answer")
        return [{"question": question, "answers": answers, "cut": False}]

    return of.items(((f"{file}: {key}", row) for key, row in tree.items()), item)


def cloze(files: Mapping[str, str], answer: int, answers: str | None = None, **source: Any) -> DatasetDict:
    """Load passages with a missing word: PD&CFT, CMRC2017. The prompt is the passage up to that word.

    files: file names by the name of the metric; items alternate between files, so that the first ones are from all. answer: maximum
    tokens of an answer. answers: file of the answers, if separate from the questions. Blanks between words are removed.
    """
    of = _task_files(source)
    known = dict(_answers(of, answers)) if answers else None

    def rows(metric: str, file: str) -> ItemRows:
        for where, lines in _passages(of.path(file), file):
            yield where, (metric, lines)

    def item(row: Any) -> list[Item]:
        metric, lines = row
        sentences, question, word = _cloze(lines, known)
        text = "".join(each for each in sentences if _BLANK not in each) + question.partition(_BLANK)[0]
        if not text:
            raise NoItem(f"a word before {_BLANK} expected")
        room = of.room(answer)
        return [{"text": text[-room:], "answer": word, "metric": metric, "cut": len(text) > room}]

    turns = zip_longest(*(rows(metric, file) for metric, file in files.items()))
    return of.items((row for turn in turns for row in turn if row is not None), item)


def chid(file: str, answers: str, **source: Any) -> DatasetDict:
    """Load passages with a missing idiom and ten candidates: ChID in CLUE's version. file, answers: names of the two files. The
    marks of a passage's other missing idioms are removed."""
    of = _task_files(source)
    known = of.json_file(answers)

    def item(row: Any) -> list[Item]:
        candidates = _texts(row, "candidates")
        found = []
        for passage in _texts(row, "content"):
            for blank in _IDIOM.finditer(passage):
                gold = known.get(blank[0]) if isinstance(known, dict) else None
                if not isinstance(gold, int) or not 0 <= gold < len(candidates):
                    raise NoItem(
                        f"{blank[0]}: a number below {len(candidates)} in {answers} expected, found {_shown(gold)}"
                    )
                sides = (_IDIOM.sub("", passage[: blank.start()]), _IDIOM.sub("", passage[blank.end() :]))
                found.append(_filled(of, *sides, candidates, gold))
        if not found:
            raise NoItem("content: a passage with a blank such as #idiom000378# expected")
        return found

    return of.items(of.json_lines(file), item)


def sentence_cloze(file: str, before: int, after: int, **source: Any) -> DatasetDict:
    """Load passages with missing sentences: CMRC2019, an item for each blank. before, after: maximum characters on its sides."""
    of = _task_files(source)

    def item(row: Any) -> list[Item]:
        passage, choices, answers = _text(row, "context"), _texts(row, "choices"), _list(row, "answers")
        found = []
        for number, gold in enumerate(answers, 1):
            left, blank, right = passage.partition(f"[BLANK{number}]")
            if not blank:
                raise NoItem(f"context: [BLANK{number}] expected, because answers has {len(answers)}")
            if not isinstance(gold, int) or not 0 <= gold < len(choices):
                raise NoItem(f"answers: numbers below {len(choices)} expected, found {_shown(gold)}")
            left, right = (re.sub(r"\[BLANK\d+\]", "", side) for side in (left[-before:], right[:after]))
            found.append(_filled(of, left, right, choices, gold))
        return found

    return of.items(_each(of.json_file(file), "data", file), item)


def c3(files: Sequence[str], template: str, **source: Any) -> DatasetDict:
    """Load multiple-choice questions on dialogues and other passages: C3. template: text with {passage}, {question}, {choice}."""
    of = _task_files(source)

    def rows() -> ItemRows:
        for file in files:
            tree = of.json_file(file)
            for at, entry in _each({"": tree}, "", file):
                if not isinstance(entry, list) or len(entry) < 2:
                    yield at, NoItem(f"[passage, questions, id] expected, found {_shown(entry)}")
                    continue
                passage, questions = entry[:2]
                for where, question in _each({"questions": questions}, "questions", at):
                    yield where, question if isinstance(question, NoItem) else (passage, question)

    def item(row: Any) -> list[Item]:
        passage, question = "".join(_texts({"passage": row[0]}, "passage")), _text(row[1], "question")
        choices, answer = _texts(row[1], "choice"), _text(row[1], "answer")
        if answer not in choices:
            raise NoItem(f"answer: one of choice expected, found {answer!r}")
        room = of.room(template.format(question=question, choice=max(choices, key=len), passage=""))
        texts = [template.format(question=question, choice=each, passage=passage[:room]) for each in choices]
        return [{"texts": texts, "gold": choices.index(answer), "cut": len(passage) > room}]

    return of.items(rows(), item)


def wplc(file: str, **source: Any) -> DatasetDict:
    """Load passages with a missing last word: Chinese WPLC. The full stop after the word is not read."""
    of = _task_files(source)

    def item(row: Any) -> list[Item]:
        text, word = _text(row, "masked_text"), _text(row, "correct_word")
        blanks = list(_MASK.finditer(text))
        if len(blanks) != 1 or not blanks[0].start():
            raise NoItem("masked_text: a text and one <mask> or more at its end expected")
        before, room = text[: blanks[0].start()], of.room(word)
        return [{"text": before[-room:], "word": word, "cut": len(before) > room}]

    return of.items(of.json_lines(file), item)


def _task_files(given: Mapping[str, Any]) -> TaskFiles:
    """Return the location of the files from the harness's arguments: all metadata, and arguments of the model."""
    length = given.get("seq_length", 1024)
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"seq_length={length!r} among the metadata is not allowed: a number of tokens, 1 or more")
    return TaskFiles(given.get("data"), given["folder"], given["published"], length)


def _question(of: TaskFiles, document: str, question: str, answers: list[str], answer: int) -> Item:
    room = of.room(_ASKING, question, answer)
    return {"document": document[:room], "question": question, "answers": answers, "cut": len(document) > room}


def _filled(of: TaskFiles, left: str, right: str, choices: Sequence[str], gold: int) -> Item:
    """Return a passage with each candidate; if it is too long, three fifths of the room are for the text before the blank."""
    room = of.room(max(choices, key=len))
    cut = len(left) + len(right) > room
    if cut:
        before = max(room * 3 // 5, room - len(right))
        left = left[-before:] if before else ""
        right = right[: room - len(left)]
    return {"texts": [left + each + right for each in choices], "gold": gold, "cut": cut}


def _drawn(labels: list[str], label: str, text: str, candidates: int | None) -> list[str]:
    """Return the labels to choose from, in their original order."""
    if candidates is None:
        return labels
    by_hash = sorted(labels, key=lambda each: hashlib.sha256(f"{text}\n{each}".encode()).digest())
    others = [each for each in by_hash if each != label]
    return sorted([label, *others[: candidates - 1]], key=labels.index)


def _labels(of: TaskFiles, file: str) -> Iterator[tuple[str, str]]:
    for where, row in of.json_lines(file):
        try:
            yield _text(row, "label"), _text(row, "label_des")
        except NoItem as reason:
            raise ValueError(f"{of.path(file).parent / where}: {reason}") from reason


def _answers(of: TaskFiles, file: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(of.path(file).read_text(encoding="utf-8-sig").splitlines(), 1):
        name, bars, answer = (each.strip() for each in line.partition("|||"))
        if not (name and bars and answer):
            raise ValueError(f"{of.path(file)}:{number}: <qid_N> ||| answer expected, found {_shown(line)}")
        yield name, answer


def _passages(path: Path, file: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the location of each passage's end, and its lines, split at |||; the last one is the question."""
    lines: list[list[str]] = []
    number = 0
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        line = raw.decode("utf-8-sig", errors="replace").replace(" ", "").replace("\r", "")
        if not line:
            continue
        lines.append(line.split("|||"))
        if len(lines[-1]) == 3 or line.startswith("<qid_"):
            yield f"{file}:{number}", lines
            lines = []
    if lines:
        yield f"{file}:{number}", lines


def _cloze(lines: list[list[str]], known: Mapping[str, str] | None) -> tuple[list[str], str, str]:
    """Return the sentences, question and answer of a passage."""
    *sentences, last = lines
    expected = 2 if known is not None else 3
    if any(len(each) != 2 for each in sentences) or len(last) != expected:
        raise NoItem(f"lines of a number ||| a sentence, then one of {expected} parts, the question, expected")
    if any("\ufffd" in each for line in lines for each in line):
        raise NoItem("text in UTF-8 expected")
    name, question = last[:2]
    word = known.get(name, "") if known is not None else last[2]
    if question.count(_BLANK) != 1:
        raise NoItem(f"{_BLANK} once in the question expected, found {question.count(_BLANK)} of them")
    if not word:
        raise NoItem(f"an answer of {name} expected")
    return [each[1] for each in sentences], question, word


def _each(parent: Any, key: str, at: str) -> ItemRows:
    """Yield the entries of a list in an object, or one `NoItem` if there is no such list."""
    if isinstance(parent, NoItem):
        yield at, parent
        return
    children = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(children, list):
        name = f" {key}" if key else ""
        yield at, NoItem(f"a list{name} expected, found {_shown(children or parent)}")
        return
    for number, child in enumerate(children):
        yield f"{at}{'.' if key else ''}{key}[{number}]", child


def _parsed(line: bytes) -> Any:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return NoItem("text in UTF-8 expected")
    except ValueError as error:
        return NoItem(f"a JSON object expected, found {_shown(line.decode('utf-8-sig').strip())} ({error})")
    return row if isinstance(row, dict) else NoItem(f"a JSON object expected, found {_shown(row)}")


def _field(row: Any, key: str) -> Any:
    if not isinstance(row, dict):
        raise NoItem(f"an object with {key} expected, found {_shown(row)}")
    if key not in row:
        raise NoItem(f"{key} expected, and not there")
    return row[key]


def _text(row: Any, key: str) -> str:
    """Return a text; several, such as CSL's keywords, are joined with commas."""
    value = _field(row, key)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        value = ",".join(value)
    if not isinstance(value, str) or not value.strip():
        raise NoItem(f"{key}: text expected, found {_shown(value)}")
    return value


def _list(row: Any, key: str) -> list[Any]:
    value = _field(row, key)
    if not isinstance(value, list) or not value:
        raise NoItem(f"{key}: a list that is not empty expected, found {_shown(value)}")
    return value


def _texts(row: Any, key: str) -> list[str]:
    found = _list(row, key)
    for each in found:
        if not isinstance(each, str):
            raise NoItem(f"{key}: a list of texts expected, found {_shown(each)} in it")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
