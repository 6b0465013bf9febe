"""Mistakes that need no model to be seen are told before MindSpore is loaded, which takes seconds: here it cannot be imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import contextlib, io, json, sys
sys.modules["mindspore"] = None
from pangu_sigma.cli import main
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        except Exception as bug:
            status = f"{type(bug).__name__}: {bug}"
    print(json.dumps([status, said.getvalue()]))
"""
"""Runs commands one after another in one process, and prints status and output of each."""

MISTAKES = {
    "trian sigma_tiny": 'Unknown command "trian". Did you mean "train"?',
    "--quiet train sigma_tiny": "--quiet: options stand behind the command: pangu-sigma COMMAND --quiet",
    "train sigma_tiny --outptu new": "Unknown option: --outptu. Did you mean --output?; see pangu-sigma train --help",
    "train sigma_tiny --set train.steps 10": "into quotes; an option takes one value: --set KEY=VALUE",
    "extract RUN --keep a b -o new": "unrecognized arguments: b; put a text with blanks into quotes; an option takes one value",
    "export RUN -o new.safetensors": "--format=hf has safetensors inside",
    "train nix": "nix",
    "train ''": "config='' is not allowed: a path, as text or pathlib.Path, not blank",
    "train sigma_tiny -o ' '": "output=' ' is not allowed: a path, as text or pathlib.Path, not blank",
    "train empty.yaml": "configuration empty.yaml is empty; it must be a mapping of keys",
    "train list.yaml": "configuration list.yaml is ['a']; it must be a mapping of keys",
    "train bad.yaml": "bad.yaml",
    "train sigma_tiny --set train.compute_dtype=bfloat16 --set data.path=DATA": "on a CPU set float32",
    "train sigma_tiny --set parallel.chip=910b --set train.compute_dtype=half --set data.path=DATA": "bfloat16 needs Ascend",
    "train sigma_tiny --set parallel.expert=2 --set data.path=DATA": "start 2 with `pangu-sigma launch`",
    "train sigma_tiny --set ecss.store=file --set ecss.path=/proc/x": "ecss.path /proc/x: cannot write into /proc",
    "train sigma_tiny --set steps=4": "steps: unknown key (value 4); nearest valid key: train.steps; allowed here",
    "train sigma_tiny --set data.path=nix": "run prepare-data",
    "train sigma_tiny --device ascend --set data.path=DATA": "--device ascend: no NPU",
    "train RUN --set model.hidden=96": "model.hidden: 24 → 96",
    "train RUN --set train.optimizer.peak_lr=1": "nothing to do, and nothing was changed; raise train.steps to train on",
    "train RUN --set data.path=nix": "data.path=nix",
    "train RUN -o other": "RUN is a run, which goes on where it is: leave --output other out",
    "train EXPORT": "EXPORT",
    "train full": "full is not a run folder: it has no configuration.json; pass a configuration",
    "launch sigma_tiny --processes 3": "Unknown option: --processes",
    "launch sigma_tiny --nodes 2": "--node-rank",
    "launch sigma_tiny --set parallel.tensor=2 --set data.path=DATA": "parallel.tensor=2 needs Ascend",
    "launch RUN --set model.hidden=96": "model.hidden",
    "launch sigma_tiny --max-restarts=-1": "--max-restarts=-1 is not allowed",
    "inherit nix sigma_tiny -o new": "nix",
    "inherit file sigma_tiny -o new": "file",
    "inherit list.yaml RUN -o new": "a configuration; MODEL comes first, CONFIG second",
    "inherit RUN sigma_tiny -o new": "model.rre_layers",
    "inherit EXPORT sigma_tiny -o new": "EXPORT",
    "extend nix sigma_tiny -o new": "nix",
    "extend RUN sigma_tiny -o full": "full exists",
    "extend RUN sigma_tiny -o new": "model.hidden",
    "extend RUN sigma_tiny -o new --from-domain zh --from-scratch": "--from-domain",
    "extract nix --keep zh -o new": "nix",
    "extract RUN --keep xx -o new": "xx",
    "extract RUN -o new": "--keep",
    "extract RUN --keep zh --drop en -o new": "--drop",
    "extract RUN --keep zh -o full": "full exists",
    "extract RUN --keep zh -o new --data nix": "--data nix",
    "export nix -o new": "nix",
    "export RUN -o full": "full exists",
    "export EXPORT -o new": "EXPORT",
    "export RUN -o new --format onnx": "--format",
    "export RUN -o new --format run": "RUN",
    "evaluate nix": "nix",
    "evaluate no.yaml": "or a Hugging Face style folder: it is a configuration; `pangu-sigma train no.yaml` makes",
    "evaluate sigma_tiny": "it is a configuration; `pangu-sigma train sigma_tiny` makes a run of it",
    "evaluate runs/nope": "runs/nope is not a run folder or an exported model or a Hugging Face style folder: it is not there",
    "evaluate EXPORT/model.mindir": "it is a file of one; name its folder, EXPORT",
    "inspect bad.safetensors": "is in no layout that is read: a file that ends in .safetensors; give one of these: huggingface",
    "evaluate RUN RUN": "2 models without --against",
    "evaluate --against RUN": "MODEL",
    "evaluate RUN --against nix": "nix",
    "evaluate RUN --against RUN RUN": "1 runs against 2; --against takes as many",
    "evaluate RUN --input file.jsonl --domain en --all-samples": "file.jsonl: no line can be used; the first",
    "evaluate RUN --against EXPORT": "EXPORT",
    "evaluate RUN --json nix/x.json": "--json nix/x.json: No such file or directory; name another file",
    "benchmark RUN ocnli --files full --json file": "file exists; choose another path with --json",
    "benchmark nix ocnli --files full": "nix",
    "benchmark RUN ocnli --files nix": "nix",
    "benchmark RUN ocnli --files full --domain xx": "xx",
    "report nix": "nix",
    "report EXPORT": "EXPORT",
    "report RUN --against nix": "nix",
    "finetune nix --task qa --train-file file.jsonl -o new": "nix",
    "finetune RUN --task nix --train-file file.jsonl -o new": "nix",
    "finetune RUN --task qa --train-file nix.jsonl -o new": "nix.jsonl",
    "finetune RUN --task qa --train-file file.jsonl -o new": "file.jsonl",
    "finetune RUN --task qa --train-file file.jsonl -o full": "full exists",
    "finetune RUN --task qa --train-file file.jsonl -o new --domain xx": "xx",
    "finetune RUN --task qa --train-file file.jsonl -o new --set finetune.epochz=1": "finetune.epochz",
    "finetune RUN --task qa --train-file file.jsonl -o new --learn experts --set finetune.learn=all": (
        "--learn experts, and by --set finetune.learn is all; leave one of them away"
    ),
    "finetune RUN --task qa --train-file file.jsonl": "--output",
    "generate nix --domain en --prompt x": "nix",
    "generate RUN --domain en": "--prompt",
    "generate RUN --domain en --prompt x --temperature -1": "--temperature=-1.0 is not allowed",
    "generate RUN --prompt x": "say with --domain which domain answers; the model has zh, en, code",
    "generate RUN --domain en --prompt The quick fox": "unrecognized arguments: quick fox; put a text with blanks into quotes",
    "generate RUN --domain en --prompt x --seed 1.5": "Invalid value for --seed: invalid literal for int() with base 10: '1.5'",
    "generate RUN --domain en --domain zh --prompt x": "--domain has 2 names for 1 prompts",
    "generate RUN --domain en --prompts nix": "--prompts nix",
    "generate RUN --domain en --prompts old.svg": "--prompts old.svg: line 1 is empty, or not UTF-8; write a prompt a line",
    "generate RUN --domain en --prompt x --stop ''": "stop: a stop string is empty",
    "chat nix": "is not a run folder",
    "chat RUN --domain xx": "unknown domain 'xx'",
    "serve nix --port 0": "is not a run folder",
    "serve RUN --port 99999999": "--port 99999999 is not allowed",
    "serve RUN --set lanez=1": "lanez: unknown key (value 1); nearest valid key: lanes; allowed here: lanes, waiting",
    "serve RUN --host 203.0.113.7": "203.0.113.7",
    "serve RUN --api-key-file nix": "--api-key-file nix: No such file",
    "plan nix --devices 8": "nix",
    "plan sigma_1t": "--devices",
    "plan sigma_1t --devices 7": "7",
    "prepare-data nix": "nix",
    "prepare-data sigma_tiny --input nix.jsonl": "nix.jsonl: cannot be read",
    "prepare-data sigma_tiny --input file": "file",
    "prepare-data sigma_tiny --set data.domain_of={a:zh}": "data.domain_of.a:zh: has no value; write KEY: VALUE, with a blank",
    "prepare-data sigma_tiny --set 'data.domain_of={*:zh}'": "quote a text with : * & or [",
    "prepare-data sigma_tiny --input parquet.jsonl": "it begins as a .parquet file; end its name in .parquet",
    "prepare-data sigma_tiny --input zst.jsonl.gz": "it begins as a .zst file; end its name in .jsonl.zst, .json.zst",
    "prepare-data sigma_tiny --input file.jsonl --extend --set data.path=RUN": "RUN: no folder in it has a manifest.json",
    "prepare-data sigma_tiny --input file.jsonl --extend --set data.path=nix": "--extend: set data.path to prepared data that gets",
    "train sigma_tiny --set data.path=nix/x": "data.path=nix/x is not there (relative to /",
    "train sigma_tiny --set data.domains_per_step=5": "data.domains_per_step=5 is more than the 4 domains",
    "inspect runs/nothing": "runs/nothing is not there: neither a model nor a configuration; check the path",
    "inspect nix": "nix",
    "inspect RUN --drop zh --drop en --drop code": "--drop zh, en, code: no domain would be left",
}
"""Command → words that its message has. RUN, EXPORT and DATA are a run, an exported model and prepared data; `nix` is nothing."""


