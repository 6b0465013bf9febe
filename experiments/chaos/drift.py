"""Another routing table, vocabulary or text under a run that has a checkpoint: refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from experiments.chaos.cases import TRAIN, Case, assert_no_traceback, command, configuration, data, once
from experiments.tiny import TINY_WORDS, tiny_config, write_text


def cases(work: Path, full: bool) -> Sequence[Case]:
    """Five of each."""
    kinds = {"table": _table, "vocabulary": _vocabulary, "data": _data}
    return [
        Case(f"{kind}_{n}", partial(_check, work, change, word, n))
        for (kind, change), word in zip(kinds.items(), ("routing", "vocabulary", "data"), strict=True)
        for n in range(5 if full else 2)
    ]


def _trained(work: Path, folder: Path) -> None:
    config = configuration(folder, data(work), train={"steps": 2})
    status, said = command([*TRAIN, str(config), "--output", str(folder / "run")])
    assert status == 0, said


def _check(work: Path, change: Callable[[dict, int, Path], None], word: str, number: int, folder: Path) -> str:
    trained = once(work, "drift", partial(_trained, work))
    shutil.copytree(trained / "run", folder / "run")
    tree = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    tree["train"]["steps"] = 4
    change(tree, number, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    status, said = command([*TRAIN, str(folder / "config.yaml"), "--output", str(folder / "run")])
    assert status == 2, f"status {status}: {said[-400:]}"
    assert_no_traceback(said)
    assert word in said.rpartition("error: ")[2], f"{word} is not named: {said[-400:]}"
    return ""


def _table(tree: dict, number: int, folder: Path) -> None:
    tree["routing"] = [
        {"seed": 1},
        {"seed": 7},
        {"table": "balanced"},
        {"seed": 2**31},
        {"seed": 3, "table": "balanced"},
    ][number]


def _vocabulary(tree: dict, number: int, folder: Path) -> None:
    """Data prepared from other words, so that other pieces are learned."""
    _prepare(tree, folder, [f"{name}{number}ly" for name in ("wug", "blick", "dax", "fep", "zorp")])


def _data(tree: dict, number: int, folder: Path) -> None:
    """The same vocabulary over other text: two documents more."""
    old = Path(tree["data"]["path"])
    tree["vocabulary"] = tree["vocabulary"]
    text = folder / "text.jsonl"
    text.write_text((old.parent / "text.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copytree(old, folder / "prepared")
    from pangu_sigma.data.prepared import PreparedData
    from pangu_sigma.data.token_files import write_tokens

    name = ("zh", "en", "code")[number % 3]
    tokens = PreparedData(folder / "prepared").tokens(name, "train", 1 << 31)
    ids = tokens.read(0, tokens.tokens).tolist()
    ids[number], ids[number + 1] = ids[number + 1], ids[number]
    write_tokens(folder / "prepared" / name / "train", [ids])
    tree["data"]["path"] = str(folder / "prepared")


def _prepare(tree: dict, folder: Path, words: list[str]) -> None:
    from pangu_sigma.data.prepare.prepare import prepare

    before = TINY_WORDS["en"]
    TINY_WORDS["en"] = words * 3
    try:
        write_text(folder / "text.jsonl")
    finally:
        TINY_WORDS["en"] = before
    prepare(tiny_config(folder / "prepared"), [folder / "text.jsonl"], folder / "prepared")
    tree["data"]["path"] = str(folder / "prepared")
