"""The code that is copied into Hugging Face style folders: its tokenizer gives our ids, and it needs nothing of this package.

The tokenizer's reader of texts runs here, with the transformers that MindFormers brings; model and tokenizer as a whole run in
tests/convert/test_transformers.py, with torch.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.convert.conversion import HF_CODE
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.stored.hf_config import CODE, code_files, tokenizer_config_json
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import FIRST_BYTE, FIRST_ENGLISH

LANGUAGES = {"zh": "text", "en": "text", "mixed": "bilingual", "python": "code", "java": "code"}
DOMAINS = [
    Domain(i, f"{language}{slot}", form, language, slot, 0, 1, 1.0)
    for slot in (0, 1)
    for i, (language, form) in enumerate(LANGUAGES.items())
]
PROMISED = {"torch", "transformers", "sentencepiece", "jieba", "__future__", "typing", "json", "re", "shutil", "struct"}
PROMISED |= {"collections", "functools", "pathlib"}
"""Packages that the code may import."""
WORDS = st.sampled_from(
    [*"▁▂▃㎏\u3000\ufeffé𠀀🙂", "\r\n", "<eot>", "A b\n", "今天天气不错", "我们，去 公园", "the cat sees", "ＡＢ１"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map("".join)


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("their_tokenizer", HF_CODE / "tokenization_pangu_sigma.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    """A slot with a row for every id, and one with few: the bytes and every 40th piece."""
    english = train_english(["the cat sees a dog and likes the small old house"] * 40, 270)
    size = Tokenizer.whole(alpha_model(), english, 1).size
    few = np.array([*range(10), *range(FIRST_BYTE - 4, FIRST_ENGLISH), *range(13, FIRST_BYTE - 4, 40), size - 1])
    rows = np.full((2, size), -1)
    rows[0], rows[1, : len(few)] = np.arange(size), few
    return Tokenizer(alpha_model(), english, rows)


@pytest.fixture(scope="module")
def reader(ours, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save(folder)
    files = [(folder / name).read_bytes() for name in ("vocabulary.json", "pangu_alpha.model", "english.model")]
    pytest.importorskip("transformers")
    return module().Reader(*files, json.loads(json.dumps(tokenizer_patterns())))


def tokenizer_patterns() -> dict[str, str]:
    class Model:
        """What `tokenizer_config_json` reads of a model."""

        from experiments.tiny import tiny_config

        config = tiny_config(Path("data"))

    patterns: dict[str, str] = tokenizer_config_json(Model())["patterns"]  # type: ignore[arg-type]
    return patterns


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, domain=st.sampled_from(DOMAINS))
def test_ids_of_any_text_in_any_domain_are_ours_and_come_back_as_ours_do(ours, reader, text, domain):
    theirs = {"format": domain.format, "language": domain.language, "slot": domain.slot}
    try:
        wanted = ours.prompt(text, domain)
    except DataError:  # half a surrogate pair
        with pytest.raises(UnicodeEncodeError):
            reader.ids(text, theirs)
        return
    ids = reader.tag(text, theirs) + reader.ids(text, theirs)
    assert ids == wanted
    assert reader.text(ids, True) == ours.decode(ids)


def test_every_id_has_a_name_of_its_own_and_control_pieces_are_shown_or_skipped(ours, reader):
    assert len({*reader.names}) == ours.size
    assert [reader.id_of_name[name] for name in reader.names] == list(range(ours.size))
    assert (reader.text([9, 40_002], False), reader.text([9, 40_002], True)) == ("<eot><Python>", "")
    for strange in (-100, ours.size):
        with pytest.raises(ValueError, match=rf"token id {strange} is not in the vocabulary, 0 … {ours.size - 1}"):
            reader.text([9, strange], True)


def test_it_reads_with_a_jieba_of_its_own_and_can_be_copied_to_other_processes(reader):
    domain = {"format": "text", "language": "zh", "slot": 0}
    assert reader.ids("今天天气不错", domain) == copy.deepcopy(reader).ids("今天天气不错", domain)
    assert reader._jieba is not importlib.import_module("jieba").dt, "words that are added there would change ids"


def test_the_code_imports_only_what_is_promised_and_is_short():
    lines = {}
    for name in code_files():
        text = (HF_CODE / name).read_text(encoding="utf-8")
        lines[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {each.partition(".")[0] for each in names}
            assert tops <= PROMISED, name
    # 20 of them refuse by name what transformers asks for and is not there, 51 are for rows, 6 split its `forward` into steps
    assert lines["modeling_pangu_sigma.py"] + lines["configuration_pangu_sigma.py"] <= 377
    assert sorted(lines) == sorted(file.name for file in HF_CODE.glob("*.py"))
    for written in CODE.values():
        file, _, cls = written.partition(".")
        assert f"class {cls}(" in (HF_CODE / f"{file}.py").read_text(encoding="utf-8")
