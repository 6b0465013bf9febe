"""transformers 5, in the environment of the peers and without this package, answers and learns as we do from an exported folder."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.alpha_peers import peers_or_skip, skip_without
from helpers.dense_runs import write_dense_run
from helpers.slow_decoder import SlowDecoder
from safetensors.numpy import load_file

from experiments.tiny import tiny_tree, write_text
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.text import generate, open_engine
from pangu_sigma.stored.hf_folder import name_in_folder
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model

pytestmark = pytest.mark.slow

MOST = 1e-5
"""Largest difference of two logits."""
STRANGE = " 今天天气不错，ＡＢｃ㎏ the cat▁▂▃\t\r\n\u3000𠀀é🙂 def f(x): <eot>"
FORMS: dict[str, dict[str, Any]] = {
    "paper": {"experts_per_domain": 4},
    "segments": {"segments": ["own", "own", "common", "common"], "common_experts": 3, "activation": "tanh"},
    "rows": {
        "dense_layers": 1,
        "rows": [
            {"order": 1, "rows": 900, "width": 8},
            {"order": 2, "rows": 5_000, "width": 10},
            {"order": 2, "rows": 300, "width": 4, "kind": "own"},
            {"order": 2, "rows": 1, "width": 2},  # no token met it
        ],
    },
    "dense": {"dense_layers": 3, "rre_layers": 0, "activation": "erf"},
}


def peer(*arguments: str | Path) -> str:
    """Run hf_peer.py. Skips where the environment of the peers is not there."""
    script = str(Path(__file__).parents[1] / "helpers" / "hf_peer.py")
    done = subprocess.run(
        [str(peers_or_skip()), "-I", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared text of four domains and three formats, whose slots have rows for few pieces."""
    peers_or_skip()
    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "text.jsonl")
    lines = (folder / "text.jsonl").read_text(encoding="utf-8").splitlines()
    zh, en = ([json.loads(line)["text"] for line in lines if f'"domain": "{name}"' in line] for name in ("zh", "en"))
    both = [{"domain": "bilingual", "text": f"{b} {a}"} for a, b in zip(zh, en, strict=True)]
    with (folder / "text.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in both)
    prepare(config_of(folder / "prepared", "paper"), [folder / "text.jsonl"], folder / "prepared")
    return folder / "prepared"


def config_of(data: Path, form: str) -> Any:
    tree = tiny_tree(data)
    tree["model"] |= {"seq_length": 128, "slot_rows": 700} | FORMS[form]
    tree["domains"].append({"name": "bilingual", "format": "bilingual", "language": "mixed", "slot": "bilingual"})
    tree["routing"] = {"table": "balanced", "seed": 3}
    return parse_config(tree)


@pytest.fixture(scope="module", params=FORMS)
def run(request, data, tmp_path_factory) -> StoredModel:
    return open_model(write_dense_run(config_of(data, request.param), tmp_path_factory.mktemp("run") / "run"), "run")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    return convert_model(run.path, tmp_path_factory.mktemp("hf") / "folder", "hf")


@pytest.fixture(scope="module")
def task(run, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Texts, prompts, and ids of several texts in one sequence, by domain; of which the peer gets the file."""
    asked: dict[str, Any] = {}
    lines = (Path(run.config.data.path).parent / "text.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    for domain in domains_of(run.config):
        texts = [f"{text[i % 7 :]}{STRANGE[i % 9 :] if i % 3 == 0 else ''}" for i, text in enumerate(documents[:250])]
        ids = [i for text in texts[:9] for i in (*run.tokenizer.prompt(text[:30], domain), run.tokenizer.eot)]
        asked[domain.name] = {"texts": texts, "prompts": [text[: 9 + i] for i, text in enumerate(texts[:4])]}
        asked[domain.name]["ids"] = ids[: run.config.model.seq_length]
        rng, ids_R = np.random.default_rng(domain.index), run.tokenizer.slot_rows[domain.slot]
        asked[domain.name]["drawn"] = rng.choice(ids_R[ids_R >= 0], (4, 40)).tolist()
        for ids in asked[domain.name]["drawn"]:
            ids[4::17] = ids[5::17] = [run.tokenizer.eot] * len(ids[5::17])  # an empty text, too
    file = tmp_path_factory.mktemp("task") / "task.json"
    file.write_text(json.dumps(asked))
    return file, asked


def keys_of(run: StoredModel, ids: np.ndarray, domain: Any) -> np.ndarray:
    """Keys [E, …] of the rows of sequences of several texts, by our tables."""
    positions = np.zeros_like(ids)
    for s in range(1, ids.shape[-1]):
        positions[..., s] = np.where(ids[..., s - 1] == run.tokenizer.eot, 0, positions[..., s - 1] + 1)
    return run.table.row_keys(run.config.model.rows, ids, np.full_like(ids, domain.index), positions)


def logits_of(run: StoredModel, ids_S: np.ndarray, domain: Any) -> np.ndarray:
    """Our logits of one sequence of several texts, each of which begins anew behind <eot>, over the rows that are in use."""
    decoder, parts = SlowDecoder(run), []
    for part in np.split(ids_S, np.flatnonzero(ids_S == run.tokenizer.eot) + 1):
        if len(part):
            decoder.begin(0, domain)
            parts += decoder.read([Chunk(0, part.tolist(), len(part))])
    return np.concatenate(parts)[:, run.tokenizer.slot_rows[domain.slot] >= 0]


def test_ids_logits_and_greedy_answers_are_ours(run, folder, task, tmp_path):
    file, asked = task
    peer("answer", folder, file, tmp_path / "said")
    said, logits = json.loads((tmp_path / "said.json").read_text()), np.load(tmp_path / "said.npz")
    engine, tokenizer = open_engine(run.path), run.tokenizer
    for domain in domains_of(run.config):
        mine, theirs = asked[domain.name], said[domain.name]
        assert theirs["ids"] == [tokenizer.prompt(text, domain) for text in mine["texts"]]
        assert theirs["decoded"] == [tokenizer.decode(ids) for ids in theirs["ids"]]
        ours_SR, found_SV = logits_of(run, np.array(mine["ids"]), domain), logits[domain.name]
        ids_R = tokenizer.slot_rows[domain.slot]
        assert np.abs(ours_SR - found_SV[:, ids_R[ids_R >= 0]]).max() <= MOST, domain.name
        assert (np.delete(found_SV, ids_R[ids_R >= 0], axis=1) == np.finfo(np.float32).min).all()
        answers = generate(engine, [(domain.name, prompt) for prompt in mine["prompts"]], 64)
        for answer, prompt, new in zip(answers, mine["prompts"], theirs["greedy"], strict=True):
            end = new.index(tokenizer.eot) if tokenizer.eot in new else len(new)
            assert answer.ids[len(tokenizer.prompt(prompt, domain)) :][:end] == new[:end]


def test_what_a_cache_knows_is_what_the_whole_text_says_whatever_becomes_of_the_cache(run, folder, task, tmp_path):
    file, asked = task
    peer("follow", folder, file, tmp_path / "keys")
    found = np.load(tmp_path / "keys.npz")
    for domain in list(domains_of(run.config))[1::2]:
        ours = keys_of(run, np.array(asked[domain.name]["drawn"]), domain)
        assert (found[domain.name] == ours).all() and found[domain.name].shape == ours.shape


@pytest.mark.parametrize("verb", ["full", "lora"])
def test_a_step_of_training_comes_back_with_its_bits(run, folder, task, tmp_path, verb):
    if verb == "lora":
        skip_without(peers_or_skip(), "peft")
    peer(verb, folder, task[0], tmp_path / "saved")
    again = open_model(convert_model(tmp_path / "saved", tmp_path / "again", "run"), "run")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert again.tensors.keys() == run.tensors.keys()
    assert all(again.tensor(name).tobytes() == saved[name_in_folder(name)].tobytes() for name in again.tensors)
    assert (again.table.hash, again.tokenizer.hash) == (run.table.hash, run.tokenizer.hash)
    for e in range(len(run.config.model.rows)):
        keys_U, weight_UW = again.rows(e)
        assert keys_U.tobytes() == run.rows(e)[0].tobytes()
        assert weight_UW.tobytes() == saved[f"rows.{e}.weight"].tobytes()
        assert (weight_UW.tobytes() != run.rows(e)[1].tobytes()) is (verb == "full" and len(keys_U) > 0)
    changed = {name for name in run.tensors if again.tensor(name).tobytes() != run.tensor(name).tobytes()}
    assert "layers.0.attention.query.weight" in changed
    assert ("embedding" in changed) is (verb == "full")


def test_the_trainer_of_transformers_evaluates(folder, task, tmp_path):
    evaluated, own, left, right = json.loads(
        peer("judge", folder, task[0], tmp_path / "out").splitlines()[-1]
    )  # DeepSpeed prints, too
    assert evaluated == pytest.approx(own, rel=1e-6)
    assert left == pytest.approx(right, rel=1e-5), "nothing predicts the first token behind padding"


REFUSED = {
    "other domain": r"token id \d+ has no row in domain zh: .* set both tokenizer\.domain and model\.config\.domain",
    "id -1": "token id -1 is not in the vocabulary, 0 … ",
    "id too large": "is not in the vocabulary, 0 … ",
    "label too large": "is not in the vocabulary, 0 … ",
    "no tables": "this model has no tables, .* from_pretrained",
    "attentions": "output_attentions is not there",
    "attentions by config": "output_attentions is not there",
    "static cache": "StaticCache is not taken",
    "positions": "position_ids is not taken",
    "embeddings": "inputs_embeds is not taken",
    "more rows": "the vocabulary is fixed",
    "more tokens": "'<new>' cannot be added: the vocabulary is fixed",
    "more special tokens": "'<CLS>' cannot be added: the vocabulary is fixed",
    "two texts": "a pair of texts is not taken",
    "decoded -100": r"ValueError: token id -100 is not in the vocabulary, 0 … \d+",
    "decoded too large": r"ValueError: token id \d+ is not in the vocabulary, 0 … \d+",
    "piece -1": "ValueError: token id -1 is not in the vocabulary",
    "too long": "this model reads 128; cut it, or lower max_new_tokens",
    "chat": "tokenizer.chat_template is not set",
}
"""What is not there, and the beginning of the message that says so."""


def test_what_is_not_there_is_refused_by_its_name(folder, task, tmp_path):
    said = json.loads(peer("refuse", folder, task[0], tmp_path / "out").splitlines()[-1])
    assert said.keys() == REFUSED.keys()
    assert {name: text for name, text in said.items() if not re.search(REFUSED[name], text)} == {}
