"""transformers 5, in the environment of the peers and without this package, answers and learns as we do from an exported folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.alpha_peers import peers_or_skip, skip_without
from helpers.dense_runs import write_dense_run
from safetensors.numpy import load_file

from experiments.tiny import tiny_tree, write_text
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import LayoutError
from pangu_sigma.generate.cpu.exact import ExactModel
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


class WithRows(ExactModel):
    """The network of reference for tokens whose rows, all entries' side by side, are e."""

    def __init__(self, run: StoredModel, e_TH: np.ndarray):
        super().__init__(run.config.model, run, run.config.model.activation)
        self.e_TH = e_TH

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if name.endswith("attention_norm"):
            x += self._tensor(name.replace("attention_norm", "row_scale")) * self.e_TH  # x is the residual, too
        return super().norm(name, x)


def keys_of(run: StoredModel, ids: np.ndarray, domain: Any) -> np.ndarray:
    """Keys [E, …] of the rows of sequences of several texts, by our tables."""
    positions = np.zeros_like(ids)
    for s in range(1, ids.shape[-1]):
        positions[..., s] = np.where(ids[..., s - 1] == run.tokenizer.eot, 0, positions[..., s - 1] + 1)
    return run.table.row_keys(run.config.model.rows, ids, np.full_like(ids, domain.index), positions)


def rows_of(run: StoredModel, ids_S: np.ndarray, domain: Any) -> np.ndarray:
    """e [S, H] of a text: zeros where no token met the row."""
    columns, counts = [], []
    for e, keys_S in enumerate(keys_of(run, ids_S, domain)):
        met, none = dict(zip(*run.rows(e), strict=True)), np.zeros(run.config.model.rows[e].width, np.float32)
        columns.append(np.stack([met.get(key, none) for key in keys_S]))
        counts.append(sum(key in met for key in keys_S))
    assert len(ids_S) < 20 or (min(counts[:3]) > 0 and max(counts) < len(ids_S)), "some rows were met, and some not"
    return np.concatenate(columns, axis=1)


def logits_of(run: StoredModel, ids_S: np.ndarray, domain: Any) -> np.ndarray:
    """Our logits of one sequence of several texts, each of which begins anew behind <eot>."""
    first = domain.slot * run.config.model.slot_rows
    wanted_R, parts = first + np.flatnonzero(run.tokenizer.slot_rows[domain.slot] >= 0), []
    for part in np.split(ids_S, np.flatnonzero(ids_S == run.tokenizer.eot) + 1):
        experts_NT = run.table.route(part, np.full_like(part, domain.index), np.arange(len(part)))
        plain = ExactModel(run.config.model, run, run.config.model.activation)
        exact = WithRows(run, rows_of(run, part, domain)) if run.config.model.rows and len(part) else plain
        parts.append(exact.logits(first + run.tokenizer.rows(part, domain), experts_NT, wanted_R))
    return np.concatenate([part for part in parts if len(part)])


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


def test_a_folder_in_float16_is_refused_with_the_way_back(folder, task, tmp_path):
    peer("half", folder, task[0], tmp_path / "half")
    with pytest.raises(LayoutError, match=r"saved in 'float16'; load it with dtype=float32 and save it again$"):
        convert_model(tmp_path / "half", tmp_path / "again", "run")


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


TASK = """
task: door_{}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {}}}}}
test_split: test
output_type: {}
doc_to_text: "{}"
doc_to_target: "{}"
{}
metric_list: [{{metric: {}}}, {{metric: {}}}]
"""


def test_lm_eval_says_of_both_the_same(run, folder, task, tmp_path):
    """A choice and a perplexity, in a domain whose texts have no tag. max_length: ours keeps room for a token of an answer, and
    scores long texts in windows of model.seq_length - 2 tokens."""
    skip_without(peers_or_skip(), "lm_eval")
    pytest.importorskip("lm_eval")
    texts = [text for text in task[1]["en"]["texts"] if text.isascii() and text.count(" ") > 8][:20]
    choices = [
        {"text": " ".join(words[:6]), "choices": [" ".join(words[6:9]), "cat dog bird", "then x"], "label": 0}
        for words in map(str.split, texts)
    ]
    for name, lines in (("choice", choices), ("text", [{"text": text} for text in texts])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = {
        "choice": ("multiple_choice", "{{text}}", "{{label}}", "doc_to_choice: choices", "acc", "acc_norm"),
        "text": ("loglikelihood_rolling", "", "{{text}}", "", "bits_per_byte", "word_perplexity"),
    }
    (tmp_path / "tasks").mkdir()
    for name, filled in parts.items():
        content = TASK.format(name, tmp_path / f"{name}.jsonl", *filled)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(content)
    theirs = results(
        [str(peers_or_skip()), "-I", "-m", "lm_eval"], "hf", tmp_path, pretrained=folder, domain="en", trust_remote_code=True,
        tokenizer=peer_tokenizer(folder, tmp_path / "en"), dtype="float32", max_length=126,
    )  # fmt: skip
    ours = results(
        [sys.executable, "-m", "pangu_sigma.evaluate.lm_eval"], "pangu-sigma", tmp_path, path=run.path, domain="en"
    )  # fmt: skip
    assert theirs.keys() == ours.keys() and len(ours) >= 4
    assert {name: pytest.approx(value, abs=1e-4, rel=1e-4) for name, value in ours.items()} == theirs


def peer_tokenizer(folder: Path, output: Path) -> Path:
    """A tokenizer of the domain en, as the model card says to make one."""
    code = (
        "import sys; from transformers import AutoTokenizer as A; "
        "A.from_pretrained(sys.argv[1], trust_remote_code=True, domain='en').save_pretrained(sys.argv[2])"
    )
    subprocess.run([str(peers_or_skip()), "-I", "-c", code, str(folder), str(output)], check=True, capture_output=True)
    return output


def results(command: list[str], model: str, folder: Path, **arguments: Any) -> dict[str, float]:
    """What the harness measured, by task and metric."""
    said = ",".join(f"{name}={value}" for name, value in arguments.items())
    options = ["--tasks", "door_choice,door_text", "--include_path", str(folder / "tasks")]
    options += ["--batch_size", "4", "--device", "cpu"]
    done = subprocess.run(
        [*command, "run", "--model", model, "--model_args", said, *options, "--output_path", str(folder / model)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (folder / model).rglob("results*.json")
    measured = json.loads(file.read_text())["results"]
    return {
        f"{task} {name}": value
        for task, metrics in measured.items()
        for name, value in metrics.items()
        if isinstance(value, float) and "stderr" not in name
    }