@pytest.fixture(scope="module")
def told(tiny_run, tiny_export, tiny_data, tmp_path_factory) -> dict[str, tuple[int | str, str]]:
    """Status and output of each command, with the names of the table for its paths."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in {
        "file": "hello",
        "file.jsonl": "hello\n" * 9,
        "bad.yaml": "name: [1\n",
        "full/x": "",
        "old.svg": "",
        "empty.yaml": "",
        "list.yaml": "- a",
        "bad.safetensors": "xxxxxxxxxxxxxxxxxx",
        "parquet.jsonl": "PAR1 and more",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "zst.jsonl.gz").write_bytes(b"(\xb5/\xfd and more")
    (folder / "link").symlink_to("nowhere")
    paths = {"RUN": tiny_run, "EXPORT": tiny_export, "DATA": tiny_data}
    commands = []
    for line in MISTAKES:
        for name, path in paths.items():
            line = line.replace(name, str(path))
        commands.append(shlex.split(line))
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(folder.rglob("*")) == before, "a refused command leaves nothing behind"
    found = {}
    for line, answer in zip(MISTAKES, done.stdout.splitlines(), strict=True):
        status, said = json.loads(answer)
        for name, path in paths.items():
            said = said.replace(str(path), name)
        found[line] = status, said
    return found


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_before_mindspore_is_loaded(told, line):
    status, said = told[line]
    assert status == 2, f"{status}: {said}"
    message = said[said.rindex("error: ") :]
    assert MISTAKES[line] in message
    assert "Traceback" not in said
